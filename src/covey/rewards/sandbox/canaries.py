"""Attempts to escape, made in a sandbox before it is trusted, and seen from outside wherever that is possible."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covey.rewards.sandbox.inside import wire
from covey.rewards.sandbox.inside.limits import Limits
from covey.rewards.sandbox.judge import ask, load
from covey.rewards.sandbox.outcomes import Outcome
from covey.rewards.sandbox.zygotes import AnyZygote, SandboxError, execution

LIVE = "live"
_LIMITS = Limits(cpu_s=2, memory_mb=512)
_NOTHING = wire.encode({})

_SOURCE = Path(__file__).with_name("canaries_inside.py")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bait:
    """What the canaries try to reach."""

    secret: Path
    """A file that everybody may read."""
    target: Path
    """A directory that everybody may write to."""
    port: int
    """Of a listener on loopback."""
    victim: int
    """A process of this user."""

    def facts(self) -> dict[str, Any]:
        """Return what the attempts are told, so that nothing is hidden from them but by the sandbox."""
        return {
            "secret": str(self.secret),
            "target": str(self.target),
            "port": self.port,
            "victim": self.victim,
            "judge": os.getpid(),
        }


@contextmanager
def bait() -> Generator[Bait]:
    """Lay out the bait for as long as the block takes."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="covey-canary-")))
        directory.chmod(0o777)
        secret = directory / "secret"
        secret.write_text("bait")
        secret.chmod(0o644)
        (directory / "spare").write_text("bait")
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        victim = stack.enter_context(subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]))
        stack.callback(victim.kill)
        yield Bait(secret=secret, target=directory, port=listener.getsockname()[1], victim=victim.pid)


def escapes(zygote: AnyZygote, *, lacks: frozenset[str] = frozenset()) -> Mapping[str, str]:
    """Try every canary but those in `lacks`. Return by its name what got out, or that it could not be tried; empty: the sandbox
    holds.

    Raises:
        SandboxError: the sandbox does not run at all.
    """
    found: dict[str, str] = {}
    with bait() as laid:
        for name in CANARIES:
            if name in lacks & NEEDS:
                continue
            verdict = attempt(zygote, name, laid)
            if verdict:
                found[name] = verdict
    return found


def attempt(zygote: AnyZygote, name: str, laid: Bait) -> str:
    """Try one canary in an execution of its own. Return what got out; empty: nothing."""
    with execution(zygote, "calls", _LIMITS) as candidate:
        failure = load(candidate, _SOURCE.read_text(), name)
        reply = failure or ask(candidate, 0, wire.encode([laid.facts()]), _NOTHING)
    if isinstance(reply, Outcome):
        # Killed for what it tried is held; not having run is not.
        return "" if reply.kind in ("crashed", "timeout", "memory") and failure is None else f"it did not run: {reply.detail}"
    value = reply["value"]
    if not (isinstance(value, list) and value and value[0] == LIVE):
        raise SandboxError(f"the canary {name} answered {str(value)[:100]}")
    return ", ".join(str(each) for each in value[1:])


CANARIES = (
    "reads_file",
    "reads_processes",
    "writes_file",
    "connects",
    "opens_unix_socket",
    "forks",
    "runs_program",
    "kills",
    "traces",
    "changes_limits",
    "takes_memory",
    "sees_environment",
    "imports",
    "threads",
)
"""The functions of `canaries_inside.py`. The last two are no escapes: they are what honest solutions need."""
NEEDS = frozenset({"imports", "threads"})
"""Those that a tier may be known not to offer."""
