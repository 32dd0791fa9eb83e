"""Covey from Python: one's own prompts and functions in, a run out, which can be opened, exported and resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.digits import SMALL, digest, digit_share, leave_out_slow_parts, resume_digits, stop_at, train_digits, weights_of
from tests.reward_cases import NEEDED_OPTIONS
from tests.short_runs import QUESTIONS, options, train

import covey
from covey.api import Run, plan_lines
from covey.config import Recipe
from covey.monitor.run_directory import RunDirectory, read_rows
from covey.rewards.base import FunctionReward, Sample
from covey.rewards.registry import REWARDS, find_reward
from covey.types import CoveyError, Message, Prompt, Score

pytestmark = pytest.mark.usefixtures("in_model_directory")


# A run in five lines


def test_five_lines_train_a_model() -> None:
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


def test_gold_is_measured_and_never_optimised() -> None:
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


def test_a_recipe_may_be_an_object_or_a_file() -> None:
    Path("mine.toml").write_text("[train]\nnum_steps = 2\n")
    from_file = train(recipe="mine.toml", prompts=QUESTIONS, reward=digit_share)
    from_object = train(recipe=Recipe(), prompts=QUESTIONS, reward=digit_share)
    assert from_file.path == Path("runs/mine")
    assert len(from_file.metrics) == len(from_object.metrics) == 1  # what is given by name goes before the recipe
    assert weights_of(from_file.path) == weights_of(from_object.path)


# The name and the plan of a run


def test_names_are_numbered_when_they_are_taken() -> None:
    first, second = (train(recipe=Recipe(), prompts=QUESTIONS, reward=digit_share) for _ in range(2))
    number = int(first.path.name.partition("-")[2] or 1)
    assert second.path.name == f"run-{number + 1}"


def test_an_explicit_name_that_is_taken_is_refused() -> None:
    train(prompts=QUESTIONS, reward=digit_share, run__name="twice")
    with pytest.raises(CoveyError, match="twice is not empty"):
        train(prompts=QUESTIONS, reward=digit_share, run__name="twice")


def test_the_plan_says_what_will_be_done(model_directory: Path) -> None:
    lines = plan_lines(Recipe(), RunDirectory(model_directory / "planned"))
    assert any("SmolLM2" in line or "smollm2-135m (4-bit" in line for line in lines)
    assert any("(r_i - mean r)" in line for line in lines)
    assert "completions a step: 8 prompts x 8 = 64" in lines


# Finished and stopped runs


@pytest.fixture(scope="module")
def finished(model_directory: Path) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(model_directory)
        leave_out_slow_parts(patch)
        return train_digits(model_directory, "finished", num_steps=2)


def train_resume(path: Path) -> Run:
    return covey.train(prompts=QUESTIONS, reward=digit_share, resume=path, quiet=True)


def test_a_run_can_be_opened_again(finished: Run) -> None:
    opened = covey.open_run(str(finished.path))
    assert opened == finished
    assert "held-out accuracy" in opened.summary


def test_opening_what_is_no_run_is_refused(model_directory: Path) -> None:
    with pytest.raises(CoveyError, match="is not the directory of a run"):
        covey.open_run(model_directory)


def test_the_report_is_written_when_it_is_asked_for(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert not (finished.path / "report.html").exists()
    assert finished.report == finished.path / "report.html"
    assert "<html" in finished.report.read_text()


def test_export_writes_the_trained_weights(finished: Run, tmp_path: Path) -> None:
    exported = finished.export(str(tmp_path / "mine"))
    assert digest(exported / "model.safetensors") == weights_of(finished.path)


def test_a_run_without_a_checkpoint_has_no_model(model_directory: Path) -> None:
    (model_directory / "no checkpoint").mkdir()
    (model_directory / "no checkpoint" / "recipe.toml").write_text("")
    with pytest.raises(CoveyError, match="has no checkpoint yet"):
        _ = covey.open_run(model_directory / "no checkpoint").model_path


def test_resume_finishes_a_stopped_run() -> None:
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


def test_a_run_of_a_builtin_task_is_resumed_without_prompts() -> None:
    changes: dict[str, Any] = {"num_steps": 1, "evaluation__num_prompts": 2, "prompts_per_step": 1, "run__name": "sums"}
    run = covey.train("arithmetic", model="model", quiet=True, **options(**changes))
    with pytest.raises(CoveyError, match=r"started with task 'arithmetic'; resume it without prompts"):
        train_resume(run.path)
    covey.train(resume=run.path, quiet=True)


# Public names


def test_the_public_names_are_there() -> None:
    for name in covey.__all__:
        assert getattr(covey, name) is not None
    assert isinstance(covey.train, Callable)
    assert set(dir(covey)) == set(covey.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = covey.trian


def test_the_shipped_rewards_are_rewards() -> None:
    rewards = {name: find_reward(name, key="reward.name", options=NEEDED_OPTIONS.get(name, {})) for name in REWARDS}
    assert all(reward.name == name and reward.low < reward.high for name, reward in rewards.items())
