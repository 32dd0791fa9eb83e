"""Why a completion could not be scored: the first word of the error's text is a kind, so that kinds can be counted."""

from __future__ import annotations

import re
import traceback

from covey.types import CoveyError, Score

ERROR_KINDS: dict[str, str] = {
    "timeout": "the call had not answered at its deadline",
    "died": "the worker process ended, or damaged the pipe its scores come on, during the call",
    "raised": "the function raised an exception",
    "invalid": "what came back is no score: no number, not finite, out of the declared range, or of the wrong length",
    "none": "the function itself said that it cannot score the completion",
    "skipped": "not tried: too many of the calls before it had hung or died",
    "sandbox": "the sandbox failed, again and again, and not because of the candidate",
}
"""The kinds of failure, and what each means. Error texts begin with one of them and a colon; a function's own do not."""

COSTS_THE_GROUP = frozenset({"sandbox"})
"""Kinds for which the whole group is left out, and not the completion alone: what failed has nothing to do with which of its
completions are good, and those that are left would be compared with a mean that says less than it seems to."""

MAX_ERROR_CHARACTERS = 4000

_ALTERNATIVES = "|".join(ERROR_KINDS)
_KIND = re.compile(rf"(?:\A|^part .* could not be scored: )({_ALTERNATIVES}): ", re.MULTILINE)
_PART = re.compile(
    rf"^part (['\"])(?P<name>.*?)\1 could not be scored: (?:part .* could not be scored: )?(?:(?P<kind>{_ALTERNATIVES}): )?",
    re.MULTILINE,
)


def failure_text(error: BaseException) -> str:
    """Return what went wrong with its traceback. A complaint of Covey's own about what came back is of the kind "invalid"."""
    kind = "invalid" if isinstance(error, CoveyError) else "raised"
    return f"{kind}: {clipped(''.join(traceback.format_exception(error, limit=-3)))}"


def error_kind(score: Score) -> str | None:
    """Return why the completion has no score, a key of ERROR_KINDS; None iff it has one.

    Of a reward made of several, it is the kind of the first part that failed.
    """
    if score.value is not None:
        return None
    found = _KIND.search(score.error or "")
    return found[1] if found else "none"


def error_kinds(score: Score, name: str) -> dict[str, str]:
    """Return the kind of failure of each reward that failed: of the parts by their names, else of the reward `name`."""
    kind = error_kind(score)
    if kind is None:
        return {}
    parts = {found["name"]: found["kind"] or "none" for found in _PART.finditer(score.error or "")}
    return parts or {name: kind}


def clipped(text: str, *, max_characters: int = MAX_ERROR_CHARACTERS) -> str:
    """Return the text, without its middle if it is longer than that."""
    if len(text) <= max_characters:
        return text
    half = max_characters // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters ...]\n{text[-half:]}"
