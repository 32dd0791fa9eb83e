"""Verifiers of answers that are words: one text, or one of a few choices."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from covey.rewards.base import FunctionReward, Sample, score_of
from covey.rewards.reading import Reading, Where, plain_text, trimmed
from covey.types import CoveyError, Prompt, Score

MAX_EXTRACTED_CHARACTERS = 200

_LABELLED = re.compile(r"(?:(?:option|choice)\s+)?\(?(.*?)\)?", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExactText:
    """Pays 1 if the answer that is read is the key, or one of a list of keys, else 0.

    Both are compared in plain characters, with single blanks and without quotes, emphasis and a full stop around them.
    """

    reading: Reading
    ignore_case: bool

    def __call__(self, sample: Sample) -> Score:
        keys = {self._canonical(plain_text(text)) for text in keys_of(sample.prompt)}
        found = self.reading.read(sample.completion)
        if found is None:
            return score_of(0.0)
        return score_of(float(self._canonical(found) in keys), extracted=found[:MAX_EXTRACTED_CHARACTERS])

    def _canonical(self, text: str) -> str:
        plain = " ".join(trimmed(text).split())
        return plain.casefold() if self.ignore_case else plain


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Pays 1 if the answer that is read is one of the choices and the key, else 0.

    "B", "(B)", "B)" and "Option B" are the choice B. Two choices are none.
    """

    reading: Reading
    choices: tuple[str, ...]
    """In lower case."""

    def __call__(self, sample: Sample) -> Score:
        key = _choice_of(plain_text(str(answer_of(sample.prompt))), self.choices)
        if key is None:
            raise CoveyError(f"prompt {sample.prompt.prompt_id!r} has the answer {sample.prompt.answer!r}, which is no choice")
        found = self.reading.read(sample.completion)
        choice = None if found is None else _choice_of(found, self.choices)
        return score_of(float(choice == key), extracted=choice)


def exact(*, read: Where = "whole", tag: str = "answer", marker: str = "####", ignore_case: bool = True) -> FunctionReward:
    """Return the reward that compares texts."""
    reading = Reading(where=read, tag=tag, marker=marker)
    return FunctionReward(
        name=reading.name("exact"), score=ExactText(reading=reading, ignore_case=ignore_case), runs_inline=True
    )


def choice(
    *, choices: tuple[str, ...] = ("A", "B", "C", "D"), read: Where = "whole", tag: str = "answer", marker: str = "####"
) -> FunctionReward:
    """Return the reward for one of a few choices.

    Raises:
        CoveyError: there are fewer than two, one is empty, or two are the same but for case.
    """
    plain = tuple(" ".join(plain_text(each).split()).casefold() for each in choices)
    if len(plain) < 2 or not all(plain) or len(set(plain)) < len(plain):
        raise CoveyError(f"choices={list(choices)}: give two or more, all different (case makes no difference)")
    reading = Reading(where=read, tag=tag, marker=marker)
    return FunctionReward(name=reading.name("choice"), score=Choice(reading=reading, choices=plain), runs_inline=True)


def answer_of(prompt: Prompt) -> Any:
    """Return the prompt's answer.

    Raises:
        CoveyError: it has none.
    """
    if prompt.answer is None or (isinstance(prompt.answer, str) and not prompt.answer.strip()):
        raise CoveyError(f"prompt {prompt.prompt_id!r} has no answer, which this reward compares with")
    return prompt.answer


def keys_of(prompt: Prompt) -> list[str]:
    """Return the texts that are right: the answer, or each of a list of answers.

    Raises:
        CoveyError: there is none.
    """
    answer = answer_of(prompt)
    texts = [str(each) for each in answer] if isinstance(answer, list | tuple) else [str(answer)]
    if not texts or not all(text.strip() for text in texts):
        raise CoveyError(f"prompt {prompt.prompt_id!r} has the answer {answer!r}; give a text, or a list of texts")
    return texts


def _choice_of(text: str, choices: tuple[str, ...]) -> str | None:
    """Return which of the choices the whole text is."""
    plain = " ".join(trimmed(text).split()).casefold()
    labelled = _LABELLED.fullmatch(plain)
    return next((each for each in (plain, labelled[1] if labelled else plain) if each in choices), None)
