"""Rewards that fail: data while they are few, the end of the run when they are many, and never a silent zero."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.digits import digit_share, leave_out_slow_parts, resume_digits, starts_with_digit, train_digits, weights_of

from covey.api import Run
from covey.monitor.run_directory import RunDirectory, read_rows
from covey.types import CoveyError, Score

LENIENT: dict[str, Any] = {"num_steps": 1, "max_error_frac": 1.0, "evaluation__every": 0}


@pytest.fixture(autouse=True)
def _no_slow_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_slow_parts(monkeypatch)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rewards")


def is_odd_one(completion: str) -> bool:
    """Picks about a quarter of the completions."""
    return sum(completion.encode()) % 4 == 0


def failing_on_some(fail: Callable[[], Any]) -> Callable[[str], Any]:
    """Return the share of digits, but for some completions whatever `fail` does."""
    return lambda completion: fail() if is_odd_one(completion) else digit_share(completion)


def raise_error() -> Any:
    raise KeyError("no such answer")


FAILURES: dict[str, tuple[Callable[[], Any], str]] = {
    "an exception": (raise_error, "KeyError: 'no such answer'"),
    "None": (lambda: None, "returned None"),
    "a Score without a value": (lambda: Score(value=None, error="the grader was away"), "the grader was away"),
    "NaN": (lambda: math.nan, "returned nan, outside its declared range [0.0, 1.0]"),
    "infinity": (lambda: math.inf, "returned inf, outside its declared range"),
    "more than declared": (lambda: 1.5, "returned 1.5, outside its declared range [0.0, 1.0]"),
    "text": (lambda: "good", "ValueError: could not convert string to float: 'good'"),
    "a list": (lambda: [1.0], "TypeError"),
    "endless recursion": (lambda: endless(0), "RecursionError"),
}


def endless(depth: int) -> int:
    return endless(depth + 1)


def rows_of(run: Run, step: int = 1) -> list[dict[str, Any]]:
    return read_rows(run.path / "rollouts" / f"step-{step:06d}.parquet")


# Few failures


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_is_recorded_with_its_cause_and_no_value(directory: Path, failure: str) -> None:
    fail, cause = FAILURES[failure]
    run = train_digits(directory, f"some {failure}", reward=failing_on_some(fail), **LENIENT)
    failed, scored = ([row for row in rows_of(run) if is_odd_one(row["completion"]) is bad] for bad in (True, False))
    assert len(failed) * len(scored) > 0
    assert {row["reward"] for row in failed} == {None}
    assert all(cause in row["error"] for row in failed)
    assert [row["reward"] for row in scored] == [digit_share(row["completion"]) for row in scored]
    assert {row["error"] for row in scored} == {None}


def test_the_metrics_count_failures_and_leave_them_out_of_the_means(directory: Path) -> None:
    run = train_digits(directory, "counted", reward=failing_on_some(raise_error), **LENIENT)
    rows, [metrics] = rows_of(run), run.metrics
    rewards = [row["reward"] for row in rows if row["reward"] is not None]
    assert metrics["reward/error_frac"] == pytest.approx(1 - len(rewards) / len(rows))
    assert metrics["reward/mean"] == pytest.approx(sum(rewards) / len(rewards))


def test_completions_that_could_not_be_scored_are_not_trained_on(directory: Path) -> None:
    run = train_digits(directory, "masked", reward=failing_on_some(raise_error), drop_flat_groups=False, **LENIENT)
    scored = [row for row in rows_of(run) if row["reward"] is not None]
    assert run.metrics[0]["tokens/trained"] <= sum(row["num_tokens"] for row in scored)
    assert run.metrics[0]["tokens/generated"] == sum(row["num_tokens"] for row in rows_of(run))


def test_a_failure_does_not_train_like_a_zero(directory: Path) -> None:
    failing = train_digits(directory, "failing", reward=failing_on_some(raise_error), **LENIENT)
    zero = train_digits(directory, "zero", reward=failing_on_some(lambda: 0.0), **LENIENT)
    assert weights_of(failing.path) != weights_of(zero.path)


def test_the_kind_of_failure_makes_no_difference_to_the_weights(directory: Path) -> None:
    kinds = ("an exception", "None", "NaN")
    runs = [train_digits(directory, f"kind {kind}", reward=failing_on_some(FAILURES[kind][0]), **LENIENT) for kind in kinds]
    assert len({weights_of(run.path) for run in runs}) == 1


def test_a_group_in_which_nothing_could_be_scored_is_dropped(directory: Path) -> None:
    def reward(prompt: str, completion: str) -> float:
        return raise_error() if prompt.endswith(("1", "2", "3")) else digit_share(completion)

    run = train_digits(directory, "dropped", reward=reward, prompts_per_step=20, drop_flat_groups=False, **LENIENT)
    unused = {row["question"] for row in rows_of(run) if not row["used"]}
    assert unused == {row["question"] for row in rows_of(run) if row["question"].endswith(("1", "2", "3"))}
    assert run.metrics[0]["group/num_used"] == 20 - len(unused)


def test_the_held_out_failures_are_counted(directory: Path) -> None:
    run = train_digits(directory, "held out", reward=failing_on_some(raise_error), **LENIENT)
    for record in run.evaluation:
        table = read_rows(run.path / "evals" / f"{record['part']}-{record['mode']}-step-{record['step']:06d}.parquet")
        assert record["error_frac"] == sum(is_odd_one(row["completion"]) for row in table) / len(table)


def test_a_gold_verifier_that_fails_does_not_stop_training(directory: Path) -> None:
    options: dict[str, Any] = {"num_steps": 2, "evaluation__every": 0}
    run = train_digits(directory, "gold fails", gold=lambda completion: raise_error(), **options)
    honest = train_digits(directory, "gold works", gold=starts_with_digit, **options)
    assert [row["gold/mean"] for row in run.metrics] == [None, None]
    assert {(record["gold_mean"], record["error_frac"]) for record in run.evaluation} == {(None, 1.0)}
    assert weights_of(run.path) == weights_of(honest.path)


# A reward that scores a draw in one call, as TRL's do


def digit_shares(completions: list[str]) -> list[float]:
    return [digit_share(completion) for completion in completions]


def test_a_batched_reward_trains_like_the_same_reward_one_by_one(directory: Path) -> None:
    runs = [
        train_digits(directory, f"batch {reward.__name__}", reward=reward, **LENIENT) for reward in (digit_shares, digit_share)
    ]
    assert len({weights_of(run.path) for run in runs}) == 1


def test_none_for_some_completions_of_a_batch_leaves_those_unscored(directory: Path) -> None:
    def reward(completions: list[str]) -> list[float | None]:
        return [None if is_odd_one(completion) else digit_share(completion) for completion in completions]

    run = train_digits(directory, "batch none", reward=reward, **LENIENT)
    alone = train_digits(directory, "alone none", reward=failing_on_some(lambda: None), **LENIENT)
    assert {row["reward"] for row in rows_of(run) if is_odd_one(row["completion"])} == {None}
    assert weights_of(run.path) == weights_of(alone.path)


def test_a_batch_of_the_wrong_length_stops_the_run_with_the_reason(directory: Path) -> None:
    with pytest.raises(CoveyError, match=r"returned 0 values for \d+ completions; return one for each"):
        train_digits(directory, "batch short", reward=lambda completions: [])


# Several rewards


def test_a_failing_part_is_no_zero_and_the_other_parts_are_recorded(directory: Path) -> None:
    def form(completion: str) -> float | None:
        return None if is_odd_one(completion) else 1.0

    run = train_digits(directory, "parts", reward=[digit_share, form], **LENIENT)
    failed = [row for row in rows_of(run) if is_odd_one(row["completion"])]
    assert failed
    assert {row["reward"] for row in failed} == {None}
    assert [json.loads(row["parts"]) for row in failed] == [{"digit_share": digit_share(row["completion"])} for row in failed]
    assert all("part 'form' could not be scored" in row["error"] for row in failed)


# Many failures


def test_a_reward_that_always_fails_stops_the_run_with_its_first_traceback(directory: Path) -> None:
    with pytest.raises(CoveyError) as stopped:
        train_digits(directory, "always", reward=lambda completion: raise_error())
    message = str(stopped.value)
    assert "could not score 12 of 12 completions, more than reward.max_error_frac=0.1" in message
    assert "in raise_error" in message
    assert message.rstrip().endswith("KeyError: 'no such answer'")
    assert message.count("Traceback") == 1


@pytest.mark.parametrize(("max_error_frac", "is_stopped"), [(0.0, True), (1 / 12 - 0.01, True), (1 / 12, False), (1.0, False)])
def test_the_declared_share_of_failures_is_allowed(directory: Path, max_error_frac: float, is_stopped: bool) -> None:
    calls = 0

    def reward(completion: str) -> float:
        nonlocal calls
        calls += 1
        return raise_error() if calls == 12 else digit_share(completion)

    changes: dict[str, Any] = {"num_steps": 1, "held_out": [], "max_error_frac": max_error_frac}
    name = f"share {max_error_frac}"
    if is_stopped:
        with pytest.raises(CoveyError, match="could not score 1 of 12"):
            train_digits(directory, name, reward=reward, **changes)
    else:
        assert train_digits(directory, name, reward=reward, **changes).metrics[0]["reward/error_frac"] == 1 / 12


def test_a_stopped_run_is_unlocked_and_goes_on_once_the_reward_is_mended(directory: Path) -> None:
    path = directory / "mended"

    def breaks_after_step_2(completion: str) -> float:
        is_broken = (path / "checkpoints" / "step-000002").exists()
        return raise_error() if is_broken else digit_share(completion)

    with pytest.raises(CoveyError, match="could not score"):
        train_digits(directory, path.name, reward=breaks_after_step_2, num_steps=4)
    with RunDirectory.open(path).lock():
        pass
    resumed = resume_digits(directory, path.name)
    alone = train_digits(directory, "never broken", num_steps=4)
    assert weights_of(resumed.path) == weights_of(alone.path)
    assert [json.dumps(row) for row in resumed.metrics] == [json.dumps(row) for row in alone.metrics]


def test_what_stopped_the_run_is_among_its_events(directory: Path) -> None:
    with pytest.raises(CoveyError):
        train_digits(directory, "told", reward=lambda completion: raise_error())
    events = (directory / "told" / "events.jsonl").read_text()
    assert "no such answer" in events


def test_a_reward_that_exits_does_not_end_the_process_unseen(directory: Path) -> None:
    """`sys.exit` in a reward is a failure of that reward, not a wish of the user to stop."""
    with pytest.raises(CoveyError, match="could not score"):
        train_digits(directory, "exits", reward=lambda completion: exit_quietly())


def exit_quietly() -> float:
    raise SystemExit(0)
