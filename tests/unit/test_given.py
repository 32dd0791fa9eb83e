"""Completions that a file brings along are learnt from without sampling, in the same loop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.digits import leave_out_slow_parts, tiny_model

import covey
from covey.api import Run
from covey.monitor.run_directory import read_rows
from covey.tasks.given import demonstrations_task, preferences_task, words_of
from covey.types import CoveyError

QUESTIONS = [f"Say digits, {number}" for number in range(30)]
PAIRS = [{"prompt": question, "chosen": "123", "rejected": "xyz"} for question in QUESTIONS]
DEMONSTRATIONS = [{"prompt": question, "completion": "123"} for question in QUESTIONS]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("given")


@pytest.fixture(scope="module", autouse=True)
def _no_slow_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        leave_out_slow_parts(patch)
        yield


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def train_given(directory: Path, name: str, task: str, algorithm: str, **changes: Any) -> Run:
    rows = PAIRS if task == "preferences" else DEMONSTRATIONS
    arguments: dict[str, Any] = {
        "model": str(tiny_model(directory / "model")),
        "task__name": task,
        "task__path": str(written(directory / f"{task}.jsonl", rows)),
        "algorithm__name": algorithm,
        "group_size": 2 if task == "preferences" else 1,
        "prompts_per_step": 6,
        "num_steps": 6,
        "max_new_tokens": 8,
        "learning_rate": 3e-3,
        "warmup_steps": 0,
        "evaluation__every": 2,
        "compute_dtype": "float32",
        "num_threads": 1,
        "guard__enabled": False,
        "reward__num_workers": 0,
        "quiet": True,
        "run__directory": str(directory),
        "run__name": name,
    }
    return covey.train(**(arguments | changes))


@pytest.mark.parametrize("algorithm", ["dpo", "ipo"])
def test_pairs_are_learnt_and_so_are_pairs_that_were_held_out(directory: Path, algorithm: str) -> None:
    run = train_given(directory, algorithm, "preferences", algorithm)
    assert [row["tokens/generated"] for row in run.metrics] == [0] * 6
    assert run.metrics[0]["pair/accuracy"] == 0.5
    assert run.metrics[-1]["pair/accuracy"] == 1.0
    held_out = [row["held_out/margin"] for row in run.metrics if row.get("held_out/margin") is not None]
    assert len(held_out) == 3
    if algorithm == "dpo":
        assert held_out == sorted(held_out)  # IPO asks for a margin of 5 and may overshoot.
    assert run.metrics[-1]["held_out/accuracy"] == 1.0
    assert run.evaluation == []


def test_demonstrations_become_likelier_held_out_ones_too(directory: Path) -> None:
    run = train_given(directory, "sft", "demonstrations", "sft")
    found = [row["held_out/nll"] for row in run.metrics if row.get("held_out/nll") is not None]
    assert found[-1] < 0.5 * found[0]
    assert all(row["tokens/trained"] == 6 * 4 for row in run.metrics)  # "123" and the end token, byte by byte.


def test_the_completions_of_the_run_directory_are_those_of_the_file(directory: Path) -> None:
    run = train_given(directory, "rows", "preferences", "dpo", num_steps=1)
    rows = read_rows(run.path / "rollouts" / "step-000001.parquet")
    assert {(row["completion"], row["reward"]) for row in rows} == {("123", 1.0), ("xyz", 0.0)}


def test_a_run_on_given_data_resumes_to_the_same_bits(directory: Path) -> None:
    alone = train_given(directory, "whole", "preferences", "dpo", num_steps=4)
    train_given(directory, "parts", "preferences", "dpo", num_steps=2)
    resumed = covey.train(resume=directory / "parts", num_steps=4, quiet=True)
    assert resumed.metrics == alone.metrics


@pytest.mark.parametrize(
    ("task", "algorithm", "changes", "words"),
    [
        ("preferences", "grpo", {}, "Choose one of sft, dpo, ipo"),
        ("preferences", "dpo", {"group_size": 8}, "set train.group_size=2"),
        ("demonstrations", "sft", {"group_size": 4}, "set train.group_size=1"),
        ("preferences", "dpo", {"max_new_tokens": 3}, "set sampling.max_new_tokens=4"),
        ("preferences", "dpo", {"max_generated_tokens": 100}, "nothing is generated"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(directory: Path, task: str, algorithm: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CoveyError, match=words):
        train_given(directory, "refused", task, algorithm, **changes)
    assert not (directory / "refused").exists()


def test_a_prompt_that_comes_several_times_is_on_one_side(tmp_path: Path) -> None:
    twice = written(tmp_path / "twice.jsonl", [row | {"rejected": bad} for row in PAIRS for bad in ("abc", "def")])
    task = preferences_task({"path": str(twice)})
    train, held_out = ({words_of(prompt) for prompt in prompts} for prompts in (task.train, task.held_out["choose"]))
    assert not train & held_out
    assert len(held_out) == 6
    assert len(task.train) == 48
    assert len({prompt.prompt_id for prompt in [*task.train, *task.held_out["choose"]]}) == 60
    task.check()


def test_a_file_of_its_own_is_held_out_less_what_is_trained_on(tmp_path: Path) -> None:
    train, held_out = written(tmp_path / "train.jsonl", PAIRS[:20]), written(tmp_path / "held.jsonl", PAIRS[15:])
    task = preferences_task({"path": str(train), "held_out_path": str(held_out)})
    assert (len(task.train), len(task.held_out["choose"])) == (20, 10)
    task.check()


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "response": "a"},
        {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    ],
    ids=str,
)
def test_a_demonstration_has_several_forms(tmp_path: Path, row: dict[str, Any]) -> None:
    task = demonstrations_task({"path": str(written(tmp_path / "rows.jsonl", [row]))})
    assert [(prompt.text, prompt.given) for prompt in task.train] == [("q", (("a", 1.0),))]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "q"}, "it has no 'completion'"),
        ({"prompt": "", "completion": "a"}, "its 'prompt' is empty"),
        ({"prompt": "q", "completion": " "}, "its answer is empty"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "it has no question before its answer"),
    ],
    ids=str,
)
def test_a_bad_demonstration_is_named_by_file_and_line(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    path = written(tmp_path / "rows.jsonl", [DEMONSTRATIONS[0], row])
    with pytest.raises(CoveyError, match=f"rows.jsonl:2: {words}"):
        demonstrations_task({"path": str(path)})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "needs task.path"),
        ({"path": "x", "verifier": "math"}, "task.verifier is no option"),
        ({"path": "no.jsonl"}, "no file"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(CoveyError, match=words):
        demonstrations_task(options)
