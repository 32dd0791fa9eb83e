"""Where a run's time goes, finer than `timing.jsonl`: by phase and step, with what can be told apart inside a phase.

The loop's clock says when phases begin and how long they took. In between come marks: the engine's and the learner's
progress, which they show anyway, and the optimizer's hooks. A mark ends an interval that began with the one before it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from covey.monitor.console import Console, StepRecord
from covey.monitor.run_directory import RunDirectory, write_text_atomic

NAMES = {
    "rollout_s": "sampling",
    "reward_s": "rewards",
    "scoring_s": "scoring",
    "update_s": "update",
    "load_weights_s": "load weights",
    "evaluate_s": "evaluation",
    "checkpoint_s": "checkpoint",
}
"""Phases, by their keys in timing.jsonl, in the order of a step."""

REST = "rest of the step"
DECODING, MICRO_BATCHES, CLIPPING, OPTIMIZER = "decoding", "micro-batches", "gradient norm", "optimizer"
OTHER = "other"
_PROGRESS = {"sampling": DECODING, "update": MICRO_BATCHES}
"""What an interval between two calls of the console's `phase` was spent on."""


@dataclass(slots=True)
class Spent:
    """Seconds of one phase or of a part of it."""

    total_s: float = 0.0
    num_calls: int = 0
    lap_s: float = 0.0
    """Since the last step ended."""
    steps_s: list[float] = field(default_factory=list)
    """Of each step in which it happened."""

    def add(self, seconds: float) -> None:
        self.total_s += seconds
        self.lap_s += seconds
        self.num_calls += 1

    def end_lap(self) -> None:
        if self.lap_s:
            self.steps_s.append(self.lap_s)
        self.lap_s = 0.0


class Profile:
    """Collects a run's seconds from the first step after its start or its resumption."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._spent: dict[tuple[str, str], Spent] = {}
        self._pending: dict[str, list[float]] = {}
        self._marked = clock()
        self._last_done: dict[str, int] = {}
        self._lap_started = self._marked
        self._steps: list[int] = []
        self._steps_s: list[float] = []
        self._tail_s = 0.0
        self._num_tokens = {"sampled": 0.0, "trained": 0.0}

    def begin(self) -> None:
        """Say that a phase begins now."""
        self._marked = self._clock()

    def progress(self, name: str, done: int) -> None:
        """Take the progress of a sampling or an update as a mark.

        The first mark of a call of the engine ends its prompts, which are no decoding.
        """
        kind = _PROGRESS.get(name)
        is_first = done <= self._last_done.get(name, done)
        self._last_done[name] = done
        if kind is not None:
            self.mark(None if kind == DECODING and is_first else kind)

    def mark(self, kind: str | None) -> None:
        """End an interval, and say what it was spent on; None = on nothing that has a name."""
        now = self._clock()
        if kind is not None:
            self._pending.setdefault(kind, []).append(now - self._marked)
        self._marked = now

    def add(self, phase: str, seconds: float) -> None:
        """Take in a phase that has just ended, with the intervals in it."""
        self._of(phase, "").add(seconds)
        for kind, intervals in self._pending.items():
            for interval in intervals:
                self._of(phase, kind).add(interval)
        self._pending.clear()
        self._last_done.clear()

    def count(self, *, num_sampled: float, num_trained: float) -> None:
        """Take in the completion tokens of a step."""
        self._num_tokens["sampled"] += num_sampled
        self._num_tokens["trained"] += num_trained

    def end_step(self, step: int) -> None:
        """Say that a step has ended, with all that follows it before the next one."""
        self._steps.append(step)
        self._steps_s.append(self._end_lap())

    def finish(self) -> None:
        """Say that the run has ended; what came after the last step, such as its checkpoint, counts as well."""
        self._tail_s += self._end_lap()

    def start(self) -> None:
        """Forget what came before the first step: checks and the measurement before training."""
        self._spent.clear()
        self._pending.clear()
        self._lap_started = self._clock()

    def _end_lap(self) -> float:
        now = self._clock()
        seconds, self._lap_started = now - self._lap_started, now
        in_phases = sum(spent.lap_s for (_, part), spent in self._spent.items() if not part)
        self._of(REST, "").add(max(0.0, seconds - in_phases))
        for spent in self._spent.values():
            spent.end_lap()
        return seconds

    def summary(self, *, peak_rss_bytes: int) -> dict[str, Any]:
        """Return what `profile.json` holds."""
        whole_s = sum(self._steps_s) + self._tail_s
        rollout_s, update_s = (self._of(phase, "").total_s for phase in ("rollout_s", "update_s"))
        return {
            "first_step": self._steps[0] if self._steps else None,
            "last_step": self._steps[-1] if self._steps else None,
            "num_steps": len(self._steps),
            "step_median_s": median(self._steps_s) if self._steps_s else None,
            "step_p90_s": percentile(self._steps_s, 0.9),
            "sampled_tokens_per_s": self._num_tokens["sampled"] / rollout_s if rollout_s else None,
            "trained_tokens_per_s": self._num_tokens["trained"] / update_s if update_s else None,
            "peak_rss_bytes": peak_rss_bytes,
            "phases": [row for phase in (*NAMES, REST) for row in self._rows(phase, whole_s)],
        }

    def _of(self, phase: str, part: str) -> Spent:
        return self._spent.setdefault((phase, part), Spent())

    def _rows(self, phase: str, whole_s: float) -> list[dict[str, Any]]:
        """Return the rows of a phase: its own, its parts, and what is left of it if it has any."""
        own = self._of(phase, "")
        parts = {part: spent for (name, part), spent in self._spent.items() if name == phase and part}
        if parts:
            parts[OTHER] = Spent(total_s=max(0.0, own.total_s - sum(part.total_s for part in parts.values())))
        name = NAMES.get(phase, phase)
        return [_row(name, None, own, whole_s), *(_row(part, name, spent, whole_s) for part, spent in parts.items())]


def _row(name: str, part_of: str | None, spent: Spent, whole_s: float) -> dict[str, Any]:
    return {
        "name": name,
        "part_of": part_of,
        "total_s": spent.total_s,
        "num_calls": spent.num_calls,
        "num_steps": len(spent.steps_s),
        "median_s": median(spent.steps_s) if spent.steps_s else None,
        "p90_s": percentile(spent.steps_s, 0.9),
        "share_frac": spent.total_s / whole_s if whole_s else None,
    }


def percentile(values: Sequence[float], frac: float) -> float | None:
    """Return the smallest value that at least this share of the values does not exceed; None of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(frac * len(ordered) - 1e-9) - 1)] if ordered else None


def profile_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return the profile as a table."""
    lines = [f"{'phase':24}{'total s':>10}{'share':>8}{'calls':>8}{'median s':>10}{'p90 s':>10}"]
    for row in summary["phases"]:
        if row["total_s"]:
            name = f"  {row['name']}" if row["part_of"] else row["name"]
            numbers = "".join(f"{row[key]:10.3f}" if row[key] is not None else f"{'':10}" for key in ("median_s", "p90_s"))
            calls = row["num_calls"] or ""
            lines.append(f"{name:24}{row['total_s']:10.2f}{row['share_frac'] or 0.0:8.1%}{calls:>8}{numbers}")
    speeds = {"sampled": summary["sampled_tokens_per_s"], "trained": summary["trained_tokens_per_s"]}
    words = [f"{speed:,.0f} tokens/s {name}" for name, speed in speeds.items() if speed is not None]
    step = summary["step_median_s"]
    if step is not None:
        words.insert(0, f"a step {step:.2f} s (90 % within {summary['step_p90_s']:.2f} s)")
    return [*lines, ", ".join([*words, f"peak memory {summary['peak_rss_bytes'] / 1e9:.2f} GB"])]


def write_profile(run: RunDirectory, summary: Mapping[str, Any]) -> None:
    """Write `profile.json`."""
    write_text_atomic(run.profile, json.dumps(dict(summary), indent=1, allow_nan=False) + "\n")


class ProfiledConsole:
    """A console whose progress is also marked in a profile."""

    def __init__(self, console: Console, profile: Profile) -> None:
        self._console = console
        self._profile = profile

    def phase(self, name: str, done: int, total: int) -> None:
        self._profile.progress(name, done)
        self._console.phase(name, done, total)

    def plan(self, lines: Sequence[str]) -> None:
        self._console.plan(lines)

    def note(self, message: str) -> None:
        self._console.note(message)

    def warn(self, message: str) -> None:
        self._console.warn(message)

    def step(self, record: StepRecord) -> None:
        self._console.step(record)

    def evaluation(self, step: int, part: str, mode: str, record: Mapping[str, Any]) -> None:
        self._console.evaluation(step, part, mode, record)

    def finish(self, lines: Sequence[str]) -> None:
        self._console.finish(lines)

    def close(self) -> None:
        self._console.close()
