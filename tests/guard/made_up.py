"""Recorded runs of a few lines: what a test does not name is without interest to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from covey.guard.history import Answers, History, Look, Step


def answers_of(
    prompt_ids: Sequence[str],
    *,
    proxy: Sequence[float] | np.ndarray | None = None,
    gold: Sequence[float] | np.ndarray | None = None,
    extracted: Sequence[str | None] | None = None,
    expected: Sequence[str | None] | None = None,
    num_tokens: Sequence[int] | np.ndarray | None = None,
    parts: Mapping[str, Sequence[float] | np.ndarray] | None = None,
) -> Answers:
    """Return answers that pass the proxy and have no gold, unless told otherwise."""
    count = len(prompt_ids)
    return Answers(
        prompt_ids=prompt_ids,
        proxy=np.ones(count) if proxy is None else np.asarray(proxy, dtype=np.float64),
        gold=np.full(count, np.nan) if gold is None else np.asarray(gold, dtype=np.float64),
        num_tokens=np.full(count, 10) if num_tokens is None else np.asarray(num_tokens, dtype=np.int64),
        is_truncated=np.zeros(count, dtype=np.bool_),
        extracted=[None] * count if extracted is None else extracted,
        expected=[None] * count if expected is None else expected,
        parts={name: np.asarray(values, dtype=np.float64) for name, values in (parts or {}).items()},
    )


def questions(count: int, *, num_samples: int = 1) -> list[str]:
    return [f"q{index}" for index in range(count) for _ in range(num_samples)]


def look(step: int, answers: Answers, *, part: str = "guard", mode: str = "sampled") -> Look:
    return Look(step=step, part=part, mode=mode, answers=answers)


def history_of(
    *, looks: Sequence[Look] = (), steps: Sequence[Step] = (), planned_looks: int = 20, group_size: int = 8
) -> History:
    return History(looks=looks, steps=steps, planned_looks=planned_looks, group_size=group_size)


def prefixes(history: History) -> list[History]:
    """Return the history as it was after each of its steps, with the looks made until then."""
    return [
        history_of(
            looks=[look for look in history.looks if look.step <= history.steps[count - 1].step],
            steps=history.steps[:count],
            planned_looks=history.planned_looks,
            group_size=history.group_size,
        )
        for count in range(1, len(history.steps) + 1)
    ]
