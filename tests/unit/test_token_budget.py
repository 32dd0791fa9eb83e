"""A budget of generated tokens ends a run next to it, and the last step is made to fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.digits import leave_out_slow_parts, train_digits

from covey.monitor.run_directory import read_jsonl, read_rows
from covey.token_budget import TokenBudget
from covey.types import CoveyError


def budget(num_spent: int, tokens_per_prompt: float, limit: int = 1000) -> TokenBudget:
    return TokenBudget(limit=limit, num_spent=num_spent, tokens_per_prompt=tokens_per_prompt)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("budget")


@pytest.fixture(scope="module", autouse=True)
def _no_slow_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        leave_out_slow_parts(patch)
        yield


def test_the_first_step_is_whole_because_nothing_is_known_yet():
    assert budget(0, 0.0).prompts_within(16) == 16


def test_a_step_within_the_budget_is_whole_and_the_last_one_takes_what_is_left():
    assert budget(100, 50.0).prompts_within(16) == 16
    assert budget(700, 50.0).prompts_within(16) == 6
    assert budget(960, 50.0).prompts_within(16) == 1


@pytest.mark.parametrize(("num_spent", "is_spent"), [(970, False), (974, False), (975, True), (1000, True), (1200, True)])
def test_a_run_is_over_when_another_prompt_would_lead_farther_away(num_spent: int, is_spent: bool):
    assert budget(num_spent, 50.0).is_spent is is_spent


def test_the_learning_rate_falls_with_what_is_left():
    assert [budget(spent, 10.0).left_frac for spent in (0, 250, 1000, 1010)] == [1.0, 0.75, 0.0, 0.0]


@pytest.mark.parametrize("algorithm", ["grpo", "raft", "dpo", "remax"])
def test_a_run_ends_within_two_percent_of_its_budget(directory: Path, algorithm: str):
    """Counted from the saved completions, dropped groups and greedy baselines included."""
    limit = 2000
    run = train_digits(
        directory,
        algorithm,
        algorithm__name=algorithm,
        max_generated_tokens=limit,
        num_steps=200,
        prompts_per_step=8,
        max_draws=2,
    )
    generated = sum(row["tokens/generated"] for row in run.metrics)
    rows = [row for path in sorted((run.path / "rollouts").glob("*.parquet")) for row in read_rows(path)]
    recounted = sum(row["num_tokens"] for row in rows)
    assert abs(generated - limit) <= 0.02 * limit
    assert recounted == generated if algorithm != "remax" else recounted < generated
    assert [event["kind"] for event in read_jsonl(run.path / "events.jsonl")].count("token_budget") == 1


def test_the_rate_may_fall_towards_tokens_that_the_run_does_not_reach(directory: Path):
    """So the beginning of a longer run can be tried."""
    options = {"num_steps": 300, "decay": True, "warmup_steps": 0, "learning_rate": 1e-3}
    whole = train_digits(directory, "whole", max_generated_tokens=1500, **options)
    begun = train_digits(directory, "begun", max_generated_tokens=500, decay_tokens=1500, **options)
    same = len(begun.metrics) - 1  # The last step was made to fit.
    assert same > 2
    assert begun.metrics[:same] == whole.metrics[:same]
    with pytest.raises(CoveyError, match="set all three"):
        train_digits(directory, "alone", decay_tokens=1500)


def test_with_decay_the_rate_falls_to_nothing_as_the_budget_ends(directory: Path):
    run = train_digits(
        directory, "decay", max_generated_tokens=1500, num_steps=300, decay=True, warmup_steps=0, learning_rate=1e-3
    )
    rates = [row["optimizer/lr"] for row in run.metrics if row.get("optimizer/lr") is not None]
    assert rates[0] == pytest.approx(1e-3)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 2e-4
