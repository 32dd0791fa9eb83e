"""The score at a budget: the last evaluation within it, and whether the budget was spent."""

from __future__ import annotations

import pytest

from covey.compare.budget import Evaluated, at_budget
from covey.types import CoveyError

EVALUATIONS = [
    Evaluated(num_generated_tokens=tokens, score=score) for tokens, score in [(0, 0.1), (400, 0.3), (980, 0.5), (1200, 0.9)]
]


@pytest.mark.parametrize(("budget", "score"), [(399, 0.1), (400, 0.3), (1000, 0.5), (1199, 0.5), (5000, 0.9)])
def test_the_last_evaluation_within_the_budget_counts(budget: int, score: float):
    assert at_budget(EVALUATIONS, budget).evaluated.score == score


@pytest.mark.parametrize(("budget", "is_reached"), [(980, True), (1000, True), (1001, False)])
def test_a_budget_is_reached_within_2_percent(budget: int, is_reached: bool):
    found = at_budget(EVALUATIONS, budget)
    assert found.evaluated.num_generated_tokens == 980
    assert found.is_reached is is_reached


def test_the_missing_share_is_counted_from_the_evaluation():
    assert at_budget(EVALUATIONS, 1000).missing_frac == pytest.approx(0.02)


def test_the_order_of_the_evaluations_does_not_matter():
    assert at_budget(EVALUATIONS[::-1], 1000).evaluated.score == 0.5


def test_of_two_evaluations_at_the_same_tokens_the_last_counts():
    again = [*EVALUATIONS, Evaluated(num_generated_tokens=980, score=0.6)]
    assert at_budget(again, 1000).evaluated.score == 0.6


def test_a_tolerance_may_be_given():
    assert at_budget(EVALUATIONS, 1100, tolerance_frac=0.15).is_reached


def test_no_evaluation_within_the_budget_is_refused():
    with pytest.raises(CoveyError, match="no evaluation within 399"):
        at_budget(EVALUATIONS[1:], 399)


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(CoveyError, match="budget_tokens=0"):
        at_budget(EVALUATIONS, 0)
