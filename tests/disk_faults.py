"""Disks that are full or broken at one call of a run, counted over all calls that need room on them."""

from __future__ import annotations

import builtins
import errno
import os
import subprocess
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.digits import resume_digits, train_digits

from covey import checkpoint
from covey.checkpoint import newest_valid_checkpoint, verify_checkpoint
from covey.monitor.disk import SaveError

FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_CALLS = ("fsync", "rename", "replace", "mkdir")


class FailingDisk:
    """Replaces the calls by which a run in `directory` writes, so that the `number`-th fails with the error `code`."""

    def __init__(self, directory: Path, *, number: int = 0, code: int = errno.ENOSPC) -> None:
        self.directory, self.number, self.code, self.num_calls = directory, number, code, 0

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in _CALLS:
            patch.setattr(os, name, self._counted(getattr(os, name)))
        patch.setattr(checkpoint, "save_file", self._counted(checkpoint.save_file))
        plain_open = builtins.open
        counted_open = self._counted(plain_open)

        def open_counted(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            is_written = not isinstance(file, int) and set(mode) & set("wax+") and str(file).startswith(str(self.directory))
            return (counted_open if is_written else plain_open)(file, mode, *rest, **options)

        patch.setattr(builtins, "open", open_counted)

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **kwargs: Any) -> Any:
            self.num_calls += self._takes_room(args[0])
            if self.num_calls == self.number and self._takes_room(args[0]):
                raise OSError(self.code, os.strerror(self.code), next((each for each in args if isinstance(each, Path)), None))
            return call(*args, **kwargs)

        return counting

    def _takes_room(self, first: Any) -> bool:
        """Whether a call is about the run's disk. To make a directory that is there already takes none."""
        return not isinstance(first, str | Path) or (str(first).startswith(str(self.directory)) and not Path(first).is_dir())


def num_writes(directory: Path) -> int:
    """Return how many calls of a whole run may fail."""
    with pytest.MonkeyPatch.context() as patch:
        disk = FailingDisk(directory / "counted")
        disk.install(patch)
        train_digits(directory, "counted")
    return disk.num_calls


def after_failing_write(directory: Path, name: str, *, number: int, code: int) -> str:
    """Train until a call fails, check what is left, and go on with a whole disk. Return what the user was told."""
    run = directory / name
    told = ""
    with pytest.MonkeyPatch.context() as patch:
        FailingDisk(run, number=number, code=code).install(patch)
        try:
            train_digits(directory, name)
        except SaveError as error:
            told = str(error)
    refuse_damage(run)
    go_on(directory, name)
    return told


def go_on(directory: Path, name: str) -> None:
    """Resume the run; begin it again if it had not begun."""
    if (directory / name / "recipe.toml").exists():
        resume_digits(directory, name)
    else:
        train_digits(directory, name)


def refuse_damage(run: Path) -> None:
    """Fail unless every checkpoint that has its name is whole."""
    complete = list(run.glob("checkpoints/step-*"))
    assert [problem for path in complete for problem in verify_checkpoint(path)] == []
    assert newest_valid_checkpoint(run / "checkpoints")[1] == []


@contextmanager
def small_disk(place: Path, *, num_bytes: int) -> Generator[Path]:
    """Yield a directory on a disk of its own, in memory. Skips the test where none may be mounted."""
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={num_bytes},mode=700", "tmpfs", str(place)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no disk can be mounted here, which takes root: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, *, leaving: int) -> Path:
    """Fill a disk up to some bytes with one file, and return it."""
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        is_full = False
        while not is_full:
            try:
                file.write(b"x" * 4096)
            except OSError as error:
                is_full = error.errno == errno.ENOSPC
        file.truncate(max(0, file.seek(0, os.SEEK_END) - leaving))
    return ballast
