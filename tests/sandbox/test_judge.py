"""What the judge says of candidates that answer, fail, hang or break off, and of tests that prove nothing."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from covey.rewards.sandbox.compare_values import Comparison, same_output
from covey.rewards.sandbox.judge import AssertJob, CallJob, Case, Job, ProgramJob
from covey.rewards.sandbox.outcomes import OUTCOMES
from covey.rewards.sandbox.pool import SandboxPool
from covey.rewards.sandbox.tiers import UNPROTECTED

DOUBLE = CallJob(entry="f", cases=[Case(args=(2,), right=4), Case(args=(5,), right=10)])
TESTS = AssertJob(entry="f", tests="def check(candidate):\n    assert candidate(2) == 4\n")
ECHO = ProgramJob(runs=[("a b\n", "a b\n"), ("", "\n")])


@pytest.mark.parametrize(
    ("job", "source", "kind", "num_passed"),
    [
        (DOUBLE, "def f(x): return 2 * x", "passed", 2),
        (DOUBLE, "f = lambda x: x + 2", "wrong", 1),
        (DOUBLE, "def f(x): return 4 if x == 2 else 1 / 0", "exception", 1),
        (DOUBLE, "def f(x)", "exception", 0),
        (DOUBLE, "def g(x): return 2 * x", "exception", 0),
        (DOUBLE, "f = 3", "exception", 0),
        (DOUBLE, "def f(x):\n    while True: pass", "timeout", 0),
        (DOUBLE, "import time\ndef f(x): time.sleep(60)", "timeout", 0),
        (DOUBLE, "def f(x): return len(bytearray(1 << 30))", "memory", 0),
        (DOUBLE, "import os\ndef f(x): os._exit(3)", "crashed", 0),
        (DOUBLE, "def f(x): return object()", "wrong", 0),
        (DOUBLE, "x" * 2_000_000, "protocol_violation", 0),
        (TESTS, "def f(x): return 2 * x", "passed", 1),
        (TESTS, "def f(x): return x", "wrong", 0),
        (TESTS, "def f(x): raise KeyError(x)", "exception", 0),
        (TESTS, "def f(x):\n    while True: pass", "timeout", 0),
        (TESTS, "def g(x): pass", "exception", 0),
        (ECHO, "print(input())", "exception", 1),
        (ECHO, "import sys\nprint(sys.stdin.read().strip())", "passed", 2),
        (ECHO, "while True: print('x' * 1000)", "output_limit", 0),
        (ECHO, "import time\ntime.sleep(60)", "timeout", 0),
        (ECHO, "import os\nos.close(1)\nwhile True: pass", "timeout", 0),
    ],
)  # fmt: skip
def test_each_end_has_its_class(job: Job, source: str, kind: str, num_passed: int, pool: SandboxPool):
    outcome = pool.grade(job, source)
    assert (outcome.kind, outcome.num_passed) == (kind, num_passed), outcome
    assert outcome.kind in OUTCOMES


@pytest.mark.parametrize(
    ("tests", "kind"),
    [
        ("", "wrong"),
        ("def check(candidate):\n    pass\n", "wrong"),
        ("def check(candidate):\n    try:\n        candidate(1, 2, 3)\n    except TypeError:\n        pass\n", "wrong"),
        ("assert f(2) == 4\nassert f(3) == 6", "passed"),
        ("assert f(lambda: 1)", "unsplittable"),
        ("import unittest\nraise unittest.SkipTest", "exception"),
        ("xs = [1]\nf(xs)\nassert xs == [1]", "passed"),
        ("try:\n    f('a' * 3, x=2)\nexcept TypeError:\n    pass\nassert f(1) == 2", "passed"),
    ],
)
def test_tests_that_prove_nothing_pay_nothing(tests: str, kind: str, pool: SandboxPool):
    assert pool.grade(AssertJob(entry="f", tests=tests), "def f(x): return x + x").kind == kind


def test_tests_without_end_pay_nothing(pool: SandboxPool):
    outcome = pool.grade(AssertJob(entry="f", tests="while True:\n    f(1)"), "def f(x): return x + x")
    assert outcome.kind in ("wrong", "timeout"), "too many calls, or too much time, whichever comes first"


def test_what_a_candidate_does_to_its_argument_is_seen_by_the_tests(pool: SandboxPool):
    job = AssertJob(entry="f", tests="xs = [3, 1]\nassert f(xs) is None\nassert xs == [1, 3]")
    assert pool.grade(job, "def f(xs): xs.sort()").has_passed
    assert not pool.grade(job, "def f(xs): pass").has_passed


def test_tests_expect_exceptions_by_their_name(pool: SandboxPool):
    tests = "try:\n    f(0)\nexcept ZeroDivisionError:\n    pass\nelse:\n    raise AssertionError\nassert f(1) == 1"
    assert pool.grade(AssertJob(entry="f", tests=tests), "def f(x): return 1 // x").has_passed
    assert not pool.grade(AssertJob(entry="f", tests=tests), "def f(x): return 1").has_passed


def test_an_empty_list_of_cases_pays_nobody(pool: SandboxPool):
    assert not pool.grade(CallJob(entry="f", cases=[]), "def f(): pass").has_passed
    assert not pool.grade(ProgramJob(runs=[]), "pass").has_passed


def test_helpers_of_the_question_are_there_for_tests_and_candidate(pool: SandboxPool):
    job = AssertJob(entry="f", tests="assert f(helper(1)) == 4", preamble="def helper(x): return x + 1", prefix="import math\n")
    assert pool.grade(job, "def f(x): return int(math.pow(x, 2))").has_passed


def test_the_same_program_is_graded_alike_in_any_company(pool: SandboxPool):
    sources = [
        f"import random\ndef f(x): return 2 * x if hash('a') % 2 == {n % 2} and random.random() < 2 else 0" for n in range(40)
    ]
    first = pool.grade_all([(DOUBLE, source) for source in sources])
    assert [pool.grade(DOUBLE, source).kind for source in sources] == [outcome.kind for outcome in first]
    assert {outcome.kind for outcome in first} == {"passed", "wrong"}


def test_random_numbers_are_the_same_each_time(pool: SandboxPool):
    source = "import random\ndef f(x): return random.randrange(10**9)"
    job = CallJob(entry="f", cases=[Case(args=(1,), right=-1)])
    assert {pool.grade(job, source).kind for _ in range(3)} == {"wrong"}
    drawn = AssertJob(entry="f", tests="assert f(1) == 906691059")
    assert pool.grade(drawn, source).has_passed


@pytest.mark.parametrize(
    ("found", "right", "is_same"),
    [
        (4, 4, True), (4.0, 4, True), (True, 1, False), (1, True, False), ("4", 4, False), (float("nan"), float("nan"), False),
        (float("inf"), float("inf"), True), (float("inf"), 1e308, False), ([1, 2], [1, 2], True), ((1, 2), [1, 2], False),
        ([1], [1, 2], False), ([1, 2, 3], [1, 2], False), ({"a": 1}, {"a": 1.0}, True), ({"a": 1, "b": 2}, {"a": 1}, False),
        ({1, 2}, {2, 1}, True), (None, None, True), (0, None, False), (b"a", "a", False), (10**400, 1.0, False),
        ([[1, (2,)]], [[1, (2,)]], True), (1 + 2j, 1 + 2j, True),
    ],
)  # fmt: skip
def test_values_are_compared_by_type_and_worth(found: object, right: object, is_same: bool):
    assert Comparison().same(found, right) is is_same


def test_what_may_differ_has_to_be_said():
    assert Comparison(mixes_sequences=True).same((1, [2]), [1, (2,)])
    assert not Comparison(mixes_numbers=False).same(4.0, 4)
    assert Comparison(rel_tol=1e-6).same(1.0000001, 1.0)
    assert not Comparison(rel_tol=1e-6).same(1.0001, 1.0)


@pytest.mark.parametrize(
    ("found", "right", "is_same"),
    [
        ("1\n2\n", "1\n2", True), ("1 2", "1\n2", False), ("1\n2\n3", "1\n2", False), ("1", "1\n2", False), ("", "", True),
        ("", "1", False), ("  1 ", "1", True), ("1\n\n2", "1\n2", False), ("a", "A", False), ("1.0", "1", False),
    ],
)  # fmt: skip
def test_output_is_compared_whole(found: str, right: str, is_same: bool):
    assert same_output(found, right) is is_same


def test_numbers_in_output_may_differ_by_the_tolerance():
    assert same_output("3.14159 x", "3.141592 x", rel_tol=1e-5)
    assert not same_output("3.14 x", "3.141592 x", rel_tol=1e-5)
    assert not same_output("nan", "1", rel_tol=1e-5)


def test_nobody_gets_left_out_by_what_he_answers(pool: SandboxPool):
    """Tests that hand a candidate's own answer back to it cannot be made unsplittable by that answer."""
    tests = "x = f([])\nfor _ in range(3):\n    x = f([x])\nassert x == 1"
    deep = "def f(x):\n    r = x\n    for _ in range(50):\n        r = [r]\n    return r"
    outcome = pool.grade(AssertJob(entry="f", tests=tests), deep)
    assert (outcome.has_passed, outcome.is_about_candidate) == (False, True), outcome


def test_many_open_files_of_the_trainer_are_no_hindrance(tmp_path: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip(f"this process may have {hard} files open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2000, hard))
    files = [open(tmp_path / "file", "w") for _ in range(1100)]  # noqa: SIM115 - closed below
    try:
        with SandboxPool(UNPROTECTED, num_zygotes=1) as pool:
            assert pool.grade(DOUBLE, "def f(x): return 2 * x").has_passed
            assert pool.grade(ECHO, "import sys\nprint(sys.stdin.read().strip())").has_passed
    finally:
        for file in files:
            file.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
