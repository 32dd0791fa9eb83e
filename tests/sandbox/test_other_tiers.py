"""The tiers that are slower, or elsewhere: some of what is tried in the quick ones, whenever the tests run."""

from __future__ import annotations

import pytest
from tests.sandbox.attacking import escaped
from tests.sandbox.conftest import ALL_TIERS, QUICK, QUICK_TIERS, available
from tests.sandbox.host_attacks import HOST_ATTACKS
from tests.sandbox.tampering import CORRECT, CORRECT_PROGRAMS, TAMPERED_PROGRAMS, TAMPERING
from tests.sandbox.test_judge import DOUBLE, ECHO, TESTS
from tests.sandbox.test_tampering import ASSERTS, CASES, PROGRAMS

from covey.rewards.sandbox.judge import Job
from covey.rewards.sandbox.pool import SandboxPool, tried
from covey.rewards.sandbox.tiers import TIERS, Tier

ATTACKS = (
    *(
        "reads a file of everybody's",
        "writes beside",
        "connects to a listener",
        "forks",
        "signals the judge",
        "lists processes",
    ),
    *("700 MB of memory", "runs a program", "reads the environment", "writes to inherited files", "changes rights"),
)
TAMPERED = [name for name in TAMPERING if not name.startswith("slow: ")][::12]


@pytest.fixture(scope="module", params=[name for name in ALL_TIERS if name not in QUICK_TIERS])
def other(request: pytest.FixtureRequest) -> Tier:
    return available(request.param)


@pytest.fixture(scope="module")
def pool(other: Tier):
    with SandboxPool(other, limits=QUICK) as found:
        yield found


def test_no_canary_escapes(other: Tier):
    assert tried(other)[0] == ""


def test_attempts_reach_nothing(other: Tier):
    assert escaped(other, ATTACKS) == {}
    assert set(ATTACKS) <= set(HOST_ATTACKS)


@pytest.mark.parametrize(
    ("job", "source", "kind", "num_passed"),
    [
        (DOUBLE, "def f(x): return 2 * x", "passed", 2),
        (DOUBLE, "f = lambda x: x + 2", "wrong", 1),
        (DOUBLE, "def f(x): return 4 if x == 2 else 1 / 0", "exception", 1),
        (DOUBLE, "def f(x):\n    while True: pass", "timeout", 0),
        (DOUBLE, "def f(x): return len(bytearray(1 << 30))", "memory", 0),
        (DOUBLE, "import os\ndef f(x): os._exit(3)", "crashed", 0),
        (TESTS, "def f(x): return 2 * x", "passed", 1),
        (TESTS, "def f(x): return x", "wrong", 0),
        (ECHO, "import sys\nprint(sys.stdin.read().strip())", "passed", 2),
        (ECHO, "while True: print('x' * 1000)", "output_limit", 0),
        (PROGRAMS, CORRECT_PROGRAMS["os._exit"], "passed", 3),
        (PROGRAMS, TAMPERED_PROGRAMS["right, and then killed"], "crashed", 0),
    ],
)  # fmt: skip
def test_each_end_has_its_class(job: Job, source: str, kind: str, num_passed: int, pool: SandboxPool):
    outcome = pool.grade(job, source)
    assert (outcome.kind, outcome.num_passed) == (kind, num_passed), outcome


def test_no_tampering_program_is_paid(pool: SandboxPool):
    work: list[tuple[Job, str]] = [(job, TAMPERING[name]) for name in TAMPERED for job in (CASES, ASSERTS)]
    outcomes = pool.grade_all([*work, (CASES, CORRECT["plain"]), (ASSERTS, CORRECT["plain"])])
    assert [outcome.has_passed for outcome in outcomes] == [False] * len(work) + [True, True]
    assert all(outcome.is_about_candidate for outcome in outcomes)


def test_a_zygote_that_is_not_kept_is_another_each_time():
    tier = available("bubblewrap-each")
    seen = []
    with SandboxPool(tier, num_zygotes=1, limits=QUICK) as pool:
        for _ in range(2):
            seen.append(pool._zygote(0).process_id)
            assert pool.grade(DOUBLE, "def f(x): return 2 * x").has_passed
        assert pool._zygotes == {}
    assert len(set(seen)) == 2


def test_auto_takes_what_differs_from_what_it_has_tried():
    assert [name for name, tier in TIERS.items() if tier.is_automatic] == ["bubblewrap", "landlock", "wasm"]
