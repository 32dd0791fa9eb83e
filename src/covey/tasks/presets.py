"""How well-known data sets are laid out: where question and answer stand in a row, and how answers are judged."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from covey.rewards.base import FunctionReward, Reward, Sample, score_of
from covey.rewards.code import hidden_tests
from covey.rewards.extract import normalise, numbers_in
from covey.rewards.registry import find_reward
from covey.tasks.code_presets import humaneval_answer, mbpp_answer, mbpp_prompt, program_answer
from covey.tasks.row_values import RowError, Values, text_of, value_of
from covey.tasks.wording import is_cut
from covey.types import Score

MAX_DIGITS = 50
"""Answers with more are refused: no verifier should have to write them out."""

_BRACE = re.compile(r"\\f?boxed\s*\{|(?<!\\)[{}]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """How the rows of a data set become questions."""

    prompt: Callable[[Values], Any]
    """The question, a text or messages. Raises RowError."""
    answer: Callable[[Values], Any]
    """What the verifier compares with. Raises RowError."""
    columns: tuple[str, ...]
    """What it reads: these are no columns of the prompt."""
    template: str = "{prompt}"
    verifier: str = ""
    """A name of the reward table; empty = none comes with Covey, and the recipe must name one."""
    gold: Callable[[], Reward] | None = None
    """A verifier stricter than that one; None = it has none."""


def number_text(value: object) -> str:
    """Return a number in plain digits: without thousands separators, a currency sign before it and zeros behind the point.

    Raises:
        RowError: it is none.
    """
    text = str(value).strip().removeprefix("$").replace(",", "").rstrip(".")
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite() or abs(number.adjusted()) > MAX_DIGITS or len(text) > MAX_DIGITS:
        raise RowError(f"its answer {str(value).strip()[:40]!r} is no number")
    plain = f"{number:f}"
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def after_marker(values: Values) -> str:
    """Return the number behind the last "####" of the column `answer` (GSM8K).

    Raises:
        RowError: there is no marker, or no number behind it.
    """
    _, marker, answer = text_of(values, "answer").rpartition("####")
    if not marker:
        raise RowError("its column 'answer' has no '####' with the answer behind it")
    return number_text(answer)


def boxed_answer(values: Values) -> str:
    r"""Return the column `answer` if there is one, else what stands in the last \boxed{} of `solution` (MATH).

    Raises:
        RowError: there is neither.
    """
    if "answer" in values:
        return str(value_of(values, "answer"))
    boxes = boxed_in(text_of(values, "solution"))
    if not boxes:
        raise RowError(r"its column 'solution' has no \boxed{} with the answer in it")
    return boxes[-1]


def boxed_in(text: str) -> list[str]:
    r"""Return what stands in each \boxed{} of the text, with balanced braces; empty ones are left out."""
    found: list[tuple[int, str]] = []
    opened: list[int | None] = []  # Where the inside of each open brace starts; None: the brace of no box.
    for match in _BRACE.finditer(text):
        if match.group().endswith("{"):
            opened.append(match.end() if len(match.group()) > 1 else None)
        elif opened and (start := opened.pop()) is not None:
            found.append((start, text[start : match.start()].strip()))
    return [inside for _, inside in sorted(found) if inside]


def body_and_question(values: Values) -> str:
    """Return the text of a SVAMP problem: its body and its question, as sentences."""
    body = text_of(values, "Body").strip()
    return f"{body if body[-1] in '.?!' else body + '.'} {text_of(values, 'Question').strip()}"


def marked_number(sample: Sample) -> Score:
    """Return 1 if the completion has one "####" and behind it stands the answer and nothing else, else 0."""
    text = normalise(sample.completion)
    _, marker, stated = text.partition("####")
    found = numbers_in(stated)
    is_alone = len(found) == 1 and re.fullmatch(r"[\s$*]*-?[\d,]+(?:\.\d+)?[\s*.]*", stated) is not None
    if not marker or "####" in stated or not is_alone or is_cut(sample.completion):
        return score_of(0.0)
    return score_of(float(found[0] == Decimal(sample.prompt.answer)), extracted=str(found[0]))


def boxed_text(sample: Sample) -> Score:
    r"""Return 1 if the completion has one \boxed{} and in it stands the key, letter by letter but for blanks, else 0.

    Stricter than an equivalence: 1/2 is not 0.5 here. What it pays is right; not all that is right is paid.
    """
    boxes = boxed_in(normalise(sample.completion))
    if len(boxes) != 1 or is_cut(sample.completion):
        return score_of(0.0)
    is_key = "".join(boxes[0].split()) == "".join(normalise(str(sample.prompt.answer)).split())
    return score_of(float(is_key), extracted=boxes[0])


MARKED = FunctionReward(name="marked_number", score=marked_number, runs_inline=True)
BOXED = FunctionReward(name="boxed_text", score=boxed_text, runs_inline=True)

PRESETS: dict[str, Preset] = {
    "gsm8k": Preset(
        prompt=lambda values: text_of(values, "question"),
        answer=after_marker,
        columns=("question",),
        template="{prompt}\nThink step by step. End with a line that has #### and then the answer as a number.",
        verifier="last_number",
        gold=lambda: MARKED,
    ),
    "svamp": Preset(
        prompt=body_and_question,
        answer=lambda values: number_text(value_of(values, "Answer")),
        columns=("Body", "Question", "Answer"),
        template="{prompt} Answer with just the number.",
        verifier="last_number",
        gold=lambda: find_reward("asserted_number", key="task.verifier"),
    ),
    "math": Preset(
        prompt=lambda values: text_of(values, "problem"),
        answer=boxed_answer,
        columns=("problem", "answer"),
        template="{prompt}\nPut the final answer in \\boxed{}.",
        verifier="math",
        gold=lambda: BOXED,
    ),
    "mbpp": Preset(
        prompt=mbpp_prompt,
        answer=mbpp_answer,
        columns=("text", "prompt"),
        template="Write a Python function. {prompt}\nAnswer with just the code.",
        verifier="public_tests",
        gold=hidden_tests,
    ),
    "humaneval": Preset(
        prompt=lambda values: text_of(values, "prompt"),
        answer=humaneval_answer,
        columns=("prompt",),
        template="Complete this Python function. Answer with just the code of the whole function.\n\n{prompt}",
        verifier="public_tests",
        gold=hidden_tests,
    ),
    "programs": Preset(
        prompt=lambda values: text_of(values, "question"),
        answer=program_answer,
        columns=("question",),
        template="{prompt}\nWrite a Python program that reads standard input and prints the answer. Answer with just the code.",
        verifier="public_tests",
        gold=hidden_tests,
    ),
}


def columns_preset(prompt_column: str, answer_column: str, *, base: Preset | None = None) -> Preset:
    """Return the layout of a user's own columns; what is not named (empty) is as in `base`."""
    prompt = (lambda values: value_of(values, prompt_column)) if prompt_column or base is None else base.prompt
    answer = (lambda values: value_of(values, answer_column)) if answer_column or base is None else base.answer
    named = tuple(column for column in (prompt_column, answer_column) if column)
    return Preset(
        prompt=prompt,
        answer=answer,
        columns=(*(base.columns if base else ()), *named),
        template=base.template if base else "{prompt}",
        verifier=base.verifier if base else "",
        gold=base.gold if base else None,
    )
