"""Every built-in reward against its own cases: right answers are paid, exploits are not, and no key is ignored."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builders import make_sample
from tests.reward_cases import CASES, COSINE, JUDGES, NEEDED_OPTIONS, NUMERIC, REPETITION, Case

from covey.rewards.base import Reward, safe_score, score_all
from covey.rewards.registry import REWARDS, find_reward

GROUPS: dict[tuple[str, str], list[Case]] = {}
for _case in CASES:
    GROUPS.setdefault((_case.reward, _case.family), []).append(_case)
GRADED = {id(case) for case in [*REPETITION, *COSINE]}
PURE = [name for name in REWARDS if name not in JUDGES]


def reward_of(case: Case) -> Reward:
    return find_reward(case.reward, key="reward.name", options=case.options)


@pytest.mark.parametrize(("reward", "family"), GROUPS, ids=lambda part: str(part))
def test_each_case_earns_what_it_is_worth(reward: str, family: str):
    for case in GROUPS[reward, family]:
        score = safe_score(reward_of(case), case.sample)
        assert (case.completion, score.value, score.error) == (case.completion, pytest.approx(case.expected), None)


@pytest.mark.parametrize("name", PURE)
def test_each_reward_has_cases_that_are_right_and_cases_that_are_not(name: str):
    families = {case.family for case in CASES if case.reward == name}
    assert "right" in families
    assert len(families) > 1


def wrong_key(case: Case) -> Any:
    """Return a key of the same form for which no completion of the case is right."""
    match case.answer:
        case bool() as answer:
            return not answer
        case int() | float() as answer:
            return answer + 1013
        case {"entry": str()} as answer:
            return {**answer, "public": {"cases": [[[2], 1013]]}, "hidden": {"cases": [[[2], 1013]]}}
        case dict() as answer:
            return {name: wrong_key(replace(case, answer=value)) for name, value in answer.items()}
        case list() as answer:
            return [wrong_key(replace(case, answer=value)) for value in answer]
        case "B":
            return "C"
        case "no":
            return "yes"
        case str() as answer:
            return "1013 meters" if answer.endswith("meters") else "1013%" if answer == "50%" else "1013"
    return "something else"


def test_right_completions_earn_nothing_once_the_key_is_wrong():
    looks_at_keys = [case for case in CASES if case.answer is not None and case.family == "right" and id(case) not in GRADED]
    assert len({case.reward for case in looks_at_keys}) == 10
    for case in looks_at_keys:
        sample = replace(case, answer=wrong_key(case)).sample
        assert (case.completion, safe_score(reward_of(case), sample).value) == (case.completion, 0.0)


@pytest.mark.parametrize("name", PURE)
def test_a_reward_is_pure(name: str):
    """The same sample twice gives the same score, alone and among others, and is not changed."""
    chosen = [case for case in CASES if case.reward == name][::7]
    for case in chosen:
        sample, reward = case.sample, reward_of(case)
        before = copy.deepcopy(sample)
        first = safe_score(reward, sample)
        _, again, _ = score_all(reward, [make_sample("x", prompt=sample.prompt), sample, make_sample("", prompt=sample.prompt)])
        assert (first.value, first.extracted, first.parts) == (again.value, again.extracted, again.parts)
        assert sample == before


@pytest.mark.parametrize("name", REWARDS)
def test_a_reward_can_be_copied_to_another_process(name: str):
    reward = find_reward(name, key="x", options=NEEDED_OPTIONS.get(name, {}))
    copied = pickle.loads(pickle.dumps(reward))
    assert copied == reward
    assert (copied.name, copied.low, copied.high) == (reward.name, reward.low, reward.high)


@pytest.mark.parametrize("name", [name for name in PURE if name not in ("tags", "pattern", "repetition")])
def test_a_prompt_without_an_answer_is_an_error_and_never_a_0(name: str):
    reward = find_reward(name, key="x", options=NEEDED_OPTIONS.get(name, {}))
    score = safe_score(reward, make_sample("42", answer=None))
    assert score.value is None
    assert score.error


IN_THIS_PROCESS: dict[str, Mapping[str, Any]] = {
    "exact": {"read": "tagged"},
    "choice": {"read": "boxed", "choices": ["42", "43"]},
    "numeric": {"units": "optional", "unit_names": ["m"], "percent": "convert", "relative": 0.1},
    "json": {"answer_field": "answer"},
    "tags": {},
    "repetition": {"ngram": 2},
    "cosine_length": {"max_tokens": 24, "of": "numeric"},
    "last_number": {},
    "asserted_number": {},
}
PIECES = [
    "42",
    "4",
    "2",
    ".",
    ",",
    "-",
    "/",
    "e",
    "%",
    "m",
    "\\",
    "{",
    "}",
    "[",
    "]",
    '"answer"',
    ":",
    " ",
    "\n",
    "$",
    "=",
    "^",
]
PIECES += [r"\boxed{", r"\frac", "<answer>", "</answer>", "####", "```", "\N{SUPERSCRIPT TWO}", "\N{MINUS SIGN}", "\ud800"]
ODD_TEXT = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=30).map("".join)


@pytest.mark.parametrize("name", IN_THIS_PROCESS)
@settings(max_examples=200, deadline=None)
@given(text=ODD_TEXT)
def test_any_text_is_scored_within_the_range(name: str, text: str):
    reward = find_reward(name, key="x", options=IN_THIS_PROCESS[name])
    score = safe_score(reward, make_sample(text, answer=42))
    assert score.error is None
    assert score.value is not None
    assert score.extracted is None or len(score.extracted) <= 500


HUGE = [
    "42 " * 10**6,
    "{" * 10**6,
    r"\boxed{" * 10**5,
    "<answer>" * 10**5,
    "9" * 10**6,
    "1e" + "9" * 10**5,
    "*_`" * 10**5,
    '"' * 10**5,
]


@pytest.mark.parametrize("name", IN_THIS_PROCESS)
def test_a_huge_text_earns_nothing_and_takes_no_time(name: str):
    reward = find_reward(name, key="x", options=IN_THIS_PROCESS[name])
    for text in HUGE if name != "last_number" else HUGE[1:]:
        score = safe_score(reward, make_sample(text, answer=42))
        assert score.value is not None
        assert score.value <= 0.0
        assert score.elapsed_s < 2.0


def test_all_readings_of_a_number_agree_on_what_they_read():
    read = {
        safe_score(reward_of(case), case.sample).extracted for case in NUMERIC if case.answer == 42 and case.family == "right"
    }
    assert read == {"42"}
