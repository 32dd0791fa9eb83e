"""Logs of other trainers, written here in the shapes that they write them in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from covey.cli import app
from covey.guard.foreign import read_log
from covey.types import CoveyError


def trl_log(directory: Path, *, steps: int = 2) -> Path:
    for step in range(1, steps + 1):
        rows = [
            {
                "step": step,
                "prompt": [{"role": "user", "content": f"What is {number // 2} + 1?"}],
                "completion": [{"role": "assistant", "content": "x" * (number + 1)}],
                "format_reward": float(number % 2),
                "accuracy_reward": 0.25 * number,
                "advantage": 0.0,
            }
            for number in range(4)
        ]
        path = directory / "completions" / f"completions_{step:05d}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
    return directory


def verl_log(directory: Path) -> Path:
    directory.mkdir()
    for step in (1, 2, 10):
        rows = [
            {
                "input": f"question {number}",
                "output": "four",
                "gts": "4",
                "score": 2.0 * number - 1,
                "step": step,
                "acc": number == 1,
            }
            for number in (0, 1)
        ]
        (directory / f"{step}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def test_a_log_of_trl_becomes_steps(tmp_path: Path):
    history = read_log(trl_log(tmp_path), trainer="trl", proxy="format_reward", gold="accuracy_reward")
    assert [step.step for step in history.steps] == [1, 2]
    answers = history.steps[0].answers
    assert answers.proxy.tolist() == [0.0, 1.0, 0.0, 1.0]
    assert answers.gold.tolist() == [0.0, 0.25, 0.5, 0.75]
    assert len(set(answers.prompt_ids)) == 2
    assert history.group_size == 2


def test_a_log_of_verl_becomes_steps_in_the_order_of_their_numbers(tmp_path: Path):
    history = read_log(verl_log(tmp_path / "log"), trainer="verl", gold="acc")
    assert [step.step for step in history.steps] == [1, 2, 10]
    assert history.steps[0].answers.proxy.tolist() == [0.0, 1.0]  # From -1 and 1, the lowest and highest that were logged.
    assert history.steps[0].answers.gold.tolist() == [0.0, 1.0]


def test_the_range_of_the_reward_may_be_given(tmp_path: Path):
    history = read_log(verl_log(tmp_path / "log"), trainer="verl", gold="acc", reward_range=(-1.0, 3.0))
    assert history.steps[0].answers.proxy.tolist() == [0.0, 0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gold": "accuracy_reward"}, "--proxy; there are accuracy_reward, format_reward"),
        ({"gold": "truth", "proxy": "format_reward"}, "--gold 'truth' is no column"),
        ({"gold": "accuracy_reward", "proxy": "advantage"}, "always is 0.0"),
        ({"gold": "completion", "proxy": "format_reward"}, "name a column of numbers"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, options: dict[str, Any], message: str):
    with pytest.raises(CoveyError, match=message):
        read_log(trl_log(tmp_path), trainer="trl", **options)


def test_a_directory_without_a_log_is_refused(tmp_path: Path):
    with pytest.raises(CoveyError, match=r"holds no completions_\*\.parquet"):
        read_log(tmp_path, trainer="trl", gold="a", proxy="b")


def test_the_command_replays_a_log(tmp_path: Path):
    words = ["guard", str(trl_log(tmp_path)), "--trainer", "trl", "--proxy", "format_reward", "--gold", "accuracy_reward"]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"num_steps": 2, "num_looks": 0, "findings": []}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainer", "nemo"], "choose one of covey, trl, verl"),
        (["--trainer", "trl"], "without one the guard is blind"),
        (["--gold", "a"], "give --trainer, too"),
        (["--low", "0"], "give both --low and --high"),
    ],
)
def test_the_command_says_what_is_missing(tmp_path: Path, words: list[str], message: str):
    result = CliRunner().invoke(app, ["guard", str(tmp_path), *words])
    assert isinstance(result.exception, CoveyError)
    assert message in str(result.exception)
