"""Values as plain data: how arguments go in and answers come out. What comes out is a guess at the answer and nothing more.

JSON as it is for None, booleans, small whole numbers, finite fractions, text and lists; all else as {"$": kind, "v": ...}. A
value decodes to exact built-in types, so nothing of the sender's making (`__eq__`, `__hash__`, a metaclass) arrives.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator
from typing import Any

MAX_FRAME_BYTES = 1 << 20
MAX_DEPTH = 60
MAX_HASHED = 10_000
"""Members of a set or keys of a mapping. Chosen so that they collide, more would keep the reader busy for minutes."""
_EXACT_INTEGER = 1 << 53

HEADER = struct.Struct("!I")


class WireError(ValueError):
    """A value that cannot be sent, or a message that is none."""


class NoPlainDataError(WireError):
    """A value of a kind that cannot be sent, however small. Nothing that has come over the wire is of such a kind."""


def frame(message: Any) -> bytes:
    """Return the message with its length before it.

    Raises:
        WireError: it is longer than MAX_FRAME_BYTES.
    """
    data = json.dumps(message, separators=(",", ":"), allow_nan=False).encode()
    if len(data) > MAX_FRAME_BYTES:
        raise WireError(f"a message of {len(data)} bytes; at most {MAX_FRAME_BYTES} are sent")
    return HEADER.pack(len(data)) + data


def message_of(data: bytes) -> dict[str, Any]:
    """Return the message in a frame's bytes.

    Raises:
        WireError: it is no JSON object.
    """
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WireError(f"no JSON: {type(error).__name__}") from None
    if type(message) is not dict:
        raise WireError("no JSON object")
    return message


def encode(value: Any, depth: int = 0) -> Any:
    """Return the value as JSON data. Subclasses of built-in types go as what they are built on.

    Raises:
        NoPlainDataError: it has no such form: a function, an object of a class of one's own.
        WireError: it is nested too deeply, or has no end.
    """
    if depth > MAX_DEPTH:
        raise WireError(f"nested more than {MAX_DEPTH} deep")
    if value is None or value is True or value is False:
        return value
    for kind, writer in _WRITERS:
        if isinstance(value, kind):
            return writer(value, depth + 1)
    if hasattr(type(value), "__next__"):
        return _tagged("iterator", [encode(item, depth + 1) for item in _first(value)])
    raise NoPlainDataError(f"a value of type {type(value).__name__} is no plain data")


def _first(iterator: Iterator[Any]) -> Iterator[Any]:
    for count, item in enumerate(iterator):
        if count == MAX_FRAME_BYTES // 2:
            raise WireError("an iterator without end")
        yield item


def _tagged(kind: str, value: Any) -> dict[str, Any]:
    return {"$": kind, "v": value}


def _number(value: int, depth: int) -> Any:
    plain = int.__int__(value)
    return plain if -_EXACT_INTEGER <= plain <= _EXACT_INTEGER else _tagged("int", hex(plain))


def _fraction(value: Any, depth: int) -> Any:
    plain = float.__float__(value)
    return plain if math.isfinite(plain) else _tagged("float", float.__repr__(plain))


def _members(kind: str, base: Any) -> Callable[[Any, int], Any]:
    return lambda value, depth: _tagged(kind, [encode(item, depth) for item in base.__iter__(value)])


_WRITERS: tuple[tuple[type, Callable[[Any, int], Any]], ...] = (
    (int, _number),
    (float, _fraction),
    (str, lambda value, depth: str.__str__(value)),
    (list, lambda value, depth: [encode(item, depth) for item in list.__iter__(value)]),
    (tuple, _members("tuple", tuple)),
    (dict, lambda value, depth: _tagged("dict", [[encode(k, depth), encode(v, depth)] for k, v in dict.items(value)])),
    (set, _members("set", set)),
    (frozenset, _members("frozenset", frozenset)),
    (bytes, lambda value, depth: _tagged("bytes", bytes(value).hex())),
    (complex, lambda value, depth: _tagged("complex", [encode(value.real, depth), encode(value.imag, depth)])),
    (range, lambda value, depth: _tagged("range", [encode(part, depth) for part in (value.start, value.stop, value.step)])),
)


def decode(data: Any, depth: int = 0) -> Any:
    """Return the value of what `encode` gives.

    Raises:
        WireError: it is not of that form.
    """
    if depth > 2 * MAX_DEPTH:
        raise WireError("nested too deeply")
    if data is None or isinstance(data, bool | int | float | str):
        return data
    if isinstance(data, list):
        return [decode(item, depth + 1) for item in data]
    if set(data) != {"$", "v"} or not isinstance(data["$"], str) or data["$"] not in _READERS:
        raise WireError("a value of no known kind")
    try:
        return _READERS[data["$"]](data["v"], depth + 1)
    except WireError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"no {data['$']}: {type(error).__name__}") from None


def _items(data: Any, depth: int) -> list[Any]:
    if not isinstance(data, list):
        raise WireError("a collection that is no list")
    return [decode(item, depth) for item in data]


def _hashed(data: Any, depth: int) -> list[Any]:
    if isinstance(data, list) and len(data) > MAX_HASHED:
        raise WireError(f"more than {MAX_HASHED} members")
    return _items(data, depth)


def _pairs(data: Any, depth: int) -> dict[Any, Any]:
    return dict(_hashed(data, depth))


def _text(data: Any) -> str:
    if not isinstance(data, str):
        raise WireError("a text was expected")
    return data


_READERS: dict[str, Callable[[Any, int], Any]] = {
    "int": lambda data, depth: int(_text(data), 16),
    "float": lambda data, depth: float(_text(data)),
    "tuple": lambda data, depth: tuple(_items(data, depth)),
    "dict": _pairs,
    "set": lambda data, depth: set(_hashed(data, depth)),
    "frozenset": lambda data, depth: frozenset(_hashed(data, depth)),
    "bytes": lambda data, depth: bytes.fromhex(_text(data)),
    "complex": lambda data, depth: complex(*_items(data, depth)),
    "range": lambda data, depth: range(*_items(data, depth)),
    "iterator": lambda data, depth: iter(_items(data, depth)),
}
