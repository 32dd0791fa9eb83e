"""Intervals over crossed seeds and prompts: the formula, its coverage, and what is left out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from tests.compare.layouts import arm, layouts

from covey.compare.statistics import (
    Components,
    MeanSquares,
    chance_above,
    chance_below,
    difference,
    equivalence_p_value,
    estimate,
    expected_mean_squares,
    mean_squares,
    p_value,
    spread,
)
from covey.stats import mean_interval
from covey.types import CoveyError

NUM_LAYOUTS = 2000

# The seed's share in the variance of the mean goes from none over half to nearly all.
MIXTURES = {
    "prompts only": Components(seed=0.0, prompt=0.1, residual=0.1),
    "seeds of 2 points": Components(seed=0.0004, prompt=0.1, residual=0.1),
    "seeds of 5 points": Components(seed=0.0025, prompt=0.05, residual=0.15),
    "seeds of 8 points": Components(seed=0.0064, prompt=0.1, residual=0.1),
    "seeds of 20 points": Components(seed=0.04, prompt=0.05, residual=0.15),
    "no effect of prompts": Components(seed=0.002, prompt=0.0, residual=0.1),
}


def slow_mean_squares(scores: np.ndarray) -> tuple[float, float, float]:
    """The analysis of variance cell by cell, as a textbook has it."""
    num_seeds, num_prompts = scores.shape
    mean = sum(scores[s, p] for s in range(num_seeds) for p in range(num_prompts)) / scores.size
    seeds = [sum(scores[s, p] for p in range(num_prompts)) / num_prompts for s in range(num_seeds)]
    prompts = [sum(scores[s, p] for s in range(num_seeds)) / num_seeds for p in range(num_prompts)]
    by_seed = by_prompt = residual = 0.0
    for s in range(num_seeds):
        for p in range(num_prompts):
            by_seed += (seeds[s] - mean) ** 2
            by_prompt += (prompts[p] - mean) ** 2
            residual += (scores[s, p] - seeds[s] - prompts[p] + mean) ** 2
    rest = (num_seeds - 1) * (num_prompts - 1)
    return by_seed / (num_seeds - 1), by_prompt / (num_prompts - 1), residual / rest


def coverage(tables: np.ndarray, truth: float = 0.0) -> float:
    intervals = [estimate(arm(table)).interval for table in tables]
    return float(np.mean([interval.low <= truth <= interval.high for interval in intervals]))


def test_a_hand_computed_interval():
    # Mean squares 9 (seeds), 4 (prompts), 1 (residual); variance of the mean (9 + 4 - 1) / 4 = 3 = 4 / 2 + 1.5 / 2 + 1 / 4.
    # Satterthwaite has 12^2 / (81 + 16 + 1) = 1.4694 degrees; with 1 and 1 the mean by any shares is 1, which is less.
    found = estimate(arm([[1.0, 2.0], [3.0, 6.0]]))
    assert found.components == Components(seed=4.0, prompt=1.5, residual=1.0)
    assert (found.std_error, found.degrees) == pytest.approx((math.sqrt(3.0), 1.0))
    half_width = 12.706205 * math.sqrt(3.0)
    ends = (found.interval.mean, found.interval.low, found.interval.high)
    assert ends == pytest.approx((3.0, 3.0 - half_width, 3.0 + half_width), abs=1e-5)


def test_mean_squares_are_those_of_a_slow_analysis_of_variance():
    table = np.random.default_rng(0).normal(size=(4, 7))
    found = mean_squares(table)
    assert (found.seed, found.prompt, found.residual) == pytest.approx(slow_mean_squares(table), abs=1e-12)


def test_components_and_error_are_those_of_restricted_maximum_likelihood():
    """Golden numbers of statsmodels 0.15.0 (MixedLM, y ~ 1 with crossed seeds and prompts); equal where all are positive."""
    table = [
        [0.9, 0.2, 0.5, 0.7, 0.1, 0.6],
        [0.8, 0.4, 0.6, 0.9, 0.2, 0.5],
        [0.6, 0.1, 0.3, 0.6, 0.2, 0.2],
        [1.0, 0.3, 0.4, 0.8, 0.3, 0.6],
    ]
    found = estimate(arm(table))
    assert found.components is not None
    components = (found.components.seed, found.components.prompt, found.components.residual)
    assert components == pytest.approx((0.01050007, 0.06221882, 0.00977793), abs=1e-5)
    assert (found.interval.mean, found.std_error) == pytest.approx((0.4916667, 0.1157680), abs=1e-5)


def test_mean_squares_are_as_large_as_expected_on_average():
    components = Components(seed=0.02, prompt=0.3, residual=0.1)
    tables = layouts(components, num_layouts=4000, num_seeds=3, num_prompts=10)
    found = np.mean(list(map(squares_of, tables)), axis=0)
    expected = expected_mean_squares(components, num_seeds=3, num_prompts=10)
    assert found == pytest.approx((expected.seed, expected.prompt, expected.residual), rel=0.05)


def squares_of(table: np.ndarray) -> tuple[float, float, float]:
    found = mean_squares(table)
    return found.seed, found.prompt, found.residual


def test_satterthwaites_degrees_count_where_they_are_fewer():
    # S P V = 4 + 1 - 1, and 4^2 / (4^2 / 2 + 1^2 / 10 + 1^2 / 20) = 1.963190; by shares 1 / (0.875 / 2 + 0.125 / 10) = 2.222.
    variance, degrees = spread(MeanSquares(num_seeds=3, num_prompts=11, seed=4.0, prompt=1.0, residual=1.0))
    assert (variance, degrees) == pytest.approx((4 / 33, 1.963190), abs=1e-6)


def test_degrees_by_shares_count_where_they_are_fewer():
    # Seeds -1, 0, 1, prompts -2 to 2, no residual: V = 1 / 3 + 2.5 / 5, seeds are 0.4 of it: 1 / (0.4 / 2 + 0.6 / 4) = 20 / 7.
    table = np.array([[-1.0], [0.0], [1.0]]) + np.array([[-2.0, -1.0, 0.0, 1.0, 2.0]])
    assert spread(mean_squares(table)) == pytest.approx((5 / 6, 20 / 7), abs=1e-9)


def test_half_the_residual_in_the_seeds_mean_square_is_in_their_share():
    # S P V = 3 + 6 - 2 = 7, the share (1 + 2 / 2) / 7: 1 / (2 / 7 / 2 + 5 / 7 / 10) = 14 / 3; Satterthwaite has 5.946.
    found = spread(MeanSquares(num_seeds=3, num_prompts=11, seed=3.0, prompt=6.0, residual=2.0))
    assert found == pytest.approx((7 / 33, 14 / 3), abs=1e-9)


def test_a_seed_mean_square_below_the_residual_counts_by_half_itself():
    # S P V = 6, the share (1 / 2) / 6: 1 / (1 / 12 / 2 + 11 / 12 / 10) = 7.5; Satterthwaite has 36 / 4.3 = 8.372.
    found = spread(MeanSquares(num_seeds=3, num_prompts=11, seed=1.0, prompt=6.0, residual=2.0))
    assert found == pytest.approx((6 / 33, 7.5), abs=1e-9)


def test_a_negative_component_is_zero():
    table = np.array([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0]])
    squares = mean_squares(table)
    assert squares.seed < squares.residual
    assert squares.components.seed == 0.0
    assert squares.components.prompt == 0.0
    assert spread(squares)[0] == pytest.approx(squares.residual / 12)


def test_one_seed_gives_the_interval_over_prompts_and_says_so():
    values = [0.1, 0.4, 0.4, 0.9, 0.0]
    found = estimate(arm([values]))
    expected = mean_interval(values)
    assert (found.interval.low, found.interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert not found.covers_seeds
    assert found.components is None


def test_an_arm_without_training_lacks_no_seed():
    assert estimate(arm([[0.1, 0.4, 0.5]], seeds=())).covers_seeds


@pytest.mark.parametrize("num_seeds", [3, 5])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_95_of_100_intervals_hold_the_truth(mixture: str, num_seeds: int):
    # Three times as many as elsewhere: the standard error of a share of 95 % is then 0.3 %.
    tables = layouts(MIXTURES[mixture], num_layouts=3 * NUM_LAYOUTS, num_seeds=num_seeds, num_prompts=100)
    assert 0.93 <= coverage(tables) <= 0.97


def test_95_of_100_intervals_of_yes_or_no_scores_hold_the_truth():
    rng = np.random.default_rng(0)
    # The chance of a right answer by prompt, shifted by seed; four samples of each.
    chances = np.clip(rng.beta(1.0, 1.0, (NUM_LAYOUTS, 1, 100)) * 0.6 + rng.normal(0.2, 0.03, (NUM_LAYOUTS, 3, 1)), 0.0, 1.0)
    assert 0.93 <= coverage(rng.binomial(4, chances) / 4, truth=0.5) <= 0.97


def test_satterthwaites_degrees_alone_would_cover_too_little_at_3_seeds():
    tables = layouts(Components(seed=0.04, prompt=0.25, residual=0.15), num_layouts=NUM_LAYOUTS, num_seeds=3, num_prompts=200)
    misses = {"satterthwaite": 0, "ours": 0}
    for table in tables:
        squares = mean_squares(table)
        variance, degrees = spread(squares)
        uncertainty = squares.seed**2 / 2 + squares.prompt**2 / 199 + squares.residual**2 / 398
        alone = (variance * table.size) ** 2 / uncertainty
        for name, used in (("satterthwaite", alone), ("ours", degrees)):
            misses[name] += abs(table.mean()) > scipy.stats.t.ppf(0.975, used) * math.sqrt(variance)
    assert 1 - misses["satterthwaite"] / NUM_LAYOUTS < 0.93
    assert 1 - misses["ours"] / NUM_LAYOUTS >= 0.93


def hierarchical_bootstrap_coverage(tables: np.ndarray, *, num_draws: int) -> float:
    """Coverage of percentile intervals that draw seeds, and for each drawn seed prompts, with replacement."""
    num_seeds, num_prompts = tables.shape[1:]
    rng = np.random.default_rng(1)
    weights = np.zeros((num_draws, num_seeds, num_prompts))
    for draw in range(num_draws):
        for seed in rng.integers(num_seeds, size=num_seeds):
            weights[draw, seed] += np.bincount(rng.integers(num_prompts, size=num_prompts), minlength=num_prompts)
    means = tables.reshape(len(tables), -1) @ weights.reshape(num_draws, -1).T / (num_seeds * num_prompts)  # [L, draws]
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    return float(np.mean((low <= 0.0) & (high >= 0.0)))


def test_a_plain_hierarchical_bootstrap_covers_too_little_at_3_seeds():
    tables = layouts(MIXTURES["seeds of 5 points"], num_layouts=NUM_LAYOUTS, num_seeds=3, num_prompts=200)
    assert 0.80 <= hierarchical_bootstrap_coverage(tables, num_draws=1000) <= 0.88
    assert coverage(tables) >= 0.93


def test_cells_taken_as_independent_cover_too_little():
    tables = layouts(MIXTURES["seeds of 5 points"], num_layouts=500, num_seeds=3, num_prompts=200)
    intervals = [mean_interval(table.ravel().tolist()) for table in tables]
    assert np.mean([interval.low <= 0.0 <= interval.high for interval in intervals]) < 0.85


def test_a_contrast_is_the_estimate_of_the_differences():
    first, second = np.random.default_rng(0).random((2, 3, 6))
    found = estimate(difference(arm(first), arm(second, name="raft")))
    assert found.interval == estimate(arm(first - second)).interval


def test_swapping_the_arms_turns_a_contrast_around():
    first, second = np.random.default_rng(0).random((2, 3, 6))
    there = estimate(difference(arm(first), arm(second, name="raft")))
    back = estimate(difference(arm(second, name="raft"), arm(first)))
    ends = (-back.interval.mean, -back.interval.high, -back.interval.low)
    assert (there.interval.mean, there.interval.low, there.interval.high) == pytest.approx(ends, abs=1e-12)
    assert p_value(there) == pytest.approx(p_value(back), abs=1e-12)
    assert chance_above(there, 0.0) == pytest.approx(chance_below(back, 0.0), abs=1e-12)


def test_pairing_takes_out_what_is_hard_for_both_arms():
    shared = layouts(Components(seed=0.0, prompt=1.0, residual=0.0), num_layouts=1, num_seeds=3, num_prompts=50)[0]
    noise = np.random.default_rng(1).normal(0.0, 0.01, (2, 3, 50))
    found = estimate(difference(arm(shared + noise[0]), arm(shared + noise[1], name="raft")))
    assert found.std_error < 0.01 < estimate(arm(shared + noise[0])).std_error


def test_only_shared_seeds_count_whatever_their_order():
    first = arm([[1.0, 2.0], [3.0, 5.0], [9.0, 9.0]], seeds=(0, 1, 4))
    second = arm([[1.0, 1.0], [0.5, 0.0]], name="raft", seeds=(1, 0))
    paired = difference(first, second)
    assert paired.seeds == (0, 1)
    assert paired.scores.tolist() == [[0.5, 2.0], [2.0, 4.0]]


def test_base_is_subtracted_from_every_seed():
    trained, base = arm([[1.0, 2.0], [3.0, 5.0]], seeds=(3, 4)), arm([[0.5, 1.0]], name="base", seeds=())
    assert difference(trained, base).scores.tolist() == [[0.5, 1.0], [2.5, 4.0]]
    assert difference(trained, base).seeds == (3, 4)
    assert difference(base, trained).scores.tolist() == [[-0.5, -1.0], [-2.5, -4.0]]


def test_prompts_without_a_score_everywhere_are_left_out_and_counted():
    nan = math.nan
    found = estimate(arm([[0.0, nan, 1.0, 0.5, nan], [0.5, nan, nan, 1.0, nan]]))
    assert (found.num_prompts, found.num_unscored, found.num_partly_scored) == (2, 2, 1)
    assert found.interval == estimate(arm([[0.0, 0.5], [0.5, 1.0]])).interval


def test_a_prompt_that_one_arm_lacks_is_left_out_of_the_contrast():
    first, second = np.random.default_rng(0).random((2, 2, 4))
    second[:, 1] = math.nan
    assert estimate(difference(arm(first), arm(second, name="raft"))).num_unscored == 1


def test_p_values_are_those_of_students_t():
    found = estimate(arm([[0.3, 0.1, 0.4, -0.1, 0.5]]))
    t = found.interval.mean / found.std_error
    assert p_value(found) == pytest.approx(2 * scipy.stats.t.sf(t, 4), abs=1e-12)
    assert p_value(found) == pytest.approx(scipy.stats.ttest_1samp([0.3, 0.1, 0.4, -0.1, 0.5], 0.0).pvalue, abs=1e-12)


def test_the_p_value_is_5_percent_where_the_interval_ends_at_0():
    table = np.random.default_rng(0).normal(size=(3, 20))
    shifted = table - estimate(arm(table)).interval.low
    assert p_value(estimate(arm(shifted))) == pytest.approx(0.05, abs=1e-9)


def test_equivalence_is_shown_where_the_90_percent_interval_is_within_the_margin():
    table = np.random.default_rng(0).normal(size=(3, 20))
    narrow = estimate(arm(table), confidence=0.9).interval
    margin = max(abs(narrow.low), abs(narrow.high))
    assert equivalence_p_value(estimate(arm(table)), margin) == pytest.approx(0.05, abs=1e-9)


def test_equal_arms_have_an_interval_of_no_width_and_no_difference():
    table = np.random.default_rng(0).random((3, 5))
    found = estimate(difference(arm(table), arm(table, name="raft")))
    assert (found.interval.low, found.interval.high) == (0.0, 0.0)
    assert p_value(found) == 1.0
    assert equivalence_p_value(found, 0.01) == 0.5**5


@pytest.mark.parametrize("num_rows", [1, 3])
def test_without_any_spread_the_p_value_is_that_of_a_sign_test(num_rows: int):
    found = estimate(arm(np.full((num_rows, 7), 0.1)))
    assert found.std_error == 0.0
    assert p_value(found) == pytest.approx(2 * 0.5**7)
    assert p_value(estimate(arm(np.full((num_rows, 7), -0.1)))) == pytest.approx(2 * 0.5**7)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (arm([[1.0, 2.0]]), arm([[1.0, 2.0, 3.0]], name="raft"), "the same prompts"),
        (arm([[1.0, 2.0]], seeds=(0,)), arm([[1.0, 2.0]], name="raft", seeds=(1,)), "no training seed in common"),
        (arm([[1.0, 2.0]], seeds=(0, 1)), arm([[1.0, 2.0]], name="raft"), "1x2 scores for 2 seeds"),
        (arm([[1.0, 2.0], [1.0, 2.0]], seeds=()), arm([[1.0, 2.0]], name="raft"), "2x2 scores for 0 seeds"),
        (arm([[1.0, 2.0], [1.0, 2.0]], seeds=(1, 1)), arm([[1.0, 2.0]], name="raft"), "appears twice"),
    ],
)
def test_tables_that_cannot_be_paired_are_refused(first, second, message: str):
    with pytest.raises(CoveyError, match=message):
        difference(first, second)


def test_a_seed_without_scores_is_named():
    with pytest.raises(CoveyError, match="seed 7 has no scored prompt"):
        estimate(arm([[1.0, 2.0], [math.nan, math.nan]], seeds=(3, 7)))


def test_one_prompt_is_too_few():
    with pytest.raises(CoveyError, match="fewer than 2 prompts"):
        estimate(arm([[1.0], [2.0]]))
