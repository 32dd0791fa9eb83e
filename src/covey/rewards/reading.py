"""Where in a completion the answer stands. Total functions: any text gives one answer or none, and nothing is evaluated."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from covey.rewards.extract import MAX_TEXT_CHARACTERS, normalise
from covey.types import CoveyError

Where = Literal["whole", "last_line", "boxed", "tagged", "marked"]

_MAX_LAYERS = 8
_WRAPS = (
    ("**", "**"),
    ("__", "__"),
    ("`", "`"),
    ('"', '"'),
    ("'", "'"),
    ("\u201c", "\u201d"),
    ("*", "*"),
    ("$$", "$$"),
    ("$", "$"),
)
_WRAPS += ((r"\(", r"\)"), (r"\[", r"\]"))
_STYLED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\{([^{}]*)\}")
_ANSWER_IS = (
    r"(?:(?:so|thus|hence|therefore),?\s+)?(?:(?:the|my|our)\s+)?(?:(?:final|correct|right)\s+)?"
    r"(?:answer|result)(?:\s+is\b\s*:?|\s*[:=])"
)
_LEAD_IN = re.compile(rf"(?:\*\*{_ANSWER_IS}\*\*|{_ANSWER_IS})\s*", re.IGNORECASE)
_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_CLAUSE_END = re.compile(r"[.,;!?\n]")
_CLAUSE_CHARACTERS = 200
_NOT = r"(?:\b(?:not|never|neither|nor|cannot|anything but)\b|n't\b)"
_DENIED_BEFORE = re.compile(
    rf"\b(?:wrong|incorrect|false)\b"
    rf"|(?:{_NOT}|\b(?:or|either)\b)(?:\s+(?:be|equal(?:\s+to)?|exactly|just|simply|(?:the\s+)?(?:right\s+)?answer))*[^\w\s]*\s*[^\w\s]*$",
    re.IGNORECASE,
)
_DENIED_BEHIND = re.compile(rf"\b(?:wrong|incorrect|false)\b|^\W*(?:\w+\s+|\w+(?=n't))?(?:{_NOT}|or\b)", re.IGNORECASE)
"""Only next to an answer: "the least number that is not prime is 4" denies nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """Where the answer stands. Of texts that are longer than MAX_TEXT_CHARACTERS nothing is read."""

    where: Where = "whole"
    r"""whole: the completion is the answer, possibly behind "The answer is"; last_line: the same of its last line that is not
    blank; boxed: in \boxed{}, the same in all if there are several; tagged: in the one pair of tags; marked: behind the one
    marker. What a clause around a box, a pair of tags or a marker denies ("not", "wrong", "or") is no answer."""
    tag: str = "answer"
    marker: str = "####"

    def __post_init__(self) -> None:
        if self.where not in READINGS:
            raise CoveyError(f"read={self.where!r} is none of {', '.join(READINGS)}")
        if not re.fullmatch(r"[A-Za-z][\w-]*", self.tag, re.ASCII):
            raise CoveyError(f"tag={self.tag!r}: give a name without brackets, such as 'answer'")
        if not self.marker.strip():
            raise CoveyError("marker is empty: give the text that stands before the answer, such as '####'")

    def read(self, completion: str) -> str | None:
        """Return the answer that the completion gives, trimmed; None if it gives none, or more than one."""
        if len(completion) > MAX_TEXT_CHARACTERS:
            return None
        found = READINGS[self.where](plain_text(completion), self)
        return trimmed(found) or None if found is not None else None

    def name(self, row: str) -> str:
        """Return the name of a reward of this row that reads so: the row's own where a bare answer is read."""
        return row if self.where in ("whole", "last_line") else f"{row}_{self.where}"


def plain_text(text: str) -> str:
    """Return the text as `normalise` does, but with raised and lowered characters and fractions kept apart.

    NFKC alone would make 42 of "4\N{SUPERSCRIPT TWO}" and 41/2 of "4\N{VULGAR FRACTION ONE HALF}".
    Digits of all scripts become ASCII.
    """
    kept = text[:MAX_TEXT_CHARACTERS]
    spelled = {ord(character): spelling for character in set(kept) if (spelling := _spelling(character)) is not None}
    return normalise(kept.translate(spelled))[:MAX_TEXT_CHARACTERS]


def _spelling(character: str) -> str | None:
    if character.isascii():
        return None
    if character in "\N{FRACTION SLASH}\N{DIVISION SLASH}":
        return "/"
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    kind = unicodedata.decomposition(character).partition(" ")[0]
    plain = unicodedata.normalize("NFKC", character)
    if kind == "<super>":
        return f"^{plain}"
    if kind == "<sub>":
        return f"_{plain}"
    if any(each.isdigit() for each in plain):  # A half, a circled or a bracketed digit.
        return f" {plain} ".replace("\N{FRACTION SLASH}", "/")
    return None


def trimmed(text: str) -> str:
    """Return the text without blanks around it, one full stop behind it, and quotes or marks that enclose all of it."""
    for _ in range(_MAX_LAYERS):
        before, text = text, text.strip()
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1].rstrip()
        for opening, closing in _WRAPS:
            inside = text[len(opening) : len(text) - len(closing)]
            is_enclosed = text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing)
            if is_enclosed and opening not in inside and closing not in inside:
                text = inside
        if styled := _STYLED.fullmatch(text):
            text = styled[1]
        if text == before:
            break
    return text


def boxes_in(text: str) -> list[tuple[int, int, str]] | None:
    r"""Return (start, end, content) of each \boxed{} with balanced braces, by where they end; None if one is not closed."""
    found: list[tuple[int, int, str]] = []
    opened: list[tuple[int, int] | None] = []  # Where a box and its content begin; None: the brace of no box.
    for match in _BRACE.finditer(text):
        token = match.group()
        if token.startswith((r"\boxed", r"\fbox")):
            opened.append((match.start(), match.end()))
        elif token == "{":
            opened.append(None)
        elif token == "}" and opened and (box := opened.pop()) is not None:
            found.append((box[0], match.end(), text[box[1] : match.start()]))
    return None if any(box is not None for box in opened) else found


def is_denied(text: str, start: int, end: int) -> bool:
    """Return whether the clause around text[start:end] denies it, or offers something else beside it."""
    before = _CLAUSE_END.split(text[max(0, start - _CLAUSE_CHARACTERS) : start])[-1]
    after = _CLAUSE_END.split(text[end : end + _CLAUSE_CHARACTERS])[0]
    return _DENIED_BEFORE.search(before) is not None or _DENIED_BEHIND.search(after) is not None


def _whole(text: str, reading: Reading) -> str | None:
    bare = trimmed(text)
    lead_in = _LEAD_IN.match(bare)
    return bare[lead_in.end() :] if lead_in else bare


def _last_line(text: str, reading: Reading) -> str | None:
    lines = [line for line in text.splitlines() if line.strip()]
    return _whole(lines[-1], reading) if lines else None


def _boxed(text: str, reading: Reading) -> str | None:
    boxes = boxes_in(text)
    if not boxes or any(is_denied(text, start, end) for start, end, _ in boxes):
        return None
    contents = {" ".join(trimmed(content).split()) for _, _, content in boxes}
    return contents.pop() if len(contents) == 1 else None


def _tagged(text: str, reading: Reading) -> str | None:
    opening, closing = f"<{reading.tag}>", f"</{reading.tag}>"
    if text.count(opening) != 1 or text.count(closing) != 1:
        return None
    start, end = text.index(opening), text.index(closing)
    if end < start or is_denied(text, start, end + len(closing)):
        return None
    return text[start + len(opening) : end]


def _marked(text: str, reading: Reading) -> str | None:
    if text.count(reading.marker) != 1:
        return None
    start = text.index(reading.marker)
    return None if is_denied(text, start, len(text)) else text[start + len(reading.marker) :]


READINGS: Mapping[str, Callable[[str, Reading], str | None]] = {
    "whole": _whole,
    "last_line": _last_line,
    "boxed": _boxed,
    "tagged": _tagged,
    "marked": _marked,
}
"""By name: (plain text, reading) -> the answer, None if there is none or more than one."""
