"""`covey plan`, and the profile of `covey train --profile`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.commands import SMALL, covey


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plan")


def test_a_plan_is_a_table_of_seconds_and_memory(directory: Path) -> None:
    finished = covey("plan", "arithmetic", *SMALL, directory=directory)
    assert finished.code == 0, finished.err
    lines = finished.out.splitlines()
    assert lines[0].startswith("tiny, ")
    assert {line.split("  ")[0] for line in lines} >= {
        "sampling",
        "update",
        "a step",
        "interpreter and libraries",
        "at most at once",
    }


def test_a_plan_is_one_json_document_on_request_and_writes_no_run(directory: Path) -> None:
    finished = covey("plan", "arithmetic", "--json", *SMALL, directory=directory)
    assert finished.code == 0, finished.err
    assert json.loads(finished.out)["lengths"]["at_most"] == 6
    assert not (directory / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["arithmetics"], "recipe 'arithmetics' is neither a .toml file"),
        (["arithmetic", "other"], "arithmetic, other: one recipe at a time"),
        (["arithmetic", "train.group_size=1"], "train.group_size=1: group-relative advantages"),
        (["arithmetic", "--model", "./nowhere"], "model.name='./nowhere' is neither"),
    ],
)
def test_wrong_input_of_a_plan_says_what_to_do(directory: Path, arguments: list[str], message: str) -> None:
    finished = covey("plan", *arguments, directory=directory)
    assert finished.code == 2
    assert f"error: {message}" in finished.err


def test_a_profile_is_printed_written_and_shown_in_the_report(directory: Path) -> None:
    finished = covey("train", "arithmetic", "--profile", "--name", "profiled", *SMALL, directory=directory)
    assert finished.code == 0, finished.err
    names = [line.split("  ")[0] for line in finished.out.splitlines()]
    assert {"phase", "sampling", "evaluation", "checkpoint", "rest of the step"} <= set(names)
    profile = json.loads((directory / "runs" / "profiled" / "profile.json").read_text())
    assert profile["num_steps"] == 2
    assert "<h3>Profile</h3>" in (directory / "runs" / "profiled" / "report.html").read_text()
