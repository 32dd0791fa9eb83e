"""Pairs of candidates, one that leaves something and one that looks for it: nothing passes, in no way."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from tests.sandbox.conftest import QUICK, QUICK_TIERS
from tests.sandbox.sharing import LASTING, PRESENT, UNDO, in_one_process, reader, writer
from tests.sandbox.test_judge import DOUBLE

from covey.rewards.sandbox.pool import SandboxPool
from covey.rewards.sandbox.tiers import Tier

NUM_PAIRS = 200
BY_TWO_PROCESSES = {"a process that the other can see", "memory with a name", "the name of the process"}
"""Nobody sees these in itself; or, of the last, nothing but itself."""


def pairs(ways: dict[str, tuple[str, str]], count: int) -> list[tuple[str, int]]:
    """Return ways with a number of their own, each about as often as the others."""
    return [(way, 1_000_003 + 7 * number) for number, way in zip(range(count), itertools.cycle(ways), strict=False)]


def test_two_hundred_pairs_one_after_the_other_share_nothing(tier: Tier):
    """By one zygote, so that the reader stands where the writer stood. In tiers that take long each way is tried once."""
    count = NUM_PAIRS if tier.name in QUICK_TIERS else len(LASTING)
    with SandboxPool(tier, num_zygotes=1, limits=QUICK) as pool:
        seen = []
        for way, number in pairs(LASTING, count):
            outcomes = [pool.grade(DOUBLE, writer(LASTING[way], number)), pool.grade(DOUBLE, reader(LASTING[way], number))]
            seen += [] if outcomes[1].has_passed else [(way, outcomes[1])]
    assert seen == []


@pytest.mark.parametrize("way", [*PRESENT, "a file in /tmp", "shared memory of System V"])
def test_a_pair_at_the_same_time_shares_nothing(tier: Tier, way: str):
    programs = {**LASTING, **PRESENT}[way]
    with SandboxPool(tier, num_zygotes=2, limits=QUICK) as pool:
        sources = [source for n in range(8) for source in (writer(programs, n, stays_s=0.05), reader(programs, n))]
        outcomes = pool.grade_all([(DOUBLE, source) for source in sources])
    assert [outcome for outcome in outcomes if not outcome.has_passed] == []


@pytest.mark.parametrize("way", sorted({*LASTING, *PRESENT} - BY_TWO_PROCESSES))
def test_unprotected_the_reader_sees_what_the_writer_left(tmp_path: Path, way: str):
    """The positive control: where nothing keeps them apart, each way is one."""
    done = subprocess.run(
        [sys.executable, "-c", in_one_process({**LASTING, **PRESENT}[way], 1_000_003, undo=UNDO.get(way, "pass"))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        stdin=subprocess.PIPE,
    )
    if done.returncode and ("refused" in done.stderr or "Error: [Errno" in done.stderr):
        pytest.skip(f"this machine does not have it: {done.stderr.splitlines()[-1]}")
    assert done.stdout.splitlines()[-1:] == ["True"], done.stdout + done.stderr
