"""A short mark of the code of a user's reward functions: does a resumed run go on with the reward that it began with?

It covers what the functions do (bytecode, so that comments and layout do not count), their defaults, what they close over, and
the functions, classes and plain values of the user's that they name. What stands in installed packages, in files that they read
and in modules that they reach by an attribute is not covered.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import re
import sys
import sysconfig
from collections.abc import Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...))


def code_mark(*rewards: Any) -> str:
    """Return the mark of the user's code in these rewards: the Python that compiled it, and a hash; empty = there is none."""
    seen: set[int] = set()
    found = [described for reward in rewards for described in _user_code(reward, seen)]
    if not found:
        return ""
    digest = hashlib.sha256(repr(found).encode("utf-8", "surrogatepass")).hexdigest()
    return f"py{sys.version_info.major}{sys.version_info.minor}-{digest[:16]}"


def is_other_code(before: str, now: str) -> bool:
    """Whether two marks are of different code. Those of different Pythons cannot be compared, and say nothing."""
    return before != now and (not before or not now or before.partition("-")[0] == now.partition("-")[0])


def _user_code(value: Any, seen: set[int]) -> list[Any]:
    """Return descriptions of the functions of a user's within Covey's own objects."""
    if id(value) in seen or isinstance(value, _PLAIN):
        return []
    seen.add(id(value))
    parts: list[Any] = []
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, list | tuple):
        parts = list(value)
    elif isinstance(value, functools.partial):
        parts = [value.func, *value.args, *value.keywords.values()]
    elif not _is_coveys(value):
        return [_described(value, set())] if callable(value) else []
    elif isinstance(value, MethodType):
        parts = [value.__func__, value.__self__]
    elif isinstance(value, FunctionType):
        parts = _closed_over(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    return [found for part in parts for found in _user_code(part, seen)]


def _described(value: Any, seen: set[int]) -> Any:
    """Return plain data that differs where the code differs."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if id(value) in seen:
        return "again"
    seen.add(id(value))
    if isinstance(value, CodeType):
        return (value.co_code.hex(), [_described(part, seen) for part in value.co_consts], value.co_names, value.co_varnames)
    if isinstance(value, tuple | list):
        return [_described(part, seen) for part in value]
    if isinstance(value, set | frozenset):
        return sorted(repr(_described(part, seen)) for part in value)
    if isinstance(value, dict):
        return [(_described(key, seen), _described(part, seen)) for key, part in value.items()]
    if isinstance(value, re.Pattern):
        return (value.pattern, value.flags)
    if isinstance(value, MethodType):
        return [_described(value.__func__, seen), _described(type(value.__self__), seen)]
    if isinstance(value, functools.partial):
        return [_described(part, seen) for part in (value.func, value.args, value.keywords)]
    if isinstance(value, staticmethod | classmethod):
        return _described(value.__func__, seen)
    if isinstance(value, property):
        return [_described(part, seen) for part in (value.fget, value.fset)]
    if isinstance(value, FunctionType):
        return _described_function(value, seen)
    if isinstance(value, type):
        if _is_of_a_library(value):
            return value.__qualname__
        return [(name, _described(part, seen)) for name, part in sorted(vars(value).items()) if _is_code(name, part)]
    # Of an object its class: what it holds may change as it works, and a resumed run starts with a fresh one.
    return getattr(value, "__name__", None) or _described(type(value), seen)


def _described_function(function: FunctionType, seen: set[int]) -> Any:
    if _is_of_a_library(function):
        return function.__qualname__
    named = sorted(_names_in(function.__code__) & function.__globals__.keys())
    return [
        _described(function.__code__, seen),
        _described((function.__defaults__, function.__kwdefaults__), seen),
        [_described(part, seen) for part in _closed_over(function)],
        [(name, _described(function.__globals__[name], seen)) for name in named],
    ]


def _is_code(name: str, part: Any) -> bool:
    is_special = name.startswith("__") and name not in ("__call__", "__init__")
    return not is_special and isinstance(part, (*_PLAIN, FunctionType, staticmethod, classmethod, property, tuple, frozenset))


def _closed_over(function: FunctionType) -> list[Any]:
    cells = function.__closure__ or ()
    return [cell.cell_contents for cell in cells if _is_filled(cell)]


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - an empty one raises
    except ValueError:
        return False
    return True


def _names_in(code: CodeType) -> set[str]:
    inner = [part for part in code.co_consts if isinstance(part, CodeType)]
    return set(code.co_names).union(*map(_names_in, inner))


def _is_coveys(value: Any) -> bool:
    function = value.__func__ if isinstance(value, MethodType) else value
    module = getattr(function, "__module__", None) if isinstance(function, FunctionType | type) else type(value).__module__
    return str(module).partition(".")[0] == "covey"


def _is_of_a_library(value: Any) -> bool:
    try:
        file = inspect.getsourcefile(value) or ""
    except (TypeError, OSError):  # A class of a notebook, or one that is written in C.
        file = "" if getattr(value, "__module__", "") == "__main__" else _LIBRARIES[0]
    return _is_coveys(value) or file.startswith(_LIBRARIES)
