"""Letting host attacks loose in a zygote, with bait to be reached and a look from outside at what happened to it."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.sandbox.host_attacks import HOST_ATTACKS

from covey.rewards.sandbox.canaries import Bait, bait
from covey.rewards.sandbox.inside import wire
from covey.rewards.sandbox.inside.limits import Limits
from covey.rewards.sandbox.judge import ask, load
from covey.rewards.sandbox.outcomes import Outcome
from covey.rewards.sandbox.tiers import Tier
from covey.rewards.sandbox.zygotes import AnyZygote, execution

ATTACK_LIMITS = Limits(cpu_s=2, patience=1.0)


@dataclass(frozen=True, kw_only=True)
class Field:
    """The bait of an attack, with sockets to be found."""

    laid: Bait
    abstract: socket.socket
    named: socket.socket

    @property
    def facts(self) -> dict[str, object]:
        target = self.laid.target
        own = {"socket": str(target / "socket"), "spare": str(target / "spare"), "old_path": str(target / "old")}
        return self.laid.facts() | own

    def traces(self) -> list[str]:
        """Return what is seen from outside that should not be."""
        found = [path.name for path in self.laid.target.iterdir() if path.name not in ("secret", "spare", "socket")]
        if self.laid.secret.read_text() != "bait" or not (self.laid.target / "spare").exists():
            found.append("a file changed")
        if select.select([self.abstract, self.named], [], [], 0)[0]:
            found.append("a socket was reached")
        found += [path for path in OUTSIDE if os.path.exists(path)]
        try:
            os.kill(self.laid.victim, 0)
        except ProcessLookupError:
            found.append("a process was killed")
        return found


OUTSIDE = ("/tmp/covey-escaped", "/dev/shm/covey-escaped", str(Path(os.__file__).parent / "covey-escaped"))
"""Where attempts would leave something, were they not held."""


@contextmanager
def field() -> Generator[Field]:
    with bait() as laid, socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_UNIX) as named:
        abstract.bind(f"\0covey-{os.getpid()}")
        abstract.listen()
        named.bind(str(laid.target / "socket"))
        named.listen()
        (laid.target / "spare").write_text("x")
        yield Field(laid=laid, abstract=abstract, named=named)


def reached(zygote: AnyZygote, name: str, found: Field) -> str:
    """Make one attempt. Return what it reached, empty if nothing; raise if it never started."""
    with execution(zygote, "calls", ATTACK_LIMITS) as candidate:
        failure = load(candidate, HOST_ATTACKS[name], "attack")
        assert failure is None, f"{name} did not start: {failure}"
        reply = ask(candidate, 0, wire.encode([found.facts]), wire.encode({}))
    if isinstance(reply, Outcome):
        return "" if reply.kind in ("crashed", "timeout", "memory") else f"it ended strangely: {reply}"
    assert reply["value"][0] == "live", f"{name} answered {reply}"
    return "".join(reply["value"][1:])


def clean_up() -> None:
    """Remove what attempts that nothing holds leave behind."""
    for path in OUTSIDE:
        if os.access(path, os.W_OK):
            os.unlink(path)


def escaped(tier: Tier, names: Iterable[str] = tuple(HOST_ATTACKS), *, without: tuple[str, ...] = ()) -> dict[str, str]:
    """Return by name what each attempt reached. `without`: lines of the policy that are left out."""
    clean_up()
    zygote = tier.start(without=without)
    try:
        results: dict[str, str] = {}
        for name in names:
            with field() as found:
                what = reached(zygote, name, found) or ", ".join(found.traces() if tier.has_filter and not without else ())
            if what:
                results[name] = what
        return results
    finally:
        zygote.close()
        clean_up()
