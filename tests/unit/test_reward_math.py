"""The mathematical verifier and the process that it runs in: deadlines, threads, and what is left when the process dies."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builders import make_sample
from tests.killable_acts import act

from covey.rewards import packages
from covey.rewards.base import FunctionReward, safe_score, score_all
from covey.rewards.failures import error_kind
from covey.rewards.killable import KillableReward, killable
from covey.rewards.math import is_one_answer, math_answer, mathematics_of
from covey.types import CoveyError, Score


def reward_of(deadline_s: float = 0.5) -> KillableReward:
    return killable(FunctionReward(name="acts", score=act), deadline_s=deadline_s)


def test_a_call_that_hangs_costs_the_deadline_and_the_next_one_works():
    started = time.monotonic()
    scores = score_all(reward_of(), [make_sample(text) for text in ("fine", "hang", "fine", "sleep", *["fine"] * 8)])
    assert [score.value for score in scores] == [1.0, None, 1.0, None, *[1.0] * 8]
    assert [error_kind(scores[place]) for place in (1, 3)] == ["timeout", "timeout"]
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(("completion", "kind"), [("die", "died"), ("raise", "raised"), ("eat memory", "raised")])
def test_a_call_that_fails_costs_its_own_sample(completion: str, kind: str):
    scores = score_all(reward_of(), [make_sample(text) for text in ("fine", completion, "fine", "fine", "fine")])
    assert [error_kind(score) for score in scores] == [None, kind, None, None, None]


def test_any_thread_may_score_and_may_end_while_others_go_on():
    scores: list[Score] = []

    def score() -> None:
        scores.extend(score_all(reward_of(5.0), [make_sample("fine")] * 20))

    threads = [threading.Thread(target=score) for _ in range(4)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert [score.value for score in scores] == [1.0] * 80
    assert safe_score(reward_of(5.0), make_sample("fine")).value == 1.0


def test_a_deadline_must_be_a_time():
    with pytest.raises(CoveyError, match="deadline_s=0"):
        reward_of(0)


PROGRAM = r"""
import os, signal, sys, threading
from covey.rewards.base import Sample
from covey.rewards.registry import find_reward
from covey.types import Prompt
alarms = []
signal.signal(signal.SIGALRM, lambda *given: alarms.append(given))
reward, scores = find_reward("math", key="x"), []
prompt = Prompt(prompt_id="p", messages=(), answer="a + b")
sample = Sample(prompt=prompt, completion=r"\boxed{b+a}", num_tokens=9, is_truncated=False)
thread = threading.Thread(target=lambda: scores.append(reward(sample)))
thread.start()
thread.join()
if os.fork() == 0:
    os._exit(int(reward(sample).value != 1.0))
assert os.wait()[1] == 0
print(scores[0].value, alarms, "sympy" in sys.modules)
"""


def test_the_library_is_imported_by_its_own_process_alone_and_sets_no_alarm():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.returncode) == ("1.0 [] False\n", 0), done.stderr


def test_an_expression_that_takes_for_ever_is_stopped_at_the_deadline():
    tower = r"\boxed{a^{9^{9^{9^{9}}}}}"
    score = safe_score(math_answer(deadline_s=1.0), make_sample(tower, answer="a^{9^9}"))
    assert score.value in (0.0, None)
    assert score.elapsed_s < 5.0
    assert safe_score(math_answer(deadline_s=1.0), make_sample(r"\boxed{a^2}", answer="a*a")).value == 1.0


def test_the_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CoveyError, match=r"'math' needs the package math-verify.*pip install 'covey\[rewards\]'"):
        math_answer()


@pytest.mark.parametrize("answer", ["", " ", "$", "{", r"\boxed{}", "x" * 400])
def test_a_key_that_is_no_mathematics_is_an_error_and_never_a_0(answer: str):
    score = safe_score(math_answer(), make_sample(r"\boxed{1}", answer=answer))
    assert score.value is None
    assert score.error


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        (r"$\dfrac{1}{2}$", r"\frac{1}{2}"),
        (r"\boxed{\left( 1, 2 \right)}", "( 1, 2 )"),
        ("sqrt(2)/2", r"\sqrt{2}/2"),
        ("2**3", "2^3"),
        (r"1{,}000\%", "1,000%"),
        ("2\N{GREEK SMALL LETTER PI}", r"2\pi"),
        (r"\(x\)", "x"),
    ],
)
def test_spellings_that_mean_the_same_become_one(text: str, spelling: str):
    assert mathematics_of(text) == spelling


@pytest.mark.parametrize(
    ("given_answer", "key", "is_one"),
    [
        ("x = 42", "42", True),
        ("x = 42", "x = 42", True),
        ("42 = x", "42", False),
        ("17 + 25", "42", False),
        ("2^3", "8", False),
        (r"\sin x", r"\sqrt{2}", False),
        ("a + b", "b + a", True),
        ("a + c", "b + a", False),
        ("1, 2", "x, y", True),
        ("1, 2, 3", "x, y", False),
        ("ab 1 2", "ab 12", False),
    ],
)
def test_an_answer_claims_no_more_than_the_key(given_answer: str, key: str, is_one: bool):
    assert is_one_answer(given_answer, key) is is_one


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(st.one_of(st.characters(), st.sampled_from(r"0123456789\{}[]()$=+-*/^_,. xyz%")), max_size=60),
    key=st.sampled_from(["42", "x^2", "(1,2)"]),
)
def test_any_text_is_an_answer_or_none(text: str, key: str):
    given_answer = mathematics_of(text)
    assert given_answer is None or isinstance(is_one_answer(given_answer, key), bool)


@pytest.mark.parametrize("options", [{"decimals": 0}, {"decimals": 13}, {"deadline_s": 0.0}, {"read": "box"}])
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any]):
    with pytest.raises(CoveyError):
        math_answer(**options)
