"""Rewards for code: what is read out of a completion, which tests are run on it, and what the score says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tests.builders import keeps, make_prompt, make_rollout

from covey.rewards.base import Sample, safe_score
from covey.rewards.code import CodeReward, SandboxSpec, code_in, hidden_tests, job_of, public_tests, sandbox_facts, tier_chosen
from covey.rewards.combine import combine_rewards
from covey.rewards.failures import error_kind
from covey.rewards.registry import find_reward
from covey.rewards.sandbox.inside.limits import Limits
from covey.rewards.sandbox.outcomes import Outcome
from covey.rewards.sandbox.pool import Choice, NoSandboxError, SandboxPool
from covey.rewards.sandbox.tiers import UNPROTECTED
from covey.rewards.workers import RewardWorkers, WorkerSpec
from covey.tasks.code_presets import docstring_examples, function_called, humaneval_answer, mbpp_answer, program_answer
from covey.tasks.files import files_task
from covey.tasks.registry import find_task
from covey.tasks.row_values import RowError
from covey.types import CoveyError, Group, Message, Prompt, Score

DOUBLE = {
    "entry": "f",
    "public": {"cases": [[[2], 4]]},
    "hidden": {"cases": [[[0], 0], [[5], 10]]},
}
RIGHT = "def f(x):\n    return 2 * x"


def sample(completion: str, answer: Any = DOUBLE) -> Sample:
    prompt = Prompt(prompt_id="1", messages=(Message(role="user", content="..."),), answer=answer)
    return Sample(prompt=prompt, completion=completion, num_tokens=1, is_truncated=False)


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        (RIGHT, RIGHT),
        (f"```python\n{RIGHT}\n```", RIGHT),
        (f"Sure:\n```py\n{RIGHT}\n```\nThat is it.", RIGHT),
        (f"```\n{RIGHT}\n```", RIGHT),
        (f"```python\nx = 1\n```\nand better:\n```python\n{RIGHT}\n```", RIGHT),
        (f"```bash\nls\n```\n```python\n{RIGHT}\n```\n```text\n4\n```", RIGHT),
        (f"```python\n{RIGHT}", RIGHT),
        (f"Here is the function:\n{RIGHT}\n", RIGHT + "\n"),
        (f"import math\n{RIGHT}", f"import math\n{RIGHT}"),
        ("  ```python\n  x = 1\n  ```", "  x = 1"),
        ("I cannot do that.", ""),
        ("", ""),
        ("```bash\nls\n```", ""),
        ("`def f` is a function", ""),
        ('```python\nx = "```"\n```', 'x = "```"'),
    ],
)
def test_the_code_of_a_completion(completion: str, code: str):
    assert code_in(completion) == code


def test_reading_a_megabyte_takes_no_time():
    assert code_in("```" * 300_000) == ""
    assert code_in("`" * 1_000_000) == ""
    assert len(code_in("import x\n" * 200_000)) <= 100_000


@pytest.mark.parametrize(
    ("completion", "public", "hidden"),
    [
        (RIGHT, 1.0, 1.0),
        ("def f(x):\n    return 4", 1.0, 0.0),
        ("def f(x):\n    return x", 0.0, 0.0),
        ("no idea", 0.0, 0.0),
        ("def f(x): return 2 * x if x < 5 else 1", 1.0, 0.0),
    ],
)
def test_public_tests_can_be_satisfied_where_hidden_ones_are_not(completion: str, public: float, hidden: float):
    assert (public_tests()(sample(completion)).value, hidden_tests()(sample(completion)).value) == (public, hidden)


def test_a_share_of_the_tests_may_be_paid():
    reward = find_reward("hidden_tests", key="reward.name", options={"credit": "share"})
    assert reward(sample("def f(x):\n    return x")).value == 0.5
    with pytest.raises(CoveyError, match="credit='some'"):
        find_reward("hidden_tests", key="reward.name", options={"credit": "some"})


def test_the_outcome_is_said_with_the_score():
    texts = (RIGHT, "def f(x): return 0", "def f(x): x.y", "nothing")
    assert [hidden_tests()(sample(text)).extracted for text in texts] == [
        f"{RIGHT}\n# passed, 2 of 2 tests",
        "def f(x): return 0\n# wrong, 1 of 2 tests",
        "def f(x): x.y\n# exception, 0 of 2 tests",
        None,
    ]


def test_two_completions_that_pass_are_not_the_same_answer():
    """Detectors and votes go by what is extracted: `passed` for all would be one answer to all questions."""
    other = "def f(x):\n    return x + x"
    assert hidden_tests()(sample(RIGHT)).extracted != hidden_tests()(sample(other)).extracted


def test_a_failure_of_the_sandbox_is_no_zero(monkeypatch: pytest.MonkeyPatch):
    def fail(self: SandboxPool, jobs: list[Any]) -> list[Outcome]:
        return [Outcome(kind="infra_error", detail="the machine is on fire") for _ in jobs]

    monkeypatch.setattr(SandboxPool, "grade_all", fail)
    score = safe_score(hidden_tests(), sample(RIGHT))
    assert score.value is None
    assert "the machine is on fire" in (score.error or "")
    assert error_kind(score) == "sandbox"


def test_tests_that_cannot_be_split_leave_no_score():
    answer = {"entry": "f", "hidden": {"asserts": ["assert f(lambda: 1) == 2"]}}
    score = safe_score(hidden_tests(), sample("def f(g): return 2", answer))
    assert score.value is None
    assert "unsplittable" in (score.error or "")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (3, "no hidden tests"),
        ({"entry": "f", "public": {"cases": [[[1], 1]]}}, "no hidden tests"),
        ({"entry": "f", "hidden": {}}, "empty or of no known form"),
        ({"entry": "f", "hidden": {"cases": []}}, "empty or of no known form"),
        ({"entry": "f()", "hidden": {"cases": [[[1], 1]]}}, "names no function"),
        ({"hidden": {"tests": "assert True"}}, "names no function"),
    ],
)
def test_an_answer_without_tests_is_refused(answer: Any, message: str):
    with pytest.raises(CoveyError, match=message):
        job_of(answer, "hidden")


def test_a_row_without_tests_costs_its_own_completions_alone():
    scores = hidden_tests().score_batch(
        [sample(RIGHT), sample(RIGHT, answer=None), sample(RIGHT, {"entry": "f", "hidden": {"cases": [3]}})]
    )
    assert [score.value for score in scores] == [1.0, None, None]
    assert all((score.error or "").startswith("invalid: hidden_tests: ") for score in scores[1:])


def test_programs_need_no_function():
    answer = {"hidden": {"runs": [["3\n", "6\n"], ["0\n", "0\n"]]}}
    assert hidden_tests()(sample("print(2 * int(input()))", answer)).value == 0.0, "no line of it says that it is Python"
    assert hidden_tests()(sample("```python\nprint(2 * int(input()))\n```", answer)).value == 1.0


def test_a_recipe_says_where_candidates_run():
    spec = SandboxSpec(tier=UNPROTECTED.name, limits=Limits(cpu_s=1))
    with RewardWorkers(WorkerSpec(sandbox=spec)) as workers:
        isolated = workers.isolated(hidden_tests())
        combined = workers.isolated(combine_rewards({"a": (public_tests(), 1.0), "b": (hidden_tests(), 1.0)}, "sum"))
    assert isinstance(isolated, CodeReward)
    assert isolated.sandbox == spec
    assert sandbox_facts(None, combined) == {
        "tier": "unprotected",
        "refused": {},
        "limits": dataclasses.asdict(spec.limits),
    }
    assert sandbox_facts(find_reward("last_number", key="x")) is None


def test_without_a_sandbox_that_holds_nothing_starts(monkeypatch: pytest.MonkeyPatch):
    def refuse(name: str, command: tuple[str, ...]) -> Choice:
        raise NoSandboxError("none holds on this machine")

    monkeypatch.setattr("covey.rewards.code.tier_chosen", refuse)
    with RewardWorkers(WorkerSpec(sandbox=SandboxSpec(limits=Limits(cpu_s=7)))) as workers, pytest.raises(NoSandboxError):
        workers.isolated(hidden_tests())


def test_canaries_are_sent_out_once():
    assert tier_chosen("auto") is tier_chosen("auto")


HUMANEVAL = {
    "task_id": "Test/0",
    "prompt": (
        'import math\n\n\ndef half(x):\n    """Halve.\n\n    >>> half(4) # even\n    2.0\n'
        '    >>> half(print)\n    never\n    """\n'
    ),
    "entry_point": "half",
    "test": "def check(candidate):\n    assert math.isclose(candidate(3), 1.5)\n    assert candidate(4) == 2\n",
}
MBPP = {
    "text": "Write a function that doubles.",
    "test_list": ["assert set(twice([1])) == {2}", "assert twice([2]) == [4]"],
    "test_setup_code": "",
    "challenge_test_list": ["assert twice([]) == []"],
}
APPS = {"question": "Double.", "input_output": json.dumps({"inputs": ["1\n", "2\n"], "outputs": ["2\n", "4\n"]})}


def test_human_eval_shows_its_examples_and_hides_its_tests():
    answer = humaneval_answer(HUMANEVAL)
    assert answer["public"] == {"asserts": ["assert (half(4)) == (2.0)"]}
    whole = sample(f"{HUMANEVAL['prompt']}    return x / 2\n", answer)
    bare = sample("def half(x):\n    return math.ldexp(x, -1)\n", answer)
    wrong = sample("def half(x):\n    return 2.0\n", answer)
    assert [public_tests()(each).value for each in (whole, bare, wrong)] == [1.0, 1.0, 1.0]
    assert [hidden_tests()(each).value for each in (whole, bare, wrong)] == [1.0, 1.0, 0.0]


def test_a_docstring_without_examples_has_the_hidden_tests_as_public_ones():
    row = {**HUMANEVAL, "prompt": "def half(x):\n    '''>>> not an example'''\n"}
    assert humaneval_answer(row)["public"] == {"tests": HUMANEVAL["test"]}
    assert docstring_examples("def f(:", "f") == []
    assert docstring_examples("def f():\n    '''\n    >>> f()\n    1\n   wrong indent\n    '''", "f") == []


def test_mbpp_shows_one_test_and_hides_all():
    answer = mbpp_answer(MBPP)
    assert (answer["entry"], answer["public"]) == ("twice", {"asserts": MBPP["test_list"][:1]})
    right, hack = sample("def twice(xs):\n    return [2 * x for x in xs]", answer), sample("def twice(xs): return {2}", answer)
    assert [reward(each).value for reward in (public_tests(), hidden_tests()) for each in (right, hack)] == [1, 1, 1, 0]


@pytest.mark.parametrize(
    ("test", "entry"),
    [
        ("assert f(1) == 2", "f"), ("assert (f(1)) == 2", "f"), ("assert not f(1)", "f"), ("assert set(f(1)) == {1}", "f"),
        ("assert math.isclose(area(1), 3)", "area"), ("assert sorted(f(1)) == sorted(g(2))", "f"), ("assert 1 == 1", ""),
        ("x (", ""),
    ],
)  # fmt: skip
def test_the_function_that_a_test_is_about(test: str, entry: str):
    assert function_called(test) == entry


def test_programs_of_apps_show_their_first_run():
    answer = program_answer(APPS)
    assert answer == {"public": {"runs": [["1\n", "2\n"]]}, "hidden": {"runs": [["1\n", "2\n"], ["2\n", "4\n"]]}}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_output": "{"}, "not JSON"),
        ({"input_output": {"inputs": [], "outputs": []}}, "not as many"),
        ({"input_output": {"inputs": ["1"], "outputs": []}}, "not as many"),
        ({"input_output": {"inputs": [[1]], "outputs": [2]}}, "no texts"),
        ({"input_output": "3"}, "not as many"),
        ({}, "no column"),
    ],
)
def test_bad_rows_of_programs_are_named(row: dict[str, Any], message: str):
    with pytest.raises(RowError, match=message):
        program_answer(row)


@pytest.mark.parametrize(("preset", "row"), [("humaneval", HUMANEVAL), ("mbpp", MBPP), ("programs", APPS)])
def test_files_of_programming_tasks_load(preset: str, row: dict[str, Any], tmp_path: Path):
    prompt = "prompt" if preset == "humaneval" else "text" if preset == "mbpp" else "question"
    rows = [{**row, prompt: row[prompt] + f"\n# {number}"} for number in range(20)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    task = files_task({"path": str(path), "preset": preset})
    assert (task.proxy.name, task.gold and task.gold.name) == ("public_tests", "hidden_tests")
    task.check()


def test_functions_to_order_are_right_on_all_inputs_or_not_at_all():
    for level in ("easy", "medium", "hard"):
        prompt = find_task("functions", level=level).train[0]
        right = f"def f({prompt.tags['parameter']}):\n    return {prompt.tags['expression']}"
        shown = f"def f({prompt.tags['parameter']}):\n    return {prompt.tags['example']}"
        assert "For example, f(" in prompt.text
        for reward, expected in ((public_tests(), [1.0, 1.0]), (hidden_tests(), [1.0, 0.0])):
            samples = [Sample(prompt=prompt, completion=text, num_tokens=1, is_truncated=False) for text in (right, shown)]
            assert [score.value for score in reward.score_batch(samples)] == expected


@pytest.mark.parametrize("drop_flat_groups", [True, False])
def test_a_failure_of_the_sandbox_costs_the_whole_group_and_another_failure_its_completion_alone(drop_flat_groups: bool):
    is_kept = keeps(drop_flat_groups=drop_flat_groups)
    unsplittable, broken = "none: hidden_tests: unsplittable: a lambda", "sandbox: hidden_tests: infra_error: it has ended"
    for error, kept in ((unsplittable, True), (broken, False)):
        failed = dataclasses.replace(make_rollout(None), reward=Score(value=None, error=error))
        group = Group(prompt=make_prompt(), rollouts=(make_rollout(1.0), make_rollout(0.0), failed))
        assert is_kept(group) is kept, error
