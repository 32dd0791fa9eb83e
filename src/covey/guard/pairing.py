"""Evaluations and steps lined up: along the weights that lead to now, and prompt by prompt.

Key of the shapes: L looks, Q quantities, P prompts, N answers.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
from jaxtyping import Float64, Int64

from covey.guard.history import Answers, History, Look, Step

MODES: tuple[str, ...] = ("sampled", "greedy")
"""Which evaluations a detector reads: the first of these recorded at step 0. Sampled answers are what is trained on."""

Record = TypeVar("Record", Look, Step)
Quantities = Callable[[Answers], Float64[np.ndarray, "Q N"]]
"""What is measured of each answer; NaN where it cannot be."""


def lineage(records: Sequence[Record]) -> list[Record]:
    """Return the records that lead to the newest one, oldest first.

    A run that resumed, or rolled back, records steps again: of each step the newest record counts, and what came later in the
    line that was left does not.
    """
    steps = [record.step for record in records]
    if all(map(operator.lt, steps, steps[1:])):  # The usual case, for a run is long and this is asked often.
        return list(records)
    kept: list[Record] = []
    for record in reversed(records):
        if not kept or record.step < kept[-1].step:
            kept.append(record)
    return kept[::-1]


def mode_at_start(history: History, part: str, modes: Sequence[str] = MODES) -> str | None:
    """Return the first of `modes` in which the part was evaluated before training; None without such an evaluation."""
    return next((mode for mode in modes if any(look.step == 0 for look in history.looks_at(part, mode))), None)


def held_out(history: History, part: str, mode: str) -> list[Look]:
    """Return the part's evaluations that lead to the newest, from step 0 on; none if that of step 0 is missing."""
    looks = lineage(history.looks_at(part, mode))
    return looks if looks and looks[0].step == 0 else []


def num_shares(history: History, part: str, mode: str) -> int:
    """Return among how many looks a family error rate is shared: those planned, or those made if they are more."""
    return max(1, history.planned_looks, sum(look.step > 0 for look in history.looks_at(part, mode)))


def prompt_values(looks: Sequence[Look], quantities: Quantities) -> Float64[np.ndarray, "L Q P"]:
    """Return the mean of each quantity over each prompt's answers, for the prompts that every look could measure.

    An answer with a NaN counts for nothing.
    """
    tables = [prompt_means(look.answers, quantities(look.answers)) for look in looks]
    names = tables[0][0]
    if any(other != names for other, _ in tables[1:]):
        positions = [{name: column for column, name in enumerate(other)} for other, _ in tables]
        shared = [name for name in names if all(name in columns for columns in positions)]
        picked = [means[:, [columns[name] for name in shared]] for (_, means), columns in zip(tables, positions, strict=True)]
    else:
        picked = [means for _, means in tables]
    stacked = np.stack(picked)  # [L, Q, P]
    return stacked[:, :, np.isfinite(stacked).all(axis=(0, 1))]


def prompt_means(answers: Answers, values: Float64[np.ndarray, "Q N"]) -> tuple[tuple[str, ...], Float64[np.ndarray, "Q P"]]:
    """Return the prompts in order of appearance and the mean of each quantity over their answers; NaN without a scored one."""
    names, index = prompt_index(tuple(answers.prompt_ids))
    is_scored = np.isfinite(values).all(axis=0)
    if len(names) == index.size:  # One answer a prompt, already in the order of the names.
        return names, np.where(is_scored, values, np.nan)
    counts = np.bincount(index, weights=is_scored, minlength=len(names))
    sums = [np.bincount(index, weights=np.where(is_scored, row, 0.0), minlength=len(names)) for row in values]
    with np.errstate(invalid="ignore"):  # 0 / 0: a prompt without a scored answer has no mean.
        return names, np.stack(sums) / counts


@lru_cache(maxsize=64)
def prompt_index(prompt_ids: tuple[str, ...]) -> tuple[tuple[str, ...], Int64[np.ndarray, "N"]]:
    """Return the distinct prompts in order of appearance, and which of them each answer belongs to."""
    positions: dict[str, int] = {}
    index = np.array([positions.setdefault(name, len(positions)) for name in prompt_ids], dtype=np.int64)
    return tuple(positions), index


def t_statistic(differences: Float64[np.ndarray, "P"]) -> float:
    """Return mean / (std / sqrt(P)), std with ddof 1: one number a prompt, so that answers of a prompt are one observation.

    Without any spread it is 0, or infinite with the sign of the mean.
    """
    mean = float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(differences.size)
    if error > 0.0:
        return mean / error
    return math.copysign(math.inf, mean) if mean else 0.0


@lru_cache(maxsize=1024)
def critical_t(num_prompts: int, alpha: float) -> float:
    """Return what a t statistic of as many prompts exceeds with chance `alpha`, on one side."""
    from scipy.special import stdtrit  # Loading scipy takes a moment that `covey --help` does not have.

    return float(stdtrit(num_prompts - 1, 1.0 - alpha))
