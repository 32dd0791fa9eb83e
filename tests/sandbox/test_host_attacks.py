"""Nothing that a candidate does reaches the machine, in any tier; unprotected, most of the same attempts do."""

from __future__ import annotations

import dataclasses
import os
import resource
import socket
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest
from tests.sandbox.attacking import escaped
from tests.sandbox.host_attacks import HOST_ATTACKS

from covey.rewards.sandbox.inside.limits import Limits
from covey.rewards.sandbox.tiers import UNPROTECTED, Tier, bubblewrap

EVERYTHING = ("capabilities", *Limits().rows())
NEED_MORE_THAN_NOTHING = {
    "abstract unix socket": 0,
    "becomes root": "whoever is root already",
    "reads the environment": "the zygote's is empty in any tier",
    "writes to inherited files": "the zygote closes them in any tier",
}


def test_there_are_enough_attempts():
    assert len(HOST_ATTACKS) >= 32


def test_no_attempt_reaches_anything(tier: Tier):
    assert escaped(tier) == {}


def state_of_machine() -> dict[str, object]:
    """Return what a careless attempt could have changed for good."""
    return {
        "name": socket.gethostname(),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "processors": os.sched_getaffinity(0),
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "shared memory": Path("/proc/sysvipc/shm").read_text().count("\n"),
        "queues": Path("/proc/sysvipc/msg").read_text().count("\n"),
    }


def test_unprotected_the_same_attempts_do_reach_it():
    harmless = [name for name in HOST_ATTACKS if name not in ("signals all", "queues a signal", "sets the clock")]
    before = state_of_machine()
    found = escaped(UNPROTECTED, harmless, without=EVERYTHING)
    assert state_of_machine() == before, "attempts must do no harm where nothing holds them"
    assert len(found) >= 32, f"only {sorted(found)}"
    for name in ("connects to a listener", "reads a file of everybody's", "writes beside", "forks", "signals a process"):
        assert name in found


def other_interpreter() -> str | None:
    """Return an interpreter that any user may run."""
    for path in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        readable = all(above.stat().st_mode & 0o005 == 0o005 for above in Path(path).parents) and os.access(path, os.X_OK)
        if readable and Path(path).exists():
            version = subprocess.run(
                [path, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True, text=True
            )
            if version.stdout.strip() == "True":
                return path
    return None


@pytest.mark.skipif(os.getuid() != 0, reason="this run is an ordinary user's already")
def test_started_by_an_ordinary_user_it_holds_as_well(tier: Tier):
    interpreter = other_interpreter()
    if interpreter is None:
        pytest.skip("no interpreter here that another user may run")
    root = Path(__file__).parents[2]
    if not all(above.stat().st_mode & 0o005 == 0o005 for above in (root / "src").parents):
        pytest.skip("the checkout is closed to other users")
    environment = dict(os.environ)
    if "bubblewrap" in tier.name:
        program = Path(bubblewrap() or "")
        if not all(above.stat().st_mode & 0o001 for above in program.parents):
            pytest.skip("bubblewrap is closed to other users")
        environment["PATH"] = f"{program.parent}:{os.environ['PATH']}"
    source = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[2]]\n"
        "sys.path.append(sys.argv[4])\n"
        "from tests.sandbox.attacking import escaped\nfrom tests.sandbox.conftest import ALL_TIERS\n"
        "print(escaped(ALL_TIERS[sys.argv[3]]))\n"
    )
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, 65534, 65534)
        found = subprocess.run(
            [interpreter, "-c", source, str(root), str(root / "src"), tier.name, sysconfig.get_path("purelib")],
            user=65534,
            group=65534,
            extra_groups=[],
            env=environment | {"COVEY_HOME": home},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=180,
        )
    assert found.stdout.strip() == "{}", found.stdout + found.stderr


def test_an_attempt_that_does_not_start_is_no_attempt_that_was_held(monkeypatch: pytest.MonkeyPatch, tier: Tier):
    monkeypatch.setitem(HOST_ATTACKS, "broken", "def attack(:")
    with pytest.raises(AssertionError, match="did not start"):
        escaped(tier, ["broken"])


def test_a_tier_without_its_filter_is_found_out(tier: Tier):
    if not tier.has_filter:
        pytest.skip("it has none")
    assert escaped(dataclasses.replace(tier, has_filter=False), ["forks"]) != {}
