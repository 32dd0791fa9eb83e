"""Rewards for form: tags that stand exactly once, and regular expressions that the whole completion must match."""

from __future__ import annotations

import re
from dataclasses import dataclass

from covey.rewards.base import FunctionReward, Sample, score_of
from covey.rewards.killable import KillableReward, killable
from covey.rewards.reading import plain_text, trimmed
from covey.rewards.text import MAX_EXTRACTED_CHARACTERS, keys_of
from covey.types import CoveyError, Score

_TAG_NAME = re.compile(r"[A-Za-z][\w-]*", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class TagsInOrder:
    """Pays 1 if the completion is these blocks in this order and nothing else, each tag once and something in each, else 0.

    It does not look at what stands in them: alone it is learnt first and is all that is learnt. Make it a gate.
    """

    tags: tuple[str, ...]
    max_characters: int

    def __call__(self, sample: Sample) -> Score:
        text = sample.completion.strip()
        if len(text) > self.max_characters:
            return score_of(0.0)
        marks = [mark for tag in self.tags for mark in (f"<{tag}>", f"</{tag}>")]
        if any(text.count(mark) != 1 for mark in marks):
            return score_of(0.0)
        places = [text.index(mark) for mark in marks]
        ends = [place + len(mark) for place, mark in zip(places, marks, strict=True)]
        if places != sorted(places) or places[0] != 0 or ends[-1] != len(text):
            return score_of(0.0)
        gaps = [text[ends[index] : places[index + 1]] for index in range(len(marks) - 1)]
        inside, between = gaps[::2], gaps[1::2]
        is_filled = all(any(character.isalnum() for character in content) for content in inside)
        if not is_filled or any(gap.strip() for gap in between):
            return score_of(0.0)
        return score_of(1.0, extracted=inside[-1].strip()[:MAX_EXTRACTED_CHARACTERS])


@dataclass(frozen=True, kw_only=True, slots=True)
class WholeMatch:
    """Pays 1 if the pattern matches the whole completion, and its group, if one is named, is the answer, else 0."""

    pattern: str
    group: str
    ignore_case: bool
    max_characters: int

    def __call__(self, sample: Sample) -> Score:
        text = sample.completion.strip()
        keys = {self._canonical(key) for key in keys_of(sample.prompt)} if self.group else set()
        match = re.compile(self.pattern, self._flags).fullmatch(text) if len(text) <= self.max_characters else None
        if match is None:
            return score_of(0.0)
        found = match[self.group] if self.group else text
        value = not self.group or (found is not None and self._canonical(found) in keys)
        return score_of(float(value), extracted=found[:MAX_EXTRACTED_CHARACTERS] if found else None)

    @property
    def _flags(self) -> re.RegexFlag:
        return re.DOTALL | (re.IGNORECASE if self.ignore_case else re.NOFLAG)

    def _canonical(self, text: str) -> str:
        plain = " ".join(trimmed(plain_text(text)).split())
        return plain.casefold() if self.ignore_case else plain


def tags(*, tags: tuple[str, ...] = ("think", "answer"), max_characters: int = 20_000) -> FunctionReward:
    """Return the reward for tags.

    Raises:
        CoveyError: a tag is no name, or stands twice; or no text would be short enough.
    """
    bad = [tag for tag in tags if not _TAG_NAME.fullmatch(tag)]
    if not tags or bad or len(set(tags)) < len(tags):
        raise CoveyError(f"tags={list(tags)}: give names without brackets, each once, such as ['think', 'answer']")
    _refuse_length(max_characters)
    return FunctionReward(name="tags", score=TagsInOrder(tags=tags, max_characters=max_characters), runs_inline=True)


def pattern(
    *, pattern: str = "", group: str = "", ignore_case: bool = False, max_characters: int = 4000, deadline_s: float = 2.0
) -> KillableReward:
    """Return the reward for a regular expression. It is matched in a process of its own, for matching can take for ever.

    Raises:
        CoveyError: it is no regular expression, matches an empty completion, or has no such group.
    """
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise CoveyError(f"pattern={pattern!r} is no regular expression: {error}") from error
    if not pattern:
        raise CoveyError("pattern is empty: give the regular expression that a whole completion must match")
    if compiled.fullmatch("") is not None:
        raise CoveyError(f"pattern={pattern!r} matches an empty completion, which would be paid")
    if group and group not in compiled.groupindex:
        raise CoveyError(f"group={group!r} is not in the pattern; write it as (?P<{group}>...)")
    _refuse_length(max_characters)
    score = WholeMatch(pattern=pattern, group=group, ignore_case=ignore_case, max_characters=max_characters)
    return killable(FunctionReward(name="pattern", score=score), deadline_s=deadline_s)


def _refuse_length(max_characters: int) -> None:
    if max_characters < 1:
        raise CoveyError(f"max_characters={max_characters}: give 1 or more")
