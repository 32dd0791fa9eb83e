"""What `covey tasks` lists."""

from __future__ import annotations

import json
from typing import Any

import pytest

from covey.tasks.registry import SOURCES, SUMMARIES, TASK_LEVELS, TASKS, find_task, task_lines, task_rows
from covey.types import CoveyError


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return task_rows()


def test_every_task_and_level_and_every_source_is_one_row(rows: list[dict[str, Any]]):
    expected = [(name, level) for name in TASKS for level in TASK_LEVELS[name]] + [(name, None) for name in SOURCES]
    assert [(row["name"], row["level"]) for row in rows] == expected
    assert json.loads(json.dumps(rows)) == rows


def test_a_row_says_how_large_a_task_is_and_how_it_is_judged(rows: list[dict[str, Any]]):
    [row] = [row for row in rows if (row["name"], row["level"]) == ("countdown", "hard")]
    task = find_task("countdown", level="hard")
    assert row["num_train"] == len(task.train)
    assert row["num_held_out"] == {"choose": 200, "guard": 200, "test": 200}
    assert (row["num_twins"], row["num_honeypots"], row["proxy"], row["gold"]) == (
        200,
        40,
        "last_expression",
        "only_expression",
    )
    assert (row["example"], row["right"]) == (task.train[0].text, task.train[0].tags["solution"])


def test_the_lines_name_each_task_once_and_show_an_example_of_each_level(rows: list[dict[str, Any]]):
    lines = task_lines(rows)
    for name in [*TASKS, *SOURCES]:
        assert sum(line.startswith(f"{name}: ") for line in lines) == 1
    assert len(lines) == len(TASKS) + len(SOURCES) + sum(map(len, TASK_LEVELS.values()))
    assert find_task("sorting", level="medium").train[0].text in "\n".join(lines)


def test_every_task_and_source_has_a_summary_and_no_other_name_does():
    assert set(SUMMARIES) == {*TASKS, *SOURCES} == {*TASK_LEVELS, *SOURCES}


def test_an_unknown_name_is_refused_with_the_sources_too():
    with pytest.raises(CoveyError, match=r"task\.name='file' is not a task; choose one of .*files, reasoning_gym"):
        find_task("file", level="")
