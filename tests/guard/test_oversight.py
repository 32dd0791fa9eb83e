"""The guard inside real runs of the tiny model: with detectors that are planted, so that they speak when a test says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests import digits
from tests.digits import leave_out_slow_parts, newest, resume_digits, stop_at, weights_of
from tests.guard.test_watch import finding, planted

import covey
from covey.api import Run
from covey.guard.history import Finding, History
from covey.guard.replay import read_history
from covey.guard.table import DETECTORS
from covey.guard.watch import replay
from covey.monitor.run_directory import RunDirectory, read_jsonl
from covey.types import CoveyError


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_slow_parts(monkeypatch)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return request.node.name.removeprefix("test_")[:60]


def train_digits(directory: Path, name: str, **changes: Any) -> Run:
    return digits.train_digits(directory, name, **({"guard__enabled": True} | changes))


def speaks_after(step: int, level: Any = "critical") -> Callable[[History], Finding | None]:
    """Return a detector that has something to say from a step on."""

    def find(history: History) -> Finding | None:
        newest = history.steps[-1].step if history.steps else 0
        return finding(level, number=newest) if newest >= step else None

    return find


def spoken_by(name: str, find: Callable[[History], Finding | None]) -> Callable[[History], Finding | None]:
    """Return the detector under another name."""

    def renamed(history: History) -> Finding | None:
        found = find(history)
        return None if found is None else dataclasses.replace(found, detector=name)

    return renamed


def plant(monkeypatch: pytest.MonkeyPatch, find: Callable[[History], Finding | None], action: str) -> None:
    for name in list(DETECTORS):
        monkeypatch.delitem(DETECTORS, name)
    monkeypatch.setitem(DETECTORS, "planted", planted("planted", find, action=action))


def events_of(run: Path, kind: str) -> list[str]:
    return [row["message"] for row in read_jsonl(run / "events.jsonl") if row["kind"] == kind]


def test_an_alarm_that_stops_ends_the_run_after_its_step(monkeypatch: pytest.MonkeyPatch, directory: Path, name: str):
    plant(monkeypatch, speaks_after(4), "stop")
    run = train_digits(directory, name)
    assert [row["step"] for row in run.metrics] == [1, 2, 3, 4]
    [record] = read_jsonl(run.path / "guard.jsonl")
    assert (record["step"], record["detector"], record["level"], record["action"]) == (4, "planted", "critical", "stop")
    assert events_of(run.path, "guard_action") == ["the guard ends the run after step 4"]
    assert [row["step"] for row in run.evaluation if row["part"] == "test"] == []  # This task has no test questions.


def test_a_stopped_run_does_not_go_on(monkeypatch: pytest.MonkeyPatch, directory: Path, name: str):
    plant(monkeypatch, speaks_after(2), "stop")
    run = train_digits(directory, name)
    before = weights_of(run.path)
    again = resume_digits(directory, name)
    assert weights_of(again.path) == before
    assert [row["step"] for row in again.metrics] == [1, 2]


@pytest.mark.parametrize("action", ["note", "warn", "off"])
def test_an_alarm_that_only_speaks_leaves_the_weights_identical(monkeypatch: pytest.MonkeyPatch, directory: Path, action: str):
    alone = train_digits(directory, f"without a guard {action}", guard__enabled=False)
    plant(monkeypatch, speaks_after(2), "stop")
    run = train_digits(directory, f"with one that {action}s", guard__actions={"planted": action})
    assert weights_of(run.path) == weights_of(alone.path)
    assert [row["step"] for row in run.metrics] == [1, 2, 3, 4, 5, 6]


def test_rolling_back_ends_with_the_weights_of_the_best_checkpoint(monkeypatch: pytest.MonkeyPatch, directory: Path, name: str):
    plant(monkeypatch, speaks_after(5), "roll_back")
    # All looks are equal, so that the first, before training, is the best one.
    run = train_digits(directory, name, gold=lambda completion: 0.5)
    assert events_of(run.path, "guard_action") == [
        "the guard ends the run after step 5 with the weights of step 0, its best by gold"
    ]
    start = load_file(directory / "model" / "model.safetensors")
    after = load_file(newest(run.path) / "model.safetensors")
    assert all(bool((start[key] == after[key]).all()) for key in after)
    assert (run.path / "checkpoints" / "step-000000").is_dir()


def test_of_a_stop_and_a_way_back_at_once_the_run_goes_back(monkeypatch: pytest.MonkeyPatch, directory: Path, name: str):
    plant(monkeypatch, speaks_after(4), "stop")
    monkeypatch.setitem(DETECTORS, "second", planted("second", spoken_by("second", speaks_after(4)), action="roll_back"))
    run = train_digits(directory, name, gold=lambda completion: 0.5)
    assert events_of(run.path, "guard_action") == [
        "the guard ends the run after step 4 with the weights of step 0, its best by gold"
    ]
    first = run.path / "checkpoints" / "step-000000" / "model.safetensors"
    assert weights_of(run.path) == digits.digest(first)


def test_the_best_checkpoint_outlives_newer_ones(monkeypatch: pytest.MonkeyPatch, directory: Path, name: str):
    plant(monkeypatch, speaks_after(99), "roll_back")
    run = train_digits(directory, name, gold=lambda completion: 0.5, checkpoint__every=1, checkpoint__keep=2)
    kept = sorted(path.name for path in (run.path / "checkpoints").iterdir())
    assert kept == ["step-000000", "step-000005", "step-000006"]


def test_beta_is_raised_by_the_factor(monkeypatch: pytest.MonkeyPatch, directory: Path, name: str):
    plant(monkeypatch, speaks_after(2), "raise_beta")
    run = train_digits(directory, name, beta=0.1, guard__beta_factor=3.0)
    assert [row["kl/beta"] for row in run.metrics] == pytest.approx([0.1, 0.1, 0.3, 0.3, 0.3, 0.3])


def test_raising_beta_without_a_kl_term_is_refused(directory: Path, name: str):
    with pytest.raises(CoveyError, match="no KL term"):
        train_digits(directory, name, guard__actions={"exploit_mass": "raise_beta"})


def test_a_detector_that_does_not_exist_is_refused(directory: Path, name: str):
    with pytest.raises(CoveyError, match="no such detector: exploitmass"):
        train_digits(directory, name, guard__actions={"exploitmass": "stop"})


def test_a_run_that_goes_on_has_a_guard_that_has_seen_the_same(monkeypatch: pytest.MonkeyPatch, directory: Path, name: str):
    seen: list[tuple[int, ...]] = []

    def find(history: History) -> Finding | None:
        seen.append(tuple(step.step for step in history.steps))
        return None

    plant(monkeypatch, find, "stop")
    train_digits(directory, name, reward=stop_at(directory / name, 3))
    seen.clear()
    resume_digits(directory, name)
    assert seen[-1] == (1, 2, 3, 4, 5, 6)


def test_the_replay_of_a_run_says_what_the_run_said(monkeypatch: pytest.MonkeyPatch, directory: Path, name: str):
    plant(monkeypatch, speaks_after(3, "warn"), "stop")
    run = train_digits(directory, name)
    recorded = [(row["step"], row["detector"], row["level"], row["action"]) for row in read_jsonl(run.path / "guard.jsonl")]
    history = read_history(RunDirectory.open(run.path))
    replayed = [(j.finding.step, j.finding.detector, j.finding.level, j.action) for j in replay(history, {})]
    assert replayed == recorded == [(3, "planted", "warn", "warn")]


def test_it_sees_only_the_steps_whose_completions_are_saved(monkeypatch: pytest.MonkeyPatch, directory: Path, name: str):
    seen: list[int] = []

    def find(history: History) -> Finding | None:
        seen.append(len(history.steps))
        return None

    plant(monkeypatch, find, "stop")
    train_digits(directory, name, rollouts_every=3)
    assert seen[-1] == 2


def arithmetic_run(model: Path, directory: Path, name: str, **changes: Any) -> Run:
    """Return a run of one step on a task whose questions have answers."""
    small = {key: value for key, value in digits.SMALL.items() if key not in ("reward__audit", "guard__enabled")}
    given: dict[str, Any] = {"num_steps": 1, "evaluation__num_prompts": 4, "run__directory": str(directory), "run__name": name}
    return covey.train(model=str(digits.tiny_model(model)), quiet=True, **(small | given | changes))


def test_a_run_audits_its_reward_first_and_says_what_it_found(directory: Path, name: str) -> None:
    run = arithmetic_run(directory / "model", directory, name)
    found = events_of(run.path, "audit")
    assert len(found) == 1
    assert found[0].startswith("reward audit of last_number: warn")
    assert "covey audit" in found[0]


def test_a_reward_that_pays_everything_is_told_loudly_and_trained_on_all_the_same(
    directory: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    run = arithmetic_run(directory / "model", directory, name, reward__name="planted_rewards:pays_everything")
    assert "pays_everything: fail" in events_of(run.path, "audit_failed")[0]
    assert [row["step"] for row in run.metrics] == [1]


def test_without_the_option_no_reward_is_audited(directory: Path, name: str) -> None:
    run = arithmetic_run(directory / "model", directory, name, reward__audit=False)
    assert events_of(run.path, "audit") == events_of(run.path, "audit_failed") == []


def test_questions_without_an_answer_are_not_audited(directory: Path, name: str) -> None:
    run = train_digits(directory, name, reward__audit=True, num_steps=1)
    assert events_of(run.path, "audit") == events_of(run.path, "audit_failed") == []


def test_damage_is_measured_at_the_first_step_and_with_each_evaluation(directory: Path, name: str) -> None:
    run = train_digits(directory, name, num_steps=4, evaluation__every=3)
    assert [row["step"] for row in run.metrics if "damage/nll" in row] == [1, 3, 4]


def test_nobody_measures_damage_without_a_guard(directory: Path, name: str) -> None:
    run = train_digits(directory, name, num_steps=1, guard__enabled=False)
    assert "damage/nll" not in run.metrics[0]
