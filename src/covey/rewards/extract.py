"""Reading answers out of text. Total functions: any text gives a result, nothing is ever evaluated."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

MAX_TEXT_CHARACTERS = 20_000
"""Longer texts are cut before matching; no honest answer is that long and patterns must not be fed megabytes."""

_NUMBER = re.compile(
    r"(?<![\w.])"  # not inside a word or behind a decimal point: the 5 of "x5" and of "1.5" is no number of its own
    r"(?P<sign>-\s?)?(?P<digits>\d{1,3}(?:,\d{3})+|\d+)(?P<decimals>\.\d+)?"
    r"(?!\w|%|,\d|\.\d)"  # "5th", "5%" and "1,23" are no plain numbers
)


def normalise(text: str) -> str:
    """Return the text in NFKC form, cut to a bounded length, with the Unicode minus and multiplication signs in ASCII."""
    plain = unicodedata.normalize("NFKC", text[:MAX_TEXT_CHARACTERS])
    return plain.translate({0x2212: "-", 0x2013: "-", 0x00D7: "*", 0x22C5: "*"})


def numbers_in(text: str) -> list[Decimal]:
    """Return the plain numbers of the text in order. A hyphen counts as a minus sign unless a number or word ends before it."""
    found: list[Decimal] = []
    for match in _NUMBER.finditer(text):
        before = text[: match.start()].rstrip()
        is_negative = match["sign"] is not None and not (before and (before[-1].isalnum() or before[-1] == ")"))
        value = Decimal(match["digits"].replace(",", "") + (match["decimals"] or ""))
        found.append(-value if is_negative else value)
    return found


def without_restatement(text: str, expression: str) -> str:
    """Return the text with each repetition of the question's own expression ("17 + 4") blanked, however it is spaced."""
    tokens = re.findall(r"\d+|[^\s\d]", expression)
    pattern = r"(?<![\w.])" + r"\s*".join(re.escape(token) for token in tokens) + r"(?![\w]|\.\d)"
    return re.sub(pattern, " ", text)
