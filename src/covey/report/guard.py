"""What the guard saw and did, and the completions that show it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from covey.report.load import Row, Run

_EXPLOITS_SHOWN = 10
_FILES_SEARCHED = 20
"""Steps with saved completions that are read back from the alarm on, newest first."""

_DONE = {
    "warn": "warned",
    "raise_beta": "raised algorithm.beta",
    "stop": "stopped the run",
    "roll_back": "ended the run and went back to its best checkpoint",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardView:
    """The guard's part of a report."""

    alarms: tuple[Row, ...]
    """Findings that were more than a note, in order."""
    notes: tuple[Row, ...]
    exploits: tuple[Row, ...]
    """Training completions up to the first grave alarm that the reward pays and gold fails, the newest first."""

    @property
    def first(self) -> Row | None:
        """The first critical alarm, or else the first of all; None without any."""
        critical = [row for row in self.alarms if row["level"] == "critical"]
        return next(iter(critical or self.alarms), None)


def guard_view(run: Run) -> GuardView:
    """Return what stands in guard.jsonl, with the completions that show it."""
    view = GuardView(
        alarms=tuple(row for row in run.guard if row["action"] != "note"),
        notes=tuple(row for row in run.guard if row["action"] == "note"),
        exploits=(),
    )
    return view if view.first is None else replace(view, exploits=tuple(_exploits(run, before=view.first["step"])))


def guard_sentences(run: Run) -> list[str]:
    """Return one sentence for each alarm that is grave, or for the first if none is."""
    alarms = [row for row in run.guard if row["action"] != "note"]
    told = [row for row in alarms if row["level"] == "critical"] or alarms[:1]
    return [f"The guard {_DONE[row['action']]} after step {row['step']}: {row['message']}" for row in told]


def _exploits(run: Run, *, before: int) -> Iterator[Row]:
    """Yield up to ten different completions that earn more than half of the reward's range and that gold fails."""
    low, high = run.env.get("reward_range") or (0.0, 1.0)
    seen: set[tuple[str, str]] = set()
    for step, rows in run.rollouts_before(before, num_files=_FILES_SEARCHED):
        for row in rows:
            is_paid = row["reward"] is not None and row["reward"] > (low + high) / 2
            key = (row["question"], row["completion"])
            if not is_paid or row["gold"] is None or row["gold"] >= 0.5 or key in seen:
                continue
            seen.add(key)
            yield {**row, "step": step}
            if len(seen) == _EXPLOITS_SHOWN:
                return
