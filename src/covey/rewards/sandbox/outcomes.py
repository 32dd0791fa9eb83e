"""What came of grading a candidate. The classes are never merged, so that a report can tell them apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OutcomeClass = Literal[
    "passed",
    "wrong",
    "exception",
    "timeout",
    "memory",
    "crashed",
    "output_limit",
    "protocol_violation",
    "unsplittable",
    "infra_error",
]

OUTCOMES: dict[OutcomeClass, str] = {
    "passed": "every test",
    "wrong": "another answer than the right one, or none",
    "exception": "the candidate raised an exception, or could not be compiled",
    "timeout": "it used up its processor time, or answered nothing for as long as may be waited",
    "memory": "it asked for more memory than there is",
    "crashed": "its process ended where an answer was expected",
    "output_limit": "it wrote more than is read",
    "protocol_violation": "it sent what is no answer to what it was asked",
    "unsplittable": "the tests hand over what is no plain data, so that they cannot be kept apart from the candidate",
    "infra_error": "the sandbox failed, and not because of the candidate: no statement about it",
}
"""The classes, and what each means. All but the last two are statements about the candidate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Of one candidate."""

    kind: OutcomeClass
    num_passed: int = 0
    num_tests: int = 0
    detail: str = ""
    cpu_s: float = 0.0
    was_starved: bool = False
    """Whether it was given up while it ran, which is the machine's doing as likely as its own."""

    @property
    def has_passed(self) -> bool:
        return self.kind == "passed"

    @property
    def is_about_candidate(self) -> bool:
        """Whether it is a statement about the candidate."""
        return self.kind not in ("infra_error", "unsplittable")
