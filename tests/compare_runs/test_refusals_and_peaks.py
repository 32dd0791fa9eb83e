"""What is refused before the first run, and what a resumption must not lose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.compare_runs.test_plan import plan_of
from typer.testing import CliRunner

from covey.cli import app
from covey.compare_runs.runs import Workshop, finished, keeping_peak
from covey.config import load_recipe
from covey.interrupts import StopRequest
from covey.monitor.run_directory import RunDirectory, write_text_atomic
from covey.types import CoveyError


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"margin": 0.0}, "--margin 0.0: give the smallest difference in gold that matters, above 0"),
        ({"margin": -0.1}, "--margin -0.1"),
        ({"harder": ("easy",)}, "--harder easy: that is the level that is trained on"),
        ({"recipe": load_recipe(None, ["evaluation.num_prompts=1"])}, "1 test questions: intervals need at least 2"),
        ({"custom": ["grpo: algorithm.beta=0.04"]}, "two arms are called 'grpo'"),
        ({"custom": ["kl: algorithm.beta=0.1", "kl: algorithm.beta=0.2"]}, "two arms are called 'kl'"),
        ({"custom": ["hot: train.learning_rate=1e-3"]}, "train.learning_rate must be the same for all arms"),
        ({"custom": ["big: algorithm.beta=0.1 model.name=other run.seed=3"]}, "model.name, run.seed must be the same"),
    ],
    ids=str,
)
def test_what_would_end_a_comparison_after_hours_is_refused_now(changes: dict[str, Any], words: str):
    with pytest.raises(CoveyError, match=words):
        plan_of("grpo", "raft", **changes)


def test_a_guards_factor_in_the_recipe_does_not_stop_the_plan(tmp_path: Path):
    plan = plan_of("grpo", recipe=load_recipe(None, ["guard.beta_factor=3.0"]))
    assert not plan.recipe_of(plan.finals({"grpo": 1e-5})[0], tmp_path).guard.enabled


def costs(peak: int, updates: int) -> str:
    return json.dumps({"peak_rss_bytes": peak, "memory_bytes": {"rest": peak // 2}, "num_updates": updates})


@pytest.mark.parametrize(("before", "after", "kept"), [(900, 300, 900), (300, 900, 900)])
def test_the_highest_peak_of_a_runs_processes_counts(tmp_path: Path, before: int, after: int, kept: int):
    run = RunDirectory.create(tmp_path / "run")
    run.costs.write_text(costs(before, 1))
    with keeping_peak(run):
        write_text_atomic(run.costs, costs(after, 2))
    found = json.loads(run.costs.read_text())
    assert found == {"peak_rss_bytes": kept, "memory_bytes": {"rest": kept // 2}, "num_updates": 2}


def test_a_run_that_was_begun_with_another_recipe_is_not_gone_on_with(tmp_path: Path):
    plan = plan_of("grpo", num_seeds=1, learning_rates=(1e-5,))
    piece = plan.finals({"grpo": 1e-5})[0]
    run = RunDirectory.create(tmp_path / "runs" / piece.name)
    run.recipe.write_text(load_recipe(None, ["run.seed=99"]).to_toml())
    run.checkpoints.mkdir()
    shop = Workshop(plan=plan, directory=tmp_path, say=lambda message: None, stop=StopRequest())
    with pytest.raises(CoveyError, match="was begun with another recipe"):
        finished(shop, piece, 1, 1)


def test_with_json_a_dry_run_prints_the_plan(tmp_path: Path):
    words = ["compare", "--arms", "grpo,raft", "--budget", "tokens=5000", "--dry-run", "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["plan"]["budget_tokens"] == 5000
