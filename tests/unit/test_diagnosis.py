"""When the console says what is wrong, and when it keeps quiet."""

from __future__ import annotations

from covey.monitor.diagnosis import ALL_CORRECT, ALL_WRONG, TRUNCATED, Diagnoses, diagnose

HEALTHY = {"group/all_wrong_frac": 0.5, "group/all_correct_frac": 0.0, "completion/truncated_frac": 0.1}
HOPELESS = HEALTHY | {"group/all_wrong_frac": 1.0}
MASTERED = HEALTHY | {"group/all_wrong_frac": 0.0, "group/all_correct_frac": 1.0}
CUT_OFF = HEALTHY | {"completion/truncated_frac": 0.2}


def test_a_healthy_run_gets_no_diagnosis() -> None:
    assert diagnose([HEALTHY] * 20) == []


def test_an_empty_history_gets_no_diagnosis() -> None:
    assert diagnose([]) == []


def test_five_steps_of_all_wrong_groups_are_no_learning_signal() -> None:
    assert diagnose([HEALTHY, *[HOPELESS] * 5]) == [ALL_WRONG]


def test_four_steps_of_all_wrong_groups_are_bad_luck() -> None:
    assert diagnose([HEALTHY, *[HOPELESS] * 4]) == []


def test_five_steps_of_all_correct_groups_are_a_mastered_task() -> None:
    assert diagnose([MASTERED] * 5) == [ALL_CORRECT]


def test_one_usable_group_is_a_signal() -> None:
    assert diagnose([*[HOPELESS] * 4, HOPELESS | {"group/all_wrong_frac": 0.99}]) == []


def test_truncation_is_reported_from_the_first_step() -> None:
    assert diagnose([CUT_OFF]) == [TRUNCATED]


def test_truncation_is_averaged_over_the_last_steps() -> None:
    assert diagnose([HEALTHY, HEALTHY, HEALTHY, HEALTHY, CUT_OFF]) == []


def test_truncation_of_exactly_the_limit_is_accepted() -> None:
    assert diagnose([CUT_OFF], max_truncated_frac=0.2) == []


def test_missing_metrics_give_no_diagnosis() -> None:
    assert diagnose([{}, {"completion/truncated_frac": None}] * 5) == []


def test_several_diagnoses_may_be_due_at_once() -> None:
    assert diagnose([HOPELESS | {"completion/truncated_frac": 1.0}] * 5) == [ALL_WRONG, TRUNCATED]


def test_a_diagnosis_is_repeated_every_ten_steps() -> None:
    diagnoses = Diagnoses()
    said_at = [step for step in range(1, 31) if diagnoses.after_step(step, HOPELESS)]
    assert said_at == [5, 15, 25]


def test_one_diagnosis_does_not_silence_another() -> None:
    diagnoses = Diagnoses()
    said = {
        step: lines
        for step in range(1, 8)
        if (lines := diagnoses.after_step(step, HOPELESS | {"completion/truncated_frac": 0.9}))
    }
    assert said == {1: [TRUNCATED], 5: [ALL_WRONG]}
