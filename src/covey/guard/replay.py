"""A run directory as detectors see it: the rows of its Parquet files and of metrics.jsonl, in the order in which they came."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from covey.guard.history import Answers, History, Look, Step
from covey.monitor.run_directory import RunDirectory, read_jsonl, read_rows
from covey.types import CoveyError

PROXY_COLUMNS = {"look": "proxy", "step": "reward"}
"""What the optimised reward is called in evals/*.parquet and in rollouts/*.parquet."""


def answers_of(rows: Sequence[Mapping[str, Any]], *, proxy: str, reward_range: tuple[float, float]) -> Answers:
    """Return recorded completions as arrays. `proxy`: the column of the optimised reward, brought from its range to 0 to 1."""
    low, high = reward_range
    named = [json.loads(row["parts"]) if row.get("parts") else {} for row in rows]
    names = dict.fromkeys(name for parts in named for name in parts)
    return Answers(
        prompt_ids=[row["prompt_id"] for row in rows],
        proxy=(_floats(row[proxy] for row in rows) - low) / (high - low),
        gold=_floats(row["gold"] for row in rows),
        num_tokens=np.array([row["num_tokens"] for row in rows], dtype=np.int64),
        is_truncated=np.array([row["finish_reason"] == "length" for row in rows], dtype=bool),
        extracted=[row.get("extracted") for row in rows],
        expected=[row.get("answer") for row in rows],
        parts={name: _floats(parts.get(name) for parts in named) for name in names},
    )


def _floats(values: Any) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def look_of(rows: Sequence[Mapping[str, Any]], *, step: int, part: str, mode: str, reward_range: tuple[float, float]) -> Look:
    """Return one evaluation."""
    answers = answers_of(rows, proxy=PROXY_COLUMNS["look"], reward_range=reward_range)
    return Look(step=step, part=part, mode=mode, answers=answers)


def step_of(
    rows: Sequence[Mapping[str, Any]],
    *,
    step: int,
    metrics: Mapping[str, float | None],
    reward_range: tuple[float, float],
) -> Step:
    """Return one training step."""
    answers = answers_of(rows, proxy=PROXY_COLUMNS["step"], reward_range=reward_range)
    return Step(step=step, answers=answers, metrics={key: value for key, value in metrics.items() if key != "step"})


def num_planned_looks(*, num_steps: int, every: int) -> int:
    """Return how many evaluations of a part follow that of step 0: one each `every` steps, and one at the end."""
    return 1 if every == 0 else num_steps // every + (num_steps % every > 0)


def read_history(run: RunDirectory) -> History:
    """Return the history of a run directory, finished or not.

    Raises:
        CoveyError: the run says nothing of its reward's range; it was made by an earlier Covey.
    """
    recipe = tomllib.loads(run.recipe.read_text(encoding="utf-8"))
    environment = json.loads(run.env.read_text(encoding="utf-8")) if run.env.is_file() else {}
    if "reward_range" not in environment:
        raise CoveyError(
            f"{run.env} has no reward_range, so that the proxy cannot be brought to 0 to 1: add it, such as [0, 1]"
        )
    low, high = environment["reward_range"]
    metrics = {row["step"]: row for row in read_jsonl(run.metrics)}
    steps = [
        step_of(read_rows(run.rollouts_of(step)), step=step, metrics=metrics[step], reward_range=(low, high))
        for step in sorted(metrics)
        if run.rollouts_of(step).is_file()
    ]
    recorded = {(row["step"], row["part"], row["mode"]) for row in read_jsonl(run.eval)}
    looks = [
        look_of(read_rows(path), step=step, part=part, mode=mode, reward_range=(low, high))
        for step, part, mode in sorted(recorded)
        if (path := run.evals_of(step, part=part, mode=mode)).is_file()
    ]
    return History(
        looks=looks,
        steps=steps,
        planned_looks=num_planned_looks(num_steps=recipe["train"]["num_steps"], every=recipe["evaluation"]["every"]),
        group_size=recipe["train"]["group_size"],
    )
