"""A gradient that is not finite never reaches the weights: left out and counted, then back to a checkpoint, then a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.digits import digest, leave_out_slow_parts, newest, resume_digits, stop_at, train_digits, weights_of

from covey.learner import Learner
from covey.learner_specs import Update
from covey.monitor.run_directory import read_jsonl
from covey.types import CoveyError


@pytest.fixture(autouse=True)
def _no_slow_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_slow_parts(monkeypatch)


def spoil(patch: pytest.MonkeyPatch, *, updates: set[int], value: float = float("nan")) -> None:
    """Spoil a weight's gradient in the updates with these numbers, counted from 1, those that are left out included."""
    plain, made = Learner.accumulate_gradient, [0]

    def spoiled(self: Learner, *arguments: Any, **options: Any) -> Update:
        update = plain(self, *arguments, **options)
        made[0] += 1
        if made[0] in updates:
            gradients = [weight.grad for weight in self.model.parameters() if weight.grad is not None]
            gradients[-1].reshape(-1)[0] = value
        return update

    patch.setattr(Learner, "accumulate_gradient", spoiled)


def kinds_of(run: Path) -> list[str]:
    return [event["kind"] for event in read_jsonl(run / "events.jsonl")]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_update_is_left_out_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float):
    spoil(monkeypatch, updates={3}, value=value)
    run = train_digits(tmp_path, "run", checkpoint__rollouts_every=5)
    assert [row.get("update/skipped") for row in run.metrics] == [None, None, 1, None, None, None]
    assert [row["optimizer/num_updates"] for row in run.metrics] == [1, 2, 2, 3, 4, 5]
    assert kinds_of(run.path).count("skipped") == 1
    assert (run.path / "rollouts/step-000003.parquet").exists(), "what spoiled it is kept to be looked at"
    assert not (run.path / "rollouts/step-000004.parquet").exists()


def test_the_weights_are_those_of_a_run_that_ends_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = train_digits(tmp_path, "before", num_steps=2)
    spoil(monkeypatch, updates={3})
    after = train_digits(tmp_path, "after", num_steps=3)
    assert weights_of(after.path) == weights_of(before.path)
    assert digest(newest(after.path) / "optimizer.safetensors") == digest(newest(before.path) / "optimizer.safetensors")


def test_after_three_in_a_row_it_goes_back_to_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spoil(monkeypatch, updates={3, 4, 5})
    run = train_digits(tmp_path, "run", num_steps=5, checkpoint__every=2)
    assert kinds_of(run.path).count("went_back") == 1
    message = next(event["message"] for event in read_jsonl(run.path / "events.jsonl") if event["kind"] == "went_back")
    assert "those of step 4 again" in message
    assert run.metrics[-1]["step"] == 5


def test_updates_that_were_made_between_begin_the_count_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spoil(monkeypatch, updates={1, 2, 4, 5})
    assert "went_back" not in kinds_of(train_digits(tmp_path, "run").path)


def test_where_going_back_does_not_help_the_run_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spoil(monkeypatch, updates=set(range(3, 100)))
    with pytest.raises(CoveyError, match=r"going back 2 times has not helped.*lower train\.learning_rate"):
        train_digits(tmp_path, "run", num_steps=20)
    assert kinds_of(tmp_path / "run").count("went_back") == 2
    assert all(row["optimizer/num_updates"] <= 2 for row in read_jsonl(tmp_path / "run/metrics.jsonl"))


def test_without_a_checkpoint_the_run_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spoil(monkeypatch, updates={1, 2, 3})
    with pytest.raises(CoveyError, match="there is no checkpoint yet"):
        train_digits(tmp_path, "run", checkpoint__every=10)


def test_the_count_survives_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        spoil(patch, updates={2, 3})
        train_digits(tmp_path, "run", reward=stop_at(tmp_path / "run", 3))
    spoil(monkeypatch, updates={1})
    resume_digits(tmp_path, "run")
    assert kinds_of(tmp_path / "run").count("went_back") == 1
