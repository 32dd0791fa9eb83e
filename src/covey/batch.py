"""From scored groups to the tensors of one step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from covey.tensors import GroupStats, Tokens
from covey.types import Group


def group_stats(groups: Sequence[Group]) -> GroupStats:
    """Return rewards, lengths and reward parts as [P, G] tensors; an unscorable rollout is marked, not zeroed."""
    part_names = sorted({name for group in groups for rollout in group.rollouts for name in rollout.reward.parts})
    values = [[rollout.reward.value for rollout in group.rollouts] for group in groups]
    return GroupStats(
        rewards=_float64([[value if value is not None else 0.0 for value in row] for row in values]),
        scored=torch.tensor([[value is not None for value in row] for row in values]),
        lengths=torch.tensor([[len(rollout.completion.token_ids) for rollout in group.rollouts] for group in groups]),
        parts=_float64(
            [[[rollout.reward.parts.get(name, 0.0) for name in part_names] for rollout in group.rollouts] for group in groups]
        ),
    )


def make_tokens(groups: Sequence[Group]) -> Tokens:
    """Return the step's token tensors, [B, T] with B = P * G rows in group order.

    The mask is made from lengths. The row of a rollout that could not be scored is masked whole: it leaves numerator
    and denominators alike.
    """
    stats = group_stats(groups)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    width = max(len(rollout.completion.token_ids) for rollout in rollouts)
    completion_ids = torch.zeros(len(rollouts), width, dtype=torch.long)
    sampling_logprobs = torch.zeros(len(rollouts), width)
    for row, rollout in enumerate(rollouts):
        length = len(rollout.completion.token_ids)
        completion_ids[row, :length] = torch.tensor(rollout.completion.token_ids)
        sampling_logprobs[row, :length] = torch.tensor(rollout.completion.logprobs)
    lengths = (stats.lengths * stats.scored).reshape(-1, 1)
    return Tokens(
        prompt_ids=[torch.tensor(group.rollouts[0].prompt_ids) for group in groups],
        completion_ids=completion_ids,
        completion_mask=torch.arange(width)[None] < lengths,
        sampling_logprobs=sampling_logprobs,
        stats=stats,
    )


def _float64(values: list) -> Float64[Tensor, "P G ..."]:
    return torch.tensor(values, dtype=torch.float64)
