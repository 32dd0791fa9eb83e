"""Plant each known silent bug in a copy of the package and see whether the tests notice it.

    python -m tests.conformance.run [--class N ...] [--name TEXT] [--jobs 2] [--json PATH]

A bug is killed only if a named test fails by an assertion. One that makes the code crash is no silent bug, and is reported
as broken, as is one that does not apply. The exit code is 1 unless all are killed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.conformance.classes import SILENT_BUGS, WAITING
from tests.conformance.mutation import Mutation
from tests.conformance.mutations import MUTATIONS
from tests.conformance.trials import ROOT, Result, Trial, preload, run_trials

Verdict = Literal["killed", "survived", "broken", "timeout"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A mutation and what became of it."""

    mutation: Mutation
    verdict: Verdict
    why: str
    """The test that killed it and its message, or what went wrong."""
    elapsed_s: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--class", dest="numbers", type=int, nargs="+", help="only these classes of bugs")
    parser.add_argument("--name", default="", help="only mutations whose name holds this text")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for the tests of one mutation")
    parser.add_argument("--json", type=Path, help="where to write the results")
    arguments = parser.parse_args()
    mutations = [m for m in MUTATIONS if (not arguments.numbers or m.number in arguments.numbers) and arguments.name in m.name]
    preload()
    judged = run_mutations(mutations, jobs=arguments.jobs, timeout_s=arguments.timeout)
    summary = summarise(judged)
    print(f"\n{summary['killed']} of {summary['total']} planted bugs killed, in {len(summary['classes'])} of 64 classes")
    if arguments.json:
        header = {"command": shlex.join(["python", "-m", "tests.conformance.run", *sys.argv[1:]]), "commit": commit()}
        arguments.json.write_text(json.dumps(header | summary, indent=1) + "\n")
    return 0 if summary["killed"] == summary["total"] else 1


def run_mutations(mutations: Sequence[Mutation], *, jobs: int, timeout_s: float) -> list[Judged]:
    """Return what became of each mutation, in the order given, printing each as it is known."""
    judged: dict[int, Judged] = {}
    trials: list[Trial] = []
    unusable = failing_without_mutation(mutations, jobs=jobs)
    for index, mutation in enumerate(mutations):
        try:
            text = mutation.apply((ROOT / mutation.file).read_text())
        except (ValueError, FileNotFoundError) as error:
            judged[index] = Judged(mutation=mutation, verdict="broken", why=str(error))
            continue
        reasons = [unusable[test] for test in mutation.tests if test in unusable]
        if reasons:
            judged[index] = Judged(mutation=mutation, verdict="broken", why=reasons[0])
            continue
        trials.append(Trial(name=str(index), tests=mutation.tests, changed={mutation.file: text}))
    for item in judged.values():
        print_line(item)
    for trial, result in run_trials(trials, jobs=jobs, timeout_s=timeout_s):
        judged[int(trial.name)] = judge(mutations[int(trial.name)], result)
        print_line(judged[int(trial.name)])
    return [judged[index] for index in range(len(mutations))]


def failing_without_mutation(mutations: Sequence[Mutation], *, jobs: int) -> dict[str, str]:
    """Return which of the named tests cannot be used and why: they do not exist, or fail on the package as it is."""
    named = sorted({test for mutation in mutations for test in mutation.tests})
    unusable = {test: f"{test} does not exist" for test in named if not (ROOT / file_of(test)).exists()}
    files = sorted({file_of(test) for test in named if test not in unusable})
    trials = [Trial(name=file, tests=(file,), options=("--collect-only",)) for file in files]
    collected = {trial.name: result for trial, result in run_trials(trials, jobs=jobs, timeout_s=600)}
    for test in named:
        if test not in unusable and not any(is_of(node, test) for node in collected[file_of(test)].collected):
            failures = collected[file_of(test)].failures
            unusable[test] = f"{test} cannot be collected: {failures[0].message if failures else 'there is no such test'}"
    by_file = [tuple(test for test in named if file_of(test) == file and test not in unusable) for file in files]
    trials = [Trial(name="as it is", tests=tests) for tests in by_file if tests]
    for trial, result in run_trials(trials, jobs=jobs, timeout_s=600):
        for test in trial.tests:
            failures = [failure for failure in result.failures if is_of(failure.test, test)]
            if failures:
                unusable[test] = f"{failures[0].test} fails on the package as it is: {failures[0].message}"
            elif result.exit_code not in (0, 1) or not result.used_copy:
                unusable[test] = f"{test} could not be run on the package as it is: {result.log[-300:]}"
    return unusable


def file_of(test: str) -> str:
    return test.partition("::")[0]


def is_of(node: str, test: str) -> bool:
    """Return whether a collected test is what a mutation names: itself, one of its parameters, or part of its file."""
    return node == test or node.startswith((f"{test}[", f"{test}::"))


def judge(mutation: Mutation, result: Result) -> Judged:
    """Return what the tests say about a mutation: only a failure of the accepted kind in a test's own code kills."""
    accepted = ("assertion", "shape") if mutation.by == "shape" else ("assertion",)
    kills = [failure for failure in result.failures if failure.phase == "call" and failure.kind in accepted]
    verdict: Verdict
    if result.is_timeout:
        verdict, why = "timeout", f"the tests had not ended after {result.elapsed_s:.0f} s"
    elif not result.used_copy:
        verdict, why = "broken", f"the tests did not import the changed package: {result.log[-300:]}"
    elif kills:
        verdict, why = "killed", f"{kills[0].test}: {kills[0].message}"
    elif result.failures:
        first = result.failures[0]
        verdict, why = "broken", f"no assertion failed, but in {first.test} ({first.phase}): {first.message}"
    elif result.exit_code == 0:
        verdict, why = "survived", "all tests passed"
    else:
        verdict, why = "broken", f"pytest ended with code {result.exit_code}: {result.log[-300:]}"
    return Judged(mutation=mutation, verdict=verdict, why=why, elapsed_s=result.elapsed_s)


def summarise(judged: Sequence[Judged]) -> dict[str, Any]:
    """Return the results as data. A class counts as killed when all bugs planted for it are."""
    numbers = sorted({item.mutation.number for item in judged})
    alive = {item.mutation.number for item in judged if item.verdict != "killed"}
    return {
        "killed": sum(item.verdict == "killed" for item in judged),
        "total": len(judged),
        "classes": [number for number in numbers if number not in alive],
        "waiting": {str(number): reason for number, reason in WAITING.items()},
        "mutations": [
            {
                "class": item.mutation.number,
                "name": item.mutation.name,
                "file": item.mutation.file,
                "verdict": item.verdict,
                "why": item.why,
                "elapsed_s": round(item.elapsed_s, 1),
            }
            for item in judged
        ],
    }


def print_line(item: Judged) -> None:
    mutation = item.mutation
    print(f"{item.verdict:8}  {mutation.number:2}  {mutation.name:60}  {item.elapsed_s:5.1f} s", flush=True)
    if item.verdict != "killed":
        print(f"              {SILENT_BUGS[mutation.number]}\n              {item.why}", flush=True)


def commit() -> str:
    """Return the short name of the commit, and whether the files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    is_changed = bool(git("status", "--porcelain", "src", "tests"))
    return git("rev-parse", "--short", "HEAD") + (" (with uncommitted changes)" if is_changed else "")


if __name__ == "__main__":
    sys.exit(main())
