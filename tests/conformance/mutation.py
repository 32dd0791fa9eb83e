"""What a planted bug is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutation:
    """One bug planted in the package, and the tests that have to notice it."""

    number: int
    """Of the class of silent bugs that it belongs to, in `classes.py`."""
    name: str
    file: str
    """From the root of the repository."""
    old: str
    """Occurs exactly once in the file."""
    new: str
    tests: tuple[str, ...]
    """Test files or node ids; a function's name stands for all its parameters."""
    by: Literal["assertion", "shape"] = "assertion"
    """What counts: a test's assertion; or also the check of annotated shapes and types that the tests switch on."""

    def apply(self, text: str) -> str:
        """Return the file's text with the bug in it.

        Raises:
            ValueError: the text to replace is not there exactly once: the code has changed, and the bug has to be planted anew.
        """
        count = text.count(self.old)
        if count != 1:
            raise ValueError(f"{self.file} holds the text to replace {count} times, not once: {self.old!r}")
        return text.replace(self.old, self.new)
