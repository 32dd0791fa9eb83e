"""SIGTERM, SIGINT and SIGUSR1 in a save, in a reward, in sampling, in an update and at random times."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import processes
from tests.digits import at_step, bits_of, newest, num_timed_steps, resume_digits, train_digits
from tests.interrupted_runs import is_saved_where_it_stopped, stopped_at_random_times

from covey import checkpoint
from covey.api import Run
from covey.learner import Learner
from covey.monitor.run_directory import read_jsonl
from covey.types import Completion

STOPPING = (signal.SIGTERM, signal.SIGINT)
NOT_BESIDE = {"checkpoint__in_background": False}
"""Where a test looks at what is saved when: beside training, a save may begin some steps later."""


pytestmark = pytest.mark.usefixtures("no_slow_parts")


@pytest.fixture(scope="module")
def alone(directory: Path) -> dict[str, Any]:
    return bits_of(train_digits(directory, "left alone before").path)


def once(act: Callable[[], Any], function: Callable[..., Any], *, at_call: int) -> Callable[..., Any]:
    """Return the function as one that also acts, in the midst of one call."""
    calls = 0

    def acting(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        result = function(*args, **kwargs)
        if calls == at_call:
            act()
        return result

    return acting


PLACES: dict[str, tuple[Any, str, int]] = {
    "sampling": (Completion, "__init__", 50),
    "a save": (checkpoint, "save_file", 3),
    "the end of a save": (checkpoint, "_publish", 1),
    "a forward pass, for sampling or an update": (Learner, "_score", 5),
    "the loss": (Learner, "_backward", 5),
}
"""What is called there, and which call of it gets the signal."""


@pytest.mark.parametrize(("place", "number"), [(place, STOPPING[n % 2]) for n, place in enumerate(PLACES)])
def test_a_signal_in_the_midst_of_something_lets_it_finish_and_saves(
    directory: Path, alone: dict[str, Any], monkeypatch: pytest.MonkeyPatch, place: str, number: signal.Signals
) -> None:
    module, function, at_call = PLACES[place]
    name = f"{number.name} in {place}"
    with monkeypatch.context() as patch:
        acting = once(lambda: os.kill(os.getpid(), number), getattr(module, function), at_call=at_call)
        patch.setattr(module, function, acting)
        run = train_digits(directory, name, **NOT_BESIDE)
    assert 0 < len(run.metrics) < 6
    assert is_saved_where_it_stopped(run)
    resume_digits(directory, name)
    assert bits_of(directory / name) == alone


def test_a_signal_at_a_random_time_lets_the_step_finish_and_saves(directory: Path, alone: dict[str, Any]) -> None:
    """A clock that is set by a reward goes off in whatever comes next."""
    assert stopped_at_random_times(directory, 4)[1] == 0


def test_without_a_signal_the_run_is_not_found_stopped(directory: Path, alone: dict[str, Any]) -> None:
    """What the tests above would find if nothing had come."""
    assert not is_saved_where_it_stopped(Run(path=directory / "left alone before"))


# SIGUSR1


def saves_of(path: Path) -> list[str]:
    return sorted(checkpoint.name for checkpoint in path.glob("checkpoints/step-*"))


def test_usr1_saves_after_the_step_and_the_run_goes_on(directory: Path, alone: dict[str, Any]) -> None:
    path = directory / "usr1"
    seen: list[list[str]] = []

    def ask() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)

    def reward(completion: str) -> float:
        if num_timed_steps(path) == 5:
            seen.append(saves_of(path))
        return asking(completion)

    asking = at_step(path, 3, ask)
    run = train_digits(directory, "usr1", reward=reward, checkpoint__every=0, **NOT_BESIDE)
    assert [row["step"] for row in run.metrics] == [1, 2, 3, 4, 5, 6]
    assert seen[0] == ["step-000003"]
    events = [(event["step"], event["message"]) for event in read_jsonl(path / "events.jsonl") if event["kind"] == "saving"]
    assert events == [(3, "SIGUSR1: saving after step 3")]
    assert bits_of(path) == alone


def test_without_usr1_nothing_is_saved_before_the_end(directory: Path) -> None:
    path = directory / "no usr1"
    seen: list[list[str]] = []
    train_digits(directory, "no usr1", reward=at_step(path, 5, lambda: seen.append(saves_of(path))), checkpoint__every=0)
    assert seen == [[]]


def test_usr1_and_a_signal_to_stop_save_once_and_stop(directory: Path) -> None:
    path = directory / "both"

    def both() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)

    run = train_digits(directory, "both", reward=at_step(path, 2, both), checkpoint__every=0)
    assert [row["step"] for row in run.metrics] == [1, 2]
    assert newest(path).name == "step-000002"


def test_usr1_is_handled_as_before_once_the_run_is_over(directory: Path) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    train_digits(directory, "restored", num_steps=1)
    assert signal.getsignal(signal.SIGUSR1) == before


def train_for_long(directory: Path, name: str) -> None:
    train_digits(directory, name, num_steps=10_000, checkpoint__every=0, evaluation__every=0)


def test_a_killed_run_goes_on_from_what_usr1_has_saved(directory: Path) -> None:
    path = directory / "killed"
    running = processes.start(train_for_long, directory, "killed", directory=directory / "processes")
    processes.wait_for(lambda: num_timed_steps(path) > 2, running)
    running.send(signal.SIGUSR1)
    processes.wait_for(lambda: bool(saves_of(path)), running)
    time.sleep(0.1)
    running.send(signal.SIGKILL)
    assert running.finish().code == -signal.SIGKILL
    [saved] = saves_of(path)
    step = int(saved.removeprefix("step-"))
    resume_digits(directory, "killed", num_steps=step + 1)
    assert newest(path).name == f"step-{step + 1:06d}"
