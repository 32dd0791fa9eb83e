"""Histories written by hand: how many of the questions pass the proxy, gold, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from covey.guard.history import Answers, History, Look, Step


def make_answers(proxy: ArrayLike, gold: ArrayLike, *, prompt_ids: Sequence[str] | None = None) -> Answers:
    count = np.size(proxy)
    return Answers(
        prompt_ids=prompt_ids if prompt_ids is not None else [f"q{index}" for index in range(count)],
        proxy=np.asarray(proxy, dtype=np.float64),
        gold=np.asarray(gold, dtype=np.float64),
        num_tokens=np.full(count, 10),
        is_truncated=np.zeros(count, dtype=bool),
        extracted=[None] * count,
        expected=[None] * count,
    )


def counted(*, both: int = 0, proxy_only: int = 0, gold_only: int = 0, neither: int = 0) -> Answers:
    """Return answers to q0, q1, ...: first those that pass both verifiers, then those that pass one, then the rest."""
    proxy = [1.0] * (both + proxy_only) + [0.0] * (gold_only + neither)
    gold = [1.0] * both + [0.0] * proxy_only + [1.0] * gold_only + [0.0] * neither
    return make_answers(proxy, gold)


def look(step: int, answers: Answers, *, part: str = "guard", mode: str = "sampled") -> Look:
    return Look(step=step, part=part, mode=mode, answers=answers)


def recorded(
    looks: Sequence[Look] = (), steps: Sequence[Step] = (), *, planned_looks: int = 20, group_size: int = 4
) -> History:
    return History(looks=looks, steps=steps, planned_looks=planned_looks, group_size=group_size)


def training_step(
    step: int, proxy: Sequence[float], gold: Sequence[float], *, metrics: Mapping[str, float | None] | None = None
) -> Step:
    """Return a step of groups of 4, of prompts that no other step has."""
    prompt_ids = [f"step{step}-{index // 4}" for index in range(len(proxy))]
    return Step(step=step, answers=make_answers(proxy, gold, prompt_ids=prompt_ids), metrics=metrics or {})
