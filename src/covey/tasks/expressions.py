"""Arithmetic expressions out of completions, read by a parser of its own over fractions: nothing is ever evaluated as code."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

MAX_EXPRESSION_CHARACTERS = 200
MAX_DIGITS = 9
"""Longer numbers and expressions are read as none."""

_TOKEN = re.compile(r"\d+|[-+*/()]")
_RUN = re.compile(r"[\d \t()+*/-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Expression:
    """What an expression is worth, and the numbers that stand in it."""

    text: str
    value: Fraction
    numbers: tuple[int, ...]


def parse_expression(text: str) -> Expression | None:
    """Return the expression that the whole text is, None if it is none, divides by zero or is too long.

    sum := product (("+" | "-") product)*, product := atom (("*" | "/") atom)*, atom := number | "(" sum ")".
    There are no signs: a number is positive.
    """
    tokens = _TOKEN.findall(text)
    is_clean = "".join(tokens) == re.sub(r"\s", "", text)
    # "1 2" is not 12.
    if not is_clean or len(text) > MAX_EXPRESSION_CHARACTERS or any(len(token) > MAX_DIGITS for token in tokens):
        return None
    parser = _Parser(tokens)
    try:
        value = parser.sum()
    except (ValueError, ZeroDivisionError):
        return None
    if parser.position != len(tokens):
        return None
    numbers = tuple(int(token) for token in tokens if token.isdigit())
    return Expression(text=text.strip(), value=value, numbers=numbers)


class _Parser:
    """Recursive descent; its depth is bounded by the length of the text."""

    def __init__(self, tokens: Sequence[str]):
        self.tokens = tokens
        self.position = 0

    def next_is(self, options: str) -> bool:
        return self.position < len(self.tokens) and self.tokens[self.position] in tuple(options)

    def take(self) -> str:
        if self.position == len(self.tokens):
            raise ValueError("the expression ends too early")
        self.position += 1
        return self.tokens[self.position - 1]

    def sum(self) -> Fraction:
        value = self.product()
        while self.next_is("+-"):
            value = value + self.product() if self.take() == "+" else value - self.product()
        return value

    def product(self) -> Fraction:
        value = self.atom()
        while self.next_is("*/"):
            value = value * self.atom() if self.take() == "*" else value / self.atom()
        return value

    def atom(self) -> Fraction:
        token = self.take()
        if token == "(":
            value = self.sum()
            if self.take() != ")":
                raise ValueError("a bracket is not closed")
            return value
        return Fraction(int(token))


def expressions_in(text: str) -> list[Expression]:
    """Return the expressions of a normalised text in order, plain numbers included. What cannot be read is passed over."""
    runs = [run.strip(" \t+*/-").lstrip(")").rstrip("(") for run in _RUN.findall(text.replace("\u00f7", "/"))]
    return [expression for run in runs if (expression := parse_expression(run)) is not None]


def uses(numbers: Sequence[int], given: Sequence[int], *, needs_all: bool) -> bool:
    """Return whether each given number is used at most once, or exactly once, and no other is."""
    used, available = Counter(numbers), Counter(given)
    return used == available if needs_all else bool(used) and used <= available
