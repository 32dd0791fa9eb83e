"""Options of rewards: the keyword-only parameters of the function that makes one, checked by their annotations."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from covey.types import CoveyError


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """An option of a reward."""

    name: str
    kind: Any
    """The annotation of the parameter."""
    default: Any


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_KINDS: dict[Any, tuple[str, Callable[[Any], bool], Callable[[Any], Any]]] = {
    bool: ("true or false", lambda value: isinstance(value, bool), bool),
    int: ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool), int),
    float: ("a number", _is_number, float),
    str: ("a text", lambda value: isinstance(value, str), str),
    tuple[str, ...]: (
        "a list of texts",
        lambda value: isinstance(value, list | tuple) and all(isinstance(each, str) for each in value),
        tuple,
    ),
    tuple[float, ...]: (
        "a list of numbers",
        lambda value: isinstance(value, list | tuple) and all(_is_number(each) for each in value),
        lambda value: tuple(map(float, value)),
    ),
    Mapping[str, Any]: ("a table", lambda value: isinstance(value, Mapping), dict),
}
"""By annotation: what it is in words, whether a value is one, and the value as the function takes it."""


@functools.cache
def options_of(factory: Callable[..., Any]) -> Mapping[str, Option]:
    """Return the options of the rewards that a function makes, in its order."""
    hints = get_type_hints(factory)
    parameters = inspect.signature(factory).parameters.values()
    return types.MappingProxyType(
        {each.name: Option(name=each.name, kind=hints[each.name], default=each.default) for each in parameters}
    )


def checked_options(factory: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options as the function takes them.

    Raises:
        CoveyError: one is unknown, or of another kind than it should be.
    """
    known = options_of(factory)
    checked: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            listed = f"it has {', '.join(known)}" if known else "it has none"
            raise CoveyError(f"{name!r} is no option of it; {listed}")
        checked[name] = _checked(known[name], value)
    return checked


def kind_in_words(kind: Any) -> str:
    """Return what values an option takes."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    return _KINDS[kind][0]


def _checked(option: Option, value: Any) -> Any:
    if get_origin(option.kind) is Literal:
        is_fine, convert = value in get_args(option.kind), str
    else:
        _, test, convert = _KINDS[option.kind]
        is_fine = test(value)
    if not is_fine:
        raise CoveyError(f"its option {option.name}={value!r} should be {kind_in_words(option.kind)}")
    return convert(value)
