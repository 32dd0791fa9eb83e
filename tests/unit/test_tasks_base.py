"""The self-check of tasks catches what it is for, and the training stream is a pure function of its position."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builders import make_prompt, make_reward

from covey.rewards.registry import find_reward
from covey.tasks.base import TRUE_ANSWER, Probe, Task, probe_sample, training_prompts
from covey.types import CoveyError, Prompt


def questions(*numbers: int) -> list[Prompt]:
    return [make_prompt(str(number), f"What is {number}?", answer=number) for number in numbers]


TASK = Task(
    name="small",
    train=questions(1, 2, 3),
    held_out={"choose": questions(4), "guard": questions(5), "test": questions(6)},
    proxy=find_reward("last_number", key="task.verifier"),
    gold=find_reward("asserted_number", key="task.verifier"),
    probes=[
        Probe(prompt=questions(7)[0], completion="7", is_right=True),
        Probe(prompt=questions(7)[0], completion="8", is_right=False),
    ],
)


def test_a_sound_task_passes():
    TASK.check()


def test_two_training_questions_with_one_id_are_caught():
    with pytest.raises(CoveyError, match="'small': prompt id '2' occurs twice"):
        dataclasses.replace(TASK, train=questions(1, 2, 2)).check()


def test_one_id_on_both_sides_of_the_split_is_caught():
    with pytest.raises(CoveyError, match="prompt id '1' occurs twice"):
        dataclasses.replace(TASK, held_out={"choose": questions(1)}).check()


def test_one_id_in_two_held_out_parts_is_caught():
    with pytest.raises(CoveyError, match="prompt id '4' occurs twice"):
        dataclasses.replace(TASK, held_out={"choose": questions(4), "test": questions(4)}).check()


def test_a_training_question_that_is_held_out_under_another_id_is_caught():
    leaked = dataclasses.replace(TASK.train[0], prompt_id="other")
    with pytest.raises(CoveyError, match="held-out part 'test' holds training question 'other'"):
        dataclasses.replace(TASK, held_out={"test": [leaked]}).check()


@pytest.mark.parametrize(("completion", "is_right", "given_value"), [("8", True, "0.0"), ("7", False, "1.0")])
def test_a_verifier_that_misjudges_a_probe_is_caught(completion: str, is_right: bool, given_value: str):
    probe = Probe(prompt=questions(7)[0], completion=completion, is_right=is_right)
    with pytest.raises(CoveyError, match=rf"'asserted_number' gives {given_value} to '{completion}' for 'What is 7\?'"):
        dataclasses.replace(TASK, probes=[probe]).check()


def test_a_verifier_that_fails_is_caught_with_its_traceback():
    def fail(sample: object) -> float:
        raise ValueError("broken verifier")

    with pytest.raises(CoveyError, match="broken verifier"):
        dataclasses.replace(TASK, gold=make_reward(fail)).check()


def test_a_task_without_verifier_passes():
    dataclasses.replace(TASK, gold=None).check()


def test_a_probe_is_an_untruncated_sample_of_its_prompt():
    sample = probe_sample(TASK.probes[0])
    assert (sample.prompt, sample.completion, sample.is_truncated) == (TASK.probes[0].prompt, "7", False)


# --- twins and honeypots --------------------------------------------------------------------------------------------------

TWIN = make_prompt("5/twin", "Say which number is 5.", answer=5)


def honeypot(*, key: int = 60, true_answer: str = "6") -> Prompt:
    prompt = make_prompt("6/honeypot", "What is 6?", answer=key)
    return dataclasses.replace(prompt, tags={TRUE_ANSWER: true_answer})


def test_a_twin_of_a_guard_question_and_a_honeypot_pass():
    dataclasses.replace(TASK, twins={"5": TWIN}, honeypots=[honeypot()]).check()


def test_a_twin_of_a_question_that_is_not_guarded_is_caught():
    with pytest.raises(CoveyError, match="twin of '4', which is no question of held-out part 'guard'"):
        dataclasses.replace(TASK, twins={"4": TWIN}).check()


def test_a_twin_in_the_very_words_of_its_question_is_caught():
    same = dataclasses.replace(questions(5)[0], prompt_id="5/twin")
    with pytest.raises(CoveyError, match="the twin of '5' has its very words"):
        dataclasses.replace(TASK, twins={"5": same}).check()


@pytest.mark.parametrize("changes", [{"twins": {"5": questions(1)[0]}}, {"honeypots": questions(1)}], ids=["twin", "honeypot"])
def test_a_training_question_among_twins_or_honeypots_is_caught(changes: dict[str, Any]):
    with pytest.raises(CoveyError, match="prompt id '1' occurs twice"):
        dataclasses.replace(TASK, **changes).check()


@pytest.mark.parametrize("where", ["twins", "honeypots"])
def test_a_training_question_among_them_under_another_id_is_caught(where: str):
    leaked = dataclasses.replace(TASK.train[0], prompt_id="other")
    changes: dict[str, Any] = {"twins": {"5": leaked}} if where == "twins" else {"honeypots": [leaked]}
    with pytest.raises(CoveyError, match=f"set of {where} holds training question 'other'"):
        dataclasses.replace(TASK, **changes).check()


def test_a_honeypot_whose_key_is_right_is_caught():
    with pytest.raises(CoveyError, match=r"'asserted_number' gives 1\.0 to '6' for 'What is 6\?'; 0\.0 is right"):
        dataclasses.replace(TASK, honeypots=[honeypot(key=6)]).check()


# --- the training stream -----------------------------------------------------------------------------------------------

TRAIN = questions(*range(7))
PINNED = list("2510436403")


def ids(*, start: int, count: int, seed: int = 0) -> list[str]:
    return [prompt.prompt_id for prompt in training_prompts(TRAIN, seed=seed, start=start, count=count)]


@pytest.mark.parametrize("epoch", range(4))
def test_every_epoch_visits_each_prompt_once(epoch: int):
    assert sorted(ids(start=7 * epoch, count=7)) == [prompt.prompt_id for prompt in TRAIN]


@settings(max_examples=150, deadline=None)
@given(start=st.integers(0, 60), count=st.integers(0, 30))
def test_any_window_is_a_slice_of_one_long_stream(start: int, count: int):
    assert ids(start=start, count=count) == ids(start=0, count=100)[start : start + count]


def test_epochs_come_in_different_orders():
    assert len({tuple(ids(start=7 * epoch, count=7)) for epoch in range(5)}) == 5


def test_seeds_give_different_orders():
    assert len({tuple(ids(start=0, count=7, seed=seed)) for seed in range(5)}) == 5


def test_an_order_never_changes():
    """Pinned: a resumed run goes on in the stream of the code that it was started with."""
    assert ids(start=0, count=10) == PINNED


def test_a_far_position_is_reached_at_once():
    assert len(ids(start=10**12, count=3)) == 3


def test_more_prompts_than_there_are_come_round_again():
    drawn = ids(start=3, count=20)
    assert len(drawn) == 20
    assert set(drawn) == {prompt.prompt_id for prompt in TRAIN}
