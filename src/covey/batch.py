"""From scored groups to the tensors of one step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float64
from torch import Tensor

from covey.tensors import Batch, GroupStats, Scores, Tokens
from covey.types import Group, Rollout


@dataclass(frozen=True, kw_only=True, slots=True)
class StatsSpec:
    """What an estimator needs to know of the reward, and which rollouts it may see."""

    reward_low: float = 0.0
    reward_high: float = 1.0
    part_weights: Mapping[str, float] = field(default_factory=dict)
    """The parts that the reward declares, with their weights. What else a score holds is information."""
    masks_truncated: bool = False
    """Whether a completion that hit the token limit is left out, as if it could not be scored."""


def group_stats(groups: Sequence[Group], spec: StatsSpec = StatsSpec()) -> GroupStats:
    """Return rewards, lengths and reward parts as [P, G] tensors; an unscorable rollout is marked, not zeroed."""
    part_names = sorted(spec.part_weights)
    rows = [group.rollouts for group in groups]
    return GroupStats(
        rewards=_float64([[rollout.reward.value or 0.0 for rollout in row] for row in rows]),
        scored=torch.tensor([[is_scored(rollout, spec) for rollout in row] for row in rows]),
        lengths=torch.tensor([[len(rollout.completion.token_ids) for rollout in row] for row in rows]),
        parts=_float64([[[rollout.reward.parts.get(name, 0.0) for name in part_names] for rollout in row] for row in rows]),
        baseline=_baselines(groups, spec),
        reward_low=spec.reward_low,
        reward_high=spec.reward_high,
        part_weights=_float64([spec.part_weights[name] for name in part_names]),
    )


def is_scored(rollout: Rollout, spec: StatsSpec) -> bool:
    """Return whether the rollout counts in its group."""
    is_left_out = spec.masks_truncated and rollout.completion.finish_reason == "length"
    return rollout.reward.value is not None and not is_left_out


def _baselines(groups: Sequence[Group], spec: StatsSpec) -> Float64[Tensor, "P"] | None:
    baselines = [group.baseline for group in groups if group.baseline is not None]
    if len(baselines) < len(groups):
        return None
    return _float64([baseline.reward.value if is_scored(baseline, spec) else torch.nan for baseline in baselines])


def make_tokens(
    groups: Sequence[Group],
    left_out: Sequence[Group] = (),
    spec: StatsSpec = StatsSpec(),
    *,
    is_on_policy: bool = True,
) -> Tokens:
    """Return the step's token tensors, [B, T] with B = P * G rows in group order.

    The mask is made from lengths. The row of a rollout that does not count in its group is masked whole: it leaves
    numerator and denominators alike. `left_out` are groups sampled in the same step that are not trained on.
    `is_on_policy`: whether the present policy has sampled them; if not, their log-probs say nothing about it.
    """
    stats = group_stats([*groups, *left_out], spec)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    width = max(len(rollout.completion.token_ids) for rollout in rollouts)
    completion_ids = torch.zeros(len(rollouts), width, dtype=torch.long)
    sampling_logprobs = torch.zeros(len(rollouts), width)
    for row, rollout in enumerate(rollouts):
        length = len(rollout.completion.token_ids)
        completion_ids[row, :length] = torch.tensor(rollout.completion.token_ids)
        sampling_logprobs[row, :length] = torch.tensor(rollout.completion.logprobs)
    lengths = (stats.lengths * stats.scored)[: len(groups)].reshape(-1, 1)
    return Tokens(
        prompt_ids=[torch.tensor(group.rollouts[0].prompt_ids) for group in groups],
        completion_ids=completion_ids,
        completion_mask=torch.arange(width)[None] < lengths,
        sampling_logprobs=sampling_logprobs if is_on_policy else None,
        is_truncated=torch.tensor([rollout.completion.finish_reason == "length" for rollout in rollouts]),
        stats=stats,
    )


def select_groups(batch: Batch, groups: Sequence[int]) -> Batch:
    """Return the batch of these groups alone: a minibatch. Its advantages are those of the whole batch."""
    tokens, scores, size = batch.tokens, batch.scores, batch.tokens.group_size
    rows = torch.tensor([group * size + sample for group in groups for sample in range(size)])

    def pick(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[rows]

    return Batch(
        tokens=Tokens(
            prompt_ids=[tokens.prompt_ids[group] for group in groups],
            completion_ids=tokens.completion_ids[rows],
            completion_mask=tokens.completion_mask[rows],
            sampling_logprobs=pick(tokens.sampling_logprobs),
            is_truncated=tokens.is_truncated[rows],
            stats=tokens.stats,
        ),
        scores=Scores(
            old_logprobs=pick(scores.old_logprobs),
            ref_logprobs=pick(scores.ref_logprobs),
            entropy=pick(scores.entropy),
            values=pick(scores.values),
        ),
        advantages=batch.advantages[rows],
        mask=batch.mask[rows],
        token_weights=pick(batch.token_weights),
        held_back=pick(batch.held_back),
        returns=pick(batch.returns),
    )


def with_old_logprobs(batch: Batch, old_logprobs: Tensor | None) -> Batch:
    """Return the batch with the log-probs that its importance ratios compare with."""
    return dataclasses.replace(batch, scores=dataclasses.replace(batch.scores, old_logprobs=old_logprobs))


def gather_groups(
    minibatches: Sequence[Sequence[int]], pieces: Sequence[Tensor | None], *, like: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return one grid [B, T] from those of a pass's minibatches; 0 where one has none."""
    grid = torch.zeros(like.shape, dtype=dtype)
    num_groups = sum(len(groups) for groups in minibatches)
    by_group = grid.reshape(num_groups, -1, like.shape[1])
    for groups, piece in zip(minibatches, pieces, strict=False):
        if piece is not None:
            by_group[list(groups)] = piece.reshape(len(groups), -1, like.shape[1]).to(dtype)
    return grid


def _float64(values: list) -> Float64[Tensor, "..."]:
    return torch.tensor(values, dtype=torch.float64)
