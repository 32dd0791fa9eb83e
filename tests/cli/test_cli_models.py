"""The commands around training: fetch, evaluate, chat, export, report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.commands import SMALL, covey
from tests.digits import digest, newest

from covey.cli import split_arguments
from covey.monitor.progress import printable

FEW = ["--num-prompts", "8", "--max-new-tokens", "6"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a finished run, ./runs/first."""
    directory = tmp_path_factory.mktemp("cli-models")
    trained = covey("train", "arithmetic", "--name", "first", "--quiet", *SMALL, directory=directory)
    assert trained.code == 0, trained.err
    return directory


# fetch


def test_fetch_prepares_a_bundled_model_and_says_where_it_is(tmp_path: Path) -> None:
    home = {"COVEY_HOME": str(tmp_path / "home")}
    fetched = covey("fetch", "tiny", directory=tmp_path, environment=home)
    assert fetched.code == 0, fetched.err
    where, note = fetched.out.splitlines()
    assert Path(where.removeprefix("Tiny random Llama: ")) == tmp_path / "home" / "models" / "tiny-1"
    assert note.startswith("random weights")
    assert (tmp_path / "home" / "models" / "tiny-1" / "model.safetensors").is_file()


def test_fetching_again_changes_nothing_and_speaks_json(tmp_path: Path) -> None:
    home = {"COVEY_HOME": str(tmp_path / "home")}
    covey("fetch", "tiny", directory=tmp_path, environment=home)
    before = (tmp_path / "home" / "models" / "tiny-1" / "model.safetensors").stat().st_mtime_ns
    result = json.loads(covey("fetch", "tiny", "--json", directory=tmp_path, environment=home).out)
    assert set(result) == {"model", "path", "note"}
    assert (Path(result["path"]) / "model.safetensors").stat().st_mtime_ns == before


# evaluate


def test_evaluate_says_how_good_a_model_is_with_an_interval(directory: Path) -> None:
    finished = covey("evaluate", "tiny", *FEW, directory=directory)
    assert finished.code == 0, finished.err
    *examples, result = finished.out.splitlines()
    assert len(examples) == 5
    assert all(re.match(r"  (right|wrong)  What is \d+ [-+] \d+\?", example) for example in examples)
    assert re.fullmatch(
        r"tiny on arithmetic/easy, choose, greedy, 8 questions: gold 0\.000 \[\d\.\d{3}, \d\.\d{3}\], proxy 0\.000, "
        r"6\.0 tokens a completion",
        result,
    )
    assert "random weights" in finished.err


def test_evaluate_speaks_json_alone(directory: Path) -> None:
    finished = covey("evaluate", "tiny", "--json", "--part", "test", "--temperature", "1", *FEW, directory=directory)
    result = json.loads(finished.out)
    assert {key: result[key] for key in ("model", "task", "part", "mode", "num_prompts", "gold_gain")} == {
        "model": "tiny",
        "task": "arithmetic/easy",
        "part": "test",
        "mode": "sampled",
        "num_prompts": 8,
        "gold_gain": None,
    }


def test_several_samples_of_a_question_give_pass_at_k(directory: Path) -> None:
    several = ["--samples", "4", "--temperature", "1", "--json"]
    result = json.loads(covey("evaluate", "tiny", *several, *FEW, directory=directory).out)
    assert (result["num_prompts"], result["samples_per_prompt"]) == (8, 4)
    assert list(result["pass_at"]) == ["2", "4"]


def test_several_greedy_samples_are_refused(directory: Path) -> None:
    finished = covey("evaluate", "tiny", "--samples", "4", *FEW, directory=directory)
    assert finished.code == 2
    assert "give --temperature, too" in finished.err


def test_a_run_directory_is_evaluated_at_its_newest_checkpoint(directory: Path) -> None:
    run = json.loads(covey("evaluate", "runs/first", "--json", *FEW, directory=directory).out)
    checkpoint = json.loads(covey("evaluate", str(newest(directory / "runs/first")), "--json", *FEW, directory=directory).out)
    measured = run.keys() - {"model", "note"}
    assert {key: run[key] for key in measured} == {key: checkpoint[key] for key in measured}
    assert run["model"] == "runs/first"
    assert run["note"].startswith("trained from: ")


@pytest.mark.parametrize("command", [["evaluate", "tiny", *FEW], ["chat", "tiny", "--prompt", "one"]], ids=str)
def test_a_temperature_below_zero_is_refused(directory: Path, command: list[str]) -> None:
    """It would draw the least likely tokens most often, and look like a bad model."""
    finished = covey(*command, "--temperature", "-1", directory=directory)
    assert finished.code == 2
    assert "temperature" in finished.err


# chat


def test_chat_answers_each_prompt_with_one_answer(directory: Path) -> None:
    options = ["--max-new-tokens", "5"]
    both = covey("chat", "tiny", *options, "--prompt", "one", "--prompt", "two", directory=directory)
    assert both.code == 0, both.err
    alone = [covey("chat", "tiny", *options, "--prompt", text, directory=directory).out for text in ("one", "two")]
    assert both.out == "".join(alone)
    assert alone[0] != alone[1]


def test_chat_draws_with_the_seed(directory: Path) -> None:
    options = ["chat", "tiny", "--temperature", "1", "--max-new-tokens", "9", "--prompt", "one"]
    first, again, other = (covey(*options, "--seed", seed, directory=directory).out for seed in ("0", "0", "1"))
    assert first == again != other


def test_chat_reads_lines_until_an_empty_one(directory: Path) -> None:
    options = ["chat", "tiny", "--max-new-tokens", "5"]
    typed = covey(*options, directory=directory, stdin="one\ntwo\n\nthree\n")
    given = covey(*options, "--prompt", "one", "--prompt", "two", directory=directory)
    assert typed.code == 0, typed.err
    assert typed.out == given.out


def test_chat_ends_with_its_input(directory: Path) -> None:
    finished = covey("chat", "tiny", "--max-new-tokens", "5", directory=directory, stdin="one")
    assert finished.code == 0
    assert len(finished.out) > 0


def test_chat_takes_a_run_directory(directory: Path) -> None:
    finished = covey("chat", "runs/first", "--max-new-tokens", "5", "--prompt", "one", directory=directory)
    assert finished.code == 0, finished.err


def test_what_a_model_says_cannot_steer_the_terminal(directory: Path) -> None:
    """The tiny model draws from all 256 bytes: among 300 of them there are about 30 control characters."""
    options = ["--temperature", "1", "--max-new-tokens", "300"]
    for question in "abcdefgh":
        options += ["--prompt", question]
    out = covey("chat", "tiny", *options, directory=directory).out
    assert len(out) > 200
    assert [character for character in out if not character.isprintable() and character not in "\n\t"] == []


def test_printable_keeps_text_and_drops_what_is_no_text() -> None:
    assert printable("a\x1b[31mb\x07\r\x00\u202ec\n\td é 字") == "a[31mbc\n    d é 字"


def test_overrides_are_told_from_recipes_by_the_equals_sign() -> None:
    assert split_arguments(["arithmetic", "a.b=1", "c.d=x=y"]) == (["arithmetic"], ["a.b=1", "c.d=x=y"])


# export and report


def test_export_writes_the_model_and_prints_where(directory: Path) -> None:
    finished = covey("export", "runs/first", "models/mine", directory=directory)
    assert (finished.code, finished.out) == (0, "models/mine\n")
    exported = directory / "models" / "mine"
    assert digest(exported / "model.safetensors") == digest(newest(directory / "runs/first") / "model.safetensors")
    again = covey("export", "runs/first", "models/mine", directory=directory)
    assert again.code == 2
    assert "error: models/mine exists already" in again.err


def test_an_exported_model_is_a_model(directory: Path) -> None:
    covey("export", "runs/first", "exported", directory=directory)
    of_export, of_run = (
        covey("chat", model, "--max-new-tokens", "9", "--prompt", "one", directory=directory).out
        for model in ("./exported", "runs/first")
    )
    assert of_export == of_run


def test_report_is_written_anew(directory: Path) -> None:
    report = directory / "runs" / "first" / "report.html"
    report.unlink()
    finished = covey("report", "runs/first", directory=directory)
    assert (finished.code, finished.out) == (0, "runs/first/report.html\n")
    assert "<html" in report.read_text()
