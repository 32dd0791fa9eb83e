"""Signals while a run trains: the first saves at the step boundary, the second ends at once, and neither costs a bit."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from tests import processes
from tests.digits import (
    at_step,
    bits_of,
    leave_out_slow_parts,
    newest,
    num_timed_steps,
    resume_digits,
    train_digits,
)

from covey.monitor.run_directory import RunDirectory, read_jsonl

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def _no_slow_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_slow_parts(monkeypatch)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("signals")


def train_slowly(directory: Path, name: str, marker: Path) -> None:
    """Train in a process; the reward of step 2 says that it is there by the marker file, and then takes a minute."""

    def pause() -> None:
        marker.touch()
        time.sleep(60)

    train_digits(directory, name, reward=at_step(directory / name, 2, pause))


def train_for_long(directory: Path, name: str) -> None:
    train_digits(directory, name, num_steps=10_000, checkpoint__every=0, evaluation__every=0)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_finishes_the_step_and_saves(directory: Path, number: signal.Signals) -> None:
    path = directory / f"first {number.name}"
    run = train_digits(directory, path.name, reward=at_step(path, 3, lambda: os.kill(os.getpid(), number)), checkpoint__every=0)
    assert [row["step"] for row in run.metrics] == [1, 2, 3]
    assert [checkpoint.name for checkpoint in path.glob("checkpoints/step-*")] == ["step-000003"]
    last = read_jsonl(path / "events.jsonl")[-1]
    assert (last["step"], last["kind"], last["message"]) == (3, "interrupted", f"{number.name}: stopped after step 3")


def test_a_signal_during_the_measurement_before_training_saves_step_0(directory: Path) -> None:
    path = directory / "before"
    run = train_digits(directory, path.name, reward=at_step(path, 0, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert run.metrics == []
    assert [row["step"] for row in run.evaluation] == [0, 0]
    assert newest(path).name == "step-000000"


def test_a_signal_in_the_last_step_leaves_a_finished_run(directory: Path) -> None:
    """All steps are done, so nothing was interrupted and nothing is left to resume."""
    path = directory / "last"
    run = train_digits(directory, path.name, num_steps=2, reward=at_step(path, 2, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert [row["step"] for row in run.metrics] == [1, 2]
    assert [event["kind"] for event in read_jsonl(path / "events.jsonl") if event["kind"] == "interrupted"] == []


def test_signals_are_handled_as_before_once_the_run_is_over(directory: Path) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    path = directory / "restored"
    train_digits(directory, path.name, reward=at_step(path, 1, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_stopped_run_is_unlocked(directory: Path) -> None:
    path = directory / "unlocked"
    train_digits(directory, path.name, reward=at_step(path, 1, lambda: os.kill(os.getpid(), signal.SIGINT)))
    with RunDirectory.open(path).lock():
        pass


@pytest.mark.parametrize(("second", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, -signal.SIGTERM)])
def test_the_second_signal_ends_at_once_and_the_run_resumes_to_the_same_bits(
    directory: Path, second: signal.Signals, code: int
) -> None:
    name = f"second {second.name}"
    marker = directory / f"{name} is in step 2"
    running = processes.start(train_slowly, directory, name, marker, directory=directory / "processes")
    processes.wait_for(marker.exists, running)
    running.send(signal.SIGINT)
    time.sleep(0.2)
    assert running.is_alive  # the first one waits for the end of the step, a minute away
    started = time.monotonic()
    running.send(second)
    finished = running.finish()
    assert time.monotonic() - started < 5
    assert finished.code == code
    assert [path.name for path in (directory / name).glob("checkpoints/*")] == []
    resume_digits(directory, name)
    assert bits_of(directory / name) == bits_of(train_digits(directory, f"left alone {second.name}").path)


def test_a_killed_run_is_unlocked(directory: Path) -> None:
    running = processes.start(train_for_long, directory, "killed", directory=directory / "processes")
    processes.wait_for(lambda: num_timed_steps(directory / "killed") > 2, running)
    running.send(signal.SIGKILL)
    assert running.finish().code == -signal.SIGKILL
    with RunDirectory.open(directory / "killed").lock():
        pass


def test_a_hang_up_does_not_leave_a_half_written_line(directory: Path) -> None:
    """SIGHUP, as when a terminal closes, is not waited for: what is on the disk must still be readable."""
    running = processes.start(train_for_long, directory, "hung up", directory=directory / "processes")
    processes.wait_for(lambda: num_timed_steps(directory / "hung up") > 3, running)
    running.send(signal.SIGHUP)
    assert running.finish().code == -signal.SIGHUP
    steps = [row["step"] for row in read_jsonl(directory / "hung up" / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1))
