"""What a comparison can find, said before it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from jaxtyping import Float64

from covey.compare.statistics import Components, MeanSquares, expected_mean_squares, spread, t_quantile
from covey.compare.verdicts import ALPHA, points
from covey.types import CoveyError

POWER = 0.8
ASSUMED = Components(seed=0.006, prompt=0.1, residual=0.1)
"""The difference of two arms, as long as no pilot says better.

seed: the shipped arithmetic recipe reached 70.0, 80.5 and 80.0 % with three training seeds (benchmarks/results/main_job.json).
Their variance is 0.0035, of which 0.1 / 200 comes from single answers to 200 questions; 0.003 is left, twice that for two arms.
Three seeds tell this only roughly (95 % interval of such a variance: a quarter to forty times).
prompt, residual: two arms that disagree on 20 % of the questions, with one answer each. That half of this stays with the
question is an assumption, not a measurement.
"""
_NUM_POINTS = (60, 12, 4)
"""How many values of the mean squares of seeds, prompts and residual stand for their distributions."""
_MANY_ERRORS = 10.0
"""A difference of so many standard errors beyond the widest interval is always found."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolution:
    """The smallest difference that is found with a given power."""

    num_seeds: int
    num_prompts: int
    assumed: Components
    alpha: float
    power: float
    difference: float

    @property
    def sentence(self) -> str:
        seeds = "1 seed" if self.num_seeds == 1 else f"{self.num_seeds} seeds"
        said = (
            f"With {self.num_prompts} prompts and {seeds} a difference of {points(self.difference)} points is found with "
            f"{100 * self.power:g} % power (two-sided, alpha {self.alpha:g}), if it varies by "
            f"{points(math.sqrt(self.assumed.seed))} points between seeds, by {points(math.sqrt(self.assumed.prompt))} between "
            f"prompts, and by {points(math.sqrt(self.assumed.residual))} beyond that (standard deviations)."
        )
        return said + (" What another seed would change is not in it." if self.num_seeds == 1 else "")


def resolution(
    *, num_seeds: int, num_prompts: int, assumed: Components = ASSUMED, alpha: float = ALPHA, power: float = POWER
) -> Resolution:
    """Return the smallest true difference of two arms that a paired contrast finds with this power.

    The contrast's half width h is a function of the mean squares (`covey.compare.statistics.spread`), which are chi-squared and
    independent of its mean. So the difference d is found with the chance E[Phi((d - h) / e)] + E[Phi((-d - h) / e)], e the
    true standard error, and this is solved for d. It is the power of this very test; with one seed that of a paired t test,
    which Miller (arXiv 2411.00640) has for the normal distribution.

    Raises:
        CoveyError: no seed, fewer than two prompts, or a power that is not from 0.5 to below 1.
    """
    if num_seeds < 1 or num_prompts < 2:
        raise CoveyError(f"{num_seeds} seeds and {num_prompts} prompts: a comparison needs at least 1 seed and 2 prompts")
    if not 0.5 <= power < 1:
        raise CoveyError(f"power={power}: give the chance of finding a difference, from 0.5 to below 1")
    from scipy.optimize import brentq
    from scipy.special import ndtr

    if num_seeds == 1:
        std_error = math.sqrt((assumed.prompt + assumed.residual) / num_prompts)
        factors = np.sqrt(_equal_chances(num_prompts - 1, _NUM_POINTS[0] * _NUM_POINTS[1]))
        half_widths = t_quantile(1 - alpha / 2, num_prompts - 1) * std_error * factors
    else:
        by_seed, by_prompt = assumed.seed / num_seeds, assumed.prompt / num_prompts
        std_error = math.sqrt(by_seed + by_prompt + assumed.residual / (num_seeds * num_prompts))
        half_widths = _half_widths(expected_mean_squares(assumed, num_seeds=num_seeds, num_prompts=num_prompts), alpha=alpha)

    def missing(difference: float) -> float:
        found = ndtr((difference - half_widths) / std_error) + ndtr((-difference - half_widths) / std_error)
        return float(found.mean()) - power

    difference = brentq(missing, 0.0, float(half_widths.max()) + _MANY_ERRORS * std_error)
    return Resolution(
        num_seeds=num_seeds, num_prompts=num_prompts, assumed=assumed, alpha=alpha, power=power, difference=float(difference)
    )


def _half_widths(expected: MeanSquares, *, alpha: float) -> Float64[np.ndarray, "N"]:
    """Return half widths of the interval that are equally likely, given the expected mean squares."""
    num_seeds, num_prompts = expected.num_seeds, expected.num_prompts
    degrees = (num_seeds - 1, num_prompts - 1, (num_seeds - 1) * (num_prompts - 1))
    found = []
    for seed, prompt, residual in product(*map(_equal_chances, degrees, _NUM_POINTS)):
        squares = replace(
            expected, seed=expected.seed * seed, prompt=expected.prompt * prompt, residual=expected.residual * residual
        )
        variance, freedom = spread(squares)
        found.append(t_quantile(1 - alpha / 2, freedom) * math.sqrt(variance))
    return np.array(found)


def _equal_chances(degrees: int, num_points: int) -> Float64[np.ndarray, "N"]:
    """Return values of chi-squared / degrees that are equally likely: its quantiles in the middle of equal steps."""
    from scipy.special import gammaincinv

    return 2 * gammaincinv(degrees / 2, (np.arange(num_points) + 0.5) / num_points) / degrees
