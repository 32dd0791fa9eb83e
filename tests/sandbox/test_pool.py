"""The tier is chosen by trying to escape, and where none holds nothing starts; a failing sandbox is no failing candidate."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.sandbox.conftest import QUICK
from tests.sandbox.test_host_attacks import state_of_machine
from tests.sandbox.test_judge import DOUBLE

from covey.rewards.sandbox import tiers as tiers_module
from covey.rewards.sandbox.canaries import CANARIES, NEEDS, escapes
from covey.rewards.sandbox.pool import NoSandboxError, SandboxPool, choose_tier, tried
from covey.rewards.sandbox.tiers import TIERS, UNPROTECTED, Tier
from covey.rewards.sandbox.zygotes import SandboxError, Zygote
from covey.types import CoveyError

GOOD = "def f(x): return 2 * x"


def children_of(process_id: int) -> set[int]:
    tasks = Path(f"/proc/{process_id}/task")
    return {int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()}


def test_no_canary_escapes(tier: Tier):
    assert tried(tier)[0] == ""


def test_unprotected_the_canaries_do_escape():
    before = state_of_machine()
    zygote = Zygote(UNPROTECTED)
    try:
        found = escapes(zygote)
    finally:
        zygote.close()
    assert {"reads_file", "connects", "forks", "kills", "runs_program"} <= set(found)
    assert not NEEDS & set(found)
    assert set(found) <= set(CANARIES)
    assert state_of_machine() == before


@pytest.mark.parametrize("hole", ["clone", "openat", "default", "prlimit64"])
def test_a_hole_in_the_filter_is_found_before_anything_runs(hole: str):
    tier = dataclasses.replace(UNPROTECTED, has_filter=True)
    zygote, whole = Zygote(tier, without=(hole, "capabilities")), Zygote(tier, without=("capabilities",))
    try:
        assert escapes(zygote) != escapes(whole)
    finally:
        zygote.close()
        whole.close()


def test_the_first_tier_that_holds_is_taken():
    choice = choose_tier()
    assert choice.tier.name in TIERS
    open_tier = dataclasses.replace(UNPROTECTED, name="open")
    choice = choose_tier(tiers={"open": open_tier, **TIERS})
    assert "reads_file" in choice.refused["open"]
    assert choice.tier.name in TIERS


def test_where_none_holds_the_message_says_what_each_lacks():
    lacking = dataclasses.replace(TIERS["landlock"], missing=lambda: "the kernel is from 1991; get another")
    broken = dataclasses.replace(UNPROTECTED, name="broken", wrapper=lambda: ["/bin/false"])
    with pytest.raises(NoSandboxError) as caught:
        choose_tier(tiers={"landlock": lacking, "open": dataclasses.replace(UNPROTECTED, name="open"), "broken": broken})
    text = str(caught.value)
    assert "landlock: the kernel is from 1991; get another" in text
    assert "open: reads_file" in text
    assert "broken: it does not start" in text
    assert 'sandbox = "unprotected"' in text


def test_a_program_that_cannot_be_run_is_a_reason_and_no_crash():
    absent = dataclasses.replace(UNPROTECTED, name="absent", wrapper=lambda: ["/no/such/program"])
    assert tried(absent)[0] == "it does not start (/no/such/program cannot be run: No such file or directory)"


def test_only_who_asks_for_it_gets_no_protection():
    assert choose_tier("unprotected").tier is UNPROTECTED
    with pytest.raises(CoveyError, match="choose auto"):
        choose_tier("none")
    assert UNPROTECTED.name not in TIERS


def test_without_bubblewrap_the_tier_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiers_module, "bubblewrap", lambda: None)
    assert "install bubblewrap" in TIERS["bubblewrap"].missing()


def test_nothing_is_left_behind(tier: Tier):
    before, files = children_of(os.getpid()), len(os.listdir("/proc/self/fd"))
    with SandboxPool(tier, limits=QUICK) as pool:
        hostile = ["import os\nos.fork()", "import os\nos.closerange(0, 64)", "def f(x):\n    import os\n    os._exit(1)", GOOD]
        pool.grade_all([(DOUBLE, source) for source in hostile * 15])
    deadline = time.monotonic() + 5
    while children_of(os.getpid()) - before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert children_of(os.getpid()) - before == set()
    assert len(os.listdir("/proc/self/fd")) == files


def test_zygotes_stay_from_batch_to_batch(tier: Tier):
    """A process may be told to end with its parent, and the kernel then means the thread that has started it."""
    if not tier.keeps_zygote:
        pytest.skip("each candidate has its own")
    with SandboxPool(tier, limits=QUICK) as pool:
        seen = []
        for _ in range(3):
            assert all(outcome.has_passed for outcome in pool.grade_all([(DOUBLE, GOOD)] * 20))
            seen.append({number: zygote.process_id for number, zygote in pool._zygotes.items()})
    assert seen[0] == seen[1] == seen[2]


def test_a_trainer_that_is_killed_leaves_no_zygote(tier: Tier):
    code = (
        "import sys, threading, time\nfrom covey.rewards.sandbox.pool import SandboxPool\n"
        "from tests.sandbox.conftest import ALL_TIERS\nfrom covey.rewards.sandbox.judge import CallJob, Case\n"
        "pool = SandboxPool(ALL_TIERS[sys.argv[1]])\njob = CallJob(entry='f', cases=[Case(args=(), right=1)])\n"
        "pool.grade_all([(job, 'def f(): return 1')] * 8)\n"
        "loop = 'import time\\ndef f():\\n    time.sleep(60)'\n"
        "threading.Thread(target=pool.grade, args=(job, loop)).start()\ntime.sleep(1)\n"
        "print(*[zygote.process_id for zygote in pool._zygotes.values()], flush=True)\n"
    )
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", code, tier.name], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root}
    ) as trainer:
        assert trainer.stdout is not None
        zygotes = {int(word) for word in trainer.stdout.readline().split()}
        started = zygotes | set().union(*map(descendants_of, zygotes))
        trainer.kill()
    assert len(started) > len(zygotes) > 0, "the candidate is one of them"
    deadline = time.monotonic() + 5
    while any(map(is_alive, started)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [process_id for process_id in started if is_alive(process_id)] == []


def descendants_of(process_id: int) -> set[int]:
    children = children_of(process_id)
    return children.union(*map(descendants_of, children))


def is_alive(process_id: int) -> bool:
    """Return whether there is such a process, and not only what is left of one that nobody has waited for."""
    path = Path(f"/proc/{process_id}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_zygote_that_dies_is_replaced(tier: Tier):
    with SandboxPool(tier, num_zygotes=1, limits=QUICK) as pool:
        assert pool.grade(DOUBLE, GOOD).has_passed
        os.kill(pool._zygote(0).process_id, signal.SIGKILL)
        assert pool.grade(DOUBLE, GOOD).has_passed


def test_a_zygote_that_dies_in_the_middle_is_replaced_too():
    with SandboxPool(UNPROTECTED, num_zygotes=1, limits=QUICK) as pool:
        pool.grade(DOUBLE, GOOD)
        threading.Timer(0.2, os.kill, (pool._zygotes[0].process_id, signal.SIGKILL)).start()
        assert pool.grade(DOUBLE, "import time\ntime.sleep(0.6)\n" + GOOD).has_passed


def test_who_breaks_the_sandbox_each_time_has_failed(tier: Tier, monkeypatch: pytest.MonkeyPatch):
    class Broken:
        def grade(self, zygote: Zygote, source: str, limits: object) -> None:
            raise SandboxError("it is gone")

    with SandboxPool(tier, num_zygotes=1, limits=QUICK) as pool:
        broken: Any = Broken()
        outcome = pool.grade(broken, GOOD)
        assert (outcome.kind, outcome.is_about_candidate) == ("crashed", True)
        assert "it is gone" in outcome.detail


def test_where_nothing_runs_it_is_no_statement_about_the_candidate(tier: Tier):
    dead = dataclasses.replace(UNPROTECTED, wrapper=lambda: ["/bin/false"])
    with SandboxPool(dead, num_zygotes=1, limits=QUICK) as pool:
        outcome = pool.grade(DOUBLE, GOOD)
    assert (outcome.kind, outcome.is_about_candidate) == ("infra_error", False)


def test_a_sleeper_is_not_tried_twice_and_a_starved_candidate_is():
    with SandboxPool(UNPROTECTED, num_zygotes=1, limits=QUICK) as pool:
        started = time.monotonic()
        assert not pool.grade(DOUBLE, "import time\ntime.sleep(60)").was_starved
        assert time.monotonic() - started < 1.5 * QUICK.wall_s


def test_two_candidates_at_once_share_nothing(tier: Tier):
    places = "('/tmp/m', '/dev/shm/m', '/dev/m', 'm', '/var/tmp/m', os.path.dirname(os.__file__) + '/m')"
    writer = (
        f"import os\ndef f(x):\n    for path in {places}:\n"
        "        try:\n            open(path, 'w').write('seen')\n        except OSError:\n            pass\n"
        "    import builtins, random\n    builtins.seen = random.seen = 'seen'\n    return 2 * x\n"
    )
    reader = (
        "import os\ndef f(x):\n    import builtins, random\n"
        "    if hasattr(builtins, 'seen') or hasattr(random, 'seen'):\n        return -1\n"
        f"    for path in {places}:\n"
        "        if os.path.exists(path):\n            return -1\n    return 2 * x\n"
    )
    with SandboxPool(tier, num_zygotes=2, limits=QUICK) as pool:
        outcomes = pool.grade_all([(DOUBLE, source) for source in [writer, reader] * 50])
    assert all(outcome.has_passed for outcome in outcomes)
