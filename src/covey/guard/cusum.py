"""A one-sided CUSUM whose threshold is computed for the run at hand: from its first steps, its group size and its batch.

Key of the shapes: C prompts of the baseline, n rollouts a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float64
from numpy.lib.stride_tricks import sliding_window_view


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseRate:
    """The share of failing rollouts that passed the proxy in the first steps, and how large it and its spread may truly be."""

    rate: float
    rate_bound: float
    """Upper confidence bound of `rate`, rounded up."""
    correlation_bound: float
    """Upper confidence bound of the correlation between two failing rollouts of a prompt, rounded up."""


def base_rate(
    passing: Float64[np.ndarray, "C"],
    failing: Float64[np.ndarray, "C"],
    *,
    alpha: float = 0.005,
    correlation_z: float = 1.645,
    min_correlation: float = 0.05,
) -> BaseRate:
    """Return the rate p = sum(y) / sum(n) of prompts with n failing rollouts, y of which pass the proxy, with its bound.

    Rollouts of a prompt are alike, so a prompt is one observation. With r = y - p n, the design effect is

        D = C / (C - 1) * sum(r^2) / (p (1 - p) sum(n)),    D = 1 + correlation * m,    m = sum(n^2) / sum(n) - 1

    and `correlation_z` standard errors are added to D before the correlation is read off it. The bound of p is that of
    Clopper and Pearson for sum(n) / D independent rollouts (Korn & Graubard 1998, Survey Methodology 24), at level 1 - alpha.
    Bounds are rounded up, to 0.005 and 0.05, so that thresholds can be kept.
    """
    total, num_prompts = float(failing.sum()), failing.size
    rate = float(passing.sum()) / total
    extra = float((failing**2).sum()) / total - 1.0
    correlation = min_correlation
    variance = rate * (1.0 - rate) * total
    if variance > 0.0 and extra > 0.0 and num_prompts > 1:
        squares = (passing - rate * failing) ** 2
        effect = num_prompts / (num_prompts - 1) * float(squares.sum()) / variance
        error = math.sqrt(num_prompts * float(squares.var(ddof=1))) / variance
        correlation = min(0.95, max(min_correlation, (effect + correlation_z * error - 1.0) / extra))
    correlation = _rounded_up(correlation, 0.05)
    num_independent = total / (1.0 + correlation * max(0.0, extra))
    bound = _upper_bound(rate * num_independent, num_independent, alpha)
    return BaseRate(rate=rate, rate_bound=_rounded_up(bound, 0.005), correlation_bound=correlation)


def _rounded_up(value: float, unit: float) -> float:
    return round(math.ceil(value / unit - 1e-9) * unit, 9)


def _upper_bound(num_hits: float, num_trials: float, alpha: float) -> float:
    """Return the Clopper-Pearson bound; the counts may be fractions."""
    if num_trials - num_hits <= 0.0:
        return 1.0
    from scipy.special import betaincinv  # Loading scipy takes a moment that `covey --help` does not have.

    return float(betaincinv(num_hits + 1.0, num_trials - num_hits, 1.0 - alpha))


def cusum(increments: Float64[np.ndarray, "T"]) -> Float64[np.ndarray, "T"]:
    """Return S_t = max(0, S_(t-1) + x_t) from S = 0, which is the walk less its lowest point so far (Page 1954)."""
    walk = np.cumsum(increments)
    return walk - np.minimum(0.0, np.minimum.accumulate(walk))


@lru_cache(maxsize=512)
def alarm_threshold(
    rate: float,
    correlation: float,
    *,
    num_groups: int,
    group_size: int,
    slack: float = 0.02,
    alpha: float = 0.005,
    horizon: int = 400,
) -> float:
    """Return h such that S_t = max(0, S_(t-1) + y_t / n - rate - slack) reaches h within `horizon` steps with chance <= alpha.

    y_t is the sum over groups of beta-binomial counts with this mean and intra-group correlation. S moves on a grid, so the
    chance is that of a finite Markov chain, computed from its transitions instead of by simulation (Brook & Evans 1972,
    Biometrika 59). The grid errs towards a higher h. Infinite if no h on the largest grid is high enough: so few rollouts a
    step say nothing.
    """
    counts = _step_counts(rate, correlation, num_groups=num_groups, group_size=group_size)
    cells, drop = _grid(rate + slack, num_rollouts=counts.size - 1)
    width = 1.0 / ((counts.size - 1) * cells)
    counts = counts[: int(np.flatnonzero(counts > _LEAST_CHANCE)[-1]) + 1]  # What is cut off counts as an alarm.

    def is_enough(num_states: int) -> bool:
        return _alarm_chance(counts, cells=cells, drop=drop, num_states=num_states, horizon=horizon) <= alpha

    high = _MIN_CELLS
    while not is_enough(high):
        if high >= _MAX_STATES:
            return math.inf
        high *= 2
    low = high // 2 if high > _MIN_CELLS else 0  # So many states are enough, so many are not.
    while high - low > max(1, high // _PRECISION):
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high * width


_MIN_CELLS, _MAX_STATES = 256, 2048
"""A grid has at least so many cells between no rollout and all of them, and the chain at most so many states."""
_LEAST_CHANCE = 1e-14
_PRECISION = 64
"""The threshold is too high by at most this part of itself."""


def _grid(fall: float, *, num_rollouts: int) -> tuple[int, int]:
    """Return how many cells of the grid a rollout has, and how many `fall` has: the grid that rounds it down the least."""
    fewest = max(1, math.ceil(_MIN_CELLS / num_rollouts))
    exact = {cells: fall * num_rollouts * cells for cells in range(fewest, fewest + max(1, fewest // 4) + 1)}
    # A whole number may come out a rounding error too low.
    drops = {cells: math.floor(value + 1e-9) for cells, value in exact.items()}
    cells = max(exact, key=lambda cells: (drops[cells] / exact[cells], -cells))
    return cells, drops[cells]


def _step_counts(rate: float, correlation: float, *, num_groups: int, group_size: int) -> Float64[np.ndarray, "n+1"]:
    """Return the distribution of how many of the step's rollouts are hits: groups are independent, rollouts of one are not."""
    from scipy.stats import betabinom  # Loading scipy takes a moment that `covey --help` does not have.

    if rate >= 1.0:
        return np.eye(num_groups * group_size + 1)[-1]
    weight = (1.0 - correlation) / correlation
    group = betabinom.pmf(np.arange(group_size + 1), group_size, rate * weight, (1.0 - rate) * weight)
    counts = np.ones(1)
    for _ in range(num_groups):
        counts = np.convolve(counts, group)
    return counts


def _alarm_chance(counts: Float64[np.ndarray, "n+1"], *, cells: int, drop: int, num_states: int, horizon: int) -> float:
    """Return the chance that the chain leaves its states within `horizon` steps from state 0.

    With v_i the chance to stay inside from state i on, v_i <- sum_y counts_y v_(i + y cells - drop), where v is v_0 below state
    0 and 0 from `num_states` on.
    """
    reach = (counts.size - 1) * cells
    padded = np.zeros(drop + num_states + reach)
    targets = sliding_window_view(padded, reach + 1)[:num_states, ::cells]  # A view: it follows what is written below.
    silent = np.ones(num_states)
    for _ in range(horizon):
        padded[:drop] = silent[0]
        padded[drop : drop + num_states] = silent
        silent = np.einsum("sy,y->s", targets, counts)  # Faster than @ on a view with these strides.
    return 1.0 - float(silent[0])
