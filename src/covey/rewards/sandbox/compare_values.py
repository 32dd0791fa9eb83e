"""Whether a candidate's answer is the right one. Both sides are plain built-in values; the types must agree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What may differ. By default nothing, but for a whole number written as a fraction where `mixes_numbers`."""

    mixes_numbers: bool = True
    """1 == 1.0. True is never 1."""
    mixes_sequences: bool = False
    """(1, 2) == [1, 2]: for data sets in JSON, which has no tuples."""
    rel_tol: float = 0.0
    abs_tol: float = 0.0

    def same(self, found: Any, right: Any) -> bool:
        """Return whether the answer is the right one. NaN is no answer."""
        if isinstance(right, bool) or right is None or isinstance(right, str | bytes):
            return type(found) is type(right) and found == right
        if isinstance(right, int | float):
            return self._same_number(found, right)
        if isinstance(right, list | tuple):
            return self._same_sequence(found, right)
        if isinstance(right, dict):
            return (
                type(found) is dict
                and len(found) == len(right)
                and all(key in found and self.same(found[key], value) for key, value in right.items())
            )
        return type(found) is type(right) and found == right

    def _same_number(self, found: Any, right: float) -> bool:
        if isinstance(found, bool) or not isinstance(found, int | float):
            return False
        if type(found) is not type(right) and not self.mixes_numbers:
            return False
        if isinstance(found, int) and isinstance(right, int):
            return found == right
        try:
            is_close = math.isclose(found, right, rel_tol=self.rel_tol, abs_tol=self.abs_tol)
        except OverflowError:
            return False
        return is_close and math.isfinite(found) == math.isfinite(right)

    def _same_sequence(self, found: Any, right: list[Any] | tuple[Any, ...]) -> bool:
        kinds = (list, tuple) if self.mixes_sequences else (type(right),)
        return (
            type(found) in kinds
            and len(found) == len(right)
            and all(self.same(one, other) for one, other in zip(found, right, strict=True))
        )


def same_output(found: str, right: str, *, rel_tol: float = 0.0) -> bool:
    """Return whether a program's whole output is the right one: word by word, line by line, but for blanks at the ends.

    With a tolerance, words that are numbers on both sides may differ by that share of the right one.
    """
    found_lines, right_lines = _lines(found), _lines(right)
    return len(found_lines) == len(right_lines) and all(
        len(one) == len(other) and all(_same_word(*pair, rel_tol) for pair in zip(one, other, strict=True))
        for one, other in zip(found_lines, right_lines, strict=True)
    )


def _lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.rstrip().split("\n")]


def _same_word(found: str, right: str, rel_tol: float) -> bool:
    if found == right or not rel_tol:
        return found == right
    try:
        return math.isclose(float(found), float(right), rel_tol=rel_tol) and math.isfinite(float(right))
    except ValueError:
        return False
