"""Everything a run tells the outside: logs of the run directory, trackers and the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from covey.distance import RowDistance
from covey.evaluate import Row, summarise
from covey.guard.watch import Judgement
from covey.metrics import Metric, metric_values
from covey.monitor.console import Console, StepRecord
from covey.monitor.run_directory import RunDirectory, read_rows, write_rows
from covey.monitor.sinks import SinkSet
from covey.rollout import SampledGroups, rollout_rows

LOUD = frozenset({"warning", "fallback", "skipped", "spiked", "went_back", "guard_alarm", "guard_action", "audit_failed"})
"""Kinds of events that nobody should miss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorder:
    """Writes what happens; decides nothing."""

    run: RunDirectory
    console: Console
    sinks: SinkSet
    num_steps: int

    def event(self, step: int, kind: str, message: str, **fields: Any) -> None:
        """Append to `events.jsonl` and show it, loudly if something is wrong. An error is shown by whoever catches it."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self.run.logs()["events"].append({"step": step, "at": at, "kind": kind, "message": message, **fields})
        if kind != "error":
            (self.console.warn if kind in LOUD else self.console.note)(message)

    def guard(self, step: int, judgement: Judgement) -> None:
        """Append what the guard has found to `guard.jsonl`, and show it."""
        finding = judgement.finding
        record = {"step": step, "detector": finding.detector, "level": finding.level, "action": judgement.action}
        self.run.logs()["guard"].append({**record, "message": finding.message, "figures": dict(finding.figures)})
        kind = "guard" if judgement.action == "note" else "guard_alarm"
        self.event(step, kind, finding.message, detector=finding.detector, action=judgement.action)

    def step(
        self,
        step: int,
        *,
        sampled: SampledGroups,
        metrics: Mapping[str, Metric],
        timing: Mapping[str, float],
        save_rollouts: bool,
        distances: Sequence[RowDistance | None] = (),
    ) -> None:
        """Record a finished training step."""
        values = metric_values(metrics)
        if save_rollouts:
            write_rows(self.run.rollouts_of(step), rollout_rows(sampled, distances))
        self.run.logs()["metrics"].append({"step": step, **values})
        self.time(step, timing)
        self.sinks.log(step, values)
        group = (sampled.used or sampled.dropped)[0]
        rollout = group.rollouts[0]
        self.console.step(
            StepRecord(
                step=step,
                num_steps=self.num_steps,
                elapsed_s=timing["elapsed_s"],
                metrics=values,
                timing=timing,
                question=group.prompt.text,
                completion=rollout.text,
                verdict=f"reward {rollout.reward.value}" + (f", gold {rollout.gold.value}" if rollout.gold else ""),
            )
        )

    def time(self, step: int, timing: Mapping[str, float]) -> None:
        """Append to `timing.jsonl`."""
        self.run.logs()["timing"].append({"step": step, **{key: round(value, 4) for key, value in timing.items()}})

    def evaluation(self, step: int, *, part: str, mode: str, rows: Sequence[Row]) -> None:
        """Record a held-out evaluation, paired with the one before training."""
        first = self.run.evals_of(0, part=part, mode=mode)
        summary = summarise(rows, read_rows(first) if step > 0 and first.exists() else None)
        write_rows(self.run.evals_of(step, part=part, mode=mode), list(rows))
        record = {"step": step, "part": part, "mode": mode, **summary}
        self.run.logs()["eval"].append(record)
        self.sinks.log(step, {f"eval/{part}/{mode}/{key}": summary[key] for key in ("gold_mean", "proxy_mean", "length_mean")})
        self.console.evaluation(step, part, mode, record)
