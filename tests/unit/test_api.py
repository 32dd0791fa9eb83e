"""Covey from Python: one's own prompts and functions in, a run out; what is wrong is named before anything is written."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.digits import (
    HELD_OUT,
    SMALL,
    digest,
    digit_share,
    leave_out_slow_parts,
    resume_digits,
    stop_at,
    tiny_model,
    train_digits,
    weights_of,
)

import covey
from covey.api import Run, place_option, plan_lines
from covey.config import Recipe
from covey.monitor.run_directory import RunDirectory, read_rows
from covey.rewards.base import FunctionReward, Sample
from covey.rewards.registry import REWARDS
from covey.tasks.from_python import PromptLike, make_prompt, task_of_prompts
from covey.types import CoveyError, Message, Prompt, Score

QUESTIONS = [f"Say digits, {number}" for number in range(30)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("api")
    tiny_model(directory / "model")
    return directory


@pytest.fixture(autouse=True)
def _here(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_slow_parts(monkeypatch)
    monkeypatch.chdir(directory)


def train(**arguments: Any) -> Run:
    """Train for one step on the tiny model, in ./runs."""
    given: dict[str, Any] = {"model": "model", "quiet": True} | options(**arguments)
    return covey.train(**given)


def options(**changes: Any) -> dict[str, Any]:
    """Return the options of a short run, with changes."""
    return SMALL | {"num_steps": 1} | changes


def runs() -> list[str]:
    return sorted(os.listdir("runs")) if Path("runs").exists() else []


# A run in five lines


def test_five_lines_train_a_model(directory: Path) -> None:
    def my_reward(completion: str, answer: int) -> float:
        return completion.count(str(answer)) / 8

    prompts = [{"prompt": f"Say the digit {digit}, time {time}", "answer": digit} for digit in range(10) for time in range(3)]
    run = covey.train(model="model", prompts=prompts, reward=my_reward, quiet=True, **options(num_steps=2))

    assert isinstance(run, covey.Run)
    assert run.path == Path("runs/run")
    assert [row["step"] for row in run.metrics] == [1, 2]
    assert {(row["step"], row["part"]) for row in run.evaluation} == {(0, "choose"), (0, "test"), (2, "choose"), (2, "test")}
    assert run.model_path == Path("runs/run/checkpoints/step-000002")
    assert "flying blind" in run.summary


def test_prompts_may_be_texts_mappings_or_prompts_mixed_and_lazy() -> None:
    seen: list[tuple[str, Any]] = []

    def reward(prompt: str, answer: Any, completion: str) -> float:
        seen.append((prompt, answer))
        return digit_share(completion)

    def prompts() -> Any:
        yield "one"
        yield {"prompt": "two", "answer": 2}
        yield {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "three"}], "answer": [3]}
        yield Prompt(prompt_id="four", messages=(Message(role="user", content="four"),), answer=4.0)

    run = train(prompts=prompts(), held_out=["five"], reward=reward, prompts_per_step=4)
    rows = read_rows(run.path / "rollouts" / "step-000001.parquet")
    assert {(row["question"], row["answer"]) for row in rows} == {
        ("one", "None"),
        ("two", "2"),
        ("three", "[3]"),
        ("four", "4.0"),
    }
    assert {question for question, _ in seen} == {"one", "two", "three", "four", "five"}
    assert ("three", [3]) in seen


def test_the_reward_gets_the_arguments_that_it_names() -> None:
    samples: list[Sample] = []

    def by_sample(sample: Sample, weight: float = 0.5, *rest: Any, **options: Any) -> Score:
        samples.append(sample)
        return Score(value=weight * digit_share(sample.completion), extracted="x")

    run = train(prompts=QUESTIONS, reward=by_sample)
    rows = read_rows(run.path / "rollouts" / "step-000001.parquet")
    assert {row["extracted"] for row in rows} == {"x"}
    assert max(row["reward"] for row in rows) <= 0.5
    assert {sample.is_truncated for sample in samples if sample.num_tokens < SMALL["max_new_tokens"]} <= {False}


def test_gold_is_measured_and_never_optimised(directory: Path) -> None:
    run = train(prompts=QUESTIONS, reward=digit_share, gold=lambda completion: len(completion) > 7)
    rows = read_rows(run.path / "rollouts" / "step-000001.parquet")
    assert [row["gold"] for row in rows] == [float(len(row["completion"]) > 7) for row in rows]
    assert "flying blind" not in run.summary


def test_a_reward_object_keeps_its_own_range() -> None:
    reward = FunctionReward(name="doubled", score=lambda sample: Score(value=2 * digit_share(sample.completion)), high=2.0)
    run = train(prompts=QUESTIONS, reward=reward, reward_range=(0.0, 0.1))
    assert run.metrics[0]["reward/error_frac"] == 0.0


def test_the_declared_range_bounds_what_functions_return() -> None:
    run = train(prompts=QUESTIONS, reward=lambda completion: -3 - digit_share(completion), reward_range=(-4, -3))
    assert run.metrics[0]["reward/error_frac"] == 0.0
    with pytest.raises(CoveyError, match=r"returned -3.*outside its declared range \[0.0, 1.0\]"):
        train(prompts=QUESTIONS, reward=lambda completion: -3 - digit_share(completion))


def test_a_builtin_task_needs_no_prompts() -> None:
    run = covey.train("arithmetic", model="model", quiet=True, **options(evaluation__num_prompts=2, prompts_per_step=1))
    assert run.path == Path("runs/arithmetic")
    assert {row["num_prompts"] for row in run.evaluation} == {2}


def test_a_recipe_may_be_an_object_or_a_file(directory: Path) -> None:
    Path("mine.toml").write_text("[train]\nnum_steps = 2\n")
    from_file = train(recipe="mine.toml", prompts=QUESTIONS, reward=digit_share)
    from_object = train(recipe=Recipe(), prompts=QUESTIONS, reward=digit_share)
    assert from_file.path == Path("runs/mine")
    assert len(from_file.metrics) == len(from_object.metrics) == 1  # what is given by name goes before the recipe
    assert weights_of(from_file.path) == weights_of(from_object.path)


# Held-out questions


def task(prompts: Sequence[PromptLike], held_out: Sequence[PromptLike] | None = None) -> Any:
    return task_of_prompts(prompts, held_out, digit_share, None, (0.0, 1.0))


def test_without_held_out_a_fifth_is_kept_from_training() -> None:
    made = task(QUESTIONS)
    parts = {part: {prompt.text for prompt in prompts} for part, prompts in made.held_out.items()}
    trained = {prompt.text for prompt in made.train}
    assert {part: len(questions) for part, questions in parts.items()} == {"choose": 2, "guard": 2, "test": 2}
    assert len(trained) == 24
    assert set.union(trained, *parts.values()) == set(QUESTIONS)


def test_the_split_depends_on_the_questions_and_not_on_their_order() -> None:
    forwards, backwards = task(QUESTIONS), task(QUESTIONS[::-1])
    assert forwards.held_out == backwards.held_out
    assert forwards.train == backwards.train


def test_the_split_is_not_the_end_of_the_list() -> None:
    held_out = {prompt.text for part in task(QUESTIONS).held_out.values() for prompt in part}
    assert held_out not in (set(QUESTIONS[:6]), set(QUESTIONS[-6:]))


def test_given_held_out_questions_are_measured_and_all_prompts_trained_on() -> None:
    made = task(QUESTIONS, HELD_OUT)
    assert [prompt.text for prompt in made.train] == QUESTIONS
    assert [prompt.text for prompt in made.held_out["choose"]] == HELD_OUT


def test_few_prompts_are_held_out_too_or_it_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    """A fifth of ten questions is two; a run that measures nothing must not look like one that does."""
    run = covey.train(model="model", prompts=QUESTIONS[:10], reward=digit_share, **options(run__name="few"))
    out, err = capfd.readouterr()
    assert run.evaluation or re.search(r"no question is held out|nothing is held out", out + err)


def test_a_held_out_question_that_is_trained_on_is_refused() -> None:
    with pytest.raises(CoveyError, match=r"twice|holds training question"):
        train(prompts=QUESTIONS, held_out=[QUESTIONS[3]], reward=digit_share)
    with pytest.raises(CoveyError, match="holds training question"):
        train(prompts=QUESTIONS, held_out=[{"prompt": QUESTIONS[3], "answer": 7}], reward=digit_share)


# Wrong input


def takes_text(text: str) -> float:
    return 0.0


async def later(completion: str) -> float:
    return 0.0


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no reward": ({"prompts": QUESTIONS}, r"prompts were given without a reward; give reward=function"),
    "no prompts": ({"reward": digit_share}, r"reward and gold functions go with prompts"),
    "held out alone": ({"held_out": QUESTIONS}, r"held_out was given without prompts"),
    "empty": ({"prompts": [], "reward": digit_share}, r"prompts is empty"),
    "duplicate": ({"prompts": [*QUESTIONS, QUESTIONS[4]], "reward": digit_share}, r"occurs twice"),
    "duplicate id": (
        {"prompts": [{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}], "reward": digit_share},
        r"prompt id 'x' occurs twice",
    ),
    "unknown key": ({"prompts": [{"question": "a"}], "reward": digit_share}, r"prompts\[0\] has the keys \['question'\]"),
    "both": ({"prompts": ["a", {"prompt": "a", "messages": []}], "reward": digit_share}, r"prompts\[1\] has the keys"),
    "not a prompt": ({"prompts": ["a", 5], "reward": digit_share}, r"prompts\[1\]"),
    "turn without role": ({"prompts": [{"messages": [{"content": "a"}]}], "reward": digit_share}, r"prompts\[0\].*role"),
    "no turns": ({"prompts": [{"messages": []}], "reward": digit_share}, r"prompts\[0\]"),
    "parameter": (
        {"prompts": QUESTIONS, "reward": takes_text},
        r"reward 'takes_text' has a parameter 'text'.*completion, answer",
    ),
    "coroutine": ({"prompts": QUESTIONS, "reward": later}, r"'later' is a coroutine function"),
    "gold parameter": ({"prompts": QUESTIONS, "reward": digit_share, "gold": takes_text}, r"'takes_text' has a parameter"),
    "not a function": ({"prompts": QUESTIONS, "reward": "digit_share"}, r"reward"),
    "ambiguous": ({"prompts": QUESTIONS, "reward": digit_share, "name": "x"}, r"option 'name'.*run__name, model__name"),
    "ambiguous every": ({"prompts": QUESTIONS, "reward": digit_share, "every": 2}, r"evaluation__every, checkpoint__every"),
    "unknown option": ({"prompts": QUESTIONS, "reward": digit_share, "num_stps": 2}, r"option 'num_stps'.*no section"),
    "unknown section": ({"prompts": QUESTIONS, "reward": digit_share, "trian__num_steps": 2}, r"trian"),
    "unknown in section": ({"prompts": QUESTIONS, "reward": digit_share, "train__steps": 2}, r"train\.steps: there is no such"),
    "wrong value": ({"prompts": QUESTIONS, "reward": digit_share, "group_size": 1}, r"train\.group_size=1: .*at least 2"),
    "wrong type": ({"prompts": QUESTIONS, "reward": digit_share, "learning_rate": "fast"}, r"train\.learning_rate='fast'"),
    "no recipe": ({"prompts": QUESTIONS, "reward": digit_share, "recipe": "arithmetics"}, r"recipe 'arithmetics' is neither"),
    "no model": ({"prompts": QUESTIONS, "reward": digit_share, "model": "./nowhere"}, r"model\.name='\./nowhere' is neither"),
    "no tracker": ({"prompts": QUESTIONS, "reward": digit_share, "sinks": ("scribe",)}, r"scribe"),
    "too long": ({"prompts": ["word " * 3000], "held_out": [], "reward": digit_share}, r"prompt '\w+' has \d+ tokens"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_named(case: str) -> None:
    arguments, message = WRONG[case]
    with pytest.raises(CoveyError, match=message):
        train(**arguments)


@pytest.mark.parametrize(
    "case", ["no prompts", "held out alone", "duplicate", "wrong value", "no model", "no tracker", "too long"]
)
def test_wrong_input_leaves_no_run_behind(case: str) -> None:
    """Else the next try would be `run-2`, or be refused because the name is taken."""
    arguments, _ = WRONG[case]
    before = runs()
    with pytest.raises(CoveyError):
        train(**arguments)
    assert runs() == before


def test_an_unusable_run_directory_is_not_written_to(directory: Path) -> None:
    Path("taken").mkdir()
    Path("taken/file").write_text("mine")
    with pytest.raises(CoveyError, match="taken is not empty: choose another name"):
        train(prompts=QUESTIONS, reward=digit_share, run__directory=".", run__name="taken")
    assert os.listdir("taken") == ["file"]


# Options


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("num_steps", ("train", "num_steps")),
        ("train__num_steps", ("train", "num_steps")),
        ("beta", ("algorithm", "beta")),
        ("checkpoint__every", ("checkpoint", "every")),
        ("samples_per_prompt", ("evaluation", "samples_per_prompt")),
    ],
)
def test_an_option_finds_its_section(key: str, expected: tuple[str, str]) -> None:
    assert place_option(key) == expected


def test_both_spellings_of_an_override_do_the_same() -> None:
    short = train(prompts=QUESTIONS, reward=digit_share, num_steps=2)
    spelled_out = {f"{section}__{option}": value for key, value in SMALL.items() for section, option in [place_option(key)]}
    changes: dict[str, Any] = spelled_out | {"train__num_steps": 2, "model__name": "model"}
    long = covey.train(prompts=QUESTIONS, reward=digit_share, quiet=True, **changes)
    assert (len(short.metrics), len(long.metrics)) == (2, 2)
    assert weights_of(short.path) == weights_of(long.path)


def test_names_are_numbered_when_they_are_taken() -> None:
    first, second = (train(recipe=Recipe(), prompts=QUESTIONS, reward=digit_share) for _ in range(2))
    number = int(first.path.name.partition("-")[2] or 1)
    assert second.path.name == f"run-{number + 1}"


def test_an_explicit_name_that_is_taken_is_refused() -> None:
    train(prompts=QUESTIONS, reward=digit_share, run__name="twice")
    with pytest.raises(CoveyError, match="twice is not empty"):
        train(prompts=QUESTIONS, reward=digit_share, run__name="twice")


def test_the_plan_says_what_will_be_done(directory: Path) -> None:
    lines = plan_lines(Recipe(), RunDirectory(directory / "planned"))
    assert any("SmolLM2" in line or "smollm2-135m (4-bit" in line for line in lines)
    assert any("(r_i - mean r)" in line for line in lines)
    assert "completions a step: 8 prompts x 8 = 64" in lines


# Prompts


def test_ids_are_stable_and_differ_by_question_and_answer() -> None:
    ids = [make_prompt(prompt, 0).prompt_id for prompt in ("a", {"prompt": "a"}, {"prompt": "a", "answer": 1}, "b")]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    assert make_prompt("a", 0) == make_prompt("a", 7)


@pytest.mark.parametrize("given", ["mine", 17, 0])
def test_a_given_id_is_kept(given: Any) -> None:
    assert make_prompt({"prompt": "a", "id": given}, 0).prompt_id == str(given)


# Runs


@pytest.fixture(scope="module")
def finished(directory: Path) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        leave_out_slow_parts(patch)
        return train_digits(directory, "finished", num_steps=2)


def test_a_run_can_be_opened_again(finished: Run) -> None:
    opened = covey.open_run(str(finished.path))
    assert opened == finished
    assert "held-out accuracy" in opened.summary


def test_opening_what_is_no_run_is_refused(directory: Path) -> None:
    with pytest.raises(CoveyError, match="is not the directory of a run"):
        covey.open_run(directory)


def test_the_report_is_written_when_it_is_asked_for(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert not (finished.path / "report.html").exists()
    assert finished.report == finished.path / "report.html"
    assert "<html" in finished.report.read_text()


def test_export_writes_the_trained_weights(finished: Run, tmp_path: Path) -> None:
    exported = finished.export(str(tmp_path / "mine"))
    assert digest(exported / "model.safetensors") == weights_of(finished.path)


def test_a_run_without_a_checkpoint_has_no_model(directory: Path) -> None:
    (directory / "no checkpoint").mkdir()
    (directory / "no checkpoint" / "recipe.toml").write_text("")
    with pytest.raises(CoveyError, match="has no checkpoint yet"):
        _ = covey.open_run(directory / "no checkpoint").model_path


def test_resume_finishes_a_stopped_run(directory: Path) -> None:
    path = Path("runs/stopped")
    stopped = train(prompts=QUESTIONS, reward=stop_at(path, 1), num_steps=2, run__name="stopped")
    assert len(stopped.metrics) == 1
    resumed = covey.train(prompts=QUESTIONS, reward=digit_share, resume=path, quiet=True)
    assert resumed.path == path
    assert [row["step"] for row in resumed.metrics] == [1, 2]


def test_resume_takes_no_recipe(finished: Run) -> None:
    """The run has its own; another one would be ignored in silence."""
    with pytest.raises(CoveyError, match="recipe"):
        resume_digits(finished.path.parent, finished.path.name, recipe="arithmetic")


def test_a_run_that_is_being_written_is_not_resumed(finished: Run) -> None:
    with RunDirectory.open(finished.path).lock(), pytest.raises(CoveyError, match="is being written by"):
        train_resume(finished.path)


def test_a_run_of_a_builtin_task_is_resumed_without_prompts(directory: Path) -> None:
    changes: dict[str, Any] = {"num_steps": 1, "evaluation__num_prompts": 2, "prompts_per_step": 1, "run__name": "sums"}
    run = covey.train("arithmetic", model="model", quiet=True, **options(**changes))
    with pytest.raises(CoveyError, match=r"started with task 'arithmetic'; resume it without prompts"):
        train_resume(run.path)
    covey.train(resume=run.path, quiet=True)


def train_resume(path: Path) -> Run:
    return covey.train(prompts=QUESTIONS, reward=digit_share, resume=path, quiet=True)


def test_the_public_names_are_there() -> None:
    for name in covey.__all__:
        assert getattr(covey, name) is not None
    assert isinstance(covey.train, Callable)
    assert set(dir(covey)) == set(covey.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = covey.trian


def test_the_shipped_rewards_are_rewards() -> None:
    assert all(reward.name == name and reward.low < reward.high for name, reward in REWARDS.items())
