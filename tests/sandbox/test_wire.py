"""Values go over the wire and come back the same; nothing that is sent can make the reader do more than refuse it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.rewards.sandbox.inside import wire

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner)
    | st.frozensets(st.integers()) | st.sets(st.text()),
    max_leaves=20,
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    | st.fixed_dictionaries({"$": st.sampled_from(["set", "dict", "int", "bytes", "range", "complex", "x"]), "v": inner}),
    max_leaves=20,
)  # fmt: skip


def over(value: Any) -> Any:
    """Return the value as it arrives."""
    return wire.decode(wire.message_of(wire.frame({"v": wire.encode(value)})[wire.HEADER.size :])["v"])


def same(one: Any, other: Any) -> bool:
    return (type(one) is type(other) and repr(one) == repr(other)) or (one == other and type(one) is type(other))


@given(PLAIN)
def test_plain_values_arrive_as_they_are(value: Any):
    assert same(over(value), value)


@pytest.mark.parametrize(
    "value", [2**53, 2**53 + 1, -(2**200), 1e308, -0.0, math.inf, -math.inf, range(3), "\udc80", (1,), [()]]
)
def test_values_at_the_edges_arrive(value: Any):
    assert same(over(value), value)
    assert str(over(math.nan)) == "nan"


class Liar(int):
    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __int__(self) -> int:
        return 7


def test_nothing_of_the_senders_making_arrives():
    class Words(list):
        def __iter__(self):
            return iter(["forged"])

    assert type(over(Liar(3))) is int
    assert over(Liar(3)) == 3
    assert over(Words([1, 2])) == [1, 2]
    assert type(over(Words([1]))) is list


@pytest.mark.parametrize("value", [object(), print, type, Ellipsis, {1: object()}, memoryview(b"")])
def test_what_is_no_plain_data_is_refused(value: Any):
    with pytest.raises(wire.WireError, match="no plain data"):
        wire.encode(value)


def test_what_is_nested_too_deeply_is_refused():
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(wire.WireError, match="nested"):
        wire.encode(deep)
    with pytest.raises(wire.WireError, match="no JSON"):
        wire.message_of(b"[" * 200_000)


@given(JSON)
def test_any_json_is_a_value_or_refused(data: Any):
    try:
        found = wire.decode(data)
    except wire.WireError:
        return
    assert wire.encode(found) is not None or found is None


@pytest.mark.parametrize(
    "data",
    [
        {"$": "set", "v": [[1]]}, {"$": "set", "v": 3}, {"$": "dict", "v": [1]}, {"$": "dict", "v": [[1, 2, 3]]},
        {"$": "int", "v": 3}, {"$": "int", "v": "x"}, {"$": "bytes", "v": "0"}, {"$": "range", "v": [1, 2, 0]},
        {"$": "what", "v": 1}, {"v": 1}, {"$": [], "v": 1},
        {"$": "complex", "v": [1, 2, 3]}, {"$": "float", "v": "one"}, {"a": 1}, {"$": "set", "v": list(range(20_000))},
    ],
)  # fmt: skip
def test_what_is_no_value_is_refused(data: Any):
    with pytest.raises(wire.WireError):
        wire.decode(data)


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b"{", b"\xff\xfe", b'{"a": ' + b"9" * 5000 + b"}", b"null"])
def test_what_is_no_message_is_refused(data: bytes):
    with pytest.raises(wire.WireError):
        wire.message_of(data)


def test_long_messages_are_refused_before_they_are_sent():
    with pytest.raises(wire.WireError, match="at most"):
        wire.frame({"v": "x" * wire.MAX_FRAME_BYTES})


def test_colliding_members_take_no_minutes():
    members = [index * (2**61 - 1) for index in range(wire.MAX_HASHED)]
    data = json.loads(json.dumps(wire.encode(members)))
    assert len(wire.decode({"$": "set", "v": data})) == wire.MAX_HASHED
