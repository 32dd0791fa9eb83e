"""No program that solves nothing is paid; programs that solve it are. Graders of the usual kind are deceived."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from tests.sandbox.graders import pays_by_exit_code, pays_by_first_lines, pays_by_marker
from tests.sandbox.tampering import (
    CORRECT,
    CORRECT_PROGRAMS,
    FAMILIES,
    HIDDEN,
    PROGRAM_RUNS,
    TAMPERED_PROGRAMS,
    TAMPERING,
)

from covey.rewards.sandbox.judge import AssertJob, CallJob, Case, Job, ProgramJob
from covey.rewards.sandbox.pool import SandboxPool

CASES = CallJob(entry="solve", cases=[Case(args=(given,), right=right) for given, right in HIDDEN])
_LINES = "".join(f"    assert candidate({given!r}) == {right!r}\n" for given, right in HIDDEN)
ASSERTS = AssertJob(entry="solve", tests=f"def check(candidate):\n{_LINES}")
PROGRAMS = ProgramJob(runs=PROGRAM_RUNS)
NEED = {"with threads": "threads"}
"""Correct solutions that a tier may be known not to run, by what they need of it."""
FORMS: dict[str, Job] = {"cases": CASES, "asserts": ASSERTS}


def test_there_are_enough_programs():
    assert len(TAMPERING) + len(TAMPERED_PROGRAMS) >= 60


@pytest.mark.parametrize("form", FORMS)
def test_no_tampering_program_is_paid(form: str, pool: SandboxPool):
    outcomes = dict(zip(TAMPERING, pool.grade_all([(FORMS[form], source) for source in TAMPERING.values()]), strict=True))
    assert {name: outcome for name, outcome in outcomes.items() if outcome.has_passed or outcome.num_passed} == {}
    # None may get itself left out, which would be better for it than failing.
    assert {name: outcome for name, outcome in outcomes.items() if not outcome.is_about_candidate} == {}


@pytest.mark.parametrize("form", FORMS)
def test_every_correct_solution_passes(form: str, pool: SandboxPool):
    solutions = {name: source for name, source in CORRECT.items() if name not in NEED or NEED[name] not in pool.tier.lacks}
    outcomes = {name: pool.grade(FORMS[form], source) for name, source in solutions.items()}
    assert {name: outcome for name, outcome in outcomes.items() if not outcome.has_passed} == {}


def test_programs_are_judged_by_their_whole_output(pool: SandboxPool):
    paid = {name for name, source in TAMPERED_PROGRAMS.items() if pool.grade(PROGRAMS, source).has_passed}
    failed = {name for name, source in CORRECT_PROGRAMS.items() if not pool.grade(PROGRAMS, source).has_passed}
    assert (paid, failed) == (set(), set())


def test_the_judge_stays_small(pool: SandboxPool):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pool.grade_all([(CASES, source) for source in FAMILIES["breaking the judge"].values()])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024


@pytest.mark.parametrize("family", ["ending early", "lying values", "forged output"])
def test_graders_of_the_usual_kind_are_deceived(family: str, tmp_path: Path):
    deceived = [
        name
        for name, source in FAMILIES[family].items()
        if pays_by_exit_code(source, tmp_path) or pays_by_marker(source, tmp_path)
    ]
    assert len(deceived) >= 2, f"only {deceived}"
    assert pays_by_exit_code(CORRECT["plain"], tmp_path)


def test_a_grader_of_lines_is_deceived_by_the_first_one(tmp_path: Path):
    assert pays_by_first_lines(TAMPERED_PROGRAMS["the first line alone"], *PROGRAM_RUNS[0], tmp_path)
