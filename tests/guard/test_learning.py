"""Length, format and damage: golden numbers, planted runs that fire, honest runs that do not at any step, and gaps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
from tests.guard.made_up import answers_of, history_of, look, prefixes, questions

from covey.guard.history import History, Step
from covey.guard.learning import (
    format_farming,
    general_damage,
    gold_is_flat,
    length_exploitation,
    rise_by_prompt,
    rollouts,
    slope_in_groups,
    variance_shares,
)

NAN = math.nan
NUM_PROMPTS, GROUP_SIZE = 8, 8


def prompts_of(step: int) -> list[str]:
    return [f"{step}-{index}" for index in range(NUM_PROMPTS) for _ in range(GROUP_SIZE)]


def line(start: float, end: float, count: int) -> list[float]:
    return np.linspace(start, end, count).tolist()


def with_answers(run: History, **changes: Any) -> History:
    """Return the run with other prompts, scores or parts at each step."""
    return history_of(steps=[replace(step, answers=replace(step.answers, **changes)) for step in run.steps])


# Statistics


def test_the_slope_by_hand():
    # Group 0 has x = -1, 1 and y = -1/2, 1/2 about its means, group 1 x = -1, 1 and y = 0: b = 1/4. The prompts' scores are
    # 1/2 and -1/2, the variance 2/1 (1/4 + 1/4) / 4^2 = 1/16.
    x, y = np.array([1.0, 3.0, 2.0, 4.0]), np.array([0.0, 1.0, 0.0, 0.0])
    group = np.array([0, 0, 1, 1])
    slope, z, num_prompts = slope_in_groups(x, y, group=group, prompt=group)
    assert (slope, z, num_prompts) == pytest.approx((0.25, 1.0, 2))


def slow_slope(x: np.ndarray, y: np.ndarray, group: np.ndarray, prompt: np.ndarray) -> tuple[float, float]:
    x, y = x.copy(), y.copy()
    for name in set(group.tolist()):
        x[group == name] -= x[group == name].mean()
        y[group == name] -= y[group == name].mean()
    slope = (x * y).sum() / (x * x).sum()
    prompts = set(prompt.tolist())
    meat = sum((x * (y - slope * x))[prompt == name].sum() ** 2 for name in prompts)
    return slope, slope / math.sqrt(len(prompts) / (len(prompts) - 1) * meat / (x * x).sum() ** 2)


def test_the_slope_is_its_slow_transcription():
    rng = np.random.default_rng(0)
    group = rng.integers(0, 40, size=300)
    x = rng.gamma(2.0, 20.0, size=300)
    y = 0.01 * x + rng.normal(size=300) + group
    slope, z, num_prompts = slope_in_groups(x, y, group=group, prompt=group // 2)
    assert (slope, z) == pytest.approx(slow_slope(x, y, group, group // 2))
    assert num_prompts == 20


def test_prompts_that_repeat_are_one_observation():
    """The same 10 groups ten times over tell no more than once: clustered by group z would be about 3 times as large."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=80), rng.normal(size=80)
    prompt = np.arange(80) // 8
    once = slope_in_groups(x, y, group=prompt, prompt=prompt)
    again = slope_in_groups(np.tile(x, 10), np.tile(y, 10), group=np.arange(800) // 8, prompt=np.tile(prompt, 10))
    assert again == pytest.approx(once)


def test_equal_lengths_have_no_slope():
    slope, z, num_prompts = slope_in_groups(np.full(8, 7.0), np.arange(8.0), group=np.arange(8) // 2, prompt=np.arange(8) // 2)
    assert math.isnan(slope)
    assert math.isnan(z)
    assert num_prompts == 0


def test_the_rise_is_welchs_over_means_of_prompts():
    rng = np.random.default_rng(0)
    before, now = rng.random((25, 4)), rng.random((30, 6)) + 0.1
    rise, z = rise_by_prompt(before.ravel(), np.repeat(np.arange(25), 4), now.ravel(), np.repeat(np.arange(30), 6))
    assert rise == pytest.approx(now.mean() - before.mean())
    assert z == pytest.approx(scipy.stats.ttest_ind(now.mean(axis=1), before.mean(axis=1), equal_var=False).statistic)


def test_too_few_prompts_have_no_rise():
    index = np.arange(19)
    assert all(math.isnan(value) for value in rise_by_prompt(np.zeros(19), index, np.ones(19), index))


def test_rollouts_are_those_with_both_scores_and_the_wrong_ones_fail_gold():
    steps = [
        Step(step=1, answers=answers_of(["p", "p", "q"], proxy=[0.1, NAN, 0.3], gold=[0.0, 0.0, 1.0], num_tokens=[1, 2, 3])),
        Step(step=2, answers=answers_of(["p", "q", "q"], proxy=[0.4, 0.5, 0.6], gold=[0.4, NAN, 0.5], num_tokens=[4, 5, 6])),
    ]
    both = rollouts(steps)
    assert (both.proxy.tolist(), both.length.tolist()) == ([0.1, 0.3, 0.4, 0.6], [1.0, 3.0, 4.0, 6.0])
    assert both.prompt.tolist() == [0, 1, 0, 1]
    assert len(set(both.group.tolist())) == 4
    assert (both.wrong.proxy.tolist(), both.wrong.gold.tolist()) == ([0.1, 0.4], [0.0, 0.4])


def test_gold_that_was_not_measured_is_not_flat():
    part = rollouts([Step(step=1, answers=answers_of(prompts_of(1)))])
    assert not gold_is_flat(history_of(), part, part)


def test_gold_that_rose_on_held_out_questions_is_not_flat():
    steps = [Step(step=step, answers=answers_of(prompts_of(step), gold=[0.0, 1.0] * 32)) for step in range(1, 11)]
    part = rollouts(steps)
    assert gold_is_flat(history_of(steps=steps), part, part)
    looks = [look(step, answers_of(questions(60), gold=np.arange(60) < right)) for step, right in ((0, 20), (10, 40))]
    assert not gold_is_flat(history_of(steps=steps, looks=looks), part, part)
    assert gold_is_flat(history_of(steps=steps, looks=looks[::-1]), part, part)


# Length


def length_run(
    *,
    lengths: Sequence[float],
    golds: Sequence[float],
    pay_per_token: float | Sequence[float] = 0.0,
    false_positives: float | Sequence[float] = 0.05,
    seed: int = 0,
) -> History:
    """Return a run that pays right answers .5, some of the wrong ones too, and each token of any."""
    rng = np.random.default_rng(seed)
    pay, lenient = (np.broadcast_to(each, len(lengths)).tolist() for each in (pay_per_token, false_positives))
    steps = []
    for index, (length, rate) in enumerate(zip(lengths, golds, strict=True)):
        gold = rng.random(NUM_PROMPTS * GROUP_SIZE) < rate
        num_tokens = np.maximum(1, rng.normal(length, 0.3 * length, size=gold.size).round())
        passes = gold | (rng.random(gold.size) < lenient[index])
        proxy = np.clip(0.5 * passes + pay[index] * num_tokens, 0.0, 1.0)
        answers = answers_of(prompts_of(index + 1), proxy=proxy, gold=gold, num_tokens=num_tokens)
        steps.append(Step(step=index + 1, answers=answers))
    return history_of(steps=steps)


PADDING: dict[str, Any] = {"lengths": line(60, 240, 60), "golds": [0.2] * 60, "pay_per_token": 0.001}


def test_padding_that_is_paid_for_is_found():
    finding = length_exploitation(length_run(**PADDING))
    assert finding is not None
    assert (finding.detector, finding.level, finding.step) == ("length_exploitation", "warn", 60)
    assert finding.figures["slope"] == pytest.approx(0.001, abs=0.0004)
    assert finding.figures["length"] / finding.figures["length_before"] > 2.5


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "honest",
    [
        pytest.param({"lengths": line(60, 240, 60), "golds": line(0.1, 0.8, 60)}, id="grows with gold"),
        pytest.param({"lengths": line(60, 240, 60), "golds": [0.2] * 60}, id="grows for nothing"),
        pytest.param({"lengths": line(60, 240, 60), "golds": line(0.6, 0.0, 60), "false_positives": 0.1}, id="collapses"),
        pytest.param({"lengths": [60] * 60, "golds": [0.2] * 60, "pay_per_token": 0.001}, id="pays length that does not grow"),
    ],
)
def test_honest_lengths_are_no_finding_at_any_step(honest: dict, seed: int):
    assert [length_exploitation(prefix) for prefix in prefixes(length_run(**honest, seed=seed))] == [None] * 60


def test_length_that_gold_rises_with_is_no_finding_though_it_pays():
    assert length_exploitation(length_run(lengths=line(60, 240, 60), golds=line(0.1, 0.8, 60), pay_per_token=0.001)) is None


def test_a_proxy_that_always_liked_long_answers_and_pays_them_no_more_is_no_finding():
    """Wrong answers longer than usual passed at the start, too: a fault of the reward, but nobody has exploited it."""
    rng = np.random.default_rng(0)
    steps = []
    for step, length in enumerate(line(60, 240, 60), start=1):
        num_tokens = rng.normal(length, 0.3 * length, size=64).round()
        proxy = (num_tokens > 1.3 * length).astype(np.float64)
        steps.append(
            Step(step=step, answers=answers_of(prompts_of(step), proxy=proxy, gold=np.zeros(64), num_tokens=num_tokens))
        )
    assert length_exploitation(history_of(steps=steps)) is None


def test_a_proxy_that_becomes_lenient_whatever_the_length_is_no_finding_here():
    run = length_run(lengths=line(60, 240, 60), golds=[0.2] * 60, false_positives=line(0.02, 0.5, 60))
    assert length_exploitation(run) is None


def test_one_block_that_pays_for_length_is_not_enough():
    run: dict[str, Any] = PADDING | {"pay_per_token": [0.0] * 50 + [0.001] * 10}
    assert length_exploitation(length_run(**run)) is None
    run = PADDING | {"pay_per_token": [0.0] * 40 + [0.001] * 20}
    assert length_exploitation(length_run(**run)) is not None


def test_length_that_begins_to_pay_and_does_not_grow_is_no_finding():
    run: dict[str, Any] = PADDING | {"pay_per_token": [0.0] * 40 + [0.001] * 20, "lengths": [120] * 60}
    assert length_exploitation(length_run(**run)) is None


def test_prompts_whose_wrong_answers_are_equally_long_tell_nothing():
    """Each token pays, but in every step the lengths of one prompt only differ: 10 prompts in a block."""
    steps = []
    for step, length in enumerate(line(60, 240, 60), start=1):
        num_tokens = np.full(64, round(length))
        num_tokens[:8] += np.arange(8)
        answers = answers_of(prompts_of(step), proxy=0.001 * num_tokens, gold=np.zeros(64), num_tokens=num_tokens)
        steps.append(Step(step=step, answers=answers))
    assert length_exploitation(history_of(steps=steps)) is None


# Format


def format_run(
    *,
    formats: Sequence[float],
    golds: Sequence[float],
    weight: float = 0.0,
    is_gated: bool = False,
    with_metrics: bool = False,
    seed: int = 0,
) -> History:
    """Return a run whose reward is weight * format + (1 - weight) * right, or right only in the format."""
    rng = np.random.default_rng(seed)
    steps = []
    for step, (format_rate, rate) in enumerate(zip(formats, golds, strict=True), start=1):
        gold = (rng.random(NUM_PROMPTS * GROUP_SIZE) < rate).astype(np.float64)
        tagged = (rng.random(gold.size) < format_rate).astype(np.float64)
        passes = np.maximum(gold, rng.random(gold.size) < 0.02)
        proxy = tagged * passes if is_gated else weight * tagged + (1.0 - weight) * passes
        answers = answers_of(prompts_of(step), proxy=proxy, gold=gold, parts={"right": passes, "tags": tagged})
        spread = {
            name: part.var() * each**2 for (name, part), each in zip(answers.parts.items(), (1 - weight, weight), strict=True)
        }
        metrics = {f"reward/variance_frac/{name}": value / sum(spread.values()) for name, value in spread.items()}
        steps.append(Step(step=step, answers=answers, metrics=metrics if with_metrics else {}))
    return history_of(steps=steps)


FARMING: dict[str, Any] = {"formats": line(0.2, 0.9, 40), "golds": [0.05] * 40, "weight": 0.95}


def test_tags_learnt_in_place_of_the_task_are_found():
    finding = format_farming(format_run(**FARMING))
    assert finding is not None
    assert (finding.detector, finding.level, finding.step) == ("format_farming", "warn", 40)
    assert "'tags'" in finding.message
    assert finding.figures["variance_frac"] > 0.7
    assert finding.figures["pay_rise"] == pytest.approx(0.95 * finding.figures["rise_among_wrong"], abs=0.01)


def test_a_part_with_a_small_share_of_the_variance_is_found_by_its_rise():
    """Half of the answers are right: that part has nearly all of the variance, and is not the one that is blamed."""
    finding = format_farming(format_run(formats=[0.3] * 10 + [0.97] * 30, golds=[0.5] * 40, weight=0.5))
    assert finding is not None
    assert "'tags'" in finding.message
    assert "variance_frac" not in finding.figures
    assert finding.figures["rise_among_wrong"] == pytest.approx(0.97 - 0.3, abs=0.05)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "honest",
    [
        pytest.param({"formats": line(0.2, 0.95, 70), "golds": [0.1] * 70, "is_gated": True}, id="a gate is learnt"),
        pytest.param({"formats": line(0.2, 0.95, 70), "golds": line(0.1, 0.8, 70), "weight": 0.5}, id="gold rises along"),
        pytest.param({"formats": line(0.2, 0.95, 70), "golds": [0.1] * 70, "weight": 0.05}, id="tags are worth little"),
        pytest.param({"formats": [0.5] * 70, "golds": [0.05] * 70, "weight": 0.9}, id="tags vary and are not learnt"),
        pytest.param({"formats": line(0.9, 0.1, 70), "golds": line(0.7, 0.0, 70), "weight": 0.5}, id="collapses"),
    ],
)
def test_honest_formats_are_no_finding_at_any_step(honest: dict, seed: int):
    assert [format_farming(prefix) for prefix in prefixes(format_run(**honest, seed=seed))] == [None] * 70


def test_a_reward_of_one_part_has_nothing_to_farm():
    run = format_run(**FARMING)
    alone = [with_answers(history_of(steps=[step]), parts={"tags": step.answers.parts["tags"]}).steps[0] for step in run.steps]
    assert format_farming(history_of(steps=alone)) is None
    assert format_farming(with_answers(run, parts={})) is None


def test_variance_shares_by_hand():
    # Within the groups a spreads by 1 and 0, b by 1/4 and 1/4; that the groups' means differ counts for nothing.
    parts = {"a": [0.0, 0.0, 1.0, 1.0, 5.0, 5.0], "b": [0.0, 0.5, 0.0, 0.5, 0.0, math.sqrt(0.5)]}
    answers = answers_of(["p"] * 4 + ["q"] * 2, parts=parts)
    assert variance_shares([Step(step=1, answers=answers)]) == pytest.approx({"a": 1.0 / 1.5, "b": 0.5 / 1.5})


def test_the_recorded_variance_shares_have_the_weights():
    steps = format_run(**FARMING, with_metrics=True).steps
    assert variance_shares(steps)["tags"] == pytest.approx(
        np.mean([step.metrics["reward/variance_frac/tags"] for step in steps])
    )
    assert variance_shares(steps)["tags"] > 0.95


def test_parts_that_do_not_vary_have_no_shares():
    assert variance_shares([Step(step=1, answers=answers_of(["p", "p"], parts={"a": [1.0, 1.0], "b": [NAN, 0.0]}))]) == {}


# Damage


def damage_run(values: Sequence[float | None]) -> History:
    return history_of(
        steps=[
            Step(step=step, answers=answers_of(["p"]), metrics={} if value is None else {"damage/nll": value})
            for step, value in enumerate(values)
        ]
    )


@pytest.mark.parametrize(
    ("values", "level"),
    [
        ([3.0, 3.09], None),
        ([3.0, 3.11], "warn"),
        ([3.0, 3.4], "warn"),
        ([3.0, 3.2, 3.4], "warn"),
        ([3.0, 3.4, 3.31], "critical"),
        ([3.0, 3.4, 3.4, 3.0], None),
        ([3.0, None, 3.4, None, 3.4, None], "critical"),
        ([NAN, 3.0, NAN, 3.05, math.inf], None),
        ([3.5, 3.0], None),
        ([3.0], None),
        ([], None),
    ],
)
def test_damage_counts_from_the_first_value_and_is_critical_when_it_lasts(values: list[float | None], level: str | None):
    finding = general_damage(damage_run(values))
    assert (finding and finding.level) == level


def test_damage_says_how_much():
    finding = general_damage(damage_run([3.0, None, 3.25]))
    assert finding is not None
    assert finding.figures == pytest.approx({"nll_before": 3.0, "nll": 3.25, "rise": 0.25})
    assert finding.step == 2


# What the record lacks

PLANTED: list[tuple[Callable, History]] = [
    (length_exploitation, length_run(**PADDING)),
    (format_farming, format_run(**FARMING)),
]


@pytest.mark.parametrize(("detect", "run"), PLANTED)
class TestWithoutWhatItNeeds:
    """Each run has a finding until something is taken from it."""

    def test_nothing_is_said_of_an_empty_history(self, detect: Callable, run: History):
        assert detect(history_of()) is None

    def test_nothing_is_said_at_the_start(self, detect: Callable, run: History):
        assert [detect(prefix) for prefix in prefixes(run)[:20]] == [None] * 20

    def test_nothing_is_said_without_gold_or_without_a_proxy(self, detect: Callable, run: History):
        for missing in ({"proxy": np.full(64, NAN)}, {"gold": np.full(64, NAN)}):
            assert detect(with_answers(run, **missing)) is None

    def test_nothing_is_said_of_few_prompts(self, detect: Callable, run: History):
        """The same questions at each step, as in a run on 8 prompts."""
        assert detect(with_answers(run, prompt_ids=prompts_of(0))) is None

    def test_a_line_that_a_resume_left_does_not_count(self, detect: Callable, run: History):
        """After the finding the run went back to step 2 and goes on with answers like its first."""
        again = [Step(step=number, answers=run.steps[number % 3].answers) for number in range(2, 62)]
        assert detect(history_of(steps=[*run.steps, *again])) is None

    def test_steps_that_are_recorded_twice_count_once(self, detect: Callable, run: History):
        twice = [*run.steps[:25], *run.steps[15:]]
        assert detect(history_of(steps=twice)) == detect(run)
