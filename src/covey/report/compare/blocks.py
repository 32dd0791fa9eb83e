"""What the report of a comparison is made of: text, lists, tables, code and figures, in sections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from covey.report.compare.figures import Figure


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Items:
    """Sentences of equal rank; `is_loud` marks the first of them."""

    kind: ClassVar[str] = "items"
    title: str
    items: tuple[str, ...]
    is_loud: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Cells of text; every row is as long as the header."""

    kind: ClassVar[str] = "table"
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    has_prose: bool = False
    """Whether lines may break within a cell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """Text to be copied; `is_folded`: the page shows it when asked."""

    kind: ClassVar[str] = "code"
    title: str
    text: str
    is_folded: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """Figures beside each other."""

    kind: ClassVar[str] = "pictures"
    figures: tuple[Figure, ...]


Block = Text | Items | Table | Code | Pictures


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """All of it, from the answer to how to repeat it."""

    name: str
    headline: str
    tone: str
    """"up", "down" or, where neither is shown, empty."""
    lead: tuple[str, ...]
    sections: tuple[Section, ...]
