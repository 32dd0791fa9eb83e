"""Reads what a report shows from a run directory. Any piece may be missing: a run is often read while it is running."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covey.monitor.run_directory import RunDirectory, read_jsonl, read_rows

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run directory, read. Whatever has not been written yet is empty."""

    directory: RunDirectory
    env: Row
    recipe_text: str
    metrics: Sequence[Row]
    """By step, one row each."""
    timing: Sequence[Row]
    """By step, one row each; step 0 is the evaluation before training."""
    evals: Sequence[Row]
    """By step, one row for each part and mode."""
    events: Sequence[Row]
    guard: Sequence[Row] = ()
    """What the guard has found, in order."""
    profile: Row | None = None
    """None = the run was not profiled."""

    @property
    def name(self) -> str:
        return str(self.env.get("name") or self.directory.path.name)

    @property
    def has_gold(self) -> bool:
        return bool(self.env.get("has_gold", any(row.get("gold_mean") is not None for row in self.evals)))

    @property
    def last_step(self) -> int:
        """How many steps have been finished."""
        return self.metrics[-1]["step"] if self.metrics else 0

    @property
    def planned_steps(self) -> int | None:
        """How many steps the recipe asks for; None if the recipe cannot be read."""
        return tomllib.loads(self.recipe_text).get("train", {}).get("num_steps")

    @property
    def was_interrupted(self) -> bool:
        """Whether the last thing heard of the run is an interruption, not a resume."""
        kinds = [event.get("kind") for event in self.events if event.get("kind") in ("interrupted", "resumed")]
        return kinds[-1:] == ["interrupted"]

    @property
    def ended_by(self) -> str | None:
        """What ended the run before its last step, on purpose; None if nothing did."""
        if any(row["action"] in ("stop", "roll_back") for row in self.guard):
            return "the guard"
        return "its KL budget" if any(event.get("kind") == "kl_budget" for event in self.events) else None

    def elapsed_s(self, step: int) -> float | None:
        """Return the training seconds from step 0 to the end of `step`; None if they were not recorded."""
        times = {row["step"]: row.get("elapsed_s") for row in self.timing}
        return 0.0 if step == 0 else times.get(step)

    def completions(self, evaluation: Row) -> list[Row]:
        """Return the completions of one evaluation; empty if their file is missing."""
        path = self.directory.evals_of(evaluation["step"], part=evaluation["part"], mode=evaluation["mode"])
        return [*read_rows(path)] if path.is_file() else []

    def last_rollouts(self) -> tuple[int, list[Row]]:
        """Return the newest step with recorded training completions, and these; (0, []) if there is none."""
        return next(self.rollouts_before(self.last_step, num_files=1), (0, []))

    def rollouts_before(self, step: int, *, num_files: int) -> Iterator[tuple[int, list[Row]]]:
        """Yield the newest recorded steps up to `step` with their training completions, newest first."""
        steps = sorted(int(path.stem.removeprefix("step-")) for path in self.directory.rollouts.glob("step-*.parquet"))
        for number in [number for number in reversed(steps) if number <= step][:num_files]:
            yield number, [*read_rows(self.directory.rollouts_of(number))]


def load_run(run_path: Path) -> Run:
    """Return everything a report shows except completions, which are read when they are asked for."""
    directory = RunDirectory.open(run_path)
    return Run(
        directory=directory,
        env=json.loads(directory.env.read_text(encoding="utf-8")) if directory.env.is_file() else {},
        recipe_text=directory.recipe.read_text(encoding="utf-8"),
        metrics=_latest(read_jsonl(directory.metrics), "step"),
        timing=_latest(read_jsonl(directory.timing), "step"),
        evals=_latest(read_jsonl(directory.eval), "step", "part", "mode"),
        events=read_jsonl(directory.events),
        guard=read_jsonl(directory.guard),
        profile=json.loads(directory.profile.read_text(encoding="utf-8")) if directory.profile.is_file() else None,
    )


def _latest(rows: Sequence[Row], *keys: str) -> list[Row]:
    """Return the last row of each key, by step: a step that was repeated after a crash counts once."""
    newest = {tuple(row[key] for key in keys): row for row in rows}
    return sorted(newest.values(), key=lambda row: row["step"])
