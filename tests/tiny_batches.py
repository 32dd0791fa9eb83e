"""Small ragged groups, and GRPO written a second time: one completion at a time, full logits, plain loops, autograd."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence

import torch
from tests.builders import END, make_completion, make_prompt
from torch import Tensor
from transformers import PreTrainedModel

from covey.algos.credit import outcome_credit
from covey.algos.objective import Objective
from covey.algos.registry import ALGORITHMS
from covey.batch import make_tokens
from covey.learner import Learner, LearnerSpec, ScoringSpec
from covey.models.policy import Policy
from covey.tensors import Batch, GroupStats, Scores, Tokens
from covey.types import Group, Rollout, Score

TEMPERATURE = 0.7
MAX_NEW_TOKENS = 16
"""Longer than any completion here: a constant of the run, not of the step."""

PROMPT_LENGTHS = (30, 18, 25)
COMPLETION_LENGTHS = ((3, 14, 1, 9, 6), (8, 2, 11, 1, 5), (4, 7, 4, 2, 10))
# One completion that could not be scored, two whose advantage is exactly 0 between others, and a flat group.
REWARDS = ((1.0, 0.0, 0.5, None, 0.5), (0.2, 0.9, 0.4, 0.1, 0.7), (1.0, 1.0, 1.0, 1.0, 1.0))

Cut = tuple[int, int]
"""Tokens in a micro-batch and tokens behind one copy of a prompt, at most."""
WHOLE: Cut = (4096, 4096)
CUTS: list[Cut] = [(max_tokens, max_shared_tokens) for max_tokens in (1, 64, 4096) for max_shared_tokens in (0, 64, 4096)]

SPEC = LearnerSpec(
    learning_rate=1e-3,
    warmup_steps=0,
    num_steps=10,
    decay=False,
    max_grad_norm=1.0,
    weight_decay=0.0,
    max_new_tokens=MAX_NEW_TOKENS,
)


def stats_of(rewards: Sequence[Sequence[float | None]]) -> GroupStats:
    """Return the statistics of groups with these rewards; None = could not be scored."""
    return GroupStats(
        rewards=torch.tensor([[0.0 if reward is None else reward for reward in row] for row in rewards], dtype=torch.float64),
        scored=torch.tensor([[reward is not None for reward in row] for row in rewards]),
        lengths=torch.ones(len(rewards), len(rewards[0]), dtype=torch.long),
        parts=torch.zeros(len(rewards), len(rewards[0]), 0, dtype=torch.float64),
    )


def ragged_groups(
    rewards: Sequence[Sequence[float | None]] = REWARDS,
    *,
    prompt_lengths: Sequence[int] = PROMPT_LENGTHS,
    completion_lengths: Sequence[Sequence[int]] = COMPLETION_LENGTHS,
    seed: int = 0,
) -> list[Group]:
    """Return groups of random tokens. Every completion but those of length 1 finishes with the end token."""
    generator = torch.Generator().manual_seed(seed)

    def random_ids(count: int) -> list[int]:
        return torch.randint(256, (count,), generator=generator).tolist()

    groups: list[Group] = []
    for index, (prompt_length, lengths, values) in enumerate(zip(prompt_lengths, completion_lengths, rewards, strict=True)):
        prompt_ids = random_ids(prompt_length)
        rollouts = [
            Rollout(
                prompt_ids=prompt_ids,
                completion=make_completion([*random_ids(length - 1), END] if length > 1 else random_ids(1), logprob=-1.0),
                text="",
                reward=Score(value=value),
                gold=None,
            )
            for length, value in zip(lengths, values, strict=True)
        ]
        groups.append(Group(prompt=make_prompt(str(index)), rollouts=tuple(rollouts)))
    return groups


def make_learner(policy: Policy, objective: Objective, *, cut: Cut = WHOLE, spec: LearnerSpec = SPEC) -> Learner:
    max_tokens, max_shared_tokens = cut
    return Learner(
        policy.model,
        objective,
        ScoringSpec(
            temperature=TEMPERATURE,
            compute_dtype=policy.compute_dtype,
            max_tokens_per_micro_batch=max_tokens,
            max_shared_tokens=max_shared_tokens,
        ),
        spec,
    )


def make_batch(groups: Sequence[Group], objective: Objective, scores: Scores) -> Batch:
    """Return what `Learner.make_batch` gives, without a learner."""
    tokens = make_tokens(groups)
    advantages = objective.spec.advantage(tokens.stats, min_group_std=objective.min_group_std)
    return Batch(tokens=tokens, scores=scores, advantages=outcome_credit(advantages, tokens.completion_mask))


def shifted_scores(model: PreTrainedModel, groups: Sequence[Group], *, has_reference: bool, seed: int = 1) -> Scores:
    """Return old (and reference) log-probs some tenths away from the model's, so that some ratios are clipped."""
    generator = torch.Generator().manual_seed(seed)
    tokens = make_tokens(groups)
    logprobs = slow_logprobs(model, groups).detach() * tokens.completion_mask

    def shifted(scale: float) -> Tensor:
        noise = torch.randn(logprobs.shape, generator=generator, dtype=torch.float64).to(logprobs.dtype)
        return (logprobs + scale * noise) * tokens.completion_mask

    return Scores(old_logprobs=shifted(0.3), ref_logprobs=shifted(0.2) if has_reference else None)


def slow_logprobs(model: PreTrainedModel, groups: Sequence[Group]) -> Tensor:
    """Return log-probs [B, T], 0 beyond each completion's end: every row alone, unpadded, from its full logits."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    width = max(len(rollout.completion.token_ids) for rollout in rollouts)
    rows: list[Tensor] = []
    for rollout in rollouts:
        logprobs = _all_logprobs(model, rollout)
        picked = [logprobs[t, token] for t, token in enumerate(rollout.completion.token_ids)]
        rows.append(torch.nn.functional.pad(torch.stack(picked), (0, width - len(picked))))
    return torch.stack(rows)


def slow_entropy(model: PreTrainedModel, groups: Sequence[Group]) -> list[Tensor]:
    """Return for each completion the entropy of the distribution that each of its tokens was drawn from."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    tables = [_all_logprobs(model, rollout).detach() for rollout in rollouts]
    return [torch.stack([-(row.exp() * row).sum() for row in table]) for table in tables]


def _all_logprobs(model: PreTrainedModel, rollout: Rollout) -> Tensor:
    """Return [T, V]: the log-probs from which token t of the completion was drawn in row t."""
    ids = torch.tensor([rollout.prompt_ids + rollout.completion.token_ids])
    logits = model(input_ids=ids).logits[0] / TEMPERATURE
    return logits.log_softmax(dim=-1)[len(rollout.prompt_ids) - 1 : -1]


def slow_loss(model: PreTrainedModel, groups: Sequence[Group], objective: Objective, scores: Scores) -> Tensor:
    """Return the loss of the step as the papers write it, for the rows "grpo" and "dr_grpo"."""
    is_dr = objective.spec is ALGORITHMS["dr_grpo"]
    logprobs = slow_logprobs(model, groups)
    rollouts = [(group, rollout) for group in groups for rollout in group.rollouts]
    num_sequences = sum(rollout.reward.value is not None for _, rollout in rollouts)
    total = torch.zeros((), dtype=logprobs.dtype)
    for b, (group, rollout) in enumerate(rollouts):
        if rollout.reward.value is None:
            continue
        advantage = rollout.reward.value - statistics.mean(group.scored_rewards)
        if not is_dr:
            advantage /= statistics.stdev(group.scored_rewards) + 1e-4
        advantage = float(torch.tensor(advantage, dtype=torch.float32))  # The learner holds advantages in float32.
        length = len(rollout.completion.token_ids)
        for t in range(length):
            old = logprobs[b, t].detach() if scores.old_logprobs is None else scores.old_logprobs[b, t]
            ratio = torch.exp(logprobs[b, t] - old)
            clipped = torch.clamp(ratio, 1 - objective.clip.low, 1 + objective.clip.high)
            term = -torch.minimum(ratio * advantage, clipped * advantage)
            if scores.ref_logprobs is not None:
                difference = scores.ref_logprobs[b, t] - logprobs[b, t]
                term = term + objective.beta * (torch.exp(difference) - difference - 1)
            total = total + term / (num_sequences * (MAX_NEW_TOKENS if is_dr else length))
    return total


def gradient_of(model: PreTrainedModel, backward: Callable[[], object]) -> Tensor:
    """Return the gradient that `backward` leaves in the model, all parameters in one vector, and clear it."""
    model.zero_grad(set_to_none=True)
    backward()
    pieces = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in model.parameters()]
    model.zero_grad(set_to_none=True)
    return torch.cat([piece.reshape(-1) for piece in pieces])


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return |found - expected| / |expected|, Euclidean."""
    return float((found - expected).norm() / expected.norm())


def widened(tokens: Tokens, *, extra: int) -> Tokens:
    """Return the tokens with `extra` more columns of padding."""
    assert tokens.sampling_logprobs is not None
    return dataclasses.replace(
        tokens,
        completion_ids=torch.nn.functional.pad(tokens.completion_ids, (0, extra)),
        completion_mask=torch.nn.functional.pad(tokens.completion_mask, (0, extra)),
        sampling_logprobs=torch.nn.functional.pad(tokens.sampling_logprobs, (0, extra)),
    )
