"""Saves that are cut short, by a kill, a power loss or a full disk at any of their calls: no valid checkpoint is lost."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints import FILES, holds_step, names, save

from covey import checkpoint
from covey.checkpoint import SaveError, newest_valid_checkpoint, verify_checkpoint

# Every call by which a save changes the disk; `save_file` is the library's writer, a function of `checkpoint`.
CALLS = [*((os, name) for name in ("mkdir", "open", "fsync", "rename", "unlink", "rmdir")), (checkpoint, "save_file")]


class FaultAt:
    """Replaces the calls of a save so that a fault comes just before the `number`-th of them, counted over all."""

    def __init__(self, number: int, fault: Callable[[], None]) -> None:
        self.number, self.fault, self.num_calls = number, fault, 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module, name in CALLS:
            monkeypatch.setattr(module, name, self.counted(getattr(module, name)))

    def counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **kwargs: Any) -> Any:
            self.num_calls += 1
            if self.num_calls == self.number:
                self.fault()
            return call(*args, **kwargs)

        return counting


# Kills


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def saving_is_killed(directory: Path, step: int, *, number: int) -> bool:
    """Save in a forked child with a SIGKILL before one call; return whether there was such a call."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            FaultAt(number, kill_self).install(pytest.MonkeyPatch())
            save(directory, step)
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return os.WIFSIGNALED(status)


def after_each_kill(before: Path, step: int) -> Iterator[Path]:
    """Yield what is left after a kill before each call of a save."""
    for number in itertools.count(1):
        trial = before.with_name(f"killed-{number}")
        shutil.copytree(before, trial)
        if not saving_is_killed(trial, step, number=number):
            assert number > 15  # the save really was taken apart
            return
        yield trial


def test_a_kill_anywhere_in_a_save_loses_no_valid_checkpoint(two_checkpoints: Path) -> None:
    for left in after_each_kill(two_checkpoints, 3):
        newest, messages = newest_valid_checkpoint(left)
        assert newest is not None
        assert messages == []
        assert holds_step(newest, int(newest.name[-1]))
        complete = [path for path in left.iterdir() if path.name.startswith("step-")]
        assert len(complete) >= 2
        assert [problem for path in complete for problem in verify_checkpoint(path)] == []


def test_the_save_after_a_kill_succeeds_and_leaves_nothing_behind(two_checkpoints: Path) -> None:
    for left in after_each_kill(two_checkpoints, 3):
        save(left, 3)
        assert names(left) == ["step-000002", "step-000003"]


def test_a_kill_in_the_first_save_leaves_a_whole_checkpoint_or_none(checkpoints: Path) -> None:
    checkpoints.mkdir()
    for left in after_each_kill(checkpoints, 1):
        newest, messages = newest_valid_checkpoint(left)
        assert messages == []
        assert newest is None or holds_step(newest, 1)


def test_a_kill_while_the_only_checkpoint_is_replaced_leaves_one(checkpoints: Path) -> None:
    before = save(checkpoints, 1).parent
    for left in after_each_kill(before, 1):
        newest, messages = newest_valid_checkpoint(left)
        assert newest is not None
        assert messages == []
        assert holds_step(newest, 1)
        save(left, 1)
        assert names(left) == ["step-000001"]


# Power loss


def test_everything_is_on_the_disk_before_the_name_that_promises_it(
    two_checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power loss keeps only what was synced, so the order of these calls is the promise."""
    calls: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        calls.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        real_fsync(descriptor)

    def rename(source: Path, target: Path) -> None:
        calls.append(f"rename {source.name} {target.name}")
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    save(two_checkpoints, 3)
    temporary = f".tmp-000003-{os.getpid()}"
    assert sorted(calls[:4]) == sorted(f"fsync {name}" for name in FILES if name != "MANIFEST.json")
    assert calls[4:] == [
        "fsync MANIFEST.json",
        f"fsync {temporary}",
        f"rename {temporary} step-000003",
        "fsync checkpoints",
        f"rename step-000001 .del-step-000001-{os.getpid()}",
    ]


# Full disks


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_at_any_call_leaves_the_earlier_checkpoints_and_says_so(two_checkpoints: Path) -> None:
    counter = FaultAt(0, no_space)
    trial = shutil.copytree(two_checkpoints, two_checkpoints.with_name("counted"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        counter.install(monkeypatch)
        save(trial, 3)
    assert counter.num_calls > 20
    for number in range(1, counter.num_calls + 1):
        trial = shutil.copytree(two_checkpoints, two_checkpoints.with_name(f"full-{number}"))
        with pytest.MonkeyPatch.context() as monkeypatch:
            FaultAt(number, no_space).install(monkeypatch)
            with pytest.raises(SaveError, match=r"No space left on device.*needs \d+ bytes .* are free"):
                save(trial, 3)
        valid = [path for path in trial.iterdir() if path.name.startswith("step-") and not verify_checkpoint(path)]
        assert len(valid) >= 2
        assert newest_valid_checkpoint(trial)[1] == []


def test_the_save_after_a_full_disk_succeeds_and_leaves_nothing_behind(two_checkpoints: Path) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        FaultAt(9, no_space).install(monkeypatch)
        with pytest.raises(SaveError):
            save(two_checkpoints, 3)
    assert names(two_checkpoints) == ["step-000001", "step-000002"]
    save(two_checkpoints, 3)
    assert names(two_checkpoints) == ["step-000002", "step-000003"]


def test_too_little_space_is_refused_before_anything_is_written(two_checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage(two_checkpoints))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 50, 50))
    with pytest.raises(SaveError, match=r"needs \d{3} bytes .*; 50 are free"):
        save(two_checkpoints, 3)
    assert names(two_checkpoints) == ["step-000001", "step-000002"]


def test_a_write_that_the_system_cuts_short_is_a_save_error(two_checkpoints: Path) -> None:
    """A real failure inside the library's writer: the process may not make files larger than 4 KiB."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            try:
                save(two_checkpoints, 3, tensors={"model.safetensors": {"w": torch.zeros(5000)}})
            except SaveError:
                code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert names(two_checkpoints) == ["step-000001", "step-000002"]
