"""Intervals: the formula, their coverage, and that the prompt is the unit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.stats import Interval, mean_interval


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.floats(-10, 10), min_size=2, max_size=40).filter(lambda values: np.ptp(values) > 1e-3),
    confidence=st.sampled_from([0.5, 0.9, 0.95, 0.99]),
)
def test_the_interval_is_students(values: list[float], confidence: float):
    ours = mean_interval(values, confidence=confidence)
    low, high = scipy.stats.t.interval(confidence, len(values) - 1, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert (ours.mean, ours.low, ours.high) == pytest.approx((np.mean(values), low, high), abs=1e-9)


def test_a_hand_computed_interval():
    # Mean 2, variance 1, t of 2 degrees of freedom at 97.5 % = 4.302653: 2 +- 4.302653 / sqrt(3).
    interval = mean_interval([1.0, 2.0, 3.0])
    assert (interval.mean, interval.low, interval.high) == pytest.approx((2.0, -0.484138, 4.484138), abs=1e-6)


def coverage(samples: np.ndarray, truth: float) -> float:
    """Return how many of the rows' intervals hold the truth."""
    intervals = [mean_interval(row.tolist()) for row in samples]
    return float(np.mean([interval.low <= truth <= interval.high for interval in intervals]))


def test_95_of_100_intervals_of_normal_means_hold_the_truth():
    samples = np.random.default_rng(0).normal(0.3, 1.0, size=(1500, 10))
    assert 0.93 <= coverage(samples, 0.3) <= 0.97


def test_95_of_100_intervals_of_an_accuracy_hold_the_truth():
    samples = np.random.default_rng(0).binomial(1, 0.4, size=(1500, 200)).astype(float)
    assert 0.93 <= coverage(samples, 0.4) <= 0.97


def test_clustered_intervals_hold_the_truth_where_naive_ones_do_not():
    """40 prompts with 8 samples each: a prompt is easy or hard, so its samples are no independent observations."""
    rng = np.random.default_rng(0)
    difficulty = rng.beta(0.5, 0.5, size=(800, 40, 1))
    scores = rng.binomial(1, np.broadcast_to(difficulty, (800, 40, 8))).astype(float)
    assert 0.93 <= coverage(scores.mean(axis=2), 0.5) <= 0.97
    assert coverage(scores.reshape(800, -1), 0.5) < 0.75


def test_one_value_has_a_mean_and_no_ends():
    interval = mean_interval([0.5])
    assert interval.mean == 0.5
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def test_no_value_has_no_mean():
    assert math.isnan(mean_interval([]).mean)


def test_equal_values_give_an_interval_of_no_width():
    assert mean_interval([0.25] * 5) == Interval(mean=0.25, low=0.25, high=0.25)


@pytest.mark.parametrize(("value", "is_excluded"), [(-0.1, True), (0.0, False), (0.5, False), (1.0, False), (1.1, True)])
def test_an_interval_excludes_what_lies_outside_its_ends(value: float, is_excluded: bool):
    assert Interval(mean=0.5, low=0.0, high=1.0).excludes(value) is is_excluded


def test_an_interval_without_ends_excludes_nothing():
    assert not mean_interval([0.5]).excludes(0.0)
