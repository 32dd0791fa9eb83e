"""What a model can learn from: the share of usable groups without bias, and a verdict with its reasons."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from typing import Any

import pytest
from scipy.integrate import quad
from scipy.stats import beta as beta_distribution
from tests.builders import END, make_prompt, make_reward

from covey.calibrate import (
    Calibration,
    CalibrationSpec,
    beta_fit,
    calibrate,
    calibration_lines,
    calibration_row,
    fitted_usable_frac,
    flat_chance,
    majority_frac,
    usable_groups,
)
from covey.engines.scripted import ScriptedEngine
from covey.engines.transformers import TransformersEngine
from covey.models.policy import Policy
from covey.rewards.base import Reward
from covey.sampling import Sampling
from covey.tasks.base import Task
from covey.tasks.registry import find_task

# --- the share of usable groups ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_scored", "num_right", "group_size"), [(6, 2, 3), (6, 0, 3), (6, 6, 4), (7, 3, 2), (5, 4, 5)])
def test_the_chance_of_a_flat_group_is_that_over_all_groups_that_could_be_drawn(
    num_scored: int, num_right: int, group_size: int
):
    completions = [1] * num_right + [0] * (num_scored - num_right)
    groups = list(itertools.combinations(completions, group_size))
    expected = sum(len(set(group)) == 1 for group in groups) / len(groups)
    assert flat_chance(num_right, num_scored, group_size) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("group_size", [2, 4, 8])
def test_it_is_unbiased_for_every_pass_rate(rate: float, group_size: int):
    """E over c ~ Binomial(8, p) of the estimate is p^G + (1 - p)^G, exactly."""
    expected = sum(
        math.comb(8, right) * rate**right * (1 - rate) ** (8 - right) * flat_chance(right, 8, group_size) for right in range(9)
    )
    assert expected == pytest.approx(rate**group_size + (1 - rate) ** group_size, abs=1e-12)


def test_the_plain_estimate_would_be_too_high():
    """The reason for the combinations: putting c / n into the formula is biased by far."""
    plain = sum(
        math.comb(8, right) * 0.3**right * 0.7 ** (8 - right) * ((right / 8) ** 4 + (1 - right / 8) ** 4) for right in range(9)
    )
    assert plain > 0.3**4 + 0.7**4 + 0.07


def test_groups_no_larger_than_the_samples_are_estimated_for_each_prompt():
    usable = usable_groups([(0, 8), (2, 8), (8, 8)], 4)
    assert (usable.frac, usable.estimator) == (pytest.approx((1 - math.comb(6, 4) / math.comb(8, 4)) / 3), "U-statistic")


def test_larger_groups_and_prompts_with_too_few_scores_are_fitted():
    assert usable_groups([(0, 8), (2, 8)], 16).estimator == "beta-binomial"
    assert usable_groups([(0, 8), (2, 3)], 4).estimator == "beta-binomial"


@pytest.mark.parametrize(("a", "b"), [(0.5, 1.5), (2.0, 5.0)])
def test_the_fit_finds_the_distribution_that_the_counts_were_drawn_from(a: float, b: float):
    random_numbers = random.Random(0)
    counts = []
    for _ in range(4000):
        rate = random_numbers.betavariate(a, b)
        counts.append((sum(random_numbers.random() < rate for _ in range(8)), 8))
    assert beta_fit(counts) == (pytest.approx(a, rel=0.1), pytest.approx(b, rel=0.1))
    exact = quad(lambda p: (1 - p**16 - (1 - p) ** 16) * beta_distribution.pdf(p, a, b), 0, 1)[0]
    assert fitted_usable_frac(counts, 16) == pytest.approx(exact, abs=0.02)


def test_prompts_that_are_all_alike_are_fitted_as_one_rate():
    counts = [
        (right, 8) for right in range(9) for _ in range(round(1000 * math.comb(8, right) * 0.25**right * 0.75 ** (8 - right)))
    ]
    assert fitted_usable_frac(counts, 16) == pytest.approx(1 - 0.25**16 - 0.75**16, abs=0.01)


@pytest.mark.parametrize("right", [0, 8])
@pytest.mark.parametrize("group_size", [4, 32])
def test_where_all_is_right_or_all_wrong_no_group_is_usable(right: int, group_size: int):
    assert usable_groups([(right, 8)] * 5, group_size).frac == 0.0


def test_larger_groups_are_usable_more_often():
    counts = [(random.Random(prompt).randrange(9), 8) for prompt in range(50)]
    fracs = [usable_groups(counts, size).frac for size in (2, 4, 8, 16, 32)]
    assert fracs == sorted(fracs)


# --- calibrate -------------------------------------------------------------------------------------------------------------

SPEC = CalibrationSpec(sampling=Sampling(max_new_tokens=3), num_prompts=4, samples_per_prompt=4, group_size=4)
LETTERS = make_reward(lambda sample: float(sample.completion == "A"), name="is A")


def small_task(proxy: Reward = LETTERS, gold: Reward | None = None, answers: str = "ABCDE") -> Task:
    train = [make_prompt(f"q{number}", f"Say {number}", answer=answer) for number, answer in enumerate(answers)]
    return Task(name="small/easy", train=train, held_out={}, proxy=proxy, gold=gold, probes=())


def scripted(*texts: str) -> ScriptedEngine:
    """Return an engine whose sample number i of every prompt is text number i; "..." never ends."""
    return ScriptedEngine(
        lambda prompt, sample: [66] * 9 if texts[sample] == "..." else [*texts[sample].encode(), END],
        stop_ids=frozenset({END}),
    )


def found(policy: Policy, *texts: str, task: Task | None = None, **changes: Any) -> Calibration:
    spec = dataclasses.replace(SPEC, **changes)
    return calibrate(task or small_task(), spec, policy=policy, engine=scripted(*texts))


def test_a_task_is_learnable_if_some_completions_pass_and_groups_differ(shared_tiny_policy: Policy):
    row = found(shared_tiny_policy, "A", "B", "B", "...")
    assert (row.pass_rate.mean, row.truncated_frac, row.num_prompts) == (0.25, 0.25, 4)
    assert row.usable[0] == usable_groups([(1, 4)] * 4, 4)
    assert (row.is_learnable, row.reasons) == (True, ())


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ("BBBB", "too hard: 0.0% pass, below 10%"),
        ("AAAA", "too easy: 100.0% pass, above 70%"),
        ("BBBB", "0.0% of groups of 4 would be usable, below 40%"),
    ],
)
def test_what_cannot_be_learned_from_says_why(shared_tiny_policy: Policy, texts: str, reason: str):
    row = found(shared_tiny_policy, *texts)
    assert not row.is_learnable
    assert reason in row.reasons


def test_a_commonest_answer_that_is_right_too_often_is_a_reason(shared_tiny_policy: Policy):
    row = found(shared_tiny_policy, "A", "B", "B", "B", task=small_task(answers="AABCD"))
    assert row.reasons == ("one answer is right for 40.0% of the questions, 30% or more",)


def test_the_limits_are_those_of_the_specification(shared_tiny_policy: Policy):
    assert not found(shared_tiny_policy, "A", "B", "B", "B", lowest_pass_rate=0.3).is_learnable
    assert found(shared_tiny_policy, "A", "A", "A", "B", highest_pass_rate=0.8).is_learnable


def test_gold_is_measured_beside_the_proxy(shared_tiny_policy: Policy):
    gold = make_reward(lambda sample: float(sample.completion == "B"))
    row = found(shared_tiny_policy, "A", "B", "B", "B", task=small_task(gold=gold))
    assert (row.pass_rate.mean, row.gold_rate) == (0.25, 0.75)
    assert found(shared_tiny_policy, "A", "B", "B", "B").gold_rate is None


def test_a_completion_that_cannot_be_scored_is_left_out_and_counted(shared_tiny_policy: Policy):
    def fail_on_c(sample: Any) -> float:
        if sample.completion == "C":
            raise ValueError("no C")
        return float(sample.completion == "A")

    row = found(shared_tiny_policy, "A", "B", "C", "C", task=small_task(make_reward(fail_on_c)))
    assert (row.pass_rate.mean, row.error_frac) == (0.5, 0.5)


def test_a_reward_that_scores_nothing_is_the_reason(shared_tiny_policy: Policy):
    row = found(shared_tiny_policy, "A", "A", "A", "A", task=small_task(make_reward(lambda sample: 1 / 0)))
    assert row.reasons == ("the reward could score no completion",)


def test_only_full_pay_is_a_pass(shared_tiny_policy: Policy):
    halves = make_reward(lambda sample: {"A": 1.0, "B": 0.5}.get(sample.completion, 0.0))
    assert found(shared_tiny_policy, "A", "B", "B", "C", task=small_task(halves)).pass_rate.mean == 0.25


def test_the_majority_is_that_of_all_training_answers():
    assert majority_frac(small_task(answers="AABCD").train) == 0.4


def test_the_tiny_model_is_calibrated_on_a_real_task_the_same_way_twice(tiny_policy: Policy):
    engine = TransformersEngine(tiny_policy)
    engine.load_weights(tiny_policy, 0)
    spec = CalibrationSpec(sampling=Sampling(max_new_tokens=4), num_prompts=3, samples_per_prompt=2, seed=1)
    task = find_task("arithmetic", level="easy")
    rows = [calibrate(task, spec, policy=tiny_policy, engine=engine) for _ in range(2)]
    assert rows[0] == rows[1]
    assert (rows[0].num_prompts, rows[0].pass_rate.mean, rows[0].is_learnable) == (3, 0.0, False)


# --- what is said --------------------------------------------------------------------------------------------------------


def test_the_lines_name_the_shares_and_how_each_was_estimated(shared_tiny_policy: Policy):
    lines = calibration_lines([found(shared_tiny_policy, "A", "B", "B", "..."), found(shared_tiny_policy, "B", "B", "B", "B")])
    assert lines[1].startswith("small/easy  25.0%")
    assert lines[1].endswith("yes")
    assert lines[2].endswith("no")
    assert "too hard: 0.0% pass" in lines[3]
    assert lines[-2:] == [
        "G = 4: unbiased for each prompt, from 4 samples",
        "G = 8, 16, 32: from a beta distribution fitted to all prompts, for want of that many samples",
    ]


def test_a_row_is_plain_json_without_nan(shared_tiny_policy: Policy):
    row = calibration_row(found(shared_tiny_policy, "A", "A", "A", "A", task=small_task(make_reward(lambda sample: 1 / 0))))
    assert json.loads(json.dumps(row, allow_nan=False))["pass_rate"]["mean"] is None


def test_nothing_to_say_of_no_tasks():
    assert calibration_lines([]) == []
