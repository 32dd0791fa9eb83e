"""Entropy and diversity: golden numbers, planted runs that fire, honest runs that do not at any step, and gaps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tests.guard.made_up import answers_of, history_of, prefixes

from covey.guard.entropy import distinct_answers, entropy_collapse, entropy_fit, is_rising
from covey.guard.history import History, Step

NAN = math.nan
NUM_PROMPTS, GROUP_SIZE = 8, 8


def line(start: float, end: float, count: int) -> list[float]:
    return np.linspace(start, end, count).tolist()


def run_of(
    *, entropies: Sequence[float | None], golds: Sequence[float], num_answers: Sequence[int] | None = None, seed: int = 0
) -> History:
    """Return a run with this entropy and gold at each step, and so many different answers in each group."""
    rng = np.random.default_rng(seed)
    steps = []
    for number, (entropy, rate) in enumerate(zip(entropies, golds, strict=True)):
        prompt_ids = [f"{number}-{index}" for index in range(NUM_PROMPTS) for _ in range(GROUP_SIZE)]
        distinct = num_answers[number] if num_answers else GROUP_SIZE
        answers = answers_of(
            prompt_ids,
            gold=rng.random(len(prompt_ids)) < rate,
            extracted=[f"{index % distinct}" for index in range(len(prompt_ids))],
        )
        steps.append(Step(step=number + 1, answers=answers, metrics={"entropy/mean": entropy}))
    return history_of(steps=steps)


# Statistics


@pytest.mark.parametrize(
    ("series", "rises"),
    [
        ([1.0, 2.0, 3.0], False),  # One order of 3! is as good: p = 1/6.
        ([1.0, 2.0, 3.0, 4.0], True),  # One of 4!: p = 1/24.
        ([2.0, 1.0, 3.0, 4.0], False),  # That and 3 more of 4!: p = 4/24.
        ([4.0, 3.0, 2.0, 1.0], False),
        ([1.0, 1.0, 1.0, 1.0], False),
    ],
)
def test_a_trend_is_kendalls(series: list[float], rises: bool):
    assert is_rising(np.array(series)) is rises


def test_gold_that_is_bought_with_entropy_has_its_ceiling():
    entropies = line(1.5, 0.1, 12)
    steps = [
        Step(step=step, answers=answers_of(["p"], gold=[0.8 - 0.1 * math.exp(entropy)]), metrics={"entropy/mean": entropy})
        for step, entropy in enumerate(entropies)
    ]
    fit = entropy_fit(history_of(steps=steps))
    assert fit is not None
    assert (fit.a, fit.b, fit.ceiling, fit.num_steps) == pytest.approx((0.1, 0.8, 0.7, 12))
    assert entropy_fit(history_of(steps=steps[:7])) is None


def test_entropy_that_buys_nothing_has_no_ceiling():
    steps = [
        Step(step=step, answers=answers_of(["p"], gold=[0.1 + entropy / 10]), metrics={"entropy/mean": entropy})
        for step, entropy in enumerate(line(1.5, 0.1, 12))
    ]
    assert entropy_fit(history_of(steps=steps)) is None


def test_distinct_answers_by_hand():
    # p has two answers in four, one of them none at all; q is all right; r has one scored completion only.
    answers = answers_of(
        ["p"] * 4 + ["q"] * 2 + ["r"] * 2,
        gold=[0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, NAN],
        extracted=["7", "7", None, None, "3", "3", "5", "6"],
    )
    assert distinct_answers([Step(step=1, answers=answers)]).tolist() == [0.5]


# The detector


COLLAPSE: dict[str, Any] = {"entropies": line(1.0, 0.05, 60), "golds": [0.3] * 60}


def test_entropy_that_goes_while_gold_stays_is_a_warning():
    finding = entropy_collapse(run_of(**COLLAPSE))
    assert finding is not None
    assert (finding.detector, finding.level, finding.step) == ("entropy_collapse", "warn", 60)
    # Means over the first and the last ten of 60 values on a line.
    values = COLLAPSE["entropies"]
    assert finding.figures["entropy_left"] == pytest.approx(np.mean(values[-10:]) / np.mean(values[:10]))


def test_answers_that_become_all_the_same_are_a_warning_whatever_the_entropy():
    finding = entropy_collapse(run_of(entropies=[1.0] * 40, golds=[0.3] * 40, num_answers=[6] * 20 + [1] * 20))
    assert finding is not None
    assert finding.figures["distinct_before"] == 0.75
    assert finding.figures["distinct"] == 0.125


def test_gold_that_rose_and_stays_makes_it_a_note():
    finding = entropy_collapse(run_of(entropies=line(1.0, 0.05, 60), golds=line(0.2, 0.7, 20) + [0.7] * 40))
    assert finding is not None
    assert finding.level == "note"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "honest",
    [
        pytest.param({"entropies": line(1.0, 0.02, 60), "golds": line(0.1, 0.95, 40) + [0.95] * 20}, id="mastery"),
        pytest.param({"entropies": line(1.0, 0.02, 60), "golds": line(0.1, 0.85, 60)}, id="gold rises still"),
        pytest.param({"entropies": line(1.0, 0.4, 60), "golds": [0.3] * 60}, id="entropy is left"),
        pytest.param({"entropies": line(1.0, 3.0, 60), "golds": line(0.6, 0.0, 60)}, id="collapse into noise"),
        pytest.param({"entropies": [1.0] * 60, "golds": [0.3] * 60, "num_answers": [1] * 60}, id="one answer from the start"),
        pytest.param({"entropies": [0.0] * 60, "golds": [0.3] * 60}, id="no entropy from the start"),
    ],
)
def test_honest_runs_have_no_warning_at_any_step(honest: dict, seed: int):
    findings = [entropy_collapse(prefix) for prefix in prefixes(run_of(**honest, seed=seed))]
    assert [finding for finding in findings if finding and finding.level != "note"] == []


def test_mastery_and_gold_that_rises_still_are_not_even_noted():
    entropies = line(1.0, 0.02, 60)
    assert entropy_collapse(run_of(entropies=entropies, golds=line(0.1, 0.95, 20) + [0.95] * 40)) is None
    assert entropy_collapse(run_of(entropies=entropies, golds=line(0.1, 0.85, 60))) is None


def test_short_groups_cannot_have_too_few_distinct_answers():
    """Of 4 completions one distinct answer is a quarter: nothing is to be read from it."""
    steps = [
        Step(
            step=step, answers=answers_of([f"{step}-{index // 4}" for index in range(32)], gold=np.zeros(32), extracted=answers)
        )
        for step, answers in enumerate([["1", "2", "3", "4"] * 8] * 20 + [["1"] * 32] * 20)
    ]
    assert entropy_collapse(history_of(steps=steps)) is None


# What the record lacks


def test_nothing_is_said_of_short_or_empty_histories():
    assert entropy_collapse(history_of()) is None
    assert entropy_fit(history_of()) is None
    assert entropy_collapse(run_of(entropies=[1.0] * 9 + [0.0] * 10, golds=[0.3] * 19)) is None


def test_nothing_is_said_without_gold():
    steps = [
        Step(
            step=step.step, answers=answers_of(step.answers.prompt_ids, extracted=step.answers.extracted), metrics=step.metrics
        )
        for step in run_of(**COLLAPSE).steps
    ]
    assert entropy_collapse(history_of(steps=steps)) is None


def test_nothing_is_said_of_entropy_that_was_not_recorded():
    for missing in (None, NAN):
        assert entropy_collapse(run_of(entropies=[missing] * 60, golds=[0.3] * 60)) is None
    steps = [Step(step=step.step, answers=step.answers) for step in run_of(**COLLAPSE).steps]
    assert entropy_collapse(history_of(steps=steps)) is None


def test_a_line_that_a_resume_left_does_not_count():
    run = run_of(**COLLAPSE)
    again = run_of(entropies=[1.0] * 60, golds=[0.3] * 60, seed=1)
    assert entropy_collapse(history_of(steps=[*run.steps, *again.steps[5:]])) is None


def test_steps_that_are_recorded_twice_count_once():
    run = run_of(**COLLAPSE)
    assert entropy_collapse(history_of(steps=[*run.steps[:30], *run.steps[20:]])) == entropy_collapse(run)
