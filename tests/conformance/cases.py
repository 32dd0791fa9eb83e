"""Small steps of training on the tiny model, and the same numbers found slowly: one completion at a time, full logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tests.builders import END, make_completion, make_prompt
from torch import Tensor
from transformers import PreTrainedModel

from covey.algos.objective import Coefficients, Objective
from covey.algos.registry import ALGORITHMS
from covey.batch import StatsSpec, make_tokens
from covey.distributed import ALONE, Ranks
from covey.learner import Learner, LearnerSpec, ScoringSpec
from covey.models.policy import Policy
from covey.sampling import Sampling
from covey.tensors import Batch, GroupStats, Scores, Tokens
from covey.token_choice import TokenChoice
from covey.types import Group, Rollout, Score

PLAIN = Sampling(temperature=0.7, max_new_tokens=16)
LENGTHS = ((3, 14, 1, 6), (8, 2, 11, 5), (4, 7, 9, 10))
REWARDS = ((1.0, 0.0, 0.5, 0.25), (0.2, 0.9, 0.5, 0.1), (0.0, 1.0, 0.0, 0.5))
WHOLE = (4096, 4096)
"""Tokens in a micro-batch and tokens behind one copy of a prompt, at most."""
CUTS = [(1, 0), (40, 0), (64, 64), WHOLE]


def stats_of(rewards: Sequence[Sequence[float | None]], **fields: Any) -> GroupStats:
    """Return the statistics of groups with these rewards; None = could not be scored."""
    given: dict[str, Any] = {
        "lengths": torch.ones(len(rewards), len(rewards[0]), dtype=torch.long),
        "parts": torch.zeros(len(rewards), len(rewards[0]), 0, dtype=torch.float64),
    }
    return GroupStats(
        rewards=torch.tensor([[reward or 0.0 for reward in row] for row in rewards], dtype=torch.float64),
        scored=torch.tensor([[reward is not None for reward in row] for row in rewards]),
        **(given | fields),
    )


def groups_of(
    rewards: Sequence[Sequence[float | None]] = REWARDS,
    lengths: Sequence[Sequence[int]] = LENGTHS,
    *,
    cut_off: frozenset[int] = frozenset(),
    seed: int = 0,
) -> list[Group]:
    """Return groups of random tokens, each completion with its end token but those `cut_off`, counted through all groups.

    Prompts have 5, 6, 7 ... tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    groups: list[Group] = []
    row = 0
    for index, (values, sizes) in enumerate(zip(rewards, lengths, strict=True)):
        prompt_ids = torch.randint(256, (5 + index,), generator=generator).tolist()
        rollouts: list[Rollout] = []
        for value, size in zip(values, sizes, strict=True):
            ids = torch.randint(256, (size,), generator=generator).tolist()
            completion = make_completion(ids if row in cut_off else [*ids[:-1], END], logprob=-1.0)
            rollouts.append(
                Rollout(prompt_ids=prompt_ids, completion=completion, text="", reward=Score(value=value), gold=None)
            )
            row += 1
        groups.append(Group(prompt=make_prompt(str(index)), rollouts=tuple(rollouts)))
    return groups


def learner_of(
    policy: Policy,
    algorithm: str = "grpo",
    *,
    cut: tuple[int, int] = WHOLE,
    sampling: Sampling = PLAIN,
    aggregation: Any = None,
    kl: str | None = None,
    coefficients: Coefficients = Coefficients(),  # noqa: B008 - frozen
    choice: TokenChoice = TokenChoice(),  # noqa: B008 - frozen
    ranks: Ranks = ALONE,
    **numbers: Any,
) -> Learner:
    """Return a learner; `numbers` are fields of LearnerSpec."""
    spec = ALGORITHMS[algorithm]
    defaults: dict[str, Any] = {"learning_rate": 1e-2, "warmup_steps": 0, "num_steps": 10, "decay": False, "max_grad_norm": 1.0}
    defaults |= {"weight_decay": 0.0, "max_new_tokens": PLAIN.max_new_tokens}
    return Learner(
        policy.model,
        Objective(
            spec=spec,
            options=spec.options,
            aggregation=aggregation or spec.aggregation,
            kl=kl or spec.kl,
            kl_cov_coefficient=1.0,
        ),
        ScoringSpec(
            sampling=sampling,
            compute_dtype=policy.compute_dtype,
            max_tokens_per_micro_batch=cut[0],
            max_shared_tokens=cut[1],
        ),
        LearnerSpec(**(defaults | numbers)),
        coefficients=coefficients,
        choice=choice,
        ranks=ranks,
    )


def batch_of(
    learner: Learner,
    groups: Sequence[Group],
    *,
    old: Tensor | None = None,
    ref: Tensor | None = None,
    stats: StatsSpec = StatsSpec(),  # noqa: B008 - frozen
) -> Batch:
    """Return the step's batch with the given log-probs of frozen models."""
    return learner.make_batch(make_tokens(groups, (), stats), Scores(old_logprobs=old, ref_logprobs=ref))


def noisy(logprobs: Tensor, *, scale: float, seed: int) -> Tensor:
    """Return log-probs some tenths away, so that ratios are not 1 and some are clipped."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(logprobs.shape, generator=generator, dtype=torch.float64)
    return logprobs.detach() + scale * noise.to(logprobs.dtype)


def alone(model: PreTrainedModel, rollout: Rollout, *, temperature: float = PLAIN.temperature) -> Tensor:
    """Return the log-probs [T, V] that the completion's tokens were drawn from: this row alone, without any padding."""
    ids = torch.tensor([rollout.prompt_ids + rollout.completion.token_ids])
    logits = model(input_ids=ids).logits[0, len(rollout.prompt_ids) - 1 : -1]
    return (logits / temperature).log_softmax(dim=-1)


def rows_of(groups: Sequence[Group]) -> list[Rollout]:
    return [rollout for group in groups for rollout in group.rollouts]


def slow_logprobs(model: PreTrainedModel, groups: Sequence[Group]) -> Tensor:
    """Return the log-probs [B, T] of all completions, each scored alone; 0 beyond a completion's end."""
    rows = rows_of(groups)
    width = max(len(rollout.completion.token_ids) for rollout in rows)
    pieces: list[Tensor] = []
    for rollout in rows:
        found = alone(model, rollout).gather(1, torch.tensor(rollout.completion.token_ids)[:, None])[:, 0]
        pieces.append(torch.nn.functional.pad(found, (0, width - len(found))))
    return torch.stack(pieces)


def gradient_of(model: PreTrainedModel, backward: Callable[[], object]) -> Tensor:
    """Return the gradient that `backward` leaves in the model, all parameters in one vector, and clear it."""
    model.zero_grad(set_to_none=True)
    backward()
    pieces = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in model.parameters()]
    model.zero_grad(set_to_none=True)
    return torch.cat([piece.reshape(-1) for piece in pieces])


def gradient_from(model: PreTrainedModel, loss: Tensor) -> Tensor:
    """Return the gradient of a loss that was found in another way, as one vector."""
    return gradient_of(model, loss.backward)


def step_gradient(learner: Learner, batch: Batch) -> Tensor:
    """Return the gradient of the whole step's loss."""
    return gradient_of(learner.model, lambda: learner.accumulate_gradient(batch))


def distance(found: Tensor, expected: Tensor) -> float:
    """Return |found - expected| / |expected|, Euclidean."""
    return float((found - expected).norm() / expected.norm())


def with_garbage(tokens: Tokens) -> Tokens:
    """Return the tokens with other ids and log-probs wherever no completion is."""
    outside = ~tokens.completion_mask
    tokens.completion_ids[outside] = torch.randint(256, (int(outside.sum()),), generator=torch.Generator().manual_seed(3))
    return tokens
