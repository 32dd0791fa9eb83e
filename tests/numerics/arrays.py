"""From lists of numbers to the padded tensors that the package works on, with garbage where nothing may be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from tests.numerics.transcriptions import Answer, Groups
from torch import Tensor

from covey.tensors import GroupStats

GARBAGE = 1e9


def float64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def assert_close(found: Tensor, expected: Any, *, atol: float = 1e-8) -> None:
    torch.testing.assert_close(found.double(), torch.as_tensor(expected, dtype=torch.float64), atol=atol, rtol=0)


def mask_of(rows: Sequence[Sequence[object]], *, width: int | None = None) -> Tensor:
    """Return the mask [B, T] of completions of these tokens."""
    width = max(len(row) for row in rows) if width is None else width
    return torch.arange(width)[None] < torch.tensor([len(row) for row in rows])[:, None]


def padded(rows: Sequence[Sequence[float]], *, width: int | None = None, filler: float = 9.0) -> Tensor:
    """Return the rows as a float64 tensor [B, T], with `filler` beyond the end of each."""
    width = max(len(row) for row in rows) if width is None else width
    return float64([[*row, *[filler] * (width - len(row))] for row in rows])


def unpadded(values: Tensor, rows: Sequence[Sequence[object]]) -> list[list[float]]:
    return [found[: len(row)] for found, row in zip(values.tolist(), rows, strict=True)]


def stats_of_answers(
    groups: Groups,
    *,
    baselines: Sequence[float | None] | None = None,
    part_weights: Sequence[float] | None = None,
    low: float = 0.0,
    high: float = 1.0,
) -> GroupStats:
    """Return the statistics of the groups, which may differ in size: the short ones are filled up with unscored rollouts."""
    group_size = max(len(group) for group in groups)
    num_parts = max(len(answer.parts) for group in groups for answer in group)
    missing = Answer(reward=None, parts=(GARBAGE,) * num_parts)
    full = [[*group, *[missing] * (group_size - len(group))] for group in groups]

    def column(value: Any) -> list[Any]:
        return [[value(answer) for answer in group] for group in full]

    return GroupStats(
        rewards=float64(column(lambda answer: GARBAGE if answer.reward is None else answer.reward)),
        scored=torch.tensor(column(lambda answer: answer.reward is not None)),
        lengths=torch.tensor(column(lambda answer: answer.length)),
        parts=float64(column(lambda answer: list(answer.parts))).reshape(len(full), group_size, num_parts),
        baseline=None if baselines is None else float64([torch.nan if b is None else b for b in baselines]),
        reward_low=float(low),
        reward_high=float(high),
        part_weights=None if part_weights is None else float64(list(part_weights)),
    )


def stats_of_rewards(rows: Sequence[Sequence[float | None]], **options: Any) -> GroupStats:
    return stats_of_answers([[Answer(reward=reward) for reward in row] for row in rows], **options)


tenths = st.integers(-20, 20).map(lambda value: value / 10)


def group_of_answers(
    rewards: st.SearchStrategy[float] = tenths, *, num_parts: int = 0, min_size: int = 1
) -> st.SearchStrategy[list[Answer]]:
    """Some rewards are None, some groups flat, lengths differ."""
    answer = st.builds(
        Answer,
        reward=st.none() | rewards | rewards,
        length=st.integers(1, 9),
        parts=st.tuples(*[tenths] * num_parts),
    )
    return st.lists(answer, min_size=min_size, max_size=7)


def batches_of_answers(
    rewards: st.SearchStrategy[float] = tenths, *, num_parts: int = 0
) -> st.SearchStrategy[list[list[Answer]]]:
    return st.lists(group_of_answers(rewards, num_parts=num_parts), min_size=1, max_size=4)
