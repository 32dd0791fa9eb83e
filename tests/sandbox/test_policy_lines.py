"""Each line of the policy is there for something: without it, and without what else would hold, an attempt gets out.

Lines that another one makes superfluous everywhere are listed with it.
"""

from __future__ import annotations

import dataclasses

import pytest
from tests.sandbox.attacking import escaped

from covey.rewards.sandbox.inside import landlock, syscalls
from covey.rewards.sandbox.inside.limits import Limits
from covey.rewards.sandbox.tiers import TIERS, UNPROTECTED, Tier

FILTER_ALONE = dataclasses.replace(UNPROTECTED, has_filter=True)
LANDLOCK_ALONE = dataclasses.replace(TIERS["landlock"], has_filter=False, changes_user=False)
LIMITS = tuple(Limits().rows())

LINES: dict[str, tuple[Tier, tuple[str, ...], str]] = {
    "open": (FILTER_ALONE, ("open",), "writes by the old call"),
    "openat": (FILTER_ALONE, ("openat",), "writes beside"),
    "clone": (FILTER_ALONE, ("clone",), "forks"),
    "clone3": (FILTER_ALONE, ("clone3",), "forks by clone3"),
    "ioctl": (FILTER_ALONE, ("ioctl",), "types into the terminal"),
    "fcntl": (FILTER_ALONE, ("fcntl",), "widens a pipe"),
    "tgkill": (FILTER_ALONE, ("tgkill",), "signals by thread"),
    "socketpair": (FILTER_ALONE, ("socketpair",), "a pair of sockets of another kind"),
    "prlimit64": (FILTER_ALONE, ("prlimit64", "capabilities"), "limits of the judge"),
    "default": (FILTER_ALONE, ("default",), "connects to a listener"),
    "RLIMIT_AS": (UNPROTECTED, ("RLIMIT_AS",), "700 MB of memory"),
    "RLIMIT_NOFILE": (UNPROTECTED, ("RLIMIT_NOFILE",), "4,000 descriptors"),
    "RLIMIT_FSIZE": (UNPROTECTED, ("RLIMIT_FSIZE",), "fills a file"),
    "RLIMIT_MEMLOCK": (UNPROTECTED, ("RLIMIT_MEMLOCK", "RLIMIT_AS"), "locked memory"),
    "capabilities": (UNPROTECTED, ("capabilities",), "mounts"),
}
"""By the line: the layer that it is part of with all others off, what is lifted, and the attempt that then gets out."""

REDUNDANT = {
    "RLIMIT_STACK": "RLIMIT_AS bounds what stacks may take together",
    "RLIMIT_NPROC": "clone makes no process, and RLIMIT_AS bounds threads; root is exempt from it",
    "RLIMIT_CORE": "nothing may be written (openat, FSIZE)",
    "RLIMIT_MSGQUEUE": "message queues are not among the allowed calls (default)",
}
"""Lines kept as a second bolt, by what holds without them."""


def test_every_line_is_tested_or_named_as_a_second_bolt():
    lines = {*syscalls.RULES, *syscalls.ABSENT, "default", "capabilities", *LIMITS} - {"RLIMIT_CPU"}
    assert lines == set(LINES) | set(REDUNDANT)


@pytest.mark.parametrize("line", LINES)
def test_without_the_line_something_gets_out(line: str):
    layer, lifted, attempt = LINES[line]
    if attempt in ("mounts", "limits of the judge") and not _is_root():
        pytest.skip("an ordinary user has nothing to lift here")
    assert escaped(layer, [attempt], without=lifted) != {}, f"{attempt} should have got out without {line}"


@pytest.mark.parametrize("line", [line for line in LINES if line not in ("capabilities",)])
def test_with_the_line_alone_it_does_not(line: str):
    layer, lifted, attempt = LINES[line]
    rest = tuple(name for name in lifted if name != line and name != "capabilities")
    assert escaped(layer, [attempt], without=rest) == {}


@pytest.mark.skipif(not landlock.interface(), reason="the kernel has no Landlock")
@pytest.mark.parametrize(
    "attempt", ["reads the users", "reads a file of everybody's", "writes beside", "lists processes", "removes a file"]
)
def test_landlock_alone_holds_files(attempt: str):
    assert escaped(LANDLOCK_ALONE, [attempt], without=LIMITS) == {}
    assert escaped(UNPROTECTED, [attempt], without=LIMITS) != {}


def test_processor_time_is_limited_by_its_line():
    from tests.sandbox.test_judge import DOUBLE

    from covey.rewards.sandbox.zygotes import Zygote

    loop = "def f(x):\n    while True: pass"
    zygote = Zygote(UNPROTECTED, without=("RLIMIT_CPU",))
    try:
        outcome = DOUBLE.grade(zygote, loop, Limits(cpu_s=1, patience=2.0))
    finally:
        zygote.close()
    assert outcome.cpu_s > 1.3, "without the line, only the time of waiting ends it"


def _is_root() -> bool:
    import os

    return os.getuid() == 0
