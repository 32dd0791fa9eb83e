"""`covey train` from the first line to the report: overrides, errors, names, stopping and going on."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest
from tests import processes
from tests.commands import SMALL, covey, covey_from_scratch, start_covey
from tests.digits import bits_of, num_timed_steps, weights_of
from tests.processes import Finished

from covey.config import load_recipe
from covey.monitor.run_directory import read_jsonl, read_rows

SECRET = "hf_thisMustNeverBeWrittenAnywhere"
SLOW_REWARD = """
import pathlib, time
def slow(completion):
    pathlib.Path("is-scoring").touch()
    time.sleep(60)
"""
FAILING_REWARD = """
def failing(completion, answer):
    return {}[answer]
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def trained(directory: Path) -> Finished:
    """A run in an interpreter of its own, with the result as JSON and a secret in the environment: runs/first."""
    return covey_from_scratch(
        *("train", "arithmetic", "--name", "first", "--json", *SMALL),
        directory=directory,
        environment={"HF_TOKEN": SECRET, "WANDB_API_KEY": SECRET},
    )


@pytest.fixture(scope="module")
def first(directory: Path, trained: Finished) -> Path:
    assert trained.code == 0, trained.err
    return directory / "runs" / "first"


# To the end


def test_the_result_is_one_json_document_alone_on_stdout(directory: Path, trained: Finished, first: Path) -> None:
    result = json.loads(trained.out)
    assert {key: result[key] for key in ("run", "is_finished", "model", "report")} == {
        "run": "runs/first",
        "is_finished": True,
        "model": "runs/first/checkpoints/step-000002",
        "report": "runs/first/report.html",
    }
    assert "held-out accuracy" in result["summary"].lower()
    assert result["evaluation"] == read_jsonl(first / "eval.jsonl")
    assert all((directory / result[key]).exists() for key in ("run", "model", "report"))


def test_overrides_reach_the_recipe_of_the_run(first: Path) -> None:
    recipe = load_recipe(first / "recipe.toml")
    assert (recipe.train.num_steps, recipe.train.group_size, recipe.evaluation.num_prompts) == (2, 4, 4)
    assert (recipe.model.name, recipe.run.name, recipe.task.name) == ("tiny", "first", "arithmetic")
    assert len((first / "metrics.jsonl").read_text().splitlines()) == 2


def test_no_secret_of_the_environment_is_written_anywhere(first: Path, trained: Finished) -> None:
    files = [path for path in first.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path.name for path in files if SECRET.encode() in path.read_bytes()] == []
    assert [path.name for path in files if path.suffix == ".parquet" and SECRET in repr(read_rows(path))] == []
    assert SECRET not in trained.out + trained.err


def test_all_files_of_a_run_are_private(first: Path) -> None:
    modes = {path.relative_to(first): path.stat().st_mode & 0o077 for path in [first, *first.rglob("*")]}
    assert {path: oct(mode) for path, mode in modes.items() if mode} == {}


def test_a_run_says_what_it_does_and_where_the_report_is(directory: Path) -> None:
    finished = covey("train", "arithmetic", "--name", "talking", *SMALL, directory=directory)
    assert finished.code == 0, finished.err
    lines = finished.out.splitlines()
    assert lines[0] == "run: runs/talking"
    assert any(line.startswith("model: tiny (random weights") for line in lines)
    assert any(line == "algorithm: GRPO (arXiv 2402.03300)" for line in lines)
    assert any(re.match(r"step 2/2\b", line) for line in lines)
    assert any(line.startswith("held-out") for line in lines)
    assert lines[-1] == "report: runs/talking/report.html"


def test_with_json_nothing_is_said_besides(trained: Finished) -> None:
    assert trained.err == ""


@pytest.fixture(scope="module")
def quiet(directory: Path) -> Finished:
    return covey("train", "arithmetic", "--name", "quiet", "--quiet", *SMALL, directory=directory)


def test_quiet_says_nothing_on_stdout(quiet: Finished) -> None:
    assert (quiet.code, quiet.out) == (0, "")


def test_quiet_says_nothing_on_stderr(quiet: Finished) -> None:
    assert quiet.err == ""


def test_the_recipe_of_a_run_is_a_recipe(directory: Path, first: Path) -> None:
    finished = covey("train", str(first / "recipe.toml"), "--name", "again", "--quiet", directory=directory)
    assert finished.code == 0, finished.err
    assert bits_of(directory / "runs" / "again") == bits_of(first)


# Wrong input

WRONG: dict[str, tuple[list[str], str]] = {
    "recipe": (["train", "arithmetics"], r"recipe 'arithmetics' is neither a \.toml file nor one that comes with Covey"),
    "recipe file": (["train", "nowhere.toml"], r"recipe nowhere\.toml does not exist"),
    "recipe text": (["train", "broken.toml"], r"recipe broken\.toml is not valid TOML"),
    "two recipes": (["train", "arithmetic", "other"], r"arithmetic, other: one recipe at a time"),
    "option": (["train", "arithmetic", "train.num_stps=2"], r"train\.num_stps: .* did you mean 'num_steps'\?"),
    "section": (["train", "arithmetic", "trian.num_steps=2"], r"trian: .* did you mean 'train'\?"),
    "form": (["train", "arithmetic", "num_steps=2"], r"'num_steps=2' is not of the form section\.key=value"),
    "value": (["train", "arithmetic", "train.num_steps=0"], r"train\.num_steps=0: .*greater than or equal to 1"),
    "type": (["train", "arithmetic", "train.learning_rate=fast"], r"train\.learning_rate='fast': .*number"),
    "group size": (["train", "arithmetic", "train.group_size=1"], r"train\.group_size=1: .* at least 2 completions"),
    "algorithm": (["train", "arithmetic", "algorithm.name=trpo"], r"algorithm\.name='trpo': no such .* one of grpo, dr_grpo"),
    "task": (
        ["train", "arithmetic", "--model", "tiny", "task.name=chess"],
        r"task\.name='chess' is not a task; choose one of arithmetic",
    ),
    "level": (
        ["train", "arithmetic", "--model", "tiny", "task.level=easiest"],
        r"task\.level='easiest' is not a level .* easy, medium, hard",
    ),
    "model": (
        ["train", "arithmetic", "--model", "./nowhere"],
        r"model\.name='\./nowhere' is neither a bundled model \(smollm2",
    ),
    "reward": (
        ["train", "arithmetic", "--model", "tiny", "reward.name=best"],
        r"reward\.name='best' is not a reward.*last_number",
    ),
    "reward module": (
        ["train", "arithmetic", "--model", "tiny", "reward.name=nowhere:f"],
        r"reward\.name='nowhere:f' could not be imported",
    ),
    "draws": (
        ["train", "train.max_draws=2", "train.drop_flat_groups=false"],
        r"train\.max_draws=2 with .* Set one of them back",
    ),
    "resume nothing": (["train", "--resume", "runs/nowhere"], r"runs/nowhere is not the directory of a run"),
    "resume and recipe": (["train", "arithmetic", "--resume", "runs/first"], r"none with --resume"),
    "resume with change": (
        ["train", "--resume", "runs/first", "train.learning_rate=1.0"],
        r"train\.learning_rate=1\.0: the run was started with \S+e-05\..*start a new run",
    ),
    "name taken": (["train", "arithmetic", "--name", "first"], r"runs/first is not empty: choose another name, or .* --resume"),
    "evaluate part": (["evaluate", "tiny", "--part", "all"], r"--part 'all' is none of choose, guard, test"),
    "evaluate task": (["evaluate", "tiny", "--task", "chess"], r"task.*'chess' is not a task"),
    "evaluate model": (["evaluate", "./nowhere"], r"'\./nowhere' is neither a bundled model"),
    "export nothing": (["export", "runs/nowhere", "mine"], r"runs/nowhere is not the directory of a run"),
    "report nothing": (["report", "runs/nowhere"], r"runs/nowhere is not the directory of a run"),
    "fetch nothing": (["fetch", "gpt-9"], r"no bundled model is called 'gpt-9': choose one of smollm2-135m, tiny"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_that_says_what_to_do(directory: Path, first: Path, case: str) -> None:
    (directory / "broken.toml").write_text("[train\n")
    arguments, message = WRONG[case]
    finished = covey(*arguments, directory=directory)
    assert finished.code == 2, finished
    errors = [line for line in finished.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0])
    assert "Traceback" not in finished.err + finished.out


def test_a_failing_reward_stops_with_its_traceback_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FAILING_REWARD)
    finished = covey("train", "arithmetic", "reward.name=mine:failing", *SMALL, directory=tmp_path)
    assert finished.code == 2
    assert "error: the reward could not score 8 of 8 completions" in finished.err
    assert finished.err.count("Traceback") == 1
    assert "mine.py" in finished.err
    assert re.search(r"KeyError: \d+", finished.err)


# Names


def test_without_a_name_the_run_is_called_like_the_recipe_and_numbered(directory: Path) -> None:
    for expected in ("arithmetic", "arithmetic-2"):
        finished = covey("train", "arithmetic", "--json", *SMALL, "train.num_steps=1", directory=directory)
        assert json.loads(finished.out)["run"] == f"runs/{expected}"
    assert weights_of(directory / "runs/arithmetic") == weights_of(directory / "runs/arithmetic-2")


def test_wrong_input_uses_up_no_name(tmp_path: Path) -> None:
    covey("train", "arithmetic", "--model", "./nowhere", directory=tmp_path)
    finished = covey("train", "arithmetic", "--json", *SMALL, "train.num_steps=1", directory=tmp_path)
    assert json.loads(finished.out)["run"] == "runs/arithmetic"


def test_a_taken_name_is_left_as_it_is(directory: Path, first: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    covey("train", "arithmetic", "--name", "first", *SMALL, directory=directory)
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before


# Stopping and going on

LONG = ["train", "arithmetic", *SMALL, "train.num_steps=1000", "checkpoint.every=0", "guard.enabled=false"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_to_go_on_and_then_does(directory: Path, number: signal.Signals) -> None:
    name = f"stopped-{number.name}"
    path = directory / "runs" / name
    running = start_covey(*LONG, "--name", name, directory=directory)
    processes.wait_for(lambda: num_timed_steps(path) > 2, running)
    running.send(number)
    stopped = running.finish()
    assert stopped.code == 75, stopped.err
    num_steps = read_jsonl(path / "metrics.jsonl")[-1]["step"]
    assert f"{number.name}: stopped after step {num_steps}" in stopped.out
    assert [checkpoint.name for checkpoint in path.glob("checkpoints/*")] == [f"step-{num_steps:06d}"]

    [how] = re.findall(r"To go on: covey (.*)", stopped.out)
    resumed = covey(*how.split(), f"train.num_steps={num_steps + 1}", "--json", directory=directory)
    assert resumed.code == 0, resumed.err
    assert json.loads(resumed.out)["is_finished"] is True
    assert [row["step"] for row in read_jsonl(path / "metrics.jsonl")] == list(range(1, num_steps + 2))


def test_a_stopped_run_is_valid_json_too(directory: Path) -> None:
    path = directory / "runs" / "stopped-json"
    running = start_covey(*LONG, "--name", "stopped-json", "--json", directory=directory)
    processes.wait_for(lambda: num_timed_steps(path) > 1, running)
    running.send(signal.SIGTERM)
    stopped = running.finish()
    assert stopped.code == 75
    assert json.loads(stopped.out)["is_finished"] is False


def test_the_second_ctrl_c_ends_at_once_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SLOW_REWARD)
    running = start_covey("train", "arithmetic", "reward.name=mine:slow", *SMALL, directory=tmp_path)
    processes.wait_for((tmp_path / "is-scoring").exists, running)
    running.send(signal.SIGINT)
    time.sleep(0.2)
    assert running.is_alive
    running.send(signal.SIGINT)
    started = time.monotonic()
    ended = running.finish()
    assert time.monotonic() - started < 5
    assert ended.code not in (0, 2, 75)
    assert "Traceback" not in ended.err
