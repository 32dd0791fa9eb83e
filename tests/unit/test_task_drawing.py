"""The draw and the split that generated tasks share."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.rewards.base import FunctionReward, score_of
from covey.tasks.base import PARTS
from covey.tasks.generated import Dice, Question, drawn_questions, generated_task, part_of
from covey.types import CoveyError


def question(number: int) -> Question:
    return Question(
        canonical=("n", number),
        text=f"{number}?",
        twin_text=f"So, {number}?",
        answer=number,
        wrong_answer=-1,
        right=str(number),
    )


@given(key=st.integers(0, 2**64 - 1), low=st.integers(-5, 5), width=st.integers(0, 9))
def test_a_number_lies_within_its_bounds(key: int, low: int, width: int):
    dice = Dice(key)
    assert all(low <= dice.number(low, low + width) <= low + width for _ in range(20))


def test_both_bounds_are_drawn_and_all_numbers_about_equally_often():
    dice = Dice(1)
    counts = Counter(dice.number(1, 6) for _ in range(6000))
    assert sorted(counts) == [1, 2, 3, 4, 5, 6]
    assert all(900 < count < 1100 for count in counts.values())


@given(key=st.integers(0, 2**64 - 1))
def test_a_shuffle_keeps_the_items_and_distinct_numbers_differ(key: int):
    dice = Dice(key)
    assert sorted(dice.shuffled([1, 1, 2, 3])) == [1, 1, 2, 3]
    assert len(set(dice.distinct(5, 1, 5))) == 5


def test_two_shuffles_of_one_stream_differ():
    dice = Dice(3)
    assert dice.shuffled(range(20)) != dice.shuffled(range(20))


def test_a_draw_never_changes():
    """Every generated benchmark hangs on it. The reference output of SplitMix64 with the seed 0, in hundredths of 2^64."""
    words = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC, 0x1B39896A51A8749B]
    dice = Dice(0)
    assert [dice.number(0, 99) for _ in words] == [100 * word >> 64 for word in words]


def test_a_twelfth_of_all_questions_falls_to_each_held_out_part():
    sides = Counter(part_of(("n", number)) for number in range(12_000))
    assert all(900 < sides[part] < 1100 for part in PARTS)


def test_a_repeated_question_is_drawn_once_and_a_failed_draw_is_passed_over():
    drawn = drawn_questions("t", "easy", lambda dice: question(n) if (n := dice.number(0, 9)) else None, size=9)
    assert sorted(drawn) == [("n", number) for number in range(1, 10)]


def test_too_few_questions_are_refused():
    with pytest.raises(CoveyError, match=r"t/easy has 10 questions, fewer than the 11"):
        drawn_questions("t", "easy", lambda dice: question(dice.number(0, 9)), size=11)


def test_a_pool_that_leaves_a_held_out_part_too_small_is_refused():
    always = FunctionReward(name="always", score=lambda sample: score_of(1.0))
    with pytest.raises(CoveyError, match="500 questions leave a held-out part too small"):
        generated_task(
            "t",
            "easy",
            lambda dice: question(dice.number(0, 10**6)),
            probes=lambda prompt: [],
            proxy=always,
            gold=always,
            pool_size=500,
        )
