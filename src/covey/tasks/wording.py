"""Reading answers that are words out of completions, leniently and strictly. Total functions: any text gives a result."""

from __future__ import annotations

import re

from covey.rewards.base import Sample, score_of
from covey.rewards.extract import MAX_TEXT_CHARACTERS, normalise
from covey.types import Score

_WORD = re.compile(r"[^\W\d_]+")
_DENIAL = re.compile(r"\b(?:not|never|cannot|or|nor|either|neither|except|wrong)\b|n't\b|!=|\u2260", re.IGNORECASE)

# fmt: off
FILLERS = frozenset({
    "the", "answer", "is", "it", "letter", "letters", "word", "final", "first", "second", "third",
    "last", "fourth", "of", "in", "at", "result", "backwards", "reversed", "spelled", "becomes",
})
# fmt: on
"""Words that may stand around an answer without being one."""


def denies(text: str) -> bool:
    """Return whether a normalised text says what something is not, or offers a choice."""
    return _DENIAL.search(text) is not None


def is_cut(completion: str) -> bool:
    """Return whether the text is longer than what is read of it."""
    return len(completion) > MAX_TEXT_CHARACTERS


def words_in(text: str) -> list[str]:
    """Return the runs of letters in order, in lower case."""
    return [word.casefold() for word in _WORD.findall(text)]


def last_word(sample: Sample) -> Score:
    """Return 1 if the last word of the completion is the answer, else 0. Lenient: it does not see what stands before."""
    words = words_in(normalise(sample.completion))
    if not words:
        return score_of(0.0)
    return score_of(float(words[-1] == str(sample.prompt.answer).casefold()), extracted=words[-1])


def only_word(sample: Sample) -> Score:
    """Return 1 if the completion asserts exactly one word and it is the answer, else 0.

    The question's own word (`prompt.tags["word"]`) and FILLERS may stand around it: "The last letter of mudalo is o."
    Another word, a digit, a denial or an alternative makes the completion assert nothing.
    """
    text, answer = normalise(sample.completion), str(sample.prompt.answer).casefold()
    around = (FILLERS | {sample.prompt.tags.get("word", "").casefold()}) - {answer}
    asserted = {word for word in words_in(text) if word not in around}
    if len(asserted) != 1 or denies(text) or re.search(r"\d", text) or is_cut(sample.completion):
        return score_of(0.0)
    word = asserted.pop()
    return score_of(float(word == answer), extracted=word)
