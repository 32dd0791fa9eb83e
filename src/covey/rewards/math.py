r"""A verifier of mathematical answers: equal as mathematics, and given as one answer. The library math-verify compares.

It runs in a process that can be killed (see `killable.py`), with its own timeouts off: they are alarm signals, which only a
main thread can have. Text of the model is parsed there alone. What it would pay too much for is refused by its text before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from covey.rewards.base import FunctionReward, Sample, score_of
from covey.rewards.killable import KillableReward, killable
from covey.rewards.numeric import THIN_SPACE, number_of, quantity_of
from covey.rewards.packages import require
from covey.rewards.reading import Reading, Where, boxes_in, plain_text, trimmed
from covey.rewards.text import MAX_EXTRACTED_CHARACTERS, answer_of
from covey.types import CoveyError, Score

MAX_MATH_CHARACTERS = 300
_BLANKS = re.compile(r"(?<!\d)\s+|\s+(?!\d)")
"""All but those between digits: 4 2 is not 42."""
_DROPPED = re.compile(r"\\(?:(?:left|right|displaystyle|textstyle)(?![A-Za-z])|[,!;:])")
_FRACTION = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_ROOT = re.compile(r"(?<![\\A-Za-z])sqrt\(([^()]*)\)")
_PI = re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])|\u03c0")
_COMMAND = re.compile(r"\\(?:[A-Za-z]+|.)", re.DOTALL)
_QUOTED = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_WORD = re.compile(r"[A-Za-z]{3,}")
_ASSIGNED = re.compile(r"(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([A-Za-z]\))?)\s*=(?!=)\s*", re.ASCII)
_NEUTRAL = frozenset({r"\frac", r"\sqrt", r"\cdot", r"\times", r"\pi", r"\{", r"\}", r"\ "})
"""Commands that a right answer may have where the key has none of them."""
_CLAIMS = frozenset("<>=\u2260\u2264\u2265\u2248~%?!|;&:\u00b1\u00b0\u2026")
"""Signs that change or multiply what is said: an answer has them only where the key has them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MathEquivalence:
    """Pays 1 if the answer that is read is the key in another form, else 0. For the process: unpickling imports the library."""

    reading: Reading
    decimals: int

    def __call__(self, sample: Sample) -> Score:
        answer = str(answer_of(sample.prompt))
        key = mathematics_of(answer)
        if key is None:
            raise CoveyError(f"prompt {sample.prompt.prompt_id!r} has the answer {answer!r}, which is no mathematics")
        found = self.reading.read(sample.completion)
        given = None if found is None else mathematics_of(found)
        if found is None or given is None:
            return score_of(0.0)
        is_right = is_one_answer(given, key) and is_equal(_unassigned(given, key), key, decimals=self.decimals)
        return score_of(float(is_right), extracted=found[:MAX_EXTRACTED_CHARACTERS])

    def __reduce__(self) -> tuple[Any, ...]:
        return _loaded, (self.reading, self.decimals)


def math_answer(
    *, read: Where = "boxed", tag: str = "answer", marker: str = "####", decimals: int = 6, deadline_s: float = 5.0
) -> KillableReward:
    """Return the reward for mathematical answers.

    Raises:
        CoveyError: the number of decimals is out of range, or math-verify is not installed.
    """
    if not 1 <= decimals <= 12:
        raise CoveyError(f"decimals={decimals}: give 1 to 12")
    require("math_verify", package="math-verify[antlr4_13_2]", reward="math")
    reading = Reading(where=read, tag=tag, marker=marker)
    score = MathEquivalence(reading=reading, decimals=decimals)
    return killable(FunctionReward(name="math", score=score), deadline_s=deadline_s)


def mathematics_of(text: str) -> str | None:
    r"""Return an answer in one spelling: without \left, \displaystyle, thin spaces, boxes and dollars; None if it is no answer.

    It is none if it is empty, too long, or has dollars or braces without partners in it.
    """
    plain = trimmed(plain_text(text))
    boxes = boxes_in(plain)
    if boxes and boxes[0][:2] == (0, len(plain)):
        plain = trimmed(boxes[0][2])
    plain = _ROOT.sub(r"\\sqrt{\1}", _FRACTION.sub(r"\\frac", _DROPPED.sub(" ", THIN_SPACE.sub("", plain))))
    plain = _PI.sub(r"\\pi ", plain).replace("\u221e", r"\infty ").replace("{,}", ",").replace(r"\%", "%").replace("**", "^")
    plain = " ".join(plain.split())
    is_closed = plain.count("{") == plain.count("}") and not plain.endswith("\\")
    is_answer = 0 < len(plain) <= MAX_MATH_CHARACTERS and "$" not in plain and r"\boxed" not in plain
    return plain if is_closed and is_answer else None


def is_one_answer(given: str, key: str) -> bool:
    """Return whether an answer claims no more than the key: no other words, signs, commands, letters or parts than it has.

    So "not 42", "42 or 43", "40 = 41 = 42" and "5 feet" are no answers to 42 or 5 meters, and "17 + 4" is none to 21. Words
    stand in the key's order.
    """
    given = _unassigned(given, key)
    if _spelling(given) == _spelling(key):
        return True
    if number_of(key) is not None:
        return number_of(given) is not None
    words = _words(given)
    return (
        words == [word for word in _words(key) if word in words]
        and _CLAIMS & set(given) <= set(key)
        and ("%" in given) == ("%" in key)
        and _commands(given) <= _commands(key) | _NEUTRAL
        and _letters(given) <= _letters(key)
        and given.count(",") == key.count(",")
        and (_brackets(given) == _brackets(key) or "," not in key)
        and not (re.search(r"\d\s+\d", given) and not re.search(r"\d\s+\d", key))
        and "..." not in given
    )


def is_equal(given: str, key: str, *, decimals: int) -> bool:
    """Return whether two answers are equal: as texts, else as exact numbers, else as math-verify compares them, key first."""
    if _spelling(given) == _spelling(key):
        return True
    gold_number = quantity_of(key)
    if gold_number is not None and (not gold_number.unit or _words(key)):
        return quantity_of(given) == gold_number
    from math_verify import LatexExtractionConfig, LatexNormalizationConfig, parse, verify

    spelling = LatexNormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    reads = [LatexExtractionConfig(boxed_match_priority=-1, normalization_config=spelling)]
    gold, answer = (
        parse(
            "$" + text.replace("%", r"\%") + "$",
            reads,
            fallback_mode="no_fallback",
            extraction_mode="first_match",
            parsing_timeout=0,
        )
        for text in (key, given)
    )
    if len(gold) != 1 or len(answer) != 1 or not verify(gold, answer, float_rounding=decimals, timeout_seconds=0):
        return False
    return _is_near(gold[0], answer[0], decimals=decimals)


def _is_near(gold: Any, answer: Any, *, decimals: int) -> bool:
    """Return whether two equal numbers are so relative to their size: rounded to 6 decimals alone, 0 is equal to e^-20."""
    from sympy import Float

    if not all(getattr(each, "is_number", False) for each in (gold, answer)) or not (gold.has(Float) or answer.has(Float)):
        return True
    exact, near = complex(gold), complex(answer)
    return abs(exact - near) <= 10.0**-decimals * abs(exact)


def _loaded(reading: Reading, decimals: int) -> MathEquivalence:
    """Return the verifier in the process that calls it. The library is imported now, and no deadline counts that."""
    is_equal("x + 1", "1 + x", decimals=decimals)
    return MathEquivalence(reading=reading, decimals=decimals)


def _unassigned(given: str, key: str) -> str:
    """Return an answer without "x =" before it, where the key has no equality sign."""
    assigned = _ASSIGNED.match(given)
    return given[assigned.end() :] if assigned and "=" not in key else given


def _spelling(text: str) -> str:
    return _BLANKS.sub("", _QUOTED.sub(r"\1", text))


def _words(text: str) -> list[str]:
    r"""Return the words that are no commands: all that stand in \text{}, and other runs of three letters or more, in order.

    In order, because the library takes words for factors, which may change places: "dioxide carbon" is not carbon dioxide.
    """
    quoted = [word for inside in _QUOTED.findall(text) for word in inside.casefold().split()]
    bare = _COMMAND.sub(" ", _QUOTED.sub(" ", text))
    return quoted + [word.casefold() for word in _WORD.findall(bare)]


def _commands(text: str) -> set[str]:
    return set(_COMMAND.findall(_QUOTED.sub(" ", text)))


def _letters(text: str) -> set[str]:
    return {character for character in _COMMAND.sub(" ", _QUOTED.sub(" ", text)) if character.isalpha()}


def _brackets(text: str) -> str:
    r"""Return the brackets in order; none and \{\} are the same, a set."""
    return "".join(re.findall(r"(?<!\\)[()\[\]]", text))
