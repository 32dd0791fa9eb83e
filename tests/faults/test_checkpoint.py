"""Checkpoints under faults: a kill at every step of a save, damaged files, a full disk."""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from covey import checkpoint
from covey.checkpoint import SaveError, load_checkpoint, newest_valid_checkpoint, save_checkpoint, verify_checkpoint
from covey.types import CoveyError

FILES = ["MANIFEST.json", "config.json", "model.safetensors", "optimizer.safetensors", "state.json"]
# Every call by which a save changes the disk; `save_file` is the library's writer, a function of `checkpoint`.
CALLS = [*((os, name) for name in ("mkdir", "open", "fsync", "rename", "unlink", "rmdir")), (checkpoint, "save_file")]


def contents(step: int) -> dict[str, dict[str, Tensor]]:
    weights = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3) + step
    return {"model.safetensors": {"w": weights}, "optimizer.safetensors": {"w.m": torch.full((5,), step / 3)}}


def save(directory: Path, step: int, **changes: Any) -> Path:
    arguments: dict[str, Any] = {
        "tensors": contents(step),
        "texts": {"config.json": '{"model_type": "tiny"}'},
        "state": {"step": step, "lr": 0.1 + 0.2, "config_hash": "c0ffee"},
        "log_sizes": {"metrics": 100 * step},
    }
    return save_checkpoint(directory, step, **(arguments | changes))


def holds_step(path: Path, step: int) -> bool:
    """Whether everything in the checkpoint is, bit for bit, what `save` wrote for this step."""
    loaded = load_checkpoint(path)
    saved = contents(step)
    same = [torch.equal(loaded.tensors(file)[name], saved[file][name]) for file in saved for name in saved[file]]
    return all(same) and loaded.state["step"] == loaded.step == step and loaded.log_sizes == {"metrics": 100 * step}


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def two(directory: Path) -> Path:
    """A directory with the checkpoints of steps 1 and 2."""
    save(directory, 1)
    save(directory, 2)
    return directory


# Saving and loading


def test_what_was_saved_comes_back(directory: Path) -> None:
    path = save(directory, 12)
    assert path == directory / "step-000012"
    assert verify_checkpoint(path) == []
    assert newest_valid_checkpoint(directory) == (path, [])
    assert holds_step(path, 12)
    assert load_checkpoint(path).state == {"step": 12, "lr": 0.1 + 0.2, "config_hash": "c0ffee"}


def test_a_checkpoint_is_private(directory: Path) -> None:
    path = save(directory, 1)
    assert {entry.name: oct(entry.stat().st_mode & 0o777) for entry in path.iterdir()} == dict.fromkeys(FILES, "0o600")
    assert [oct(place.stat().st_mode & 0o777) for place in (directory, path)] == ["0o700", "0o700"]


def test_the_manifest_says_what_wrote_the_checkpoint(directory: Path) -> None:
    manifest = json.loads((save(directory, 1) / "MANIFEST.json").read_text())
    assert manifest["format_version"] == 1
    assert manifest["config_hash"] == "c0ffee"
    assert {"python", "torch", "transformers"} <= set(manifest["versions"])
    assert sorted(manifest["files"]) == [name for name in FILES if name != "MANIFEST.json"]


def test_binary_texts_and_views_are_saved_as_they_are(directory: Path) -> None:
    transposed = torch.arange(6.0).reshape(2, 3).T
    path = save(directory, 1, tensors={"model.safetensors": {"t": transposed}}, texts={"tokenizer.model": b"\xff\x00"})
    assert torch.equal(load_checkpoint(path).tensors("model.safetensors")["t"], transposed)
    assert (path / "tokenizer.model").read_bytes() == b"\xff\x00"


def test_tensors_that_share_memory_are_refused_by_name(directory: Path) -> None:
    weight = torch.zeros(4)
    with pytest.raises(ValueError, match="embed and head share memory"):
        save(directory, 1, tensors={"model.safetensors": {"embed": weight, "head": weight[1:]}})


def test_separate_parts_of_one_storage_are_not_shared(directory: Path) -> None:
    storage = torch.arange(8.0)
    path = save(directory, 1, tensors={"model.safetensors": {"a": storage[:4], "b": storage[4:]}})
    assert torch.equal(load_checkpoint(path).tensors("model.safetensors")["b"], storage[4:])


def test_no_checkpoints_is_no_error(directory: Path) -> None:
    assert newest_valid_checkpoint(directory) == (None, [])


# Retention


def test_only_the_newest_checkpoints_are_kept(directory: Path) -> None:
    for step in range(1, 6):
        save(directory, step, keep=3)
    assert names(directory) == ["step-000003", "step-000004", "step-000005"]


def test_a_damaged_checkpoint_does_not_count_as_kept(two: Path) -> None:
    (two / "step-000002" / "state.json").unlink()
    save(two, 3)
    assert names(two) == ["step-000001", "step-000002", "step-000003"]
    save(two, 4)
    assert names(two) == ["step-000003", "step-000004"]


def test_saving_an_earlier_step_neither_removes_itself_nor_later_ones(directory: Path) -> None:
    for step in (1, 8, 9):
        save(directory, step)
    save(directory, 3)
    assert names(directory) == ["step-000003", "step-000008", "step-000009"]


def test_keeping_fewer_than_two_is_refused(directory: Path) -> None:
    with pytest.raises(ValueError, match="keep=1"):
        save(directory, 1, keep=1)


def test_leftovers_of_dead_processes_are_removed_and_those_of_live_ones_are_not(two: Path) -> None:
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    for name in (
        f".tmp-000003-{dead}",
        f".del-step-000001-{dead}",
        f".old-step-000002-{dead}",
        f".tmp-000003-{os.getppid()}",
    ):
        (two / name).mkdir()
    save(two, 3)
    assert names(two) == [f".tmp-000003-{os.getppid()}", "step-000002", "step-000003"]


# Damage


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("damage", [flip_bit, truncate, empty, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_previous_checkpoint_taken(
    two: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(two / "step-000002" / name)
    path, messages = newest_valid_checkpoint(two)
    assert path == two / "step-000001"
    assert len(messages) == 1
    assert "step-000002" in messages[0]
    assert name in messages[0]


def test_no_single_bit_of_the_manifest_can_change_unnoticed(directory: Path) -> None:
    path = save(directory, 1)
    manifest = path / "MANIFEST.json"
    data = manifest.read_bytes()
    unnoticed = []
    for bit in range(0, 8 * len(data), 29):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << (bit % 8)
        manifest.write_bytes(changed)
        if not verify_checkpoint(path):
            unnoticed.append(bit)
    assert unnoticed == []


def test_nothing_but_damaged_checkpoints_is_an_error_not_a_fresh_start(two: Path) -> None:
    for path in two.iterdir():
        flip_bit(path / "model.safetensors")
    with pytest.raises(CoveyError, match=r"(?s)no valid checkpoint.*step-000002.*model.*step-000001.*model"):
        newest_valid_checkpoint(two)


def test_a_checkpoint_of_another_format_is_refused_by_version(directory: Path) -> None:
    manifest = save(directory, 1) / "MANIFEST.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_version": 99}))
    with pytest.raises(CoveyError, match="format version 99, this Covey reads 1"):
        load_checkpoint(manifest.parent)


# Kills


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


def test_a_kill_anywhere_in_a_save_loses_no_valid_checkpoint(two: Path) -> None:
    for left in after_each_kill(two, 3):
        newest, messages = newest_valid_checkpoint(left)
        assert newest is not None
        assert messages == []
        assert holds_step(newest, int(newest.name[-1]))
        complete = [path for path in left.iterdir() if path.name.startswith("step-")]
        assert len(complete) >= 2
        assert [problem for path in complete for problem in verify_checkpoint(path)] == []


def test_the_save_after_a_kill_succeeds_and_leaves_nothing_behind(two: Path) -> None:
    for left in after_each_kill(two, 3):
        save(left, 3)
        assert names(left) == ["step-000002", "step-000003"]


def test_a_kill_in_the_first_save_leaves_a_whole_checkpoint_or_none(directory: Path) -> None:
    directory.mkdir()
    for left in after_each_kill(directory, 1):
        newest, messages = newest_valid_checkpoint(left)
        assert messages == []
        assert newest is None or holds_step(newest, 1)


def test_a_kill_while_the_only_checkpoint_is_replaced_leaves_one(directory: Path) -> None:
    before = save(directory, 1).parent
    for left in after_each_kill(before, 1):
        newest, messages = newest_valid_checkpoint(left)
        assert newest is not None
        assert messages == []
        assert holds_step(newest, 1)
        save(left, 1)
        assert names(left) == ["step-000001"]


def test_everything_is_on_the_disk_before_the_name_that_promises_it(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    save(two, 3)
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


def test_a_full_disk_at_any_call_leaves_the_earlier_checkpoints_and_says_so(two: Path) -> None:
    counter = FaultAt(0, no_space)
    trial = shutil.copytree(two, two.with_name("counted"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        counter.install(monkeypatch)
        save(trial, 3)
    assert counter.num_calls > 20
    for number in range(1, counter.num_calls + 1):
        trial = shutil.copytree(two, two.with_name(f"full-{number}"))
        with pytest.MonkeyPatch.context() as monkeypatch:
            FaultAt(number, no_space).install(monkeypatch)
            with pytest.raises(SaveError, match=r"No space left on device.*needs \d+ bytes .* are free"):
                save(trial, 3)
        valid = [path for path in trial.iterdir() if path.name.startswith("step-") and not verify_checkpoint(path)]
        assert len(valid) >= 2
        assert newest_valid_checkpoint(trial)[1] == []


def test_the_save_after_a_full_disk_succeeds_and_leaves_nothing_behind(two: Path) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        FaultAt(9, no_space).install(monkeypatch)
        with pytest.raises(SaveError):
            save(two, 3)
    assert names(two) == ["step-000001", "step-000002"]
    save(two, 3)
    assert names(two) == ["step-000002", "step-000003"]


def test_too_little_space_is_refused_before_anything_is_written(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage(two))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 50, 50))
    with pytest.raises(SaveError, match=r"needs \d{3} bytes .*; 50 are free"):
        save(two, 3)
    assert names(two) == ["step-000001", "step-000002"]


def test_a_write_that_the_system_cuts_short_is_a_save_error(two: Path) -> None:
    """A real failure inside the library's writer: the process may not make files larger than 4 KiB."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            try:
                save(two, 3, tensors={"model.safetensors": {"w": torch.zeros(5000)}})
            except SaveError:
                code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert names(two) == ["step-000001", "step-000002"]
