"""The sandbox under load: nothing left behind, the same outcomes, grades a second."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from tests.sandbox.conftest import ALL_TIERS, QUICK_TIERS
from tests.sandbox.tampering import CORRECT, TAMPERING
from tests.sandbox.test_tampering import ASSERTS, CASES

from covey.rewards.sandbox.inside.limits import Limits
from covey.rewards.sandbox.judge import AssertJob, Job
from covey.rewards.sandbox.pool import SandboxPool
from covey.rewards.sandbox.tiers import Tier
from covey.tasks.code_presets import humaneval_answer

QUICK = Limits(cpu_s=1, patience=1.0)
SLOWER_BY = 10
"""In tiers that are not among the quick ones, so many times less is tried."""
SLOW = ("slow: ", "patching: the wire", "breaking the judge: a list of ten million")


def tiers() -> list[Tier]:
    """Return the tiers that this machine has."""
    return [tier for tier in ALL_TIERS.values() if not tier.missing()]


def share_of(count: int, tier: Tier) -> int:
    """Return how many of what a quick tier is tried with this one is."""
    return count if tier.name in QUICK_TIERS else count // SLOWER_BY


def soak(num_runs: int) -> tuple[int, int, str]:
    """Run hostile candidates; compare processes, open files, mounts and memory before and after."""
    hostile = [source for name, source in TAMPERING.items() if not name.startswith(SLOW)]
    tried, failed, shown = 0, 0, []
    for tier in tiers():
        count = share_of(num_runs, tier)
        tried += count
        with SandboxPool(tier, limits=QUICK) as pool:
            pool.grade_all([(CASES, source) for source in hostile])
            before = _traces()
            pool.grade_all([(CASES, hostile[number % len(hostile)]) for number in range(count)])
            after = _traces()
        left = {key: (before[key], after[key]) for key in before if key != "memory_mb" and before[key] != after[key]}
        grown = after["memory_mb"] / before["memory_mb"] - 1
        failed += bool(left) + (grown > 0.05)
        shown.append(f"{tier.name}: {count} runs, left {left or 'nothing'}, memory {100 * grown:+.1f} %")
    return tried, failed, "; ".join(shown)


def _traces() -> dict[str, float]:
    children = sum(len((task / "children").read_text().split()) for task in Path("/proc/self/task").iterdir())
    memory = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
    mounts = len(Path("/proc/self/mounts").read_text().splitlines())
    return {"children": children, "files": len(os.listdir("/proc/self/fd")), "mounts": mounts, "memory_mb": memory}


def same_outcomes() -> tuple[int, int, str]:
    """Grade 250 programs in two ways three times: one by one, two at a time, and beside a process that only works.

    In slower tiers less often, but each program once.
    """
    programs = [source for name, source in {**CORRECT, **TAMPERING}.items() if not name.startswith(SLOW)]
    jobs: list[tuple[Job, str]] = [(job, programs[n % len(programs)]) for n in range(250) for job in (CASES, ASSERTS)]
    tried, failed, shown = 0, 0, []
    for tier in tiers():
        own = jobs if tier.name in QUICK_TIERS else jobs[: 2 * len(programs)]
        tried += 3 * len(own)
        found: list[list[str]] = []
        for num_zygotes, is_busy in ((1, False), (2, False), (8, True)):
            busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if is_busy else None
            try:
                with SandboxPool(tier, num_zygotes=num_zygotes) as pool:
                    found.append([outcome.kind for outcome in pool.grade_all(own)])
            finally:
                if busy is not None:
                    busy.kill()
                    busy.wait()
        differing = sum(len(set(kinds)) > 1 for kinds in zip(*found, strict=True))
        failed += differing
        shown.append(f"{tier.name}: {differing} of {len(own)} differ")
    return tried, failed, "; ".join(shown)


def grades_per_second(human_eval: Path | None) -> tuple[int, int, str]:
    """Grade a correct solution over and over, and the reference solutions of HumanEval if their file is given.

    The quick tiers have to reach 50 grades a second, and 95 % of grades made alone have to take at most 100 ms.
    """
    tried, failed, shown = 0, 0, []
    for tier in tiers():
        with SandboxPool(tier) as pool:
            pool.grade_all([(CASES, CORRECT["plain"])] * 20)
            rates = {}
            for form, job in (("cases", CASES), ("asserts", ASSERTS)):
                started = time.monotonic()
                outcomes = pool.grade_all([(job, CORRECT["plain"])] * share_of(500, tier))
                rates[form] = len(outcomes) / (time.monotonic() - started)
                tried += len(outcomes)
                failed += sum(not outcome.has_passed for outcome in outcomes)
            alone = sorted(_seconds(pool) for _ in range(share_of(200, tier)))
            slowest = alone[round(0.95 * len(alone)) - 1]
            failed += tier.name in QUICK_TIERS and (min(rates.values()) < 50 or slowest > 0.1)
            text = ", ".join(f"{rate:.0f}/s by {form}" for form, rate in rates.items())
            text = f"{tier.name}: {text}, p95 of one alone {1000 * slowest:.0f} ms"
            if human_eval is not None:
                passed, total, rate = _human_eval(pool, human_eval)
                tried, failed = tried + total, failed + total - passed
                text += f", HumanEval's solutions {passed} of {total} at {rate:.0f}/s"
            shown.append(text)
    return tried, failed, "; ".join(shown)


def _seconds(pool: SandboxPool) -> float:
    started = time.monotonic()
    pool.grade(CASES, CORRECT["plain"])
    return time.monotonic() - started


def _human_eval(pool: SandboxPool, path: Path) -> tuple[int, int, float]:
    jobs: list[tuple[Job, str]] = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        answer = humaneval_answer(row)
        job = AssertJob(entry=answer["entry"], tests=row["test"], preamble=answer["preamble"], prefix=answer["prefix"])
        jobs.append((job, row["prompt"] + row["canonical_solution"]))
    started = time.monotonic()
    kinds = Counter(outcome.kind for outcome in pool.grade_all(jobs))
    return kinds["passed"], len(jobs), len(jobs) / (time.monotonic() - started)
