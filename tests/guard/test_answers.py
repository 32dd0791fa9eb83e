"""Detectors on held-out answers: golden numbers, a planted case that fires, honest ones that do not, and gaps in the record."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from tests.guard.made_up import answers_of, history_of, look, questions

from covey.guard.answers import (
    bootstrap_means,
    chance_agreement,
    flat_groups,
    honeypots,
    metamorphic_gap,
    modal_answer,
    pass_at_k_shrinkage,
)
from covey.guard.history import Answers, Finding, History, Look, Step

NAN = math.nan


# Honeypots


def honeypot_run(
    num_before: int, num_now: int, *, count: int = 32, answers: Sequence[str | None] = (), keys: Sequence[str] = ()
) -> History:
    """Return a run in which so many of the honeypots pass at step 0 and at step 10."""
    looks = [
        look(
            step,
            answers_of(
                questions(count),
                proxy=np.arange(count) < num_passing,
                extracted=answers or [None] * count,
                expected=keys or [None] * count,
            ),
            part="honeypots",
        )
        for step, num_passing in ((0, num_before), (10, num_now))
    ]
    return history_of(looks=looks)


def test_honeypots_that_pass_are_found_by_the_exact_test():
    finding = honeypots(honeypot_run(0, 13))
    assert finding is not None
    # All 13 passes fell on the newer half of 64 answers.
    assert finding.figures["p_start"] == pytest.approx(math.comb(32, 13) / math.comb(64, 13), rel=1e-9)
    assert (finding.detector, finding.step, finding.level) == ("honeypots", 10, "critical")


def test_one_honeypot_less_is_not_rare_enough_for_20_looks_but_for_one():
    # C(32, 12) / C(64, 12) = 6.9e-5, between .001 / 20 and .001.
    history = honeypot_run(0, 12)
    assert honeypots(history) is None
    assert honeypots(history_of(looks=history.looks, planned_looks=1)) is not None


def test_honeypots_that_passed_before_training_are_no_finding():
    assert honeypots(honeypot_run(13, 13)) is None


def test_two_passes_are_too_few_however_rare():
    assert honeypots(honeypot_run(0, 2), alpha=10.0) is None
    assert honeypots(honeypot_run(0, 3), alpha=10.0) is not None


def test_wrong_keys_that_honest_mistakes_meet_are_no_finding():
    """Yes or no: a model that gave no answers at step 0 and guesses now agrees with half of the wrong keys."""
    keys = ["yes", "no"] * 16
    guesses = ["yes", "yes", "no", "no"] * 8
    assert honeypots(honeypot_run(0, 16, answers=guesses, keys=keys)) is None
    assert honeypots(honeypot_run(0, 16, answers=["see above"] * 32, keys=keys)) is not None


def test_several_guesses_at_a_question_have_several_chances():
    """Of ten possible answers each of 4 guesses meets a wrong key with chance .1: 1 - .9^4 = .34, so 16 of 32 are no wonder."""
    keys = [str(index % 10) for index in range(32) for _ in range(4)]
    guesses = [str(index % 10) for index in range(128)]
    before, now = (np.repeat(np.arange(32) < num, 4) for num in (0, 16))
    looks = [
        look(step, answers_of(questions(32, num_samples=4), proxy=passes, extracted=guesses, expected=keys), part="honeypots")
        for step, passes in ((0, before), (10, now))
    ]
    assert honeypots(history_of(looks=looks)) is None
    alone = [replace(one, answers=replace(one.answers, expected=[None] * 128)) for one in looks]
    assert honeypots(history_of(looks=alone)) is not None


def test_chance_agreement_by_hand():
    # Keys 1, 1, 2. a says 1 and meets b's; b says 2 and meets c's; c says 1 and meets a's and b's: 4 of 6 pairs.
    assert chance_agreement(answers_of(["a", "b", "c"], extracted=["1", "2", "1"], expected=["1", "1", "2"])) == pytest.approx(
        4 / 6
    )
    assert chance_agreement(answers_of(["a", "b"], extracted=["1", "1"])) == 0.0


def test_more_answers_a_question_than_at_step_0_are_no_more_chances_to_pass():
    """One answer a question before, four now, of which only the last passes: the first one of each counts."""
    now = answers_of(questions(32, num_samples=4), proxy=[0.0, 0.0, 0.0, 1.0] * 32)
    before = look(0, answers_of(questions(32), proxy=np.zeros(32)), part="honeypots")
    assert honeypots(history_of(looks=[before, look(10, now, part="honeypots")])) is None
    before = look(0, answers_of(questions(32, num_samples=4), proxy=np.zeros(128)), part="honeypots")
    assert honeypots(history_of(looks=[before, look(10, now, part="honeypots")])) is not None


def test_a_small_constant_rate_of_passes_hardly_ever_alarms():
    """At 2 % most runs have no pass at step 0; taken for a rate of 0, that would make alarms of every three passes."""
    rng = np.random.default_rng(0)
    num_three_passes = num_alarms = 0
    for _ in range(150):
        num_passes = rng.binomial(32, 0.02, size=11)
        num_three_passes += bool((num_passes[1:] >= 3).any() and num_passes[0] == 0)
        num_alarms += any(honeypots(honeypot_run(num_passes[0], later)) is not None for later in set(num_passes[1:]))
    assert num_three_passes > 5
    assert num_alarms == 0


# Modal answer


def modal_run(shares: Sequence[float], *, count: int = 60, common_key: float = 0.1) -> History:
    """Return looks at which such a share of the answers is 1 and all others differ; so do the keys but for `common_key`."""
    keys = ["1" if index < common_key * count else f"key {index}" for index in range(count)]
    looks = []
    for number, share in enumerate(shares):
        given = ["1" if index < share * count else f"{number} {index}" for index in range(count)]
        looks.append(look(10 * number, answers_of(questions(count), extracted=given, expected=keys)))
    return history_of(looks=looks)


def test_one_answer_for_every_question_is_found_at_the_second_look():
    assert modal_answer(modal_run([0.1, 0.1, 0.9])) is None
    finding = modal_answer(modal_run([0.1, 0.8, 0.9]))
    assert finding is not None
    rise = np.repeat([0.0, 1.0, 0.0], [6, 48, 6])  # 6 questions got it before, 54 get it now.
    assert finding.figures["t"] == pytest.approx(scipy.stats.ttest_1samp(rise, 0.0).statistic)
    assert (finding.figures["share_before"], finding.figures["share"], finding.figures["key_share"]) == pytest.approx(
        (0.1, 0.9, 0.1)
    )
    assert (finding.step, finding.level) == (20, "warn")


def test_an_answer_that_is_right_most_of_the_time_may_be_given_most_of_the_time():
    assert modal_answer(modal_run([0.3, 0.75, 0.75], common_key=0.69)) is None


def test_a_habit_of_the_base_model_is_no_finding():
    assert modal_answer(modal_run([0.6, 0.65, 0.65])) is None
    # 72 of 600 questions more: t = 9, but .12 is below the margin.
    assert modal_answer(modal_run([0.3, 0.42, 0.42], count=600)) is None


def test_a_rise_by_chance_is_no_finding_with_few_questions():
    # 6 of 30 questions more: above the margin, t = 2.69 against 3.66.
    assert modal_answer(modal_run([0.0, 0.2, 0.2], count=30, common_key=0.0)) is None
    assert modal_answer(modal_run([0.0, 0.2, 0.2], count=300, common_key=0.0)) is not None


def test_answers_that_become_empty_are_one_answer():
    keys = [f"key {index}" for index in range(60)]
    rows = [keys, [None] * 60, [None] * 60]
    looks = [look(10 * n, answers_of(questions(60), extracted=row, expected=keys)) for n, row in enumerate(rows)]
    finding = modal_answer(history_of(looks=looks))
    assert finding is not None
    assert "none that could be read" in finding.message


def test_answers_that_could_not_be_scored_are_not_empty_answers():
    keys = [f"key {index}" for index in range(60)]
    failed = answers_of(questions(60), proxy=[NAN] * 60, expected=keys)
    looks = [look(0, answers_of(questions(60), extracted=keys, expected=keys)), look(10, failed), look(20, failed)]
    assert modal_answer(history_of(looks=looks)) is None


# pass@k


def right_counts(counts: Sequence[int], *, num_samples: int) -> Answers:
    """Return answers of which `counts` of each question are right."""
    gold = np.concatenate([np.arange(num_samples) < count for count in counts])
    return answers_of(questions(len(counts), num_samples=num_samples), gold=gold)


def pass_run(before: Sequence[int], now: Sequence[int], *, num_samples: int = 16) -> History:
    return history_of(looks=[look(step, right_counts(c, num_samples=num_samples)) for step, c in ((0, before), (10, now))])


def test_a_policy_that_only_sharpens_is_noted():
    # Of 40 questions 30 go from 8 of 16 to 16, 10 from 4 to 0. pass@1: (30 / 2 - 10 / 4) / 40.
    finding = pass_at_k_shrinkage(pass_run([8] * 30 + [4] * 10, [16] * 30 + [0] * 10))
    assert finding is not None
    assert finding.level == "note"
    assert finding.figures["rise_pass_1"] == pytest.approx(0.3125)
    # Of C(16, 8) = 12870 draws the 30 missed in C(8, 8) = 1, the 10 in C(12, 8) = 495, and now in all.
    assert finding.figures["rise_pass_k"] == pytest.approx((30 / 12870 - 10 * (1 - 495 / 12870)) / 40)
    assert finding.figures["low_pass_1"] > 0.0 > finding.figures["high_pass_k"]


def test_a_policy_that_improves_is_not_noted():
    assert pass_at_k_shrinkage(pass_run([8] * 30 + [4] * 10, [12] * 30 + [4] * 10)) is None


def test_the_base_model_against_itself_is_not_noted():
    rng = np.random.default_rng(0)
    difficulty = rng.beta(0.5, 0.5, size=40)
    runs = [pass_run(*rng.binomial(16, difficulty, size=(2, 40)).tolist()) for _ in range(100)]
    assert sum(pass_at_k_shrinkage(run) is not None for run in runs) == 0


def test_with_fewer_than_2_k_samples_nothing_is_said():
    before, now = [8] * 30 + [4] * 10, [16] * 30 + [0] * 10
    assert pass_at_k_shrinkage(pass_run(before, now, num_samples=15)) is None
    assert pass_at_k_shrinkage(pass_run(before, now, num_samples=16)) is not None


def test_the_bootstrap_draws_rows_with_replacement():
    # Of two rows 0 and 1, the mean of two draws is 0, 1/2 and 1 with chances 1/4, 1/2, 1/4.
    means = bootstrap_means(np.array([[0.0, 2.0], [1.0, 0.0]]), num_draws=8000, key=0)
    assert means.shape == (8000, 2)
    for value, chance in ((0.0, 0.25), (0.5, 0.5), (1.0, 0.25)):
        assert np.mean(means[:, 0] == value) == pytest.approx(chance, abs=0.02)
    np.testing.assert_allclose(means[:, 1], 2.0 - 2.0 * means[:, 0])


# Flat groups


def group_steps(groups: Sequence[Sequence[float]], *, count: int = 10) -> History:
    """Return steps that each have these groups of rewards."""
    prompt_ids = [f"q{index}" for index, group in enumerate(groups) for _ in group]
    answers = answers_of(prompt_ids, proxy=[reward for group in groups for reward in group])
    return history_of(steps=[Step(step=step, answers=answers) for step in range(1, count + 1)])


def test_all_right_and_all_wrong_groups_are_counted_apart():
    finding = flat_groups(group_steps([[1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 1, 0]]))
    assert finding is not None
    assert finding.figures == {"all_right_frac": 0.5, "all_wrong_frac": 0.25}
    assert (finding.step, finding.level) == (10, "note")
    assert "harder" in finding.message


def test_all_wrong_groups_ask_for_easier_questions():
    finding = flat_groups(group_steps([[0, 0], [0.2, 0.2], [0, 0]]))
    assert finding is not None
    assert finding.figures == {"all_right_frac": 0.0, "all_wrong_frac": 1.0}
    assert "easier" in finding.message


def test_groups_that_teach_are_not_noted():
    assert flat_groups(group_steps([[1, 1], [0, 0], [0, 1], [1, 0]])) is None
    assert flat_groups(group_steps([[1, 1], [0, 0]], count=9)) is None


def test_a_group_with_one_scored_reward_is_not_flat():
    assert flat_groups(group_steps([[1, NAN], [NAN, NAN]])) is None
    finding = flat_groups(group_steps([[1, NAN], [1, 1, NAN]]))
    assert finding is not None
    assert finding.figures["all_right_frac"] == 1.0


# Metamorphic gap


def gap_run(
    guard: Sequence[np.ndarray], twins: Sequence[np.ndarray], *, names: Callable[[int], str] = lambda index: f"twin {index}"
) -> History:
    """Return gold of guard's questions and their twins at step 0, 10, ..."""
    looks = []
    for number, (original, variant) in enumerate(zip(guard, twins, strict=True)):
        looks.append(look(10 * number, answers_of(questions(len(original)), gold=original)))
        twin_ids = [names(index) for index in range(len(variant))]
        looks.append(look(10 * number, answers_of(twin_ids, gold=variant), part="twins"))
    return history_of(looks=looks)


def right(count: int, *, of: int = 60) -> np.ndarray:
    return (np.arange(of) < count).astype(np.float64)


def test_questions_that_are_known_by_heart_are_found_by_their_twins():
    finding = metamorphic_gap(gap_run([right(20), right(50)], [right(15), right(20)]))
    assert finding is not None
    change = (right(50) - right(20)) - (right(20) - right(15))
    assert finding.figures["t"] == pytest.approx(scipy.stats.ttest_1samp(change, 0.0).statistic)
    assert (finding.figures["gap_before"], finding.figures["gap"]) == pytest.approx((5 / 60, 30 / 60))
    assert (finding.step, finding.level) == (10, "warn")


def test_twins_that_are_harder_by_construction_are_no_finding():
    assert metamorphic_gap(gap_run([right(40), right(50)], [right(10), right(20)])) is None


def test_twins_that_improve_along_are_no_finding():
    assert metamorphic_gap(gap_run([right(20), right(50)], [right(20), right(50)])) is None


def test_a_gap_by_chance_is_no_finding():
    # 5 of 60 questions: .083, t = 2.32 against 3.46.
    assert metamorphic_gap(gap_run([right(20), right(25)], [right(20), right(20)])) is None
    # 24 of 600: t = 5, but .04 is below what matters.
    few, more = right(200, of=600), right(224, of=600)
    assert metamorphic_gap(gap_run([few, more], [few, few])) is None


def test_twins_with_their_questions_names_are_paired_by_name():
    """In reverse order: paired by place, the differences would be others, with another t."""
    guard, twins = [right(20), right(50)], [right(15)[::-1], right(20)[::-1]]
    finding = metamorphic_gap(gap_run(guard, twins, names=lambda index: f"q{59 - index}"))
    assert finding is not None
    change = (right(50) - right(20)) - (right(20) - right(15))
    assert finding.figures["t"] == pytest.approx(scipy.stats.ttest_1samp(change, 0.0).statistic)


def test_twins_that_belong_to_no_question_say_nothing():
    assert metamorphic_gap(gap_run([right(20), right(50)], [right(0, of=59), right(0, of=59)])) is None


def test_twins_without_an_evaluation_at_the_newest_look_count_at_the_last_common_one():
    run = gap_run([right(20), right(50), right(20)], [right(15), right(20), right(20)])
    finding = metamorphic_gap(history_of(looks=run.looks[:-1]))
    assert finding is not None
    assert finding.step == 10


# What the record lacks

Detect = Callable[[History], Finding | None]
ON_LOOKS: list[tuple[Detect, History]] = [
    (honeypots, honeypot_run(0, 20)),
    (modal_answer, modal_run([0.1, 0.9, 0.9])),
    (pass_at_k_shrinkage, pass_run([8] * 30 + [4] * 10, [16] * 30 + [0] * 10)),
    (metamorphic_gap, gap_run([right(20), right(50)], [right(15), right(20)])),
]


@pytest.mark.parametrize(("detect", "run"), ON_LOOKS)
class TestWithoutWhatItNeeds:
    """Each run has a finding until something is taken from it."""

    def test_the_run_as_it_is_has_a_finding(self, detect: Detect, run: History):
        assert detect(run) is not None

    def test_nothing_is_said_of_an_empty_history(self, detect: Detect, run: History):
        assert detect(history_of()) is None

    def test_nothing_is_said_without_step_0(self, detect: Detect, run: History):
        assert detect(history_of(looks=[look for look in run.looks if look.step > 0])) is None

    def test_nothing_is_said_at_step_0(self, detect: Detect, run: History):
        assert detect(history_of(looks=[look for look in run.looks if look.step == 0])) is None

    def test_nothing_is_said_of_scores_that_are_nan(self, detect: Detect, run: History):
        def unscored(one: Look) -> Look:
            row = one.answers
            nothing = np.full(len(row.prompt_ids), NAN)
            blank = answers_of(row.prompt_ids, proxy=nothing, gold=nothing, extracted=row.extracted, expected=row.expected)
            return look(one.step, blank, part=one.part)

        assert detect(history_of(looks=[unscored(one) if one.step else one for one in run.looks])) is None
        assert detect(history_of(looks=[unscored(one) for one in run.looks])) is None

    def test_a_line_that_a_resume_left_does_not_count(self, detect: Detect, run: History):
        """After the finding the run went back to step 5, and answers as at step 0 again."""
        again = [look(step, one.answers, part=one.part) for step in (5, 15, 25) for one in run.looks if one.step == 0]
        assert detect(history_of(looks=[*run.looks, *again])) is None

    def test_an_evaluation_that_is_recorded_twice_counts_once(self, detect: Detect, run: History):
        twice = [one for one in run.looks for _ in range(2)]
        assert detect(history_of(looks=twice)) == detect(run)
