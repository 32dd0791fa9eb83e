"""`docs/run-directory.md` and the constants that writers and readers share say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from covey.monitor import run_directory
from covey.monitor.run_directory import RunDirectory

PAGE = (Path(__file__).parents[2] / "docs" / "run-directory.md").read_text()


LISTS = [
    *("ENV_KEYS", "TIMING_KEYS", "EVAL_KEYS", "EVAL_COLUMNS", "ROLLOUT_COLUMNS"),
    *("GUARD_KEYS", "COSTS_KEYS", "PROFILE_KEYS", "PROFILE_PHASE_KEYS"),
]


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def quoted(text: str) -> set[str]:
    """The words in backticks, those in parentheses (parts of a value, remarks) left out."""
    return set(re.findall(r"`([^`]+)`", re.sub(r"\([^()]*\)", "", text))) - {"null"}


def first_column(text: str) -> set[str]:
    return {word for row in text.splitlines() if row.startswith("| `") for word in quoted(row.split("|")[1])}


def documented() -> dict[str, set[str]]:
    evaluations, columns = section("eval.jsonl").split("`evals/*.parquet` columns:")
    profile, phases = section("profile.json").split("Each row of `phases` has")
    return {
        "GUARD_KEYS": first_column(section("guard.jsonl")),
        "COSTS_KEYS": first_column(section("costs.json")),
        "PROFILE_KEYS": first_column(profile),
        "PROFILE_PHASE_KEYS": first_column(phases),
        "ENV_KEYS": quoted(section("env.json")),
        "TIMING_KEYS": quoted(section("timing.jsonl")),
        "EVAL_KEYS": first_column(evaluations),
        "EVAL_COLUMNS": quoted(columns),
        "ROLLOUT_COLUMNS": quoted(section("rollouts/*.parquet")),
    }


def test_the_schema_version_is_the_documented_one() -> None:
    assert run_directory.SCHEMA_VERSION == 1
    assert "Schema version: **1**" in PAGE


@pytest.mark.parametrize("name", LISTS)
def test_the_constant_lists_exactly_what_the_page_documents(name: str) -> None:
    assert set(getattr(run_directory, name)) == documented()[name]


@pytest.mark.parametrize("name", LISTS)
def test_no_key_is_listed_twice(name: str) -> None:
    keys = getattr(run_directory, name)
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("name", ["EVAL_COLUMNS", "ROLLOUT_COLUMNS"])
def test_every_documented_column_has_a_fixed_type(name: str) -> None:
    assert set(getattr(run_directory, name)) <= set(run_directory._COLUMN_TYPES)


def test_the_files_of_a_run_are_the_documented_ones() -> None:
    run = RunDirectory(Path("run"))
    files = [run.recipe, run.env, run.metrics, run.timing, run.eval, run.guard, run.events, run.reward_output]
    files += [run.costs, run.profile, run.report, run.stalled]
    table = first_column(PAGE.split("\n## ", 1)[0])
    assert {path.name for path in files} == {word for word in table if "/" not in word}
    assert {run.evals.name, run.rollouts.name, run.checkpoints.name, run.journal.name} == {
        w.split("/")[0] for w in table if "/" in w
    }
    assert f"`{run.lock_file.name}`" in PAGE
