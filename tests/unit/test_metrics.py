"""Metrics merge exactly: whatever the pieces, the whole is the same."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.metrics import Max, Mean, Metric, Sum, mean_of, merge_metrics, metric_values

# Whole numbers, so that sums are exact and equality means equality.
WHOLE = st.integers(-1000, 1000).map(float)
METRICS = {
    "mean": st.builds(Mean, WHOLE, st.integers(0, 1000).map(float)),
    "sum": st.builds(Sum, WHOLE),
    "max": st.builds(Max, WHOLE),
}
every_kind = pytest.mark.parametrize("kind", METRICS)


@every_kind
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_the_order_of_merging_does_not_matter(kind: str, data: st.DataObject):
    one, other = data.draw(METRICS[kind]), data.draw(METRICS[kind])
    assert one.merge(other) == other.merge(one)


@every_kind
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_the_grouping_of_merges_does_not_matter(kind: str, data: st.DataObject):
    a, b, c = (data.draw(METRICS[kind]) for _ in range(3))
    assert a.merge(b).merge(c) == a.merge(b.merge(c))


WHOLES: dict[str, tuple[Callable[[Sequence[float]], Metric], Callable[[Sequence[float]], float]]] = {
    "mean": (mean_of, lambda values: sum(values) / len(values)),
    "sum": (lambda values: Sum(sum(values)), sum),
    "max": (lambda values: Max(max(values)), max),
}


@every_kind
@settings(max_examples=100, deadline=None)
@given(values=st.lists(WHOLE, min_size=2, max_size=30), data=st.data())
def test_any_cut_into_pieces_gives_the_value_of_the_whole(kind: str, values: list[float], data: st.DataObject):
    piece_of, whole_of = WHOLES[kind]
    cut = data.draw(st.integers(1, len(values) - 1))
    assert merge_metrics([{"m": piece_of(values[:cut])}, {"m": piece_of(values[cut:])}])["m"].value == whole_of(values)


def test_a_mean_of_unequal_pieces_is_not_the_mean_of_their_means():
    assert mean_of([1.0]).merge(mean_of([0.0, 0.0, 0.0])).value == 0.25


@every_kind
@pytest.mark.parametrize("is_first", [True, False])
def test_a_number_that_is_none_is_not_lost_in_a_merge(kind: str, is_first: bool):
    bad, good = {"mean": (Mean(math.nan, 1), Mean(1.0, 1)), "sum": (Sum(math.nan), Sum(1.0)), "max": (Max(math.nan), Max(1.0))}[
        kind
    ]
    merged = bad.merge(good) if is_first else good.merge(bad)  # ty: ignore[invalid-argument-type]
    assert math.isnan(merged.value)


def test_an_empty_piece_leaves_a_mean_as_it_is():
    assert mean_of([]).merge(mean_of([2.0, 4.0])) == mean_of([2.0, 4.0])


def test_a_mean_of_nothing_is_not_a_number():
    assert math.isnan(mean_of([]).value)


def test_a_mean_takes_a_generator():
    assert mean_of(float(number) for number in range(4)) == Mean(6.0, 4)


def test_a_mean_of_many_small_numbers_is_summed_without_loss():
    assert mean_of([0.1] * 10).value == 0.1


def test_merged_dictionaries_hold_the_keys_of_all_pieces():
    merged = merge_metrics([{"a": Sum(1.0)}, {"b": Max(2.0)}, {"a": Sum(3.0)}])
    assert merged == {"a": Sum(4.0), "b": Max(2.0)}


def test_merging_leaves_the_pieces_alone():
    pieces = [{"a": Sum(1.0)}, {"a": Sum(3.0)}]
    merge_metrics(pieces)
    assert pieces == [{"a": Sum(1.0)}, {"a": Sum(3.0)}]


def test_nothing_merges_to_nothing():
    assert merge_metrics([]) == {}


@pytest.mark.parametrize("metric", [mean_of([]), Sum(math.inf), Max(-math.inf), Sum(math.nan)], ids=repr)
def test_what_is_not_finite_is_logged_as_none(metric: Metric):
    assert metric_values({"m": metric}) == {"m": None}


def test_logged_values_are_numbers_that_json_can_hold():
    values = metric_values({"mean": mean_of([1.0, 2.0]), "empty": mean_of([]), "sum": Sum(3.0), "max": Max(4.0)})
    assert json.loads(json.dumps(values, allow_nan=False)) == {"mean": 1.5, "empty": None, "sum": 3.0, "max": 4.0}
