"""`covey train` and its neighbours for rows that learn from pairs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.commands import covey
from tests.processes import Finished

from covey.monitor.run_directory import read_jsonl

QUICK = ["--model", "tiny", "run.num_threads=1", "pairs.held_out_frac=0.25", "train.num_epochs=3", "train.batch_size=8"]
QUICK += ["train.micro_batch_size=8", "train.learning_rate=2e-3"]


def write_pairs(path: Path) -> None:
    """Write 64 pairs of which the chosen answer has a 7 where the rejected one has a 2."""
    rows = [{"prompt": f"Question {number}", "chosen": f"{number} x7", "rejected": f"{number} x2"} for number in range(64)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs")
    write_pairs(path / "pairs.jsonl")
    return path


@pytest.fixture(scope="module")
def first(directory: Path) -> Finished:
    """A run of the recipe that comes with Covey, with the result as JSON: runs/first."""
    return covey("train", "reward_model", "--name", "first", "--json", *QUICK, directory=directory)


def test_the_result_is_one_json_document_alone_on_stdout(directory: Path, first: Finished) -> None:
    assert first.code == 0, first.err
    result = json.loads(first.out)
    assert {key: result[key] for key in ("run", "model")} == {"run": "runs/first", "model": "runs/first/model"}
    assert result["evaluation"] == read_jsonl(directory / "runs/first/eval.jsonl")
    assert result["evaluation"][-1]["accuracy_mean"] > 0.9
    assert result["summary"].startswith(f"held-out accuracy {result['evaluation'][-1]['accuracy_mean']:.3f} [")
    assert (directory / result["model"] / "model.safetensors").is_file()
    assert first.err == ""


def test_a_run_says_what_it_does_and_where_the_model_is(directory: Path) -> None:
    finished = covey("train", "reward_model", "--name", "talking", *QUICK, directory=directory)
    assert finished.code == 0, finished.err
    lines = finished.out.splitlines()
    assert lines[0] == "run: runs/talking"
    assert lines[1].startswith("model: tiny (random weights")
    assert lines[2] == "algorithm: Bradley-Terry reward model (Bradley and Terry 1952)"
    assert "pairs: 48 to train on, 16 held out" in lines
    assert any(re.match(r"step 18/18: loss 0\.\d{4}", line) for line in lines)
    assert re.match(r"held-out accuracy \d\.\d{3} \[.*\], before 0\.500 \[.*\], on 16 pairs; trained on 48", lines[-2])
    assert lines[-1] == "model: runs/talking/model"


def test_an_override_alone_chooses_the_row(directory: Path) -> None:
    finished = covey("train", "algorithm.name=bt", "pairs.path=pairs.jsonl", "--quiet", *QUICK, directory=directory)
    assert (finished.code, finished.out, finished.err) == (0, "", "")
    assert (directory / "runs/run/model/model.safetensors").is_file()


WRONG: dict[str, tuple[list[str], str]] = {
    "a recipe of rewards": (
        ["train", "arithmetic", "algorithm.name=bt"],
        r"train\.num_steps, .*task, .*sampling.*: rows that learn from pairs \(bt\) sample nothing",
    ),
    "a foreign section": (["train", "reward_model", "reward.name=exact"], r"reward: rows that learn from pairs"),
    "no recipe": (["train", "nowhere.toml", "algorithm.name=bt"], r"recipe nowhere\.toml does not exist"),
    "no file": (["train", "reward_model", "pairs.path=nowhere.jsonl", *QUICK], r"there is no file 'nowhere\.jsonl'"),
    "profile": (["train", "reward_model", "--profile"], r"--profile: a run of 'bt' has no phases to measure"),
    "name taken": (["train", "reward_model", "--name", "first"], r"runs/first is not empty: choose another name"),
    "resume": (["train", "--resume", "runs/first"], r"runs/first is a run of 'bt': .* --name NAME; runs/first stays as it is"),
    "report": (["report", "runs/first"], r"runs/first has learnt from pairs and has no report: its model is runs/first/model"),
    "export": (["export", "runs/first", "mine"], r"runs/first has learnt from pairs and has no checkpoint to export"),
    "explain": (["algorithms", "bt", "arithmetic"], r"rows that learn from pairs \(bt\) sample nothing"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_error_that_says_what_to_do(directory: Path, first: Finished, case: str) -> None:
    assert first.code == 0, first.err
    arguments, message = WRONG[case]
    finished = covey(*arguments, directory=directory)
    assert finished.code == 2, finished
    assert len([line for line in finished.err.splitlines() if line.startswith("error: ")]) == 1
    assert re.search(message, finished.err)
    assert "Traceback" not in finished.err + finished.out


def test_a_row_is_printed_with_the_numbers_of_a_recipe(directory: Path) -> None:
    finished = covey("algorithms", "bt", "reward_model", "train.batch_size=7", directory=directory)
    assert finished.code == 0, finished.err
    lines = finished.out.splitlines()
    assert lines[0] == "Bradley-Terry reward model (Bradley and Terry 1952)"
    assert lines[3] == "  L = mean of l over the 7 pairs of a step"
    assert "train.learning_rate = 1e-05" in lines


def test_a_row_is_printed_as_json_on_request(directory: Path) -> None:
    printed = json.loads(covey("algorithms", "bt", "--json", directory=directory).out)
    assert printed["name"] == "bt"
    assert printed["formula"][0].startswith("l = -log sigmoid(")
    assert printed["options"]["train.num_epochs"] == 1
