"""Training questions that share long passages with held-out ones: a sign that what is measured was trained on."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from covey.types import Prompt

NGRAM_WORDS = 13
"""The usual length of a passage that is not shared by chance (arXiv 2005.14165, appendix C)."""
MAX_COMMON = 3
"""A passage that more questions than this hold is a template and no sign of anything."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """A held-out question, and the first training question that it shares a passage with."""

    held_out: Prompt
    trained: Prompt
    passage: str


def overlaps(
    train: Sequence[Prompt],
    held_out: Sequence[Prompt],
    *,
    template: str = "{prompt}",
    num_words: int = NGRAM_WORDS,
    max_common: int = MAX_COMMON,
) -> list[Overlap]:
    """Return one overlap for each held-out question that shares a passage of `num_words` words with a training question.

    Words are compared without case and punctuation; numbers count as words, so that templated questions with other
    numbers do not overlap. A passage that more than `max_common` questions of either side hold is a template. A question
    shorter than a passage overlaps if it is the same as a whole. What `template` puts around questions is left out.
    """
    measured = [passages(own_words(prompt, template), num_words) for prompt in held_out]
    wanted = Counter(passage for found in measured for passage in found)
    holders: dict[str, list[Prompt]] = {}
    for prompt in train:
        for passage in passages(own_words(prompt, template), num_words) & wanted.keys():
            holders.setdefault(passage, []).append(prompt)
    found: list[Overlap] = []
    for prompt, own in zip(held_out, measured, strict=True):
        shared = sorted(each for each in own if 0 < len(holders.get(each, ())) <= max_common and wanted[each] <= max_common)
        if shared:
            found.append(Overlap(held_out=prompt, trained=holders[shared[0]][0], passage=shared[0]))
    return found


def own_words(prompt: Prompt, template: str) -> str:
    """Return the question without the template around it."""
    before, _, after = template.partition("{prompt}")
    return prompt.text.removeprefix(before).removesuffix(after)


def passages(text: str, num_words: int) -> set[str]:
    """Return all runs of `num_words` words of a question, or the whole of a shorter one."""
    words = list(words_in(text))
    last = max(1, len(words) - num_words + 1)
    return {" ".join(words[start : start + num_words]) for start in range(last)}


def words_in(text: str) -> Iterator[str]:
    """Yield the words and numbers of a text, in NFKC and without case."""
    for match in re.finditer(r"\w+", unicodedata.normalize("NFKC", text).casefold()):
        yield match.group()


def overlap_notes(train: Sequence[Prompt], held_out: Sequence[Prompt], *, part: str, template: str = "{prompt}") -> list[str]:
    """Return in words how many held-out questions overlap with training questions; nothing if none does."""
    found = overlaps(train, held_out, template=template)
    if not found:
        return []
    first = found[0]
    return [
        f"held-out part {part!r}: {len(found)} of {len(held_out)} questions share {NGRAM_WORDS} words in a row with a training "
        f"question, such as {first.held_out.prompt_id!r} with {first.trained.prompt_id!r}: {first.passage!r}"
    ]
