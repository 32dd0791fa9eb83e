"""Intervals for held-out accuracy. The prompt is the unit: several samples of one prompt are one observation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A mean with its confidence interval; the ends are NaN where one prompt alone cannot give any."""

    mean: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        return value < self.low or value > self.high


def mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Return the mean over prompts with its t interval: mean +- t(n - 1) * std / sqrt(n).

    `values` holds one number a prompt, the mean over its samples, which is what clusters the interval by prompt
    (Miller, arXiv 2411.00640). For the gain between two evaluations of the same prompts, pass the differences.
    """
    count = len(values)
    if count == 0:
        return Interval(mean=math.nan, low=math.nan, high=math.nan)
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean=mean, low=math.nan, high=math.nan)
    from scipy.stats import t as student_t  # Loading scipy takes a moment that `covey --help` does not have.

    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half_width = float(student_t.ppf((1 + confidence) / 2, count - 1)) * math.sqrt(variance / count)
    return Interval(mean=mean, low=mean - half_width, high=mean + half_width)


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Return the unbiased estimate of the chance that one of k samples is right: 1 - C(n - c, k) / C(n, k).

    (arXiv 2107.03374, eq. 1.) 1 - (1 - c/n)^k would be too low.

    Raises:
        ValueError: fewer samples than k.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k={k} with {num_samples} samples: k must be between 1 and the number of samples")
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)
