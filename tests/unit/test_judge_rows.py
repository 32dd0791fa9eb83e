"""Judges that a recipe names: their options reach the endpoint, their deadlines are their own, and the key stays outside."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Generator
from dataclasses import MISSING, fields
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from tests.digits import SMALL, leave_out_slow_parts
from tests.unit.test_judge import (
    KEY,
    Endpoint,
    longer_wins,
    make_samples,
    matches_reference,
    passages_of,
    says,
    values_of,
    verdicts,
)

import covey
from covey.assembly import make_rewarder
from covey.config import make_recipe
from covey.monitor.run_directory import read_rows
from covey.rewards.base import Reward, score_all
from covey.rewards.chat_endpoint import ChatEndpoint
from covey.rewards.judge import pairwise_judge, pointwise_judge
from covey.rewards.options import options_of
from covey.rewards.registry import REWARDS, find_reward
from covey.tasks.registry import find_task
from covey.types import CoveyError

JUDGES = {"judge": pointwise_judge, "pairwise_judge": pairwise_judge}
every_judge = pytest.mark.parametrize("name", JUDGES)


@pytest.fixture
def server() -> Generator[Endpoint]:
    server = Endpoint()
    yield server
    server.close()


def judge(server: Endpoint, name: str = "judge", **options: Any) -> Reward:
    return find_reward(name, key="reward.name", options={"base_url": server.url, "model": "judge-1"} | options)


def odd_length(completion: str) -> bool:
    """What the planted judge looks at: not flat within a group, and easy to check."""
    return len(completion) % 2 == 1


@every_judge
def test_a_row_has_the_options_and_defaults_of_the_endpoint_and_of_the_judge(name: str):
    own = {
        each.name: each.default
        for each in inspect.signature(JUDGES[name]).parameters.values()
        if each.name not in ("endpoint", "name")
    }
    endpoint = {each.name: "" if each.default is MISSING else each.default for each in fields(ChatEndpoint)}
    assert {option.name: option.default for option in options_of(REWARDS[name]).values()} == own | endpoint


@every_judge
def test_options_reach_the_endpoint(server: Endpoint, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.reply = verdicts(longer_wins if name == "pairwise_judge" else matches_reference)
    reward = judge(server, name, key_variable="JUDGE_KEY", max_answer_tokens=99, answer_format="text", criteria="Be brief.")
    score_all(reward, make_samples("21", "2"))
    assert {request["model"] for request in server.requests} == {"judge-1"}
    assert {request["max_tokens"] for request in server.requests} == {99}
    assert not any("response_format" in request for request in server.requests)
    assert all("Be brief." in request["messages"][0]["content"] for request in server.requests)
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}


def test_the_judge_of_single_completions_pays_what_equals_the_reference(server: Endpoint):
    server.reply = verdicts(matches_reference)
    scores = score_all(judge(server, num_asks=2, reference_column="best"), make_samples("21", "20", best="20"))
    assert values_of(scores) == [0.0, 1.0]
    assert len(server.requests) == 4


def test_the_judge_of_pairs_pays_the_share_of_wins(server: Endpoint):
    server.reply = verdicts(longer_wins)
    assert values_of(score_all(judge(server, "pairwise_judge"), make_samples("a", "bb", "ccc"))) == [0.0, 0.5, 1.0]
    server.requests.clear()
    score_all(judge(server, "pairwise_judge", num_rounds=1), make_samples("a", "bb", "ccc", "dddd"))
    assert len(server.requests) == 2 * 4  # Everybody meets two others, and each pair is shown in both orders.


def test_patience_is_an_option(server: Endpoint):
    def never(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        time.sleep(1.0)

    server.reply = never
    started = time.monotonic()
    [score] = score_all(judge(server, deadline_s=0.2), make_samples("21"))
    assert time.monotonic() - started < 0.9
    assert "no answer within 0.2 s" in str(score.error)


def test_a_run_is_paid_by_the_judge_that_its_recipe_names_however_long_a_batch_takes(
    server: Endpoint, tiny_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The deadlines of reward processes are shorter than one answer here: they are not for judges."""
    leave_out_slow_parts(monkeypatch)
    monkeypatch.setenv("JUDGE_KEY", KEY)

    def slow(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        time.sleep(0.05)
        verdict = "correct" if odd_length(passages_of(request)["SUBMITTED ANSWER"]) else "incorrect"
        says(json.dumps({"reason": "so", "verdict": verdict}))(handler, request)

    server.reply = slow
    options: dict[str, Any] = {"num_steps": 1, "evaluation__num_prompts": 2, "max_draws": 1, "reward__num_workers": 2}
    run = covey.train(
        model=str(tiny_directory),
        quiet=True,
        run__directory=str(tmp_path),
        run__name="judged",
        reward__name="judge",
        reward__options={"base_url": server.url, "model": "judge-1", "key_variable": "JUDGE_KEY"},
        reward__timeout_s=0.01,
        reward__batch_timeout_s=0.01,
        **(SMALL | options),
    )
    rows = read_rows(run.path / "rollouts" / "step-000001.parquet")
    assert [row["reward"] for row in rows] == [float(odd_length(row["completion"])) for row in rows]
    assert len({row["reward"] for row in rows}) == 2
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert not [file for file in run.path.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()]


@every_judge
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "m"}, r"the judge has no base_url; give the address of its endpoint"),
        ({"base_url": "http://localhost:8000/v1"}, r"the judge has no model; give the name"),
        ({"base_url": "localhost", "model": "m"}, r"base_url='localhost' is no address such as http"),
        (
            {"base_url": "http://localhost/v1", "model": "m", "key_variable": "NO_SUCH_KEY"},
            r"the environment variable NO_SUCH_KEY is not set",
        ),
        ({"key": "sk-1"}, r"'key' is no option of it; it has base_url, model, key_variable"),
        ({"answer_format": "xml"}, r"answer_format='xml' should be one of json_schema, json_object, text"),
        ({"deadline_s": "long"}, r"deadline_s='long' should be a number"),
        ({"base_url": "http://localhost/v1", "model": "m", "max_parallel": 0}, r"max_parallel=0: give at least 1"),
    ],
)
def test_options_that_make_no_judge_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any], said: str):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(CoveyError, match=rf"^reward\.name='{name}': .*{said}"):
        find_reward(name, key="reward.name", options=options)


def test_gold_that_compares_a_group_with_itself_is_refused(server: Endpoint):
    options = {"base_url": server.url, "model": "judge-1"}
    task = find_task("arithmetic", level="easy")
    with pytest.raises(CoveyError, match=r"^reward\.gold='pairwise_judge' compares .*reward\.gold_options\.reference_column"):
        make_rewarder(make_recipe({"reward": {"gold": "pairwise_judge", "gold_options": options}}), task)
    fixed = make_recipe({"reward": {"gold": "pairwise_judge", "gold_options": options | {"reference_column": "answer"}}})
    assert make_rewarder(fixed, task).gold is not None


def test_a_judge_can_be_named_by_a_task(server: Endpoint, tmp_path: Path):
    server.reply = verdicts(matches_reference)
    (tmp_path / "rows.jsonl").write_text('{"question": "Which city?", "answer": "Paris"}\n')
    options = {"path": str(tmp_path / "rows.jsonl"), "prompt_column": "question", "answer_column": "answer"}
    own = {"verifier": "judge", "verifier_options": {"base_url": server.url, "model": "judge-1"}}
    task = find_task("files", level="", options=options | own)
    assert server.requests == []  # No row is shown to the judge before training.
    [prompt] = task.train
    samples = [covey.Sample(prompt=prompt, completion=text, num_tokens=1, is_truncated=False) for text in ("Paris", "Rome")]
    assert values_of(score_all(task.proxy, samples)) == [1.0, 0.0]
