"""Typed metrics that merge exactly, so that nothing is ever a mean of means.

A metric is a small frozen value with `merge` and `value`. Micro-batches, and later ranks, each produce a
`dict[str, Metric]`; `merge_metrics` folds them into what one big batch would have given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, Self


class Metric(Protocol):
    """A quantity that can be accumulated in pieces and read once."""

    def merge(self, other: Self) -> Self: ...

    @property
    def value(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Mean:
    """sum / count; NaN when nothing was counted."""

    sum: float
    count: float

    def merge(self, other: Mean) -> Mean:
        return Mean(self.sum + other.sum, self.count + other.count)

    @property
    def value(self) -> float:
        return self.sum / self.count if self.count else math.nan


@dataclass(frozen=True, slots=True)
class Sum:
    """A total, such as a number of tokens."""

    total: float

    def merge(self, other: Sum) -> Sum:
        return Sum(self.total + other.total)

    @property
    def value(self) -> float:
        return self.total


@dataclass(frozen=True, slots=True)
class Max:
    """The largest value seen."""

    largest: float

    def merge(self, other: Max) -> Max:
        if math.isnan(self.largest):  # max() would drop it, depending on the order.
            return self
        return self if other.largest <= self.largest else other

    @property
    def value(self) -> float:
        return self.largest


@dataclass(frozen=True, slots=True)
class EffectiveShare:
    """Effective sample size of importance weights, (sum w)^2 / sum w^2, as a share of their number."""

    sum: float
    sum_of_squares: float
    count: int

    def merge(self, other: EffectiveShare) -> EffectiveShare:
        return EffectiveShare(self.sum + other.sum, self.sum_of_squares + other.sum_of_squares, self.count + other.count)

    @property
    def value(self) -> float:
        return self.sum**2 / (self.count * self.sum_of_squares) if self.sum_of_squares else math.nan


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile of all the values, which it keeps: exact however they are merged."""

    values: tuple[float, ...]
    share: float

    def merge(self, other: Quantile) -> Quantile:
        return Quantile(self.values + other.values, self.share)

    @property
    def value(self) -> float:
        """The smallest value that at least `share` of the values do not exceed."""
        if not self.values:
            return math.nan
        return sorted(self.values)[max(0, math.ceil(self.share * len(self.values)) - 1)]


def mean_of(values: Iterable[float]) -> Mean:
    """Return the Mean of the given values."""
    listed = list(values)
    return Mean(math.fsum(listed), len(listed))


def merge_metrics(pieces: Iterable[Mapping[str, Metric]]) -> dict[str, Metric]:
    """Return one dictionary in which each key holds the merge of that key over all pieces."""
    merged: dict[str, Metric] = {}
    for piece in pieces:
        for key, metric in piece.items():
            merged[key] = merged[key].merge(metric) if key in merged else metric
    return merged


def metric_values(metrics: Mapping[str, Metric]) -> dict[str, float | None]:
    """Return plain numbers for logging; a metric without a finite value becomes None (JSON has no NaN)."""
    values = {key: metric.value for key, metric in metrics.items()}
    return {key: value if math.isfinite(value) else None for key, value in values.items()}
