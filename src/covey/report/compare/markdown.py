"""The report of a comparison as one Markdown file."""

from __future__ import annotations

import re
from collections.abc import Iterator

from covey.report.compare.blocks import Block, Code, Items, Report, Table, Text


def markdown(report: Report) -> str:
    """Return the report as Markdown, its figures linked from beside it."""
    parts = [f"# {escaped(report.headline)}", *(escaped(text) for text in report.lead)]
    for section in report.sections:
        parts += [f"## {escaped(section.title)}", *(part for block in section.blocks for part in _block_lines(block))]
    return "\n\n".join(parts) + "\n"


def _block_lines(block: Block) -> Iterator[str]:
    if isinstance(block, Text):
        yield escaped(block.text)
    elif isinstance(block, Items):
        yield f"### {escaped(block.title)}"
        yield "\n".join(f"- {escaped(item)}" for item in block.items)
    elif isinstance(block, Table):
        header, *rows = ([escaped(cell) for cell in cells] for cells in (block.header, *block.rows))
        yield "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))
    elif isinstance(block, Code):
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", block.text)), default=0))
        yield f"### {escaped(block.title)}"
        yield f"{fence}text\n{block.text}\n{fence}"
    else:
        for figure in block.figures:
            yield f"![{escaped(figure.title)}](figures/{figure.name}.svg)"
            yield escaped(figure.note)


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    line = " ".join(text.split()).replace("&", "&amp;")
    line = re.sub(r"([\\`*\[\]<>|~])", r"\\\1", line)
    # An underscore within a word is nothing but itself, and arms are called best_of_n.
    line = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)
    return f"\\{line}" if line.startswith(("#", "+ ", "- ", "=")) else line
