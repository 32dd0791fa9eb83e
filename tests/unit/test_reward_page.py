"""The page of the built-in rewards: it names every reward with every option and its default, and its examples run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.reward_cases import JUDGES

from covey.model_rewards import RECIPE_REWARDS
from covey.rewards.options import options_of
from covey.rewards.reading import READINGS

PAGE = (Path(__file__).parents[2] / "docs" / "guide" / "rewards.md").read_text()
NEEDED = {
    ("pattern", "pattern"),
    ("cosine_length", "max_tokens"),
    ("preference", "model"),
    *((judge, option) for judge in JUDGES for option in ("base_url", "model")),
}
IN_WORDS = {("json", "fields"): "all of the answer's"}


def rows() -> dict[str, list[str]]:
    lines = [line.strip("|").split("|") for line in PAGE.splitlines() if re.match(r"\| `\w+` \| .* \| .* \|", line)]
    return {cells[0].strip(" `"): [cell.strip() for cell in cells[1:]] for cells in lines if len(cells) == 4}


def in_words(row: str, name: str, default: Any) -> str:
    if (row, name) in NEEDED:
        return "needed"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        default = ", ".join(default)
    return IN_WORDS.get((row, name)) or ("none" if default == "" or isinstance(default, Mapping) else str(default))


def test_the_table_has_every_reward_with_every_option_and_its_default():
    for name, factory in RECIPE_REWARDS.items():
        listed = [f"`{each.name}` ({in_words(name, each.name, each.default)})" for each in options_of(factory).values()]
        assert rows()[name][1] == (", ".join(listed) or "none")
    assert set(rows()) == set(RECIPE_REWARDS)


def test_the_page_has_every_reading():
    assert re.findall(r"^\| `(\w+)` \| [^|]*\|$", PAGE.split("| `read` |")[1], re.MULTILINE) == list(READINGS)


def test_the_examples_run():
    program = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
    assert program.count("assert ") > 10
    exec(compile(program, "rewards.md", "exec"), {})
