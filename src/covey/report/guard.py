"""What the guard saw and did, and the completions that show it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from covey.report.load import Row, Run

_EXPLOITS_SHOWN = 10
_FILES_SEARCHED = 20
"""Steps with saved completions that are read back from the alarm on, newest first."""

_ABOUT_REWARD = ("exploit_mass", "exploit_drift", "gold_regression", "honeypots")
"""Detectors whose grave alarms say that the reward is being exploited. What came before them shows how."""

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
    acts: tuple[Row, ...]
    """Events in which the run says what was really done, in order: to go back needs an earlier checkpoint that is better."""
    exploits: tuple[Row, ...]
    """Training completions up to the first such alarm that the reward pays and gold fails, those of the newest step first."""

    @property
    def first(self) -> Row | None:
        """The first critical alarm, one about the reward before any other, or else the first of all; None without any."""
        critical = [row for row in self.alarms if row["level"] == "critical"]
        exploited = [row for row in critical if row["detector"] in _ABOUT_REWARD]
        return next(iter(exploited or critical or self.alarms), None)


def guard_view(run: Run) -> GuardView:
    """Return what stands in guard.jsonl, with the completions that show it."""
    view = GuardView(
        alarms=tuple(row for row in run.guard if row["action"] != "note"),
        notes=tuple(row for row in run.guard if row["action"] == "note"),
        acts=tuple(row for row in run.events if row.get("kind") == "guard_action"),
        exploits=(),
    )
    return view if view.first is None else replace(view, exploits=tuple(_exploits(run, before=view.first["step"])))


def guard_sentences(run: Run) -> list[str]:
    """Return the first grave alarm as a sentence, or the first of all if none is, and how many grave ones followed.

    The others stand beside the main chart, which they would push off the first screen.
    """
    alarms = [row for row in run.guard if row["action"] != "note"]
    told = [row for row in alarms if row["level"] == "critical"] or alarms[:1]
    sentences = [f"The guard {done(row['action'])} after step {row['step']}: {row['message']}" for row in told[:1]]
    if len(told) > 1:
        steps = ", ".join(str(row["step"]) for row in told[1:])
        sentences.append(f"Grave alarms followed after step {steps}.")
    return sentences


def done(action: str) -> str:
    """Return what the guard did, as the end of a sentence on it."""
    return _DONE.get(action, action)


def _exploits(run: Run, *, before: int) -> Iterator[Row]:
    """Yield up to ten different completions that earn more than half of the reward's range and that gold fails."""
    low, high = run.env.get("reward_range") or (0.0, 1.0)
    seen: set[tuple[str, str]] = set()
    for step, rows in run.rollouts_before(before, num_files=_FILES_SEARCHED):
        paid = [row for row in rows if row["reward"] is not None and row["reward"] > (low + high) / 2]
        for row in _one_of_each_question([row for row in paid if row["gold"] is not None and row["gold"] < 0.5]):
            key = (row["question"], row["completion"])
            if key in seen:
                continue
            seen.add(key)
            yield {**row, "step": step}
            if len(seen) == _EXPLOITS_SHOWN:
                return


def _one_of_each_question(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with the first of each question before the second of any."""
    earlier: Counter[str] = Counter()
    ranked: list[tuple[int, Row]] = []
    for row in rows:
        ranked.append((earlier[row["question"]], row))
        earlier[row["question"]] += 1
    return [row for _, row in sorted(ranked, key=lambda pair: pair[0])]
