"""The interpreter of this machine as a zygote is started with it, and what candidates may read of its own."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from covey.rewards.sandbox.inside.libraries import libraries

INSIDE = Path(__file__).parent / "inside"
_STARTER = "import sys; sys.path.insert(0, sys.argv.pop(1)); from inside import zygote; del sys.path[0]; zygote.main()"


def interpreter() -> str:
    """Return the interpreter itself, outside of any virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)


def readable_paths() -> list[str]:
    """Return what candidates may read: the standard library, shared libraries, and the package `inside`."""
    return [*libraries(), str(INSIDE)]


def is_open_to_all(path: str) -> bool:
    """Return whether any user may reach what lies there: an interpreter in root's home is closed to all but root."""
    is_reached = all(above.stat().st_mode & stat.S_IXOTH for above in Path(path).parents)
    return is_reached and bool(os.stat(path).st_mode & stat.S_IROTH)


def zygote_command() -> list[str]:
    """Return the interpreter's own command: no site, no user packages, nothing of the current directory."""
    return [interpreter(), "-s", "-S", "-P", "-B", "-c", _STARTER, str(INSIDE.parent)]
