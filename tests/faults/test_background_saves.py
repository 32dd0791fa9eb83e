"""Checkpoints that are written while training goes on: the same bits, and nothing that fails there gets lost."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import processes
from tests.digits import (
    at_step,
    bits_of,
    leave_out_slow_parts,
    num_timed_steps,
    resume_digits,
    train_digits,
)
from tests.faults.test_skipped_updates import kinds_of, spoil

from covey import persistence
from covey.background import Background
from covey.checkpoint import SaveError, copy_tensors
from covey.curriculum import PassRateCurriculum
from covey.monitor.run_directory import read_jsonl


@pytest.fixture(autouse=True)
def _no_slow_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_slow_parts(monkeypatch)


def hold_saves(patch: pytest.MonkeyPatch, hold: Any) -> list[int]:
    """Have each save call `hold` with its step before it begins. Return the steps saved, as they are finished."""
    plain, saved = persistence.save_checkpoint, []

    def held(directory: Path, step: int, **options: Any) -> Path:
        hold(step)
        path = plain(directory, step, **options)
        saved.append(step)
        return path

    patch.setattr(persistence, "save_checkpoint", held)
    return saved


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert condition(), "waited in vain"


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    foreground = train_digits(tmp_path, "foreground", checkpoint__in_background=False)
    run = tmp_path / "background"
    # The save of step 2 begins when step 3 is over: at that time its weights are no longer the run's.
    hold_saves(monkeypatch, lambda step: step == 2 and wait_until(lambda: num_timed_steps(run) >= 4))
    train_digits(tmp_path, "background")
    assert bits_of(run) == bits_of(foreground.path)


def test_a_curriculum_that_goes_on_does_not_change_what_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of a curriculum of a user's own, too, whose state is the very thing that it changes."""
    changes: dict[str, Any] = {"train__curriculum": "pass_rate", "checkpoint__keep": 10}
    plain = PassRateCurriculum.state
    live: dict[str, Any] = {}

    def shared(self: PassRateCurriculum) -> dict[str, Any]:
        live.clear()
        live.update(plain(self))
        return live

    foreground = train_digits(tmp_path, "foreground", checkpoint__in_background=False, **changes)
    monkeypatch.setattr(PassRateCurriculum, "state", shared)
    run = tmp_path / "background"
    hold_saves(monkeypatch, lambda step: (step == 2 and wait_until(lambda: num_timed_steps(run) >= 4)) or live.clear())
    train_digits(tmp_path, "background", **changes)
    for step in ("000002", "000004"):
        states = [json.loads((each / f"checkpoints/step-{step}/state.json").read_text()) for each in (foreground.path, run)]
        assert states[0]["prompts"] == states[1]["prompts"] != {}


def test_what_was_saved_late_is_what_a_killed_run_goes_on_from(tmp_path: Path):
    whole = train_digits(tmp_path, "whole")
    done = processes.call(train_with_late_saves_until_killed, tmp_path, directory=tmp_path / "processes")
    assert done.code == -signal.SIGKILL, done.err
    resume_digits(tmp_path, "killed")
    assert bits_of(tmp_path / "killed") == bits_of(whole.path)


def train_with_late_saves_until_killed(directory: Path) -> None:
    """Train, each save a step late, and die by SIGKILL in the midst of step 6."""
    patch = pytest.MonkeyPatch()
    leave_out_slow_parts(patch)
    run = directory / "killed"
    hold_saves(patch, lambda step: 0 < step < 6 and wait_until(lambda: num_timed_steps(run) >= step + 2))
    reward = at_step(run, 6, lambda: os.kill(os.getpid(), signal.SIGKILL))
    train_digits(directory, "killed", reward=reward)


def test_a_kill_in_a_save_beside_training_costs_nothing(tmp_path: Path):
    whole = train_digits(tmp_path, "whole")
    done = processes.call(train_until_killed_in_save, tmp_path, directory=tmp_path / "processes")
    assert done.code == -signal.SIGKILL, done.err
    assert resume_digits(tmp_path, "killed").path.exists()
    assert bits_of(tmp_path / "killed") == bits_of(whole.path)


def train_until_killed_in_save(directory: Path) -> None:
    """Train, and die by SIGKILL while the second checkpoint is half written and training has gone on."""
    patch = pytest.MonkeyPatch()
    leave_out_slow_parts(patch)
    run = directory / "killed"

    def die(descriptor: int) -> None:
        if threading.current_thread() is not threading.main_thread() and num_timed_steps(run) >= 5:
            wait_until(lambda: num_timed_steps(run) >= 6)
            os.kill(os.getpid(), signal.SIGKILL)

    patch.setattr(os, "fsync", die)
    train_digits(directory, "killed")


def test_a_save_that_fails_beside_training_ends_the_run_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(step: int) -> None:
        if step == 4:
            raise SaveError("saving step 4 failed: no space")

    saved = hold_saves(monkeypatch, fail)
    with pytest.raises(SaveError, match="step 4 failed"):
        train_digits(tmp_path, "run", num_steps=10)
    assert saved == [2]
    assert kinds_of(tmp_path / "run")[-1] == "error"
    assert len(read_jsonl(tmp_path / "run/metrics.jsonl")) in (5, 6), "at the next step's end, or the one after"


def test_a_failure_of_the_last_save_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(step: int) -> None:
        if step == 6:
            raise SaveError("saving step 6 failed: no space")

    hold_saves(monkeypatch, fail)
    with pytest.raises(SaveError, match="step 6 failed"):
        train_digits(tmp_path, "run")


def test_who_goes_back_waits_for_the_checkpoint_that_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saved = hold_saves(monkeypatch, lambda step: time.sleep(0.5))
    spoil(monkeypatch, updates={3, 4, 5})
    run = train_digits(tmp_path, "run", num_steps=5, checkpoint__every=2)
    message = next(event["message"] for event in read_jsonl(run.path / "events.jsonl") if event["kind"] == "went_back")
    assert "those of step 4 again" in message
    assert saved == [2, 4, 5]


def test_without_memory_for_a_copy_training_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    threads: list[threading.Thread] = []
    hold_saves(monkeypatch, lambda step: threads.append(threading.current_thread()))
    monkeypatch.setattr("covey.saving.available_bytes", lambda: 0)
    short = train_digits(tmp_path, "short")
    assert set(threads) == {threading.main_thread()}
    monkeypatch.undo()
    leave_out_slow_parts(monkeypatch)
    threads.clear()
    hold_saves(monkeypatch, lambda step: threads.append(threading.current_thread()))
    roomy = train_digits(tmp_path, "roomy")
    assert threading.main_thread() not in threads
    assert bits_of(short.path) == bits_of(roomy.path)


def test_a_copy_stays_as_it_was_until_the_next_one():
    weight, buffers = torch.zeros(2, 3), {}
    files = {"model.safetensors": {"w": weight.T}}
    copied = copy_tensors(files, buffers)["model.safetensors"]["w"]
    weight.fill_(1.0)
    assert copied.tolist() == [[0.0] * 2] * 3
    assert copied.is_contiguous()
    again = copy_tensors(files, buffers)["model.safetensors"]["w"]
    assert again.data_ptr() == copied.data_ptr(), "the memory is used again"
    assert again.tolist() == [[1.0] * 2] * 3


def test_a_buffer_of_another_shape_or_type_is_made_anew():
    buffers = copy_tensors({"f": {"w": torch.zeros(3)}}, {})
    for tensor in (torch.ones(2), torch.ones(2, dtype=torch.int64)):
        found = copy_tensors({"f": {"w": tensor}}, buffers)["f"]["w"]
        assert torch.equal(found, tensor)
        assert found.dtype == tensor.dtype


def test_tensors_that_share_memory_are_refused_before_they_are_copied():
    weight = torch.zeros(3)
    with pytest.raises(ValueError, match="share memory"):
        copy_tensors({"model.safetensors": {"a": weight, "b": weight}}, {})


# The thread itself


def test_one_piece_of_work_begins_when_the_one_before_has_ended():
    seen: list[str] = []

    def work(name: str) -> None:
        seen.append(f"{name} begins")
        time.sleep(0.02)
        seen.append(f"{name} ends")

    with Background() as background:
        background.start(lambda: work("a"))
        background.start(lambda: work("b"))
    assert seen == ["a begins", "a ends", "b begins", "b ends"]


def fail() -> None:
    raise SaveError("no space")


def test_a_failure_is_raised_once_by_whoever_asks_next():
    background = Background()
    background.start(fail)
    with pytest.raises(SaveError):
        background.start(lambda: None)
    background.wait()
    background.start(fail)
    wait_until(lambda: not any(thread.name == "covey-background" for thread in threading.enumerate()))
    with pytest.raises(SaveError):
        background.check()
    background.check()


def test_work_that_goes_on_is_not_waited_for_by_a_check():
    may_end = threading.Event()
    with Background() as background:
        background.start(may_end.wait)
        background.check()
        may_end.set()


def test_an_error_is_not_hidden_by_what_failed_beside_it():
    def end_with_an_error() -> None:
        with Background() as background:
            background.start(fail)
            raise KeyError("first")

    with pytest.raises(KeyError) as caught:
        end_with_an_error()
    assert caught.value.__notes__ == ["Besides, what went on beside it has failed: no space"]


def test_who_interrupts_does_not_wait():
    may_end = threading.Event()

    def interrupt() -> None:
        with Background() as background:
            background.start(lambda: may_end.wait(20))
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert time.monotonic() - started < 5
    may_end.set()
