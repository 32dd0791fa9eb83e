"""The commands that judge rewards, tasks and models: what they print, write and end with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from covey.cli import app
from covey.cli_checks import EXIT_ALARM
from covey.models.tiny import write_tiny_model
from covey.tasks.registry import SOURCES, TASK_LEVELS
from covey.types import CoveyError


def contains_the_answer(completion: str, answer: int) -> float:
    """A reward that any list of numbers satisfies."""
    return float(str(answer) in completion)


def test_tasks_lists_every_level_with_an_example() -> None:
    result = CliRunner().invoke(app, ["tasks", "--json"])
    rows = json.loads(result.stdout)
    listed = [(row["name"], row["level"]) for row in rows]
    assert listed == [(name, level) for name in TASK_LEVELS for level in TASK_LEVELS[name]] + [(name, None) for name in SOURCES]
    assert "What is" in CliRunner().invoke(app, ["tasks"]).stdout


def test_the_shipped_recipes_reward_does_not_fail_its_audit(tmp_path: Path) -> None:
    words = ["audit", "arithmetic", "--prompts", "4", "--search-calls", "100", "--output", str(tmp_path / "audit")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "last_number on arithmetic/easy" in result.stdout
    assert sorted(path.name for path in (tmp_path / "audit").iterdir()) == ["audit.html", "audit.json"]


def test_a_reward_that_pays_lists_of_numbers_fails_its_audit(tmp_path: Path) -> None:
    words = ["audit", f"reward.name={__name__}:contains_the_answer", "--prompts", "4", "--search-calls", "0"]
    result = CliRunner().invoke(app, [*words, "--output", str(tmp_path), "--json"])
    assert result.exit_code == EXIT_ALARM, result.output
    assert json.loads(result.stdout)["verdict"] == "fail"


def test_an_audit_judges_what_a_model_writes(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    words = ["audit", "sampling.max_new_tokens=4", "--model", str(model), "--prompts", "2", "--search-calls", "0"]
    result = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "audit"), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["samples"]["num_samples"] == 32 * 8


def test_calibrate_says_of_each_level_whether_it_can_be_learned_from(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    words = ["calibrate", str(model), "--task", "sorting", "--num-prompts", "3", "--samples", "4", "--max-new-tokens", "4"]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [row["task"] for row in rows] == [f"sorting/{level}" for level in TASK_LEVELS["sorting"]]
    assert not any(row["is_learnable"] for row in rows)  # Random weights.


def test_calibrating_on_a_task_that_does_not_exist_is_refused() -> None:
    result = CliRunner().invoke(app, ["calibrate", "tiny", "--task", "sums"])
    assert isinstance(result.exception, CoveyError)
    assert "choose among arithmetic" in str(result.exception)


@pytest.mark.parametrize("command", ["audit", "control"])
def test_one_recipe_at_a_time(command: str) -> None:
    result = CliRunner().invoke(app, [command, "arithmetic", "arithmetic"])
    assert isinstance(result.exception, CoveyError)
    assert "one recipe at a time" in str(result.exception)
