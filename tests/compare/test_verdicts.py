"""Verdicts in words: Holm's correction, the primary contrast, equivalence only with a margin."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.compare.layouts import arm, layouts

from covey.compare.statistics import ArmScores, Components, difference, estimate
from covey.compare.verdicts import Contrast, Verdict, contrasts_with, holm, points, signed_points, verdicts
from covey.types import CoveyError

PRIMARY = Contrast(arm="grpo", reference="raft")


def closed_bonferroni(p_values: list[float]) -> list[float]:
    """Holm's method as the closed test it is: reject a hypothesis if Bonferroni rejects every set that has it."""
    indices = range(len(p_values))
    sets = [group for size in range(1, len(p_values) + 1) for group in combinations(indices, size)]
    return [max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in sets if index in s) for index in indices]


@given(p_values=st.lists(st.floats(0.0, 1.0), max_size=6))
def test_holm_is_the_closed_bonferroni_test(p_values: list[float]):
    assert holm(p_values) == pytest.approx(closed_bonferroni(p_values), abs=1e-12)


def test_a_hand_computed_holm_correction():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def arms(**means: float) -> list[ArmScores]:
    """Return arms that differ by their means and by a residual of their own, with a standard error of about 1 point."""
    noise = Components(seed=0.0, prompt=0.01, residual=0.01)
    return [
        arm(layouts(noise, num_layouts=1, num_seeds=3, num_prompts=200, mean=mean, draw=draw)[0], name=name)
        for draw, (name, mean) in enumerate(means.items())
    ]


def one(margin: float | None = None, **means: float) -> Verdict:
    return verdicts(arms(**means), primary=PRIMARY, margin=margin)[0]


@pytest.mark.parametrize(("gain", "outcome"), [(0.2, "better"), (-0.2, "worse"), (0.0, "inconclusive")])
def test_the_verdict_follows_the_interval(gain: float, outcome: str):
    verdict = one(grpo=0.5 + gain, raft=0.5)
    assert verdict.outcome == outcome
    assert verdict.estimate.interval.excludes(0.0) == (outcome != "inconclusive")


def test_swapping_the_arms_swaps_better_and_worse():
    tables = arms(grpo=0.7, raft=0.5)
    there = verdicts(tables, primary=PRIMARY)[0]
    back = verdicts(tables, primary=Contrast(arm="raft", reference="grpo"))[0]
    assert (there.outcome, back.outcome) == ("better", "worse")
    assert there.p_value == pytest.approx(back.p_value)
    assert there.estimate.interval.low == pytest.approx(-back.estimate.interval.high)


def test_arms_are_equivalent_only_within_a_declared_margin():
    assert one(grpo=0.5, raft=0.5).outcome == "inconclusive"
    assert one(grpo=0.5, raft=0.5, margin=0.05).outcome == "equivalent"
    assert one(grpo=0.5, raft=0.5, margin=0.005).outcome == "inconclusive"


def test_a_difference_within_the_margin_keeps_its_direction_and_is_said_not_to_matter():
    verdict = one(grpo=0.55, raft=0.5, margin=0.2)
    assert verdict.outcome == "better"
    assert verdict.sentence.endswith("The difference is smaller than the 20 points declared to matter.")


def test_the_primary_contrast_is_not_corrected_and_the_others_are():
    tables = arms(grpo=0.5, raft=0.5, ppo=0.52, dpo=0.49)
    others = contrasts_with("raft", tables)
    found = verdicts(tables, primary=PRIMARY, others=others)
    alone = [verdicts(tables, primary=contrast)[0].p_value for contrast in others]
    assert [verdict.contrast.arm for verdict in found] == ["grpo", "ppo", "dpo"]
    assert [verdict.is_primary for verdict in found] == [True, False, False]
    assert [verdict.num_tests for verdict in found] == [1, 2, 2]
    assert [verdict.p_value for verdict in found] == pytest.approx([alone[0], *closed_bonferroni(alone[1:])])


def test_tests_of_equivalence_are_corrected_for_their_number_too():
    tables = arms(grpo=0.5, raft=0.5, ppo=0.52, dpo=0.49)
    others = contrasts_with("raft", tables)
    found = verdicts(tables, primary=PRIMARY, others=others, margin=0.04)
    alone = [verdicts(tables, primary=contrast, margin=0.04)[0].equivalence_p_value for contrast in others]
    assert [verdict.equivalence_p_value for verdict in found] == pytest.approx([alone[0], *closed_bonferroni(alone[1:])])


def test_the_interval_has_the_level_of_the_test():
    tables = arms(grpo=0.52, raft=0.5)
    verdict = verdicts(tables, primary=PRIMARY, alpha=0.1)[0]
    assert verdict.estimate.interval == estimate(difference(*tables), confidence=0.9).interval
    assert "(90 % interval" in verdict.sentence


def test_an_interval_that_excludes_0_may_still_be_inconclusive_among_many():
    # Ten contrasts of equal arms with one that is just outside: its own p-value is about 0.03.
    table = np.random.default_rng(0).normal(size=(3, 50))
    low, spread = table.mean(), table.std() / math.sqrt(150)
    rivals = [arm(np.random.default_rng(1 + n).normal(size=(3, 50)), name=f"equal {n}") for n in range(9)]
    tables = [arm(table - low + 2.3 * spread, name="odd"), arm(np.zeros((1, 50)), name="raft", seeds=()), *rivals]
    first, *rest = verdicts(tables, primary=Contrast(arm="equal 0", reference="raft"), others=contrasts_with("raft", tables))
    odd = next(verdict for verdict in rest if verdict.contrast.arm == "odd")
    assert first.is_primary
    assert odd.estimate.interval.excludes(0.0)
    assert odd.outcome == "inconclusive"
    assert "Its own interval excludes 0, but among 9 contrasts one does so too easily." in odd.sentence


def test_the_sentence_has_the_interval_in_points_and_what_it_rests_on():
    # Differences of 0.2 and 0.4 over two prompts, of one seed: 30 points, 12.7062 * 10 points to each side.
    tables = [arm([[0.6, 0.9]], name="grpo"), arm([[0.4, 0.5]], name="raft")]
    assert verdicts(tables, primary=PRIMARY)[0].sentence == (
        "inconclusive whether grpo is better than raft: +30 points (95 % interval -97.1 to +157.1), p = 0.205, declared "
        "before; 1 seed, 2 prompts, what another seed would change is not in the interval."
    )


def test_the_sentence_says_what_was_left_out():
    tables = [arm([[0.6, 0.9, math.nan], [0.6, 0.9, math.nan]]), arm([[0.4, 0.5, 1.0]], name="raft", seeds=())]
    assert "2 seeds, 2 prompts, 1 prompts left out that were never scored." in verdicts(tables, primary=PRIMARY)[0].sentence


def test_two_prompts_without_spread_prove_nothing():
    tables = [arm([[1.0, 1.0], [1.0, 1.0]]), arm([[0.0, 0.0]], name="raft", seeds=())]
    verdict = verdicts(tables, primary=PRIMARY)[0]
    assert verdict.outcome == "inconclusive"
    assert verdict.sentence.endswith("sign test over the prompts.")


@pytest.mark.parametrize(
    ("primary", "margin", "message"),
    [
        (Contrast(arm="grpo", reference="ppo"), None, "no arm 'ppo' to compare: there are grpo, raft"),
        (Contrast(arm="grpo", reference="grpo"), None, "compared with itself"),
        (PRIMARY, 0.0, "margin=0.0"),
    ],
)
def test_what_cannot_be_compared_is_refused(primary: Contrast, margin: float | None, message: str):
    with pytest.raises(CoveyError, match=message):
        verdicts(arms(grpo=0.5, raft=0.5), primary=primary, margin=margin)


def test_arms_of_one_name_are_refused():
    with pytest.raises(CoveyError, match="same name"):
        verdicts([*arms(grpo=0.5), *arms(grpo=0.5)], primary=PRIMARY)


@pytest.mark.parametrize(("value", "shown"), [(0.0621, "+6.2"), (-0.0621, "-6.2"), (0.06, "+6"), (0.0004, "0"), (-0.0004, "0")])
def test_points_have_one_decimal_and_a_sign(value: float, shown: str):
    assert signed_points(value) == shown
    assert points(value) == shown.lstrip("+")
