"""Gold against its best earlier value, and over the distance from the start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from tests.guard.recorded import counted, look, make_answers, recorded, training_step

from covey.guard.history import Answers, History, Look, Step
from covey.guard.regression import collapse, distances_at, fit_curve, gain_curve, gold_regression, past_the_peak

NAN = math.nan
START = counted(both=40, neither=60)
BEST = counted(both=60, neither=40)
HACKED = counted(both=30, proxy_only=60, neither=10)
COLLAPSED = counted(both=10, neither=90)

# --- against the best earlier checkpoint --------------------------------------------------------------------------------


def evaluated(answers: dict[int, Answers], choose: dict[int, Answers] | None = None, *, planned_looks: int = 20) -> History:
    """Return a run with these answers on part guard, and the same or others on part choose."""
    looks = [look(step, part, part="choose") for step, part in (choose or answers).items()]
    looks += [look(step, part) for step, part in answers.items()]
    return recorded(sorted(looks, key=lambda one: one.step), planned_looks=planned_looks)


def test_gold_that_falls_while_the_proxy_holds_is_over_optimization():
    finding = gold_regression(evaluated({0: START, 20: BEST, 40: HACKED}))
    assert finding is not None
    assert (finding.detector, finding.step, finding.level) == ("gold_regression", 40, "critical")
    expected = {"best_step": 20, "best_gold": 0.6, "gold": 0.3, "best_proxy": 0.6, "proxy": 0.9}
    assert {name: finding.figures[name] for name in expected} == pytest.approx(expected)
    # 30 of 100 questions lose gold. Half of that, less the fall of the proxy: .5 for these 30, 1 for the 30 that it gains.
    gold = np.r_[np.ones(30), np.zeros(70)]
    held = 0.5 * gold + np.r_[np.zeros(60), np.ones(30), np.zeros(10)]
    statistics = [scipy.stats.ttest_1samp(values, 0).statistic for values in (gold, held)]
    assert [finding.figures["t_gold"], finding.figures["t_held"]] == pytest.approx(statistics, abs=1e-9)
    assert collapse(evaluated({0: START, 20: BEST, 40: HACKED})) is None


def test_gold_that_falls_with_the_proxy_is_a_collapse():
    history = evaluated({0: START, 20: BEST, 40: COLLAPSED})
    assert gold_regression(history) is None
    finding = collapse(history)
    assert finding is not None
    assert (finding.detector, finding.step, finding.level) == ("collapse", 40, "warn")
    assert finding.figures["best_step"] == 20


def test_a_collapse_under_a_lenient_proxy_is_no_over_optimization():
    # Gold falls by .55, the proxy by .41: it passes a tenth of the failures, and misses 15 % of what is right.
    before = counted(both=510, gold_only=90, proxy_only=40, neither=360)
    now = counted(both=43, gold_only=7, proxy_only=95, neither=855)
    history = evaluated({0: before, 20: now})
    assert gold_regression(history) is None
    assert collapse(history) is not None


def test_the_best_checkpoint_is_chosen_on_the_part_that_is_not_tested():
    # On guard, step 20 looks best by chance. Choose says step 0, from which guard has not fallen.
    lucky, worse = counted(both=70, neither=30), counted(both=69, neither=31)
    now = counted(both=40, proxy_only=30, neither=30)
    guard = {0: START, 20: lucky, 40: now}
    assert gold_regression(evaluated(guard, {0: lucky, 20: worse, 40: now})) is None
    assert gold_regression(evaluated(guard, {0: worse, 20: lucky, 40: now})) is not None


def test_of_equally_good_checkpoints_the_first_is_taken():
    finding = gold_regression(evaluated({0: START, 20: BEST, 40: BEST, 60: HACKED}))
    assert finding is not None
    assert finding.figures["best_step"] == 20


def test_the_newest_look_alone_is_judged():
    assert gold_regression(evaluated({0: START, 20: BEST, 40: HACKED, 60: BEST})) is None


def test_a_fall_is_judged_by_the_number_of_looks():
    now = counted(both=52, proxy_only=30, neither=18)  # 8 of 100: t = 2.93
    assert gold_regression(evaluated({0: BEST, 20: now}, planned_looks=1)) is not None
    assert gold_regression(evaluated({0: BEST, 20: now}, planned_looks=20)) is None


def test_a_fall_that_is_certain_but_small_is_let_pass():
    before, now = counted(both=6000, neither=4000), counted(both=5600, proxy_only=2000, neither=2400)
    history = evaluated({0: before, 20: now})
    assert gold_regression(history) is None
    assert gold_regression(history, min_fall=0.03) is not None


def test_a_flat_run_whose_scores_only_vary_by_chance_is_not_a_fall():
    generator = np.random.default_rng(0)
    steps = range(0, 420, 20)
    scores = generator.integers(0, 2, size=(2, len(steps), 200))
    guard, choose = ({step: make_answers(gold, gold) for step, gold in zip(steps, part, strict=True)} for part in scores)
    for newest in range(20, 420, 20):
        prefix = [{step: answers for step, answers in part.items() if step <= newest} for part in (guard, choose)]
        assert gold_regression(evaluated(*prefix)) is None
        assert collapse(evaluated(*prefix)) is None


SILENT = {
    "no looks": recorded(),
    "only the start": evaluated({0: START}),
    "no look at step 0": evaluated({20: BEST, 40: HACKED}),
    "no part choose": recorded([look(0, BEST), look(20, HACKED)]),
    "choose at other steps": evaluated({0: BEST, 20: HACKED}, {10: BEST}),
    "no gold": evaluated({0: BEST, 20: replace(HACKED, gold=np.full(100, NAN))}),
    "no gold on choose": evaluated({0: BEST, 20: HACKED}, {0: replace(BEST, gold=np.full(100, NAN))}),
    "19 questions": evaluated({0: counted(both=19), 20: counted(proxy_only=19)}),
    "resumed before it": recorded(
        [
            look(step, answers, part=part)
            for step, answers in [(0, START), (20, BEST), (40, HACKED), (20, START)]
            for part in ("choose", "guard")
        ]
    ),
}


@pytest.mark.parametrize("history", list(SILENT.values()), ids=list(SILENT))
def test_without_what_they_need_they_say_nothing(history: History):
    assert gold_regression(history) is None
    assert collapse(history) is None


# --- the curve ----------------------------------------------------------------------------------------------------------

DISTANCES = np.linspace(0.3, 4.0, 20)


def gao(distance: np.ndarray, alpha: float = 1.0, beta: float = 0.5) -> np.ndarray:
    return distance * (alpha - beta * np.log(distance))


@pytest.mark.parametrize("seed", range(10))
def test_the_golden_curve_is_found_under_noise(seed: int):
    noise = np.random.default_rng(seed).normal(0.0, 0.02, DISTANCES.size)
    curve = fit_curve(DISTANCES, gao(DISTANCES) + noise)
    assert curve.is_identified
    assert curve.best_distance == pytest.approx(math.e, rel=0.1)
    assert curve.best_gain == pytest.approx(math.e / 2, rel=0.1)


def test_without_noise_its_parameters_are_exact():
    curve = fit_curve(DISTANCES, gao(DISTANCES, 0.7, 0.3))
    assert (curve.alpha, curve.beta) == pytest.approx((0.7, 0.3), abs=1e-9)
    assert curve.best_distance == pytest.approx(math.exp(0.7 / 0.3 - 1), abs=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_a_straight_line_has_no_best_distance(seed: int):
    noise = np.random.default_rng(seed).normal(0.0, 0.02, DISTANCES.size)
    curve = fit_curve(DISTANCES, 0.3 * DISTANCES + noise)
    assert not curve.is_identified
    assert math.isnan(curve.best_distance)


NOT_IDENTIFIED = {
    "at least 6 are needed": (DISTANCES[:5], gao(DISTANCES[:5])),
    "less than a factor of 2": (np.linspace(2.0, 3.9, 20), gao(np.linspace(2.0, 3.9, 20))),
    "does not bend": (DISTANCES, DISTANCES**2),
    "beyond what was seen": (DISTANCES[:8], gao(DISTANCES[:8])),
}


@pytest.mark.parametrize("reason", list(NOT_IDENTIFIED))
def test_a_curve_that_is_not_identified_says_why(reason: str):
    curve = fit_curve(*NOT_IDENTIFIED[reason])
    assert reason in curve.not_identified


def moved(gains: np.ndarray, *, num_prompts: int = 400, seed: int = 0, kl: Sequence[float] | None = None) -> History:
    """Return a run whose gold is .3 + gains at 20 looks that lie at the distances above."""
    generator = np.random.default_rng(seed)
    looks: list[Look] = []
    for index, gain in enumerate([0.0, *gains]):
        for part in ("choose", "guard"):
            right = (generator.random(num_prompts) < 0.3 + gain) * 1.0
            looks.append(look(10 * index, make_answers(right, right), part=part))
    values = (DISTANCES**2).tolist() if kl is None else kl
    steps = [training_step(10 * (index + 1), [], [], metrics={"kl/sequence": value}) for index, value in enumerate(values)]
    return recorded(looks, steps)


FALLING = 0.5 * gao(DISTANCES)
LEVEL = np.minimum(0.4 * DISTANCES, 0.6)


def test_the_distance_is_the_root_of_the_mean_kl_up_to_the_look():
    steps: list[Step] = [training_step(step, [], [], metrics={"kl/sequence": float(step)}) for step in range(1, 13)]
    steps[9] = training_step(10, [], [], metrics={"kl/sequence": None})
    looks = [look(step, START) for step in (0, 1, 11)]
    distances = distances_at(recorded(looks, steps), looks)
    assert distances == pytest.approx({1: 1.0, 11: math.sqrt((6 + 7 + 8 + 9 + 11) / 5)})


def test_gold_past_its_peak_is_warned_of():
    finding = past_the_peak(moved(FALLING, num_prompts=2000))
    assert finding is not None
    assert (finding.detector, finding.step, finding.level) == ("past_the_peak", 200, "warn")
    assert finding.figures["best_distance"] == pytest.approx(math.e, rel=0.2)
    assert finding.figures["slope"] < 0.0


def test_the_slope_is_tested_over_questions():
    history = moved(FALLING, num_prompts=2000)
    finding = past_the_peak(history)
    assert finding is not None
    distances = distances_at(history, history.looks)
    near = 0.9 * finding.figures["best_distance"]
    past = [one for one in history.looks_at("guard", "sampled") if distances.get(one.step, 0.0) > near]
    at = [distances[one.step] for one in past]
    gold = np.array([one.answers.gold for one in past])
    slopes = [np.polyfit(at, gold[:, question], 1)[0] for question in range(gold.shape[1])]
    assert finding.figures["t"] == pytest.approx(scipy.stats.ttest_1samp(slopes, 0).statistic, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_gold_that_stays_at_its_height_is_not_warned_of(seed: int):
    history = moved(LEVEL, seed=seed)
    assert past_the_peak(history) is None


def test_a_run_that_records_no_kl_has_no_curve():
    history = replace(moved(FALLING, num_prompts=2000), steps=[])
    assert gain_curve(history) is None
    assert past_the_peak(history) is None


def test_kl_that_could_not_be_computed_is_left_out():
    history = moved(FALLING, num_prompts=2000, kl=[NAN] * 20)
    assert past_the_peak(history) is None


def test_a_look_without_any_gold_is_left_out():
    history = moved(FALLING, num_prompts=2000)
    spoiled = [
        replace(one, answers=replace(one.answers, gold=np.full(2000, NAN))) if one.step == 100 else one for one in history.looks
    ]
    assert past_the_peak(replace(history, looks=spoiled)) is not None
