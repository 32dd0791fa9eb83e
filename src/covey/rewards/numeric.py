"""Verifiers of numeric answers. `prompt.answer` is the number, as an int, a Decimal or its text."""

from __future__ import annotations

import re
from decimal import Decimal

from covey.rewards.base import Sample, score_of
from covey.rewards.extract import MAX_TEXT_CHARACTERS, has_other_digits, normalise, numbers_in, without_restatement
from covey.types import Score

_DENIAL = re.compile(
    r"\b(?:not|never|cannot|or|nor|either|neither|minus|negative|than)\b|n't\b|!=|(?<![\w=/\"'-])[<>\u2260\u2264\u2265\u2248~]=?\s*-?\d",
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
