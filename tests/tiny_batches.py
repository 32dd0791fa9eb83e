"""Small ragged groups for every row of the algorithm table, and their log-probs computed slowly: one completion at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tests.builders import END, make_completion, make_prompt
from torch import Tensor
from transformers import PreTrainedModel

from covey.algos.credit import outcome_credit
from covey.algos.objective import Objective
from covey.algos.registry import ALGORITHMS
from covey.batch import StatsSpec, make_tokens
from covey.learner import Learner, LearnerSpec, ScoringSpec
from covey.models.policy import Policy
from covey.sampling import Sampling
from covey.tensors import Batch, GroupStats, Scores, Tokens
from covey.types import Group, Rollout, Score

TEMPERATURE = 0.7
MAX_NEW_TOKENS = 16
"""Longer than any completion here: a constant of the run, not of the step."""

PROMPT_LENGTHS = (30, 18, 25)
COMPLETION_LENGTHS = ((3, 14, 1, 9, 6), (8, 2, 11, 1, 5), (4, 7, 4, 2, 10))
# One completion that could not be scored, two whose advantage is exactly 0 between others, and a flat group.
REWARDS = ((1.0, 0.0, 0.5, None, 0.5), (0.2, 0.9, 0.4, 0.1, 0.7), (1.0, 1.0, 1.0, 1.0, 1.0))
# Right or wrong: two of four right, one of five right, and a group in which all fail.
BINARY = ((1.0, 0.0, 1.0, None, 0.0), (0.0, 1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0, 0.0))
# Rewards of the greedy completions. The second is that of a sampled one, too, whose advantage over it is exactly 0.
BASELINES = (0.3, 0.4, 1.0)
PARTS = (
    ((1.0, 0.0), (0.0, 0.0), (1.0, 2.0), (0.5, 1.0), (0.0, 1.0)),
    ((0.0, 3.0), (1.0, 3.0), (1.0, 3.0), (0.0, 3.0), (0.2, 3.0)),  # The second part is flat.
    ((1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (1.0, 1.0)),
)
PART_NAMES = ("content", "format")
PART_WEIGHTS = (1.0, 0.5)
STATS = StatsSpec(part_weights=dict(zip(PART_NAMES, PART_WEIGHTS, strict=True)))

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
ON_POLICY = Scores(old_logprobs=None, ref_logprobs=None)

# Where a row's own numbers would leave nothing to see on these batches: a clip range that every completion is outside of,
# a k as large as a group, no lower bound. (Fractions that float32 holds exactly, where the row computes with them in it.)
OPTIONS: dict[str, dict[str, Any]] = {
    "gspo": {"epsilon_low": 0.05, "epsilon_high": 0.08},
    "gmpo": {"epsilon_low": 0.2, "epsilon_high": 0.28},
    "cispo": {"epsilon_low": 0.2, "epsilon_high": 0.28},
    "sapo": {"tau_negative": 2.0},
    "passk": {"k": 2},
}


def objective_of(name: str, *, kl: str | None = None, aggregation: Any = None, **options: Any) -> Objective:
    """Return the row as it is tested here: with its own KL term and aggregation unless others are named."""
    spec = ALGORITHMS[name]
    clip = {"epsilon_low": 0.2, "epsilon_high": 0.28} if "epsilon_high" in spec.options else {}
    objective = Objective.of_row(spec, **(clip | OPTIONS.get(name, {}) | options))
    return dataclasses.replace(objective, kl=kl or spec.kl, aggregation=aggregation or spec.aggregation)


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
    """Return groups of random tokens, with parts of the reward and a greedy completion each.

    Every completion but those of length 1 finishes with the end token.
    """
    generator = torch.Generator().manual_seed(seed)

    def rollout(prompt_ids: list[int], length: int, score: Score) -> Rollout:
        ids = [*_random_ids(length - 1, generator), END] if length > 1 else _random_ids(1, generator)
        completion = make_completion(ids, logprob=-1.0)
        return Rollout(prompt_ids=prompt_ids, completion=completion, text="", reward=score, gold=None)

    groups: list[Group] = []
    for index, (prompt_length, lengths, values) in enumerate(zip(prompt_lengths, completion_lengths, rewards, strict=True)):
        prompt_ids = _random_ids(prompt_length, generator)
        parts = [dict(zip(PART_NAMES, pair, strict=True)) for pair in PARTS[index % len(PARTS)]]
        rollouts = [
            rollout(prompt_ids, length, Score(value=value, parts=parts[sample]))
            for sample, (length, value) in enumerate(zip(lengths, values, strict=True))
        ]
        baseline = rollout(prompt_ids, 1, Score(value=BASELINES[index % len(BASELINES)]))
        groups.append(Group(prompt=make_prompt(str(index)), rollouts=tuple(rollouts), baseline=baseline))
    return groups


def _random_ids(count: int, generator: torch.Generator) -> list[int]:
    return torch.randint(256, (count,), generator=generator).tolist()


def make_learner(
    policy: Policy, objective: Objective, *, cut: Cut = WHOLE, spec: LearnerSpec = SPEC, **arguments: Any
) -> Learner:
    """Return a learner that cuts its steps so; more arguments are the Learner's own."""
    max_tokens, max_shared_tokens = cut
    scoring = ScoringSpec(
        sampling=Sampling(temperature=TEMPERATURE, max_new_tokens=MAX_NEW_TOKENS),
        compute_dtype=policy.compute_dtype,
        max_tokens_per_micro_batch=max_tokens,
        max_shared_tokens=max_shared_tokens,
    )
    return Learner(policy.model, objective, scoring, spec, **arguments)


def make_batch(groups: Sequence[Group], objective: Objective, scores: Scores) -> Batch:
    """Return a batch without a learner: each completion's advantage on all its tokens, and nothing else."""
    tokens = make_tokens(groups, (), STATS)
    mask = tokens.completion_mask
    return Batch(tokens=tokens, scores=scores, advantages=outcome_credit(objective.advantages(tokens.stats), mask), mask=mask)


def shifted_scores(logprobs: Tensor, groups: Sequence[Group], *, scale: float = 0.3, seed: int = 1) -> Scores:
    """Return old and reference log-probs some tenths away from these [B, T], so that some ratios are clipped."""
    generator = torch.Generator().manual_seed(seed)
    mask = make_tokens(groups).completion_mask

    def shifted(scale: float) -> Tensor:
        noise = torch.randn(mask.shape, generator=generator, dtype=torch.float64).to(logprobs.dtype)
        return (logprobs.detach() + scale * noise) * mask

    return Scores(old_logprobs=shifted(scale), ref_logprobs=shifted(0.2))


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
    tables = [_all_logprobs(model, rollout) for rollout in rollouts]
    return [torch.stack([-(row.exp() * row).sum() for row in table]) for table in tables]


def _all_logprobs(model: PreTrainedModel, rollout: Rollout) -> Tensor:
    """Return [T, V]: the log-probs from which token t of the completion was drawn in row t."""
    ids = torch.tensor([rollout.prompt_ids + rollout.completion.token_ids])
    logits = model(input_ids=ids).logits[0] / TEMPERATURE
    return logits.log_softmax(dim=-1)[len(rollout.prompt_ids) - 1 : -1]


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
