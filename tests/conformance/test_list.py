"""The list of planted bugs keeps up with the code: each still applies, and its page is current."""

from __future__ import annotations

import pytest
from tests.conformance.classes import SILENT_BUGS, SUBJECTS, WAITING
from tests.conformance.mutation import Mutation
from tests.conformance.mutations import MUTATIONS
from tests.conformance.page import PAGE, page_with_tables
from tests.conformance.run import judge
from tests.conformance.trials import ROOT, Failure, Kind, Result


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: f"{mutation.number}-{mutation.name}")
def test_a_planted_bug_applies_to_the_code_and_leaves_valid_python(mutation: Mutation):
    text = (ROOT / mutation.file).read_text()
    changed = mutation.apply(text)
    assert changed != text
    compile(changed, mutation.file, "exec")


def test_names_of_planted_bugs_are_their_own():
    names = [mutation.name for mutation in MUTATIONS]
    assert len(set(names)) == len(names)


def test_every_class_has_a_planted_bug_or_a_reason_to_wait():
    planted = {mutation.number for mutation in MUTATIONS}
    assert planted.isdisjoint(WAITING)
    assert planted | set(WAITING) == set(SILENT_BUGS) == set(range(1, 65))
    assert [number for numbers in SUBJECTS.values() for number in numbers] == list(range(1, 65))


def test_the_page_shows_the_list_as_it_is():
    assert page_with_tables(PAGE.read_text()) == PAGE.read_text(), "python -m tests.conformance.page writes it anew"


PLANTED = Mutation(number=1, name="a bug", file="src/covey/stats.py", old=" a", new="b", tests=("tests/test_a.py",))


def ended(kind: Kind, phase: str = "call") -> Result:
    failure = Failure(test="tests/test_a.py::test_a", phase=phase, kind=kind, message="what it said")
    return Result(collected=("tests/test_a.py::test_a",), failures=(failure,), exit_code=1, used_copy=True)


def test_a_failing_assertion_kills():
    assert judge(PLANTED, ended("assertion")).verdict == "killed"


@pytest.mark.parametrize(
    ("kind", "phase"), [("other", "call"), ("shape", "call"), ("assertion", "setup"), ("other", "collect")]
)
def test_whatever_else_goes_wrong_does_not_kill(kind: Kind, phase: str):
    assert judge(PLANTED, ended(kind, phase)).verdict == "broken"


def test_a_bug_that_no_test_notices_survives():
    assert judge(PLANTED, Result(exit_code=0, used_copy=True)).verdict == "survived"


def test_tests_that_never_end_or_ran_on_the_original_are_no_kill():
    assert judge(PLANTED, Result(is_timeout=True)).verdict == "timeout"
    assert judge(PLANTED, Result(exit_code=1, used_copy=False)).verdict == "broken"


def test_a_bug_whose_place_has_changed_is_told():
    with pytest.raises(ValueError, match="2 times"):
        PLANTED.apply("return a + a")
