"""What is done when a detector speaks. The guard sees what is recorded, and what it says is recorded, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from covey.guard.history import Finding, History, Level, Look, Step
from covey.guard.replay import read_history
from covey.guard.table import DETECTORS
from covey.monitor.run_directory import RunDirectory, read_jsonl

Action = Literal["off", "note", "warn", "raise_beta", "stop", "roll_back"]
ACTIONS: tuple[Action, ...] = get_args(Action)

_LEVELS: tuple[Level, ...] = ("note", "warn", "critical")


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """A finding, and what follows from it."""

    finding: Finding
    action: Action


def action_of(finding: Finding, chosen: Mapping[str, Action]) -> Action:
    """Return what a finding asks for.

    A critical one asks for what the user has chosen for its detector, else for the table's default; so does a warning, if
    the user has chosen anything for its detector. Any other is written down or shown as its level says.
    """
    own = chosen.get(finding.detector)
    if finding.level == "critical":
        return own or DETECTORS[finding.detector].action
    if finding.level == "warn":
        return own or "warn"
    return "note"


@dataclass(kw_only=True, slots=True)
class Guard:
    """The detectors over one run, from its first look on.

    Each finding counts once. A detector that has spoken speaks again only when it has something graver to say.
    """

    planned_looks: int
    group_size: int
    actions: Mapping[str, Action] = field(default_factory=dict)
    """The user's own, by detector; the table has the others."""
    looks: list[Look] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    gravest: dict[str, Level] = field(default_factory=dict)
    """Of each detector that has spoken."""

    @property
    def may_roll_back(self) -> bool:
        """Whether any detector asks for the run's best checkpoint."""
        return any(self.actions.get(name, detector.action) == "roll_back" for name, detector in DETECTORS.items())

    @property
    def history(self) -> History:
        return History(looks=self.looks, steps=self.steps, planned_looks=self.planned_looks, group_size=self.group_size)

    def judge(self) -> list[Judgement]:
        """Return what the detectors say that they have not said before, and what is to be done about it."""
        history = self.history
        judgements: list[Judgement] = []
        for name, detector in DETECTORS.items():
            if self.actions.get(name) == "off":
                continue
            finding = detector.find(history)
            if finding is None or not self._is_news(finding):
                continue
            self.gravest[name] = finding.level
            judgements.append(Judgement(finding=finding, action=action_of(finding, self.actions)))
        return judgements

    def _is_news(self, finding: Finding) -> bool:
        before = self.gravest.get(finding.detector)
        return before is None or _LEVELS.index(finding.level) > _LEVELS.index(before)

    def best_step(self, *, part: str = "choose", mode: str = "sampled") -> int | None:
        """Return the step whose evaluation has the highest mean gold score, the first of equals; None without any."""
        means = {
            look.step: float(np.nanmean(look.answers.gold))
            for look in self.history.looks_at(part, mode)
            if bool(np.isfinite(look.answers.gold).any())
        }
        return max(means, key=lambda step: (means[step], -step)) if means else None


def open_guard(run: RunDirectory, *, planned_looks: int, group_size: int, actions: Mapping[str, Action]) -> Guard:
    """Return the guard of a run, which has seen what the run has recorded so far."""
    guard = Guard(planned_looks=planned_looks, group_size=group_size, actions=actions)
    if run.eval.is_file():
        history = read_history(run)
        guard.looks, guard.steps = list(history.looks), list(history.steps)
        guard.gravest = {record["detector"]: record["level"] for record in read_jsonl(run.guard)}
    return guard


def replay(history: History, actions: Mapping[str, Action]) -> list[Judgement]:
    """Return what the guard would have said and done over a recorded run, in order.

    Actions do not take effect: the run has been made. So what follows a stop says what went on behind it.
    """
    guard = Guard(planned_looks=history.planned_looks, group_size=history.group_size, actions=actions)
    judgements: list[Judgement] = []
    moments = sorted({look.step for look in history.looks} | {step.step for step in history.steps})
    for moment in moments:
        guard.looks += [look for look in history.looks if look.step == moment]
        guard.steps += [step for step in history.steps if step.step == moment]
        judgements += guard.judge()
    return judgements
