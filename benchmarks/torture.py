"""Tries to break the promises about code rewards and about runs that cannot be lost, and counts what broke.

    python benchmarks/torture.py [--full] [--only S1,R1] [--human-eval FILE]

Writes benchmarks/results/torture.json: for each goal how often it was tried, how often it failed, and a figure. `--only` tries
some goals and leaves the rows of the others as they are. The core takes under 20 minutes on two cores (`make torture`), all of
it under 75 (`make torture-full`). Most goals are groups of tests, each with a positive control of its own, that are part of
`make test` as well; what takes longer is measured here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from step_time.processes import describe_commit  # noqa: E402
from tests.sandbox.host_attacks import HOST_ATTACKS  # noqa: E402
from tests.sandbox.tampering import TAMPERED_PROGRAMS, TAMPERING  # noqa: E402
from torture_parts.disk import failing_disks  # noqa: E402 - after the path
from torture_parts.kills import killed_runs  # noqa: E402
from torture_parts.sandbox import grades_per_second, same_outcomes, soak  # noqa: E402
from torture_parts.steps import many_steps, save_seconds  # noqa: E402
from torture_parts.stops import random_stops  # noqa: E402

from covey.monitor.environment import describe_machine, describe_versions  # noqa: E402
from covey.monitor.run_directory import write_text_atomic  # noqa: E402

RESULT = Path(__file__).parent / "results" / "torture.json"


Measure = Callable[[bool, Path | None], tuple[int, int, str]]
"""(whether in full, HumanEval's file) -> (tried, failed, figure)."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What came of a goal."""

    tried: int
    failed: int
    figure: str


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A promise, and what tries to break it: tests, a function, or both."""

    title: str
    tests: Sequence[str] = ()
    measure: Measure | None = None
    full_alone: bool = False


IN_ALL_TIERS = ("-m", "slow or not slow")
"""For pytest: `make test` makes all attempts in the quick tiers of the sandbox alone."""
GOALS: dict[str, Goal] = {
    "S1": Goal(
        title=f"none of {len(HOST_ATTACKS)} attempts reaches the machine, in any tier, as root or not",
        tests=[
            "tests/sandbox/test_host_attacks.py",
            "tests/sandbox/test_wasm.py",
            "tests/sandbox/test_remote.py",
            *IN_ALL_TIERS,
        ],
    ),
    "S2": Goal(
        title=f"none of {len(TAMPERING) + len(TAMPERED_PROGRAMS)} tampering programs is paid, every correct one is",
        tests=[
            *("tests/sandbox/test_tampering.py", "tests/sandbox/test_judge.py", "tests/sandbox/test_wire.py"),
            *IN_ALL_TIERS,
        ],
    ),
    "S3": Goal(
        title="without a sandbox that holds nothing starts",
        tests=["tests/sandbox/test_training_on_code.py", "tests/sandbox/test_pool.py", *IN_ALL_TIERS],
    ),
    "S4": Goal(
        title="each line of the policy, removed, lets something out",
        tests=["tests/sandbox/test_policy_lines.py", "tests/sandbox/test_filter.py"],
    ),
    "S5": Goal(title="hostile candidates leave nothing behind", measure=lambda full, path: soak(1000 if full else 300)),
    "S6": Goal(
        title="200 pairs of candidates share nothing, one after the other and at once",
        tests=[
            *("tests/sandbox/test_sharing.py", "tests/sandbox/test_pool.py::test_two_candidates_at_once_share_nothing"),
            *IN_ALL_TIERS,
        ],
    ),
    "S7": Goal(
        title="the same completions have the same outcomes, alone and in company", measure=lambda full, path: same_outcomes()
    ),
    "S8": Goal(title="at least 50 full grades a second", measure=lambda full, path: grades_per_second(path)),
    "S9": Goal(
        title="nothing that is read becomes code that runs",
        tests=[
            *("tests/security/test_source.py", "tests/security/test_planted_files.py"),
            "tests/unit/test_policy.py::test_pickled_weights_are_never_loaded",
        ],
    ),
    "S10": Goal(
        title="a model's own code does not run unasked",
        tests=[
            "tests/security/test_surfaces.py::test_a_models_own_code_does_not_run_unasked",
            "tests/security/test_planted_files.py::test_a_models_code_does_not_run_unasked",
            "tests/security/test_planted_files.py::test_asked_for_it_runs_with_a_warning_and_its_hash_is_written_down",
        ],
    ),
    "S13": Goal(
        title="names stay in the run's directory",
        tests=["tests/security/test_surfaces.py::test_a_run_stays_in_its_directory", "tests/security/test_names.py"],
    ),
    "S14": Goal(
        title="no secret is written down",
        tests=[
            "tests/security/test_secrets.py",
            "tests/security/test_surfaces.py::test_nothing_of_the_environment_is_written_down",
            "tests/cli/test_cli_train.py::test_no_secret_of_the_environment_is_written_anywhere",
        ],
    ),
    "S17": Goal(
        title="files are the user's alone, and no link is followed when old ones are removed",
        tests=[
            "tests/security/test_surfaces.py::test_files_of_a_run_are_the_users_alone",
            *("tests/security/test_names.py", "-k", "link or mask or alone or others"),
        ],
    ),
    "R1": Goal(title="killed anywhere, a run ends with the same bits", measure=lambda full, path: killed_runs(full=full)),
    "R2": Goal(title="stopped at any step, a run ends with the same bits", tests=["tests/equivalence/test_resume.py"]),
    "R3": Goal(
        title="a loss of power at any call costs nothing that was saved; without any one fsync it does",
        tests=["tests/faults/test_power_loss.py", "tests/faults/test_interrupted_saves.py"],
    ),
    "R4": Goal(
        title="a full or broken disk is told with an exit code of its own, and costs no bit",
        tests=["tests/faults/test_full_disk.py"],
        measure=lambda full, path: failing_disks(full=full),
    ),
    "R5": Goal(
        title="damage is found, and the previous checkpoint taken",
        tests=["tests/faults/test_damaged_checkpoints.py", "tests/faults/test_checkpoint.py"],
    ),
    "R6": Goal(
        title="signals save at the step's end, whenever they come",
        tests=["tests/faults/test_signals.py", "tests/faults/test_signals_anywhere.py"],
        measure=lambda full, path: random_stops(),
    ),
    "R7": Goal(title="one writer, logs without torn lines", tests=["tests/unit/test_run_directory.py"]),
    "R8": Goal(
        title="rewards that fail, hang or lie cost their own completion",
        tests=["tests/faults/test_rewards.py", "tests/faults/test_reward_workers.py", "tests/faults/test_async_rewards.py"],
    ),
    "R9": Goal(
        title="a reward that hangs costs its deadline and a second at most, and leaves no process",
        tests=["tests/faults/test_hanging_rewards.py"],
    ),
    "R10": Goal(
        title="malformed rows are named before anything starts",
        tests=["tests/unit/test_malformed_rows.py", "tests/unit/test_files_task.py"],
    ),
    "R11": Goal(
        title="nothing that is not finite reaches the weights",
        tests=["tests/faults/test_not_finite.py", "tests/faults/test_skipped_updates.py"],
    ),
    "R12": Goal(title="a poisoned batch leaves no trace, and clean ones no alarm", tests=["tests/faults/test_spikes.py"]),
    "R13": Goal(
        title="less memory, the same gradient and the same completions",
        tests=["tests/faults/test_memory.py", "tests/faults/test_sampling_memory.py"],
    ),
    "R15": Goal(
        title="a run that stands still says where",
        tests=[
            "tests/faults/test_watchdog.py",
            "tests/faults/test_hanging_rewards.py::test_a_worker_that_is_frozen_costs_its_deadline",
        ],
    ),
    "R17": Goal(title="a jumping clock changes nothing", tests=["tests/faults/test_clock.py"]),
    "R18": Goal(
        title="logs are whole after every kill, and have no step twice after a resume",
        tests=["tests/faults/test_logs.py", "tests/unit/test_run_directory.py"],
    ),
    "R19": Goal(title="thousands of steps leak nothing", measure=lambda full, path: many_steps(5000), full_alone=True),
    "R20": Goal(title="runs of each format go on, or are refused by their format", tests=["tests/faults/test_formats.py"]),
    "R21": Goal(title="what has changed is named, and refused unless it may", tests=["tests/faults/test_changed_recipe.py"]),
    "R22": Goal(title="training hardly waits for a save", measure=lambda full, path: save_seconds()),
    "R23": Goal(
        title="what a killed run had graded is not graded again",
        tests=["tests/faults/test_journal.py", "tests/faults/test_background_saves.py"],
    ),
}
"""By the number that they have in the project's list of goals: S are about security, R about reliability."""


def run_tests(nodes: Sequence[str]) -> Found:
    """Run tests by their names, and count them."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "result.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--durations=0", f"--junitxml={path}", *nodes]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if not path.exists():
            return Found(tried=0, failed=1, figure=done.stdout[-300:])
        suites = ElementTree.parse(path).getroot().iter("testsuite")
        counts = [{key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")} for suite in suites]
    total = {key: sum(count[key] for count in counts) for key in ("tests", "failures", "errors", "skipped")}
    failed = total["failures"] + total["errors"]
    skipped = f", {total['skipped']} skipped" if total["skipped"] else ""
    if failed:
        print(done.stdout[-3000:])
    return Found(tried=total["tests"] - total["skipped"], failed=failed, figure=f"{total['tests']} tests{skipped}")


def main(options: argparse.Namespace) -> int:
    """Try the goals, and write what came of each at once. Return how many failed."""
    asked = options.only.split(",") if options.only else GOALS
    chosen = [name for name in asked if options.only or options.full or not GOALS[name].full_alone]
    # Goals that were asked for by name take the place of their own rows alone.
    rows = {row["id"]: row for row in json.loads(RESULT.read_text())["rows"]} if options.only and RESULT.exists() else {}
    command = "python benchmarks/torture.py" + " --full" * options.full + " --human-eval FILE" * bool(options.human_eval)
    facts = {"machine": describe_machine(), "versions": describe_versions()}
    num_failed = 0
    for name in chosen:
        goal, started = GOALS[name], time.monotonic()
        found = _tried(goal, options)
        num_failed += bool(found.failed)
        made = {"seconds": round(time.monotonic() - started, 1), "command": command, "commit": describe_commit()}
        rows[name] = {"id": name, "goal": goal.title, **asdict(found), **made}
        print(
            f"{name:4} {found.tried:6} tried {found.failed:4} failed  {made['seconds']:6} s  {goal.title}: {found.figure}",
            flush=True,
        )
        ordered = [rows[each] for each in GOALS if each in rows]
        write_text_atomic(RESULT, json.dumps({**facts, "rows": ordered}, indent=1) + "\n")
    return num_failed


def _tried(goal: Goal, options: argparse.Namespace) -> Found:
    parts = [run_tests(goal.tests)] if goal.tests else []
    if goal.measure is not None:
        tried, failed, figure = goal.measure(options.full, options.human_eval)
        parts.append(Found(tried=tried, failed=failed, figure=figure))
    return Found(
        tried=sum(part.tried for part in parts),
        failed=sum(part.failed for part in parts),
        figure="; ".join(part.figure for part in parts),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--human-eval", type=Path, default=None)
    sys.exit(min(1, main(parser.parse_args())))
