"""Algorithms are known by name in their table alone: everything else reads rows."""

from __future__ import annotations

import io
import tokenize
from pathlib import Path

import pytest

from covey.algos.registry import ALGORITHMS

SOURCE = Path(__file__).parents[2] / "src" / "covey"
# The table and its functions; and the converter, which has to know what others call them.
ALLOWED = ("algos/", "convert/")


def code_words(path: Path) -> set[str]:
    """Return identifiers, their parts, and short strings: docstrings and messages may cite papers by name."""
    words: set[str] = set()
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.NAME:
            words |= {token.string, token.string.removesuffix("_advantages").removesuffix("_surrogate")}
        if token.type == tokenize.STRING and len(token.string) < 40:
            words.add(token.string.lstrip("rRbBfFuU").strip("\"'"))
    return words


FILES = [path for path in sorted(SOURCE.rglob("*.py")) if not str(path.relative_to(SOURCE)).startswith(ALLOWED)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_algorithm_is_named_outside_the_table(path: Path):
    assert code_words(path) & set(ALGORITHMS) == set()


def test_the_table_itself_would_be_found():
    assert set(ALGORITHMS) <= code_words(SOURCE / "algos" / "registry.py")
