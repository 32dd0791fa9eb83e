"""Reading values out of a row of data, each refusal with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Values = Mapping[str, Any]
"""A row's values by column."""


class RowError(Exception):
    """A row that no question can be made of; the message says what is wrong with it."""


def holds_half_character(value: object) -> bool:
    """Return whether a text in the value has a lone surrogate: no tokenizer takes it, and no log can hold it."""
    if isinstance(value, str):
        return not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, Mapping):
        return any(holds_half_character(part) for pair in value.items() for part in pair)
    return isinstance(value, list | tuple) and any(map(holds_half_character, value))


def value_of(values: Values, column: str) -> Any:
    """Return the value of a column; "a.b" is the key b of the mapping in column a.

    Raises:
        RowError: there is none, or it is empty.
    """
    value: Any = values
    for key in [column] if column in values else column.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise RowError(f"it has no column {column!r}; its columns are {', '.join(values) or 'none'}")
        value = value[key]
    if value is None or value in ("", [], ()) or (isinstance(value, str) and not value.strip()):
        raise RowError(f"its column {column!r} is empty")
    return value


def text_of(values: Values, column: str) -> str:
    """Return the text in a column.

    Raises:
        RowError: it holds none.
    """
    value = value_of(values, column)
    if not isinstance(value, str):
        raise RowError(f"its column {column!r} holds {str(value)[:40]!r}, and not a text")
    return value
