"""A reward model trained by a recipe: its schema, what the run leaves behind, the same bits again, and what is refused."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import math
import os
import signal
import tomllib
from pathlib import Path
from typing import Any

import pytest

from covey.algos.registry import ALGORITHMS, PAIR_ALGORITHMS
from covey.config import ConfigError
from covey.models.reward_model import load_reward_model, new_reward_model
from covey.models.reward_model_fit import FitSpec, fit_reward_model
from covey.monitor.console import QuietConsole, open_console
from covey.monitor.run_directory import read_jsonl
from covey.pairs_recipe import explain_row, load_pairs_recipe, make_pairs_recipe, pair_row
from covey.pairs_train import ACCURACY_KEYS, LOOPS, STEP_KEYS, prepare_pairs_run, summary_line, train_on_pairs
from covey.rewards.preference_pairs import read_preference_pairs
from covey.stats import Interval
from covey.types import CoveyError, Message

BT = {"name": "bt"}
WIDE, HIGH, LOW = (
    Interval(mean=0.5, low=0.3, high=0.7),
    Interval(mean=0.9, low=0.7, high=0.98),
    Interval(mean=0.1, low=0.02, high=0.3),
)


def write_pairs(path: Path, count: int = 64) -> Path:
    """Write pairs of which the chosen answer has a 7 where the rejected one has a 2."""
    rows = [{"prompt": f"Question {number}", "chosen": f"{number} x7", "rejected": f"{number} x2"} for number in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with `pairs.jsonl` in it and a recipe that learns it in two seconds."""
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "pairs.jsonl")
    return tmp_path


@pytest.fixture
def quick(directory: Path, tiny_directory: Path) -> str:
    """The path of a recipe that learns the pairs."""
    (directory / "quick.toml").write_text(
        f"[run]\nnum_threads = 1\n[model]\nname = '{tiny_directory}'\n[algorithm]\nname = 'bt'\n"
        "[pairs]\npath = 'pairs.jsonl'\nheld_out_frac = 0.25\n"
        "[train]\nnum_epochs = 3\nbatch_size = 8\nmicro_batch_size = 8\nlearning_rate = 2e-3\n"
    )
    return "quick.toml"


def trained(recipe: str, *overrides: str) -> tuple[Path, str]:
    """Train without a word, and return the run's path and summary."""
    prepared = prepare_pairs_run(recipe, overrides)
    assert prepared is not None
    run, resolved = prepared
    return run.path, train_on_pairs(resolved, run, open_console(quiet=True))


# --- the schema ----------------------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_fit():
    assert make_pairs_recipe({"algorithm": BT, "pairs": {"path": "p"}}).fit == FitSpec()


def test_every_number_of_the_recipe_reaches_the_fit():
    values: dict[str, Any] = {"num_epochs": 2, "batch_size": 3, "micro_batch_size": 1, "learning_rate": 0.5}
    values |= {"warmup_frac": 0.3, "weight_decay": 0.01, "max_grad_norm": 2.0}
    recipe = make_pairs_recipe(
        {"algorithm": BT, "pairs": {"path": "p", "held_out_frac": 0.2}, "train": values, "run": {"seed": 9}}
    )
    assert recipe.fit == FitSpec(**values, held_out_frac=0.2, seed=9)


def test_a_recipe_written_as_toml_reads_back_equal():
    recipe = make_pairs_recipe({"algorithm": BT, "pairs": {"path": "a b\n.jsonl"}, "train": {"learning_rate": 1e-7}})
    assert make_pairs_recipe(tomllib.loads(recipe.to_toml())) == recipe


@pytest.mark.parametrize(
    ("file", "overrides", "row"),
    [
        ("[algorithm]\nname = 'bt'", [], "bt"),
        ("[algorithm]\nname = 'grpo'", [], None),
        ("[algorithm]\nname = 'grpo'", ["algorithm.name=bt"], "bt"),
        ("[algorithm]\nname = 'bt'", ["algorithm.name=dapo"], None),
        (None, ["algorithm.name=dapo", "algorithm.name=bt"], "bt"),
        (None, [], None),
        ("algorithm = 3", [], None),
        ("[algorithm]\nname = ['bt']", [], None),
        ("[algorithm", [], None),
    ],
)
def test_the_row_is_read_from_the_file_and_the_last_override(file: str | None, overrides: list[str], row: str | None):
    if file is not None:
        Path("r.toml").write_text(file)
    assert pair_row(Path("r.toml") if file is not None else None, overrides) == row


@pytest.mark.parametrize("key", ["sampling.temperature=0.5", "reward.name=exact", "guard.enabled=false", "task.level=easy"])
def test_a_section_of_other_rows_is_refused_as_theirs(key: str):
    with pytest.raises(ConfigError, match=rf"^{key.partition('.')[0]}: rows that learn from pairs \(bt\) sample nothing"):
        load_pairs_recipe(None, ["algorithm.name=bt", "pairs.path=p", key])


@pytest.mark.parametrize("key", ["train.group_size", "algorithm.epsilon_low", "run.sinks", "model.trust_remote_code"])
def test_an_option_of_other_rows_is_refused_as_theirs(key: str):
    with pytest.raises(ConfigError, match=rf"^{key}: rows that learn from pairs"):
        load_pairs_recipe(None, ["algorithm.name=bt", "pairs.path=p", f"{key}=1"])


def test_all_options_of_other_rows_are_refused_in_one_line():
    with pytest.raises(ConfigError) as refused:
        load_pairs_recipe(None, ["algorithm.name=bt", "pairs.path=p", "task.level=easy", "train.group_size=4"])
    assert str(refused.value).startswith("train.group_size, task: rows that learn")
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["pairs.path=p", "train.num_epoch=2"], r"^train\.num_epoch: there is no such option; did you mean 'num_epochs'\?$"),
        (["pairs.path=p", "pair.path=2"], r"^pair: there is no such option; did you mean 'pairs'\?$"),
        (["pairs.path=p", "train.zzz=2"], r"known here: num_epochs, batch_size, micro_batch_size"),
        ([], r"^pairs\.path is missing: JSONL file with prompt, chosen and rejected"),
        (['pairs.path=""'], r"^pairs\.path='': .* at least 1 character"),
        (["pairs.path=p", "pairs.held_out_frac=1"], r"^pairs\.held_out_frac=1: .*less than 1"),
        (["pairs.path=p", "train.batch_size=0"], r"^train\.batch_size=0: .*greater than or equal to 1"),
        (["pairs.path=p", "train.learning_rate=0"], r"^train\.learning_rate=0: .*greater than 0"),
        (["pairs.path=p", "train.num_epochs=true"], r"^train\.num_epochs=True: true and false are no numbers"),
        (["pairs.path=p", "model.compute_dtype=fp8"], r"^model\.compute_dtype='fp8': .*'bfloat16'"),
    ],
)
def test_a_wrong_option_is_refused_with_what_to_do(overrides: list[str], said: str):
    with pytest.raises(ConfigError, match=said):
        load_pairs_recipe(None, ["algorithm.name=bt", *overrides])


def test_a_row_that_learns_from_rewards_is_no_row_of_these_recipes():
    with pytest.raises(ConfigError, match=r"^algorithm\.name='dapo': no such row learns from pairs; choose one of bt$"):
        make_pairs_recipe({"algorithm": {"name": "dapo"}, "pairs": {"path": "p"}})


@pytest.mark.parametrize(("content", "said"), [(None, r"does not exist"), (b"[pairs", "is not valid TOML"), (b"\xff", "TOML")])
def test_a_file_that_cannot_be_read_is_refused_by_its_path(content: bytes | None, said: str):
    if content is not None:
        Path("bad.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^recipe bad\.toml .*{said}"):
        load_pairs_recipe(Path("bad.toml"), ["algorithm.name=bt"])


# --- the table -----------------------------------------------------------------------------------------------------------


def test_no_name_is_in_both_tables():
    assert not set(PAIR_ALGORITHMS) & set(ALGORITHMS)


def test_there_is_a_loop_for_every_row():
    assert {spec.trains for spec in PAIR_ALGORITHMS.values()} == set(LOOPS)


def test_a_row_is_explained_with_the_numbers_of_a_recipe():
    row = explain_row("bt", None, ["train.batch_size=5"])
    assert row["formula"][-1] == "L = mean of l over the 5 pairs of a step"
    assert row["options"] == {"pairs.path": "pairs.jsonl", "pairs.held_out_frac": 0.1} | {
        "train.num_epochs": 1,
        "train.batch_size": 5,
        "train.micro_batch_size": 4,
        "train.learning_rate": 1e-5,
        "train.warmup_frac": 0.05,
        "train.weight_decay": 0.0,
        "train.max_grad_norm": 1.0,
    }


# --- the run -------------------------------------------------------------------------------------------------------------


def test_a_preference_that_can_be_seen_is_learnt_and_the_model_scores_by_it(quick: str):
    path, summary = trained(quick)
    before, after = read_jsonl(path / "eval.jsonl")
    assert (before["accuracy_mean"], before["num_pairs"], before["num_prompts"]) == (0.5, 16, 16)
    assert after["accuracy_mean"] > 0.9
    assert summary.startswith(f"held-out accuracy {after['accuracy_mean']:.3f} [")
    model = load_reward_model(str(path / "model"))
    high, low = model.score([((Message(role="user", content="Question 900"),), f"900 x{digit}") for digit in (7, 2)])
    assert high is not None
    assert low is not None
    assert high > low


def test_what_is_logged_is_what_the_fit_reports(quick: str, tiny_directory: Path):
    path, _ = trained(quick)
    spec = load_pairs_recipe(path / "recipe.toml").fit
    report = fit_reward_model(new_reward_model(str(tiny_directory)), read_preference_pairs("pairs.jsonl"), spec)
    steps, rows = read_jsonl(path / "metrics.jsonl"), read_jsonl(path / "eval.jsonl")
    assert [step["loss/value"] for step in steps] == pytest.approx(report.losses, abs=1e-6)
    assert [step["step"] for step in steps] == list(range(1, 19))
    assert steps[0]["loss/value"] == pytest.approx(math.log(2), abs=1e-6)
    assert (steps[-1]["optimizer/lr"], max(step["optimizer/lr"] for step in steps)) == (pytest.approx(2e-3 / 17.1), 2e-3)
    assert all(step["grad/norm"] > 0 for step in steps)
    assert [row["accuracy_mean"] for row in rows] == [report.accuracy_before.mean, report.accuracy.mean]
    assert [(row["step"], row["part"]) for row in rows] == [(0, "held_out"), (18, "held_out")]
    assert {tuple(step) for step in steps} == {STEP_KEYS}
    assert {tuple(row) for row in rows} == {ACCURACY_KEYS}


def test_the_same_seed_gives_the_same_bits_and_another_does_not(quick: str):
    def bits(*overrides: str) -> tuple[str, str, str]:
        path, _ = trained(quick, "train.num_epochs=1", *overrides)
        weights = hashlib.sha256((path / "model" / "model.safetensors").read_bytes()).hexdigest()
        return weights, (path / "metrics.jsonl").read_text(), (path / "eval.jsonl").read_text()

    first = bits()
    assert bits() == first
    assert bits("run.seed=1")[0] != first[0]


def test_the_recipe_of_a_run_is_a_recipe_and_says_what_was_resolved(quick: str):
    path, _ = trained(quick, "train.num_epochs=1")
    recipe = load_pairs_recipe(path / "recipe.toml")
    assert (recipe.run.name, recipe.train.num_epochs, recipe.train.weight_decay) == ("quick", 1, 0.0)
    assert trained(str(path / "recipe.toml"), "run.name=again")[0] == Path("runs/again")


def test_the_environment_names_the_machine_the_model_and_the_pairs(quick: str, tiny_directory: Path):
    path, _ = trained(quick, "train.num_epochs=1")
    env = json.loads((path / "env.json").read_text())
    assert env["pairs"] == {
        "path": "pairs.jsonl",
        "sha256": hashlib.sha256(Path("pairs.jsonl").read_bytes()).hexdigest(),
        "num_train_pairs": 48,
        "num_held_out_pairs": 16,
    }
    assert env["model"]["sha256"] == new_reward_model(str(tiny_directory)).identity.sha256
    assert (env["algorithm"], env["num_threads"], env["compute_dtype"]) == ("bt", 1, "float32")
    assert env["formula"].startswith("l = -log sigmoid(s(x, chosen) - s(x, rejected) - margin)")
    assert env["machine"]["num_cores"] >= 1
    assert env["versions"]["torch"] == importlib.metadata.version("torch")  # torch's own name of it has the build.


def test_all_files_of_a_run_are_private_and_none_is_left_over(quick: str):
    path, _ = trained(quick, "train.num_epochs=1")
    assert {file: oct(file.stat().st_mode & 0o077) for file in [path, *path.rglob("*")] if file.stat().st_mode & 0o077} == {}
    names = {file.name for file in path.iterdir()}
    assert names == {"recipe.toml", "env.json", "metrics.jsonl", "eval.jsonl", "model", ".lock"}


def test_without_held_out_pairs_no_accuracy_is_claimed(quick: str):
    path, summary = trained(quick, "pairs.held_out_frac=0", "train.num_epochs=1")
    assert read_jsonl(path / "eval.jsonl") == []
    assert summary == "trained on 64 pairs; none were held out, so nothing is known of the model's accuracy"


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (HIGH, "on 10 pairs; trained on 90"),
        (WIDE, "trained on 90. It is not distinguishable from chance, 0.5"),
        (LOW, "trained on 90. It is worse than chance, 0.5: are chosen and rejected swapped?"),
    ],
)
def test_the_summary_says_what_the_interval_allows(after: Interval, said: str):
    line = summary_line(WIDE, after, num_train=90, num_held_out=10)
    assert line.startswith(
        f"held-out accuracy {after.mean:.3f} [{after.low:.3f}, {after.high:.3f}], before 0.500 [0.300, 0.700]"
    )
    assert line.endswith(said)


# --- what is refused -----------------------------------------------------------------------------------------------------


def test_a_taken_directory_is_left_as_it_is(quick: str):
    path, _ = trained(quick, "run.name=mine", "train.num_epochs=1")
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    with pytest.raises(CoveyError, match=r"^runs/mine is not empty: choose another name"):
        trained(quick, "run.name=mine")
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_without_a_name_runs_are_numbered(quick: str):
    paths = [trained(quick, "train.num_epochs=1", "train.batch_size=64")[0] for _ in range(2)]
    assert paths == [Path("runs/quick"), Path("runs/quick-2")]


def test_a_run_on_pairs_is_not_resumed(quick: str):
    path, _ = trained(quick, "train.num_epochs=1")
    with pytest.raises(CoveyError, match=r"^runs/quick is a run of 'bt': .* covey train runs/quick/recipe\.toml --name NAME"):
        prepare_pairs_run(None, resume=path)


def test_other_rows_and_other_runs_are_left_to_others(directory: Path):
    (directory / "recipe.toml").write_text("[algorithm]\nname = 'dapo'\n")
    assert prepare_pairs_run(None) is None
    assert prepare_pairs_run("arithmetic") is None
    assert prepare_pairs_run(None, ["algorithm.name=bt"], resume=directory) is None


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("pairs.path=nowhere.jsonl", r"there is no file 'nowhere\.jsonl' with preference pairs"),
        ("pairs.path=bad.jsonl", r"bad\.jsonl:1: it has no 'rejected'"),
        ("pairs.path=one.jsonl", r"there are pairs for 1 prompts; with held_out_frac=0\.25 none is left to train on"),
        ("model.name=./nowhere", r"reward model='\./nowhere' is neither a bundled model"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_written(quick: str, override: str, said: str):
    Path("bad.jsonl").write_text('{"prompt": "a", "chosen": "b"}\n')
    write_pairs(Path("one.jsonl"), 1)
    with pytest.raises(CoveyError, match=said):
        trained(quick, override)
    assert not Path("runs").exists()


def test_several_processes_are_refused(quick: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CoveyError, match="trains in one process; start it without torchrun"):
        trained(quick)
    assert not Path("runs").exists()


class Signalling(QuietConsole):
    """A console that stops the run from within, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        super().__init__(io.StringIO())
        self._signals_at = step

    def phase(self, name: str, done: int, total: int) -> None:
        if done == self._signals_at:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_stopped_run_keeps_its_log_and_claims_no_model(quick: str):
    prepared = prepare_pairs_run(quick)
    assert prepared is not None
    run, recipe = prepared
    with pytest.raises(CoveyError, match=r"^SIGTERM: stopped after step 5 of 18\. No model was written"):
        train_on_pairs(recipe, run, Signalling(5))
    assert [row["step"] for row in read_jsonl(run.metrics)] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in read_jsonl(run.eval)] == [0]
    assert [event["kind"] for event in read_jsonl(run.events)] == ["interrupted"]
    assert not (run.path / "model").exists()


def test_a_signal_in_the_last_step_loses_nothing(quick: str):
    prepared = prepare_pairs_run(quick)
    assert prepared is not None
    run, recipe = prepared
    train_on_pairs(recipe, run, Signalling(18))
    assert (run.path / "model" / "model.safetensors").is_file()
