"""Stop strings: found where the whole text first holds one, although only its tail is decoded."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import END

from covey.engines.stopping import Decode, completes_stop
from covey.models.policy import Policy

STOPS = ["\n\n", "</answer>", "é", "日本", "😀😀", "end of the answer", "a"]
WITHOUT_TEXT = 260
"""A row of the embedding that the tokenizer has no token for."""


def first_stop(token_ids: Sequence[int], stop: Sequence[str], decode: Decode) -> int | None:
    """Return after how many tokens generation ends."""
    counts = range(1, len(token_ids) + 1)
    return next((count for count in counts if completes_stop(token_ids[:count], stop, decode)), None)


def slow_first_stop(token_ids: Sequence[int], stop: Sequence[str], decode: Decode) -> int | None:
    """Slow transcription: decode everything, after each token."""
    for count in range(1, len(token_ids) + 1):
        if any(end in decode(token_ids[:count]) for end in stop):
            return count
    return None


@pytest.mark.parametrize("stop", STOPS)
def test_generation_ends_with_the_last_byte_of_the_stop_string(shared_tiny_policy: Policy, stop: str):
    before = "ééé x 日 "
    ids = list((before + stop + " and more").encode())
    expected = len("é".encode()) if stop == "é" else len((before + stop).encode())
    assert first_stop(ids, (stop,), shared_tiny_policy.decode) == expected


def test_the_first_of_several_stop_strings_ends_it(shared_tiny_policy: Policy):
    ids = list(b"one two three")
    assert first_stop(ids, ("three", "two"), shared_tiny_policy.decode) == len("one two")


def test_a_stop_string_inside_a_token_ends_with_the_whole_token():
    pieces = ["The", " sum", " is 4.\n\nNow", " another"]
    assert first_stop(range(4), ("\n\n",), lambda ids: "".join(pieces[index] for index in ids)) == 3


def test_a_stop_string_that_begins_and_ends_inside_tokens_is_found():
    pieces = ["so: </ans", "wer", "> and on", "."]
    assert first_stop(range(4), ("</answer>",), lambda ids: "".join(pieces[index] for index in ids)) == 3


def test_a_long_token_behind_the_stop_string_does_not_hide_it():
    pieces = ["</ans", *[""] * 30, "wer>" + 500 * "x"]
    assert first_stop(range(32), ("</answer>",), lambda ids: "".join(pieces[index] for index in ids)) == 32


@pytest.mark.parametrize("between", [END, WITHOUT_TEXT])
def test_tokens_without_text_do_not_hide_a_stop_string(shared_tiny_policy: Policy, between: int):
    ids = [*b"abcdefgh</ans", *[between] * 100, *b"wer>"]
    assert first_stop(ids, ("</answer>",), shared_tiny_policy.decode) == len(ids)


def test_nothing_is_found_in_a_text_without_stop_string(shared_tiny_policy: Policy):
    assert first_stop(list(b"</answe r> and so on"), ("</answer>",), shared_tiny_policy.decode) is None


@given(
    words=st.lists(
        st.one_of(
            st.sampled_from([stop.encode() for stop in STOPS]),
            st.sampled_from([stop.encode()[:-1] for stop in STOPS]),
            st.binary(max_size=3),
            st.text(max_size=3).map(str.encode),
            st.sampled_from([bytes([0xE6]), bytes([0xA5, 0xE6])]),
        ),
        max_size=12,
    ),
    gaps=st.lists(st.integers(0, 20), max_size=3),
    stop=st.lists(st.sampled_from(STOPS), min_size=1, max_size=3),
)
def test_a_tail_finds_what_the_whole_text_holds(
    shared_tiny_policy: Policy, words: list[bytes], gaps: list[int], stop: list[str]
):
    ids = [byte for word in words for byte in word]
    for gap in gaps:
        ids.insert(min(gap, len(ids)), WITHOUT_TEXT)
    decode = shared_tiny_policy.decode
    assert first_stop(ids, stop, decode) == slow_first_stop(ids, stop, decode)


def test_only_a_short_tail_is_decoded(shared_tiny_policy: Policy):
    lengths: list[int] = []

    def decode(token_ids: Sequence[int]) -> str:
        lengths.append(len(token_ids))
        return shared_tiny_policy.decode(token_ids)

    assert not completes_stop([*range(32, 127)] * 50, ("</answer>",), decode)
    assert sum(lengths) < 50
