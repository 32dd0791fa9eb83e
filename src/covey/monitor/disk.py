"""Disks that are full or failing: told in one line, with what is free and what is needed, and with an exit code of its own."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from covey.types import CoveyError

DISK_FAILURES = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EROFS})
"""What a disk says that is full, over its quota, broken, limited to smaller files, or read-only since it broke."""


class SaveError(CoveyError):
    """Something of a run could not be written; the checkpoints it has are untouched."""


@contextmanager
def disk_failures_told(run: Path) -> Generator[None]:
    """Turn the errors of a disk within the block into one that says what to do.

    Raises:
        SaveError: something could not be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FAILURES:
            raise
        what = Path(error.filename).name if isinstance(error.filename, str | Path) else "a file of the run"
        raise SaveError(f"{what} could not be written: {error.strerror}. {space_left(run)}") from error


def space_left(run: Path) -> str:
    """Return how much is free where the run is, how much its next checkpoint needs, and what to do."""
    free = shutil.disk_usage(next(place for place in (run, *run.parents) if place.exists())).free
    sizes = [size_of(place) for place in sorted(run.glob("checkpoints/step-*"))]
    needed = f"; its newest checkpoint has {sizes[-1]:,} bytes, and the next one needs 1.2 times that" if sizes else ""
    return (
        f"{free:,} bytes are free in {run}{needed}. The checkpoints are untouched: make room if that is the cause, then "
        "continue the run with --resume"
    )


def size_of(directory: Path) -> int:
    """Return the bytes of a directory's files."""
    return sum(file.stat().st_size for file in directory.iterdir() if file.is_file())
