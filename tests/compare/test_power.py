"""The difference that a comparison can find: the formula, and that it is found as often as promised."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from tests.compare.layouts import arm, layouts

from covey.compare.power import ASSUMED, resolution
from covey.compare.statistics import Components, estimate, p_value
from covey.compare.verdicts import points
from covey.types import CoveyError

NUM_LAYOUTS = 1500
SMALL_SEEDS = Components(seed=0.0004, prompt=0.1, residual=0.1)
PROMPTS_ONLY = Components(seed=0.0, prompt=0.1, residual=0.0)


def test_with_one_seed_it_is_the_power_of_a_paired_t_test():
    """200 questions, answered differently by two arms in 10 of 100: 6.3 points (the normal approximation has 2.8 e)."""
    found = resolution(num_seeds=1, num_prompts=200, assumed=PROMPTS_ONLY)
    assert found.difference == pytest.approx(0.0629, abs=2e-4)


def test_with_one_seed_the_noncentral_t_exceeds_the_critical_t_with_the_power():
    found = resolution(num_seeds=1, num_prompts=20, power=0.9, alpha=0.01)
    noncentrality = found.difference / math.sqrt(0.2 / 20)
    assert scipy.stats.nct.sf(scipy.stats.t.ppf(0.995, 19), 19, noncentrality) == pytest.approx(0.9, abs=1e-4)


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
@pytest.mark.parametrize(
    "assumed",
    [SMALL_SEEDS, Components(seed=0.0, prompt=0.1, residual=0.1), ASSUMED],
    ids=["seeds of 2 points", "no effect of seeds", "assumed"],
)
def test_the_difference_is_found_in_80_of_100_comparisons(assumed: Components, num_seeds: int):
    found = resolution(num_seeds=num_seeds, num_prompts=100, assumed=assumed)
    tables = layouts(assumed, num_layouts=NUM_LAYOUTS, num_seeds=num_seeds, num_prompts=100, mean=found.difference)
    # Three standard errors of a share counted in so many layouts.
    share = np.mean([p_value(estimate(arm(table))) <= 0.05 for table in tables])
    assert share == pytest.approx(0.8, abs=3 * math.sqrt(0.8 * 0.2 / NUM_LAYOUTS))


def test_more_seeds_and_more_prompts_find_smaller_differences():
    few = resolution(num_seeds=3, num_prompts=200, assumed=SMALL_SEEDS).difference
    assert resolution(num_seeds=5, num_prompts=200, assumed=SMALL_SEEDS).difference < few
    assert resolution(num_seeds=3, num_prompts=1000, assumed=SMALL_SEEDS).difference < few


def test_prompts_do_not_help_where_three_seeds_carry_the_variance():
    """From 200 to 1000 prompts nothing is gained: what is left is the seeds', with 2 degrees of freedom."""
    found = [resolution(num_seeds=3, num_prompts=num_prompts).difference for num_prompts in (200, 1000)]
    assert found[1] == pytest.approx(found[0], abs=0.005)


def test_the_assumed_seed_variance_is_that_of_the_shipped_recipe():
    # Accuracy of three seeds (benchmarks/results/main_job.json), less what 200 single answers add; two arms.
    assert 2 * (np.var([0.7, 0.805, 0.8], ddof=1) - 0.1 / 200) == pytest.approx(ASSUMED.seed, abs=5e-5)


def test_the_sentence_names_what_is_assumed():
    assumed = Components(seed=0.0004, prompt=0.09, residual=0.16)
    found = resolution(num_seeds=5, num_prompts=200, assumed=assumed)
    assert found.sentence == (
        f"With 200 prompts and 5 seeds a difference of {points(found.difference)} points is found with 80 % power "
        "(two-sided, alpha 0.05), if it varies by 2 points between seeds, by 30 between prompts, and by 40 beyond that "
        "(standard deviations)."
    )


def test_with_one_seed_the_sentence_says_what_is_missing():
    assert resolution(num_seeds=1, num_prompts=200).sentence.endswith("What another seed would change is not in it.")


@pytest.mark.parametrize(("num_seeds", "num_prompts"), [(0, 200), (3, 1)])
def test_a_comparison_of_nothing_is_refused(num_seeds: int, num_prompts: int):
    with pytest.raises(CoveyError, match="at least 1 seed and 2 prompts"):
        resolution(num_seeds=num_seeds, num_prompts=num_prompts)


@pytest.mark.parametrize("power", [0.3, 1.0])
def test_a_power_that_nobody_can_have_or_want_is_refused(power: float):
    with pytest.raises(CoveyError, match=f"power={power}"):
        resolution(num_seeds=3, num_prompts=200, power=power)
