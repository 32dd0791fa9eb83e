"""What a reward worker sends is data that is checked, and the first word of an error is its kind."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.bad_rewards import samples_of

from covey.rewards.base import as_reward, safe_score
from covey.rewards.failures import error_kind, error_kinds
from covey.rewards.worker_process import HEADER, MARK, ChannelError, OutputLog, WorkerProcess, scores_of_rows
from covey.types import Score

# What comes over the pipe


ROW = [0.5, {"form": 1.0}, "21", None, 0.1]


@pytest.mark.parametrize(
    "rows",
    [
        None,
        [],
        [ROW, ROW],
        [[0.5]],
        [[True, *ROW[1:]]],
        [["0.5", *ROW[1:]]],
        [[1, *ROW[1:]]],
        [[0.5, {"form": "1"}, *ROW[2:]]],
        [[0.5, [], *ROW[2:]]],
        [[*ROW[:2], 21, None, 0.1]],
        [[*ROW[:3], {"text": "error"}, 0.1]],
        [[*ROW[:4], "soon"]],
    ],
)
def test_what_is_no_score_is_not_taken_for_one(rows: Any) -> None:
    with pytest.raises(ChannelError):
        scores_of_rows(rows, 1)


def test_a_score_comes_as_it_was_sent() -> None:
    [score] = scores_of_rows([ROW], 1)
    assert score == Score(value=0.5, parts={"form": 1.0}, extracted="21", elapsed_s=0.1)


def received(data: bytes) -> list[dict[str, Any]]:
    """Return what a trainer reads from a worker that has written these bytes."""
    answers, write = os.pipe()
    os.set_blocking(answers, False)
    worker = WorkerProcess(
        process=cast(Any, None), requests=-1, answers=answers, output=-1, marker="", log=OutputLog(path=None, bytes_left=0)
    )
    try:
        os.write(write, data)
        return list(worker.receive())
    finally:
        os.close(write)
        os.close(answers)


@settings(max_examples=200, deadline=None)
@given(data=st.one_of(st.binary(max_size=200), st.binary(max_size=50).map(lambda data: HEADER.pack(MARK, len(data)) + data)))
def test_no_bytes_do_more_than_end_the_worker(data: bytes) -> None:
    with suppress(ChannelError):
        assert all(isinstance(answer, dict) for answer in received(data))


def test_a_length_beyond_the_bound_is_not_waited_for() -> None:
    with pytest.raises(ChannelError):
        received(HEADER.pack(MARK, 2**32 - 1))


# Kinds of failure


@pytest.mark.parametrize(
    ("score", "kind"),
    [
        (Score(value=0.5), None),
        (Score(value=0.5, error="timeout: said with a value"), None),
        (Score(value=None), "none"),
        (Score(value=None, error="the sandbox is down"), "none"),
        (Score(value=None, error="timeout: of a grader of its own"), "timeout"),
        (Score(value=None, error="raised: Traceback\ntimeout: 3"), "raised"),
        (Score(value=None, error="part 'a' could not be scored: the sandbox is down"), "none"),
        (Score(value=None, error="part 'a' could not be scored: part 'b' could not be scored: died: x"), "died"),
    ],
)
def test_the_first_word_of_an_error_is_its_kind(score: Score, kind: str | None) -> None:
    assert error_kind(score) == kind


def test_the_kinds_are_told_part_by_part() -> None:
    error = "part 'a' could not be scored: died: x\nmore\npart \"b's\" could not be scored: of its own"
    assert error_kinds(Score(value=None, error=error), "whole") == {"a": "died", "b's": "none"}
    assert error_kinds(Score(value=None, error="none: x"), "whole") == {"whole": "none"}
    assert error_kinds(Score(value=1.0), "whole") == {}


def test_a_value_that_is_not_finite_is_invalid_in_the_training_process_too() -> None:
    score = safe_score(as_reward(lambda completion: math.nan), samples_of(["a"])[0])
    assert (score.value, error_kind(score)) == (None, "invalid")
