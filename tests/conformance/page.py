"""The table of docs/conformance.md, made from the list of planted bugs: `python -m tests.conformance.page` writes it."""

from __future__ import annotations

from pathlib import Path

from tests.conformance.classes import SILENT_BUGS, SUBJECTS, WAITING
from tests.conformance.mutations import MUTATIONS

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
START, END = "<!-- generated: tables -->\n", "<!-- end of generated tables -->\n"


def tables() -> str:
    """Return one table for each subject: a row is a class of bugs, what was planted for it, and the tests that notice."""
    lines: list[str] = []
    for subject, numbers in SUBJECTS.items():
        lines += [f"## {subject}", "", "| # | The bug | Planted | Noticed by |", "| --- | --- | --- | --- |"]
        lines += [row(number) for number in numbers]
        lines += [""]
    return "\n".join(lines)


def row(number: int) -> str:
    mutations = [mutation for mutation in MUTATIONS if mutation.number == number]
    planted = "<br>".join(mutation.name for mutation in mutations) or f"waiting: {WAITING.get(number, 'not planted')}"
    tests = dict.fromkeys(test for mutation in mutations for test in mutation.tests)
    return f"| {number} | {SILENT_BUGS[number]} | {planted} | {'<br>'.join(f'`{short(test)}`' for test in tests)} |"


def short(test: str) -> str:
    """Return the name of a test without its file, or of a file without its folder."""
    return test.rpartition("::")[2].rpartition("/")[2]


def page_with_tables(text: str) -> str:
    """Return the page's text with its tables made anew."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return before + START + "\n" + tables() + END + after


if __name__ == "__main__":
    PAGE.write_text(page_with_tables(PAGE.read_text()))
