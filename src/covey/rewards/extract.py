"""Reading answers out of text. Total functions: any text gives a result, nothing is ever evaluated."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

MAX_TEXT_CHARACTERS = 20_000
"""Longer texts are cut before matching; no honest answer is that long and patterns must not be fed megabytes."""

_NUMBER = re.compile(
    # Not inside a word, behind a decimal point or in a list without spaces: the 5 of "x5", "1.5", "4,5" is no number.
    r"(?<![\w.])(?<!\d,)"
    r"(?P<sign>-\s?)?(?P<digits>\d{1,3}(?:,\d{3})+|\d+)(?P<decimals>\.\d+)?"
    r"(?!\w|\s*\\?%|\s*per\s?cent\b|,\d|\.\d)"  # "5th", "5%" and "1,23" are no plain numbers
)


def normalise(text: str) -> str:
    """Return the text in NFKC form, cut to a bounded length, with the Unicode signs and apostrophe in ASCII."""
    plain = unicodedata.normalize("NFKC", text[:MAX_TEXT_CHARACTERS])
    return plain.translate({0x2212: "-", 0x2013: "-", 0x00D7: "*", 0x22C5: "*", 0x2019: "'"})


def numbers_in(text: str) -> list[Decimal]:
    """Return the plain numbers of the text in order.

    A hyphen counts as a minus sign unless a number ends before it ("25 -4"), or a word does and the hyphen touches it
    ("step-4") or stands free ("answer - 4").
    """
    found: list[Decimal] = []
    for match in _NUMBER.finditer(text):
        before = text[: match.start()]
        end = before.rstrip()[-1:]
        is_behind_word = end.isalpha() and (end == before[-1:] or match["sign"] != "-")
        is_negative = match["sign"] is not None and not (end.isdigit() or end == ")" or is_behind_word)
        value = Decimal(match["digits"].replace(",", "") + (match["decimals"] or ""))
        found.append(value.copy_negate() if is_negative else value)
    return found


def has_other_digits(text: str) -> bool:
    """Return whether digits remain that belong to no plain number, such as those of "20,21", "5%" or "x2"."""
    return re.search(r"\d", _NUMBER.sub(" ", text)) is not None


def without_restatement(text: str, expression: str) -> str:
    """Return the text with each repetition of the question's own expression ("17 + 4") blanked, however it is spaced."""
    tokens = re.findall(r"\d+|[^\s\d]", expression)
    pattern = r"(?<![\w.])" + r"\s*".join(re.escape(token) for token in tokens) + r"(?![\w]|\.\d)"
    return re.sub(pattern, " ", text)
