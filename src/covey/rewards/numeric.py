"""Verifiers of numeric answers. `prompt.answer` is the number: an int, a float, a Decimal, a Fraction, or its text."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal

from covey.rewards.base import FunctionReward, Sample, score_of
from covey.rewards.extract import MAX_TEXT_CHARACTERS, has_other_digits, normalise, numbers_in, without_restatement
from covey.rewards.reading import Reading, Where, plain_text, trimmed
from covey.rewards.text import answer_of
from covey.types import CoveyError, Score

_DENIAL = re.compile(
    r"\b(?:not|never|cannot|or|nor|either|neither|minus|negative|than|but|except|wrong|incorrect|false)\b|n't\b|!="
    r"|(?<![\w=/\"'-])[<>\u2260\u2264\u2265\u2248~]=?\s*-?\d"
    r"|\d\s*(?:dozen|hundred|thousand|million|billion|trillion)\b",
    re.IGNORECASE,
)


def last_number(sample: Sample) -> Score:
    """Return 1 if the last number of the completion is the answer, else 0. Lenient: it does not see what stands before."""
    numbers = numbers_in(normalise(sample.completion))
    if not numbers:
        return score_of(0.0)
    return score_of(float(numbers[-1] == Decimal(sample.prompt.answer)), extracted=str(numbers[-1]))


def asserted_number(sample: Sample) -> Score:
    """Return 1 if the completion asserts exactly one number and it is the answer, else 0.

    Repeating the question's own expression (`prompt.tags["expression"]`) is allowed: "17 + 4 = 21" asserts 21. A second
    number, a denial ("not 21") or an alternative ("20 or 21") makes the completion assert nothing.
    """
    text = normalise(sample.completion)
    expression = sample.prompt.tags.get("expression", "")
    stated = without_restatement(text, expression) if expression else text
    asserted = set(numbers_in(stated))
    is_cut = len(sample.completion) > MAX_TEXT_CHARACTERS
    if len(asserted) != 1 or has_other_digits(stated) or _DENIAL.search(text) or is_cut:
        return score_of(0.0)
    number = asserted.pop()
    return score_of(float(number == Decimal(sample.prompt.answer)), extracted=str(number))


# --- numbers as whole texts, with fractions, units and tolerances -------------------------------------------------------

Percent = Literal["refuse", "ignore", "convert"]
Units = Literal["refuse", "optional", "required"]

MAX_NUMBER_CHARACTERS = 100
MAX_EXPONENT = 400
PERCENT = frozenset({"%", "percent", "per cent", "pct"})
"""What is read as a percent sign, in lower case."""

_DIGITS = r"(?:\d{1,3}(?:(?:,|\{,\})\d{3})+|\d+)"
_NUMBER = re.compile(
    r"(?P<sign>[-+]?)\s?(?:"
    r"(?:(?P<whole>\d+)\s*)?\\[dtc]?frac\s*(?:\{\s*(?P<top>-?\d+)\s*\}\s*\{\s*(?P<bottom>\d+)\s*\}|(?P<top_digit>\d)(?P<bottom_digit>\d))"
    r"|(?:(?P<whole_before>\d+)\s+)?(?P<above>\d+)\s*/\s*(?P<below>\d+)"
    rf"|(?P<digits>{_DIGITS}(?:\.\d+)?|\.\d+)"
    r"(?:[eE](?P<power>[-+]?\d+)|\s*(?:\*|\\times|\\cdot)\s*10\s*\^\s*(?:\{\s*(?P<braced>[-+]?\d+)\s*\}|(?P<bare>[-+]?\d+)))?"
    r")",
    re.ASCII,
)
_LATEX_UNIT = re.compile(r"\\(?:text|textrm|mathrm|mbox|rm|,|;|:|!| )")
_UNIT = re.compile(r"[^\W\d_]\.?(?:[\w ./^*-]*[\w.])?|[%\u00b0$\u20ac\u00a3\u00a5]|\u00b0\s?[A-Za-z]")
THIN_SPACE = re.compile(r"(?<=\d)\\[,!](?=\d{3})")
"""Between thousands in LaTeX."""
_CURRENCY = re.compile(r"(?P<sign>[-+]?)\s?(?P<currency>[$\u20ac\u00a3\u00a5])\s?(?=[\d.])")


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """A number and what stands behind it, or the currency before it."""

    value: Fraction
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.value} {self.unit}".strip()


@dataclass(frozen=True, kw_only=True, slots=True)
class Number:
    """Pays 1 if the answer that is read is one number, or a number with its unit, and it is the key, else 0.

    |number - key| <= max(absolute, relative |key|), in exact fractions. Where the key is whole, another whole number is wrong
    whatever the tolerance, unless `whole_exact` is off.
    """

    reading: Reading
    absolute: Fraction
    relative: Fraction
    whole_exact: bool
    percent: Percent
    units: Units
    unit_names: tuple[str, ...]

    def __call__(self, sample: Sample) -> Score:
        key = self._key(sample)
        text = self.reading.read(sample.completion)
        found = None if text is None else self._accepted(quantity_of(text), key)
        if found is None:
            return score_of(0.0)
        return score_of(float(self._is_close(found.value, key.value)), extracted=str(found))

    def _key(self, sample: Sample) -> Quantity:
        answer = answer_of(sample.prompt)
        quantity = quantity_of_answer(answer)
        if quantity is None:
            raise CoveyError(f"prompt {sample.prompt.prompt_id!r} has the answer {answer!r}, which is no number")
        if _is_percent(quantity.unit):
            if self.percent == "refuse":
                raise CoveyError(
                    f"prompt {sample.prompt.prompt_id!r} has the answer {answer!r}: choose percent = ignore or convert"
                )
            return self._without_percent(quantity)
        if quantity.unit and self.units == "refuse":
            raise CoveyError(
                f"prompt {sample.prompt.prompt_id!r} has the answer {answer!r}: choose units = optional or required"
            )
        return quantity

    def _accepted(self, found: Quantity | None, key: Quantity) -> Quantity | None:
        """Return the number that was read, None if its unit or the lack of one makes it no answer."""
        if found is None:
            return None
        if _is_percent(found.unit):
            return None if self.percent == "refuse" else self._without_percent(found)
        if self.units == "refuse":
            return None if found.unit else found
        names = {_unit(name) for name in (*self.unit_names, *([key.unit] if key.unit else []))}
        is_known = _unit(found.unit) in names if found.unit else self.units == "optional"
        return found if is_known else None

    def _without_percent(self, quantity: Quantity) -> Quantity:
        return Quantity(value=quantity.value / 100 if self.percent == "convert" else quantity.value)

    def _is_close(self, value: Fraction, key: Fraction) -> bool:
        if self.whole_exact and key.denominator == 1 and value.denominator == 1:
            return value == key
        return abs(value - key) <= max(self.absolute, self.relative * abs(key))


def numeric(
    *,
    read: Where = "whole",
    tag: str = "answer",
    marker: str = "####",
    absolute: float = 0.0,
    relative: float = 0.0,
    whole_exact: bool = True,
    percent: Percent = "refuse",
    units: Units = "refuse",
    unit_names: tuple[str, ...] = (),
) -> FunctionReward:
    """Return the reward for numbers.

    Raises:
        CoveyError: a tolerance is negative or not finite, or units are required that nothing names.
    """
    for name, tolerance in (("absolute", absolute), ("relative", relative)):
        if not (math.isfinite(tolerance) and tolerance >= 0):
            raise CoveyError(f"{name}={tolerance}: give a tolerance of 0 or more")
    if relative >= 1:
        raise CoveyError(f"relative={relative} lets 0 pass for any number; give a share below 1, such as 0.01")
    if unit_names and units == "refuse":
        raise CoveyError(f"unit_names={list(unit_names)} have no effect with units='refuse'; choose optional or required")
    reading = Reading(where=read, tag=tag, marker=marker)
    score = Number(
        reading=reading,
        absolute=Fraction(str(absolute)),
        relative=Fraction(str(relative)),
        whole_exact=whole_exact,
        percent=percent,
        units=units,
        unit_names=unit_names,
    )
    return FunctionReward(name=reading.name("numeric"), score=score, runs_inline=True)


def number_of(text: str) -> Fraction | None:
    """Return the number that the whole of a plain text is; None if it is none."""
    quantity = quantity_of(text)
    return None if quantity is None or quantity.unit else quantity.value


def quantity_of(text: str) -> Quantity | None:
    r"""Return the number that a plain text begins with, with the unit that is all the rest of it; None if it is none.

    Numbers are digits with or without separators of thousands and decimals, powers of ten behind them ("1.5e3", "2 * 10^3"),
    fractions ("1/2", "\frac{1}{2}") and mixed numbers ("1 1/2").
    """
    plain = THIN_SPACE.sub("", " ".join(text.split())).replace(r"\$", "$")
    if len(plain) > MAX_NUMBER_CHARACTERS:
        return None
    currency = _CURRENCY.match(plain)
    if currency:
        plain = currency["sign"] + plain[currency.end() :]
    match = _NUMBER.match(plain)
    value = None if match is None else _value(match)
    if match is None or value is None:
        return None
    rest = _unit(plain[match.end() :])
    if (rest and not _UNIT.fullmatch(rest)) or (rest and currency):
        return None
    return Quantity(value=value, unit=currency["currency"] if currency else rest)


def quantity_of_answer(answer: Any) -> Quantity | None:
    """Return the number that an answer is, with its unit; None if it is none."""
    if isinstance(answer, bool) or not isinstance(answer, int | float | Decimal | Fraction | str):
        return None
    if isinstance(answer, str):
        return quantity_of(trimmed(plain_text(answer)))
    if isinstance(answer, float | Decimal) and not math.isfinite(answer):
        return None
    if isinstance(answer, Decimal) and abs(answer.adjusted()) > MAX_EXPONENT:
        return None
    return Quantity(value=Fraction(str(answer)) if isinstance(answer, float) else Fraction(answer))


def _value(match: re.Match[str]) -> Fraction | None:
    """Return the value of a number; None if it divides by 0, or its power of ten is beyond MAX_EXPONENT."""
    top, bottom = (
        match["top"] or match["top_digit"] or match["above"],
        match["bottom"] or match["bottom_digit"] or match["below"],
    )
    sign = -1 if match["sign"] == "-" else 1
    if top is not None:
        whole = match["whole"] or match["whole_before"]
        if int(bottom) == 0 or (whole is not None and not 0 < int(top) < int(bottom)):
            return None
        return sign * (int(whole or 0) + Fraction(int(top), int(bottom)))
    exponent = int(match["power"] or match["braced"] or match["bare"] or 0)
    if abs(exponent) > MAX_EXPONENT:
        return None
    digits = match["digits"].replace("{,}", "").replace(",", "")
    return sign * Fraction(digits if digits[0] != "." else f"0{digits}") * Fraction(10) ** exponent


def _unit(text: str) -> str:
    r"""Return a unit without LaTeX around it: "\text{ m}" and "m" are one, and so are "^\circ" and the degree sign."""
    plain = text.replace(r"\%", "%").replace(r"^{\circ}", "\u00b0").replace(r"^\circ", "\u00b0")
    return " ".join(_LATEX_UNIT.sub(" ", plain).translate({ord("{"): " ", ord("}"): " ", ord("~"): " "}).split())


def _is_percent(unit: str) -> bool:
    return unit.casefold() in PERCENT
