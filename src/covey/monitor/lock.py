"""A lock file that one process holds: the kernel lets go of it when the process ends, however it ends."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from covey.types import CoveyError


@contextmanager
def held(lock_file: Path, *, what: Path) -> Generator[None]:
    """Hold the lock; it says who does.

    Raises:
        CoveyError: another process holds it; the message calls what it protects `what`.
    """
    descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise CoveyError(f"{what} is being written by {_lock_owner(lock_file)}: stop that first") from None
    _HELD_LOCKS.add(descriptor)
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "boot_id": _boot_id()}
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(owner).encode())
    try:
        yield
    finally:
        if descriptor in _HELD_LOCKS:  # not in a forked child, which has closed its copy already
            _HELD_LOCKS.remove(descriptor)
            os.close(descriptor)


_HELD_LOCKS: set[int] = set()


def _close_held_locks() -> None:
    # A lock belongs to the open file, which a forked worker shares: without this, one that outlives us would keep it.
    for descriptor in _HELD_LOCKS:
        os.close(descriptor)
    _HELD_LOCKS.clear()


os.register_at_fork(after_in_child=_close_held_locks)


def _lock_owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text())
    except ValueError:  # locked this very moment, not yet written
        return "another process"
    return f"process {owner['pid']} on {owner['host']}"


def _boot_id() -> str | None:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else None
