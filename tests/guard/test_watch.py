"""From findings to actions: each finding once, graver ones again, and the user's word before the table's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from covey.guard.history import Answers, Finding, History, Look, Step
from covey.guard.table import DETECTORS, Detector
from covey.guard.watch import Action, Guard, action_of, replay


def answers(gold: list[float], *, proxy: list[float] | None = None) -> Answers:
    count = len(gold)
    return Answers(
        prompt_ids=[f"p{number}" for number in range(count)],
        proxy=np.array(gold if proxy is None else proxy),
        gold=np.array(gold),
        num_tokens=np.full(count, 5),
        is_truncated=np.zeros(count, dtype=bool),
        extracted=[None] * count,
        expected=[None] * count,
    )


def look(step: int, gold: list[float], *, part: str = "choose") -> Look:
    return Look(step=step, part=part, mode="sampled", answers=answers(gold))


def step(number: int, gold: list[float]) -> Step:
    return Step(step=number, answers=answers(gold))


def planted(name: str, find: Any, *, action: Any = "stop") -> Detector:
    return Detector(title=name, find=find, watches="steps", needs="nothing", action=action, error_rate="none")


def finding(level: Any, *, number: int = 1, detector: str = "planted") -> Finding:
    return Finding(detector=detector, step=number, level=level, message="It was planted.")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the table with one detector: as many failing answers as the newest step has, that grave is what it says."""
    for name in list(DETECTORS):
        monkeypatch.delitem(DETECTORS, name)

    def find(history: History) -> Finding | None:
        level = (
            {1: "note", 2: "warn", 3: "critical"}.get(int((history.steps[-1].answers.gold == 0).sum()))
            if history.steps
            else None
        )
        return None if level is None else finding(level, number=history.steps[-1].step)

    monkeypatch.setitem(DETECTORS, "planted", planted("planted", find))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("level", "chosen", "expected"),
    [
        ("critical", {}, "stop"),
        ("critical", {"planted": "roll_back"}, "roll_back"),
        ("critical", {"other": "roll_back"}, "stop"),
        ("warn", {}, "warn"),
        ("warn", {"planted": "raise_beta"}, "raise_beta"),
        ("note", {}, "note"),
        ("note", {"planted": "stop"}, "note"),
    ],
)
def test_what_a_finding_asks_for(level: str, chosen: dict[str, Action], expected: str):
    assert action_of(finding(level), chosen) == expected


@pytest.mark.usefixtures("alone")
def test_a_detector_speaks_once_and_again_only_when_it_gets_graver():
    history = History(
        looks=[],
        steps=[
            step(1, [1, 1, 1]),
            step(2, [0, 0, 1]),
            step(3, [0, 0, 1]),
            step(4, [0, 1, 1]),
            step(5, [0, 0, 0]),
            step(6, [0, 0, 0]),
        ],
        planned_looks=1,
        group_size=1,
    )
    spoken = [(judgement.finding.step, judgement.finding.level, judgement.action) for judgement in replay(history, {})]
    assert spoken == [(2, "warn", "warn"), (5, "critical", "stop")]


@pytest.mark.usefixtures("alone")
def test_a_detector_that_is_off_is_not_asked():
    guard = Guard(planned_looks=1, group_size=1, actions={"planted": "off"}, steps=[step(1, [0, 0, 0])])
    assert guard.judge() == []
    assert not guard.may_roll_back


@pytest.mark.usefixtures("alone")
def test_a_guard_that_goes_on_does_not_repeat_what_it_has_said():
    guard = Guard(planned_looks=1, group_size=1, steps=[step(1, [0, 0, 0])], gravest={"planted": "critical"})
    assert guard.judge() == []


def test_the_best_step_has_the_highest_gold_and_is_the_first_of_equals():
    looks = [look(0, [0, 0]), look(10, [1, 1]), look(20, [1, 1]), look(30, [1, 0]), look(40, [1, 1], part="guard")]
    assert Guard(planned_looks=4, group_size=1, looks=looks).best_step() == 10


def test_without_gold_there_is_no_best_step():
    assert Guard(planned_looks=4, group_size=1, looks=[look(0, [np.nan, np.nan])]).best_step() is None
    assert Guard(planned_looks=4, group_size=1).best_step() is None


def test_the_guard_may_roll_back_as_the_table_stands_and_not_if_the_user_says_so():
    rolling = {name for name, detector in DETECTORS.items() if detector.action == "roll_back"}
    assert rolling
    assert Guard(planned_looks=1, group_size=1).may_roll_back
    assert not Guard(planned_looks=1, group_size=1, actions=dict.fromkeys(rolling, "warn")).may_roll_back
