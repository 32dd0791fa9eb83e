"""Small changes made by rule (cosmic-ray's operators) to the code that computes losses, and whether the tests notice them.

    python -m tests.conformance.generated --results mutants.jsonl [--sample 200 --seed 0] [--files kl.py ...] [--jobs 2]

A mutant is killed if any test fails, however. Finished mutants are kept in the file of results, one a line, and are not run
again. Annotations and decorators are left alone; mutants that cannot change what the code does stand in equivalent.toml with
the reason.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import random
import sys
import tomllib
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.conformance.trials import ROOT, Trial, preload, run_trials

EQUIVALENT = Path(__file__).parent / "equivalent.toml"
SUBJECTS = ("src/covey/algos/*.py", "src/covey/batch.py", "src/covey/models/scoring.py")
SHARED_TESTS = (
    "tests/numerics",
    "tests/equivalence/test_gradients.py",
    "tests/equivalence/test_scoring.py",
    "tests/conformance",
    "tests/unit/test_algorithm_section.py",
    "tests/unit/test_describe.py",
)
TESTS: dict[str, tuple[str, ...]] = {
    "src/covey/batch.py": (*SHARED_TESTS, "tests/unit/test_train.py"),
    "src/covey/models/scoring.py": (
        "tests/unit/test_micro_batches.py",
        "tests/equivalence/test_scoring.py",
        "tests/equivalence/test_scored_distribution.py",
        "tests/equivalence/test_gradients.py",
    ),
}
"""Files with tests of their own; all others are tested by SHARED_TESTS, the file named like the module first."""
NOT_RUN = ("RemoveDecorator", "ExceptionReplacer")
"""Operators whose changes say nothing about what is computed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutant:
    """One change of one file."""

    file: str
    operator: str
    line: int
    before: str
    after: str
    """The changed lines, joined, before and after."""
    text: str
    """The whole file with the change."""

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.file}\n{self.text}".encode()).hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="JSON-lines file of finished mutants, read and extended")
    parser.add_argument("--files", nargs="+", default=[], help="only files whose path ends like this")
    parser.add_argument("--tests", nargs="+", default=[], help="these tests instead of those listed here")
    parser.add_argument("--sample", type=int, help="run only so many, chosen at random")
    parser.add_argument("--seed", type=int, default=0, help="of that choice")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for the tests of one mutant")
    arguments = parser.parse_args()
    files = sorted({path.relative_to(ROOT).as_posix() for pattern in SUBJECTS for path in ROOT.glob(pattern)})
    files = [file for file in files if not arguments.files or file.endswith(tuple(arguments.files))]
    mutants = [mutant for file in files for mutant in mutants_of(file, (ROOT / file).read_text())]
    if arguments.sample is not None and arguments.sample < len(mutants):
        mutants = random.Random(arguments.seed).sample(mutants, arguments.sample)
    finished = {record["key"]: record for record in read_records(arguments.results)}
    todo = [mutant for mutant in mutants if mutant.key not in finished]
    print(f"{len(mutants)} mutants of {len(files)} files, {len(mutants) - len(todo)} of them finished before", flush=True)
    preload()
    for record in run_mutants(todo, tuple(arguments.tests), jobs=arguments.jobs, timeout_s=arguments.timeout):
        finished[record["key"]] = record
        with arguments.results.open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        if record["verdict"] == "survived":
            print_survivor(record)
    report([finished[mutant.key] for mutant in mutants if mutant.key in finished])
    return 0


def mutants_of(file: str, text: str) -> list[Mutant]:
    """Return every mutant of a file that is valid Python, once each, without those listed as equivalent."""
    equivalent = {(entry["file"], entry["before"], entry["after"]) for entry in equivalents()}
    mutants: dict[str, Mutant] = {}
    for operator, changed in changes(text):
        old, new = text.splitlines(), changed.splitlines()
        diff = [line for line in difflib.ndiff(old, new) if line[0] in "-+"]
        before = " ".join(line[2:].strip() for line in diff if line[0] == "-")
        after = " ".join(line[2:].strip() for line in diff if line[0] == "+")
        line = next((n for n, (a, b) in enumerate(zip(old, new, strict=False), start=1) if a != b), len(new))
        mutant = Mutant(file=file, operator=operator, line=line, before=before, after=after, text=changed)
        if changed != text and (file, before, after) not in equivalent and is_valid(changed):
            mutants.setdefault(mutant.key, mutant)
    return sorted(mutants.values(), key=lambda mutant: (mutant.line, mutant.key))


def changes(text: str) -> Iterator[tuple[str, str]]:
    """Yield (operator's name, the file's text after one application of it), for all operators and places."""
    parso: Any = import_module("parso")  # before cosmic_ray, which imports parts of it in an order that does not work alone
    ast_nodes = import_module("cosmic_ray.ast").ast_nodes
    mutate_code = import_module("cosmic_ray.mutating").mutate_code
    provider = import_module("cosmic_ray.operators.provider").OperatorProvider()
    for name in provider:
        operator_class: Any = provider[name]
        # Those with arguments swap variables, and would have to be told which. Shifts and bits of floats only ever crash.
        if operator_class.arguments() or name in NOT_RUN or name.endswith(("LShift", "RShift", "BitOr", "BitAnd", "BitXor")):
            continue
        operator = operator_class()
        places = [node for node in ast_nodes(parso.parse(text)) for _ in operator.mutation_positions(node)]
        for occurrence, node in enumerate(places):
            if not is_left_alone(node):
                changed = mutate_code(text, operator, occurrence)
                if changed is not None:
                    yield name, changed


def is_left_alone(node: Any) -> bool:
    """Return whether a node is part of a type annotation, which does not run, of a decorator, or a lone * of a signature."""
    while node.parent is not None:
        kind, siblings = node.parent.type, node.parent.children
        index = siblings.index(node)
        annotates = {"tfpdef": index == 2, "annassign": index == 1, "funcdef": siblings[index - 1] == "->"}
        if (
            annotates.get(kind, False)
            or kind == "decorator"
            or (kind in ("parameters", "param", "lambdef") and node.type == "operator")
        ):
            return True
        node = node.parent
    return False


def is_valid(text: str) -> bool:
    try:
        with warnings.catch_warnings(action="ignore"):  # such as that `is` compares with a literal
            compile(text, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def equivalents() -> list[dict[str, str]]:
    """Return the mutants that are known to change nothing: file, before, after, reason."""
    return tomllib.loads(EQUIVALENT.read_text()).get("equivalent", []) if EQUIVALENT.exists() else []


def tests_of(file: str, tests: Sequence[str]) -> tuple[str, ...]:
    """Return the files with tests for a file, those named like it first, then the broad ones here."""
    paths = [ROOT / test for test in tests or TESTS.get(file, SHARED_TESTS)]
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.glob("test_*.py")))]
    stem = Path(file).stem
    files = [path for path in files if path.stem != "test_list"]  # it compares with the text of the code
    ordered = sorted(dict.fromkeys(files), key=lambda path: (path.stem != f"test_{stem}", path.parent.name != "conformance"))
    return tuple(path.relative_to(ROOT).as_posix() for path in ordered)


def run_mutants(mutants: Sequence[Mutant], tests: Sequence[str], *, jobs: int, timeout_s: float) -> Iterator[dict[str, Any]]:
    """Yield a record for each mutant as its tests end. First all tests have to pass without any change."""
    suites = {frozenset(suite): suite for suite in (tests_of(mutant.file, tests) for mutant in mutants)}.values()
    for trial, result in run_trials([Trial(name="as it is", tests=suite) for suite in suites], jobs=jobs, timeout_s=1200):
        if result.exit_code != 0 or not result.used_copy:
            sys.exit(f"without a change, {' '.join(trial.tests)} did not pass:\n{result.log}")
        # A survivor takes as long as this: on a busy machine it must not look as if it never ended.
        timeout_s = max(timeout_s, 4 * result.elapsed_s)
    by_key = {mutant.key: mutant for mutant in mutants}
    trials = [
        Trial(name=mutant.key, tests=tests_of(mutant.file, tests), changed={mutant.file: mutant.text}, options=("-x",))
        for mutant in mutants
    ]
    for trial, result in run_trials(trials, jobs=jobs, timeout_s=timeout_s):
        mutant = by_key[trial.name]
        has_run = result.used_copy or result.failures or result.exit_code not in (0, -1)
        verdict = "timeout" if result.is_timeout else "survived" if result.exit_code == 0 else "killed"
        record = asdict(mutant) | {"key": mutant.key, "verdict": verdict if has_run or result.is_timeout else "broken"}
        del record["text"]
        killer = f"{result.failures[0].test}: {result.failures[0].message}" if result.failures else ""
        yield record | {"by": killer, "elapsed_s": round(result.elapsed_s, 1)}


def read_records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def print_survivor(record: dict[str, Any]) -> None:
    print(f"\nsurvived  {record['file']}:{record['line']}  {record['operator']}", flush=True)
    print(f"  - {record['before']}\n  + {record['after']}", flush=True)


def report(records: Sequence[dict[str, Any]]) -> None:
    """Print how many mutants of each file and in all were killed. A mutant that never ends was noticed too."""
    for file in sorted({record["file"] for record in records}):
        counts = Counter(record["verdict"] for record in records if record["file"] == file)
        print(f"{file:40} {counts['killed'] + counts['timeout']:5} of {counts.total():5} killed")
    counts = Counter(record["verdict"] for record in records)
    print(f"{'all':40} {counts['killed'] + counts['timeout']:5} of {counts.total():5} killed; {dict(counts)}")


if __name__ == "__main__":
    sys.exit(main())
