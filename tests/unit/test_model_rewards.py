"""A reward model that a recipe names: it is found, loaded once, stays in the training process, and pays probabilities."""

from __future__ import annotations

import inspect
import json
import re
import tomllib
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.builders import make_prompt, make_sample
from tests.digits import SMALL, leave_out_slow_parts

import covey
import covey.model_rewards
from covey.assembly import isolated, make_rewarder
from covey.config import make_recipe
from covey.model_rewards import MODEL_REWARDS, RECIPE_REWARDS
from covey.models.reward_model import load_reward_model, new_reward_model, save_reward_model
from covey.monitor.run_directory import read_rows
from covey.rewards.base import Reward, Rewarder, Sample, score_all
from covey.rewards.control import CONTROLS, ControlReward, control_reward
from covey.rewards.options import checked_options, kind_in_words, options_of
from covey.rewards.preference import sigmoid
from covey.rewards.registry import find_reward
from covey.rewards.workers import RewardWorkers, WorkerSpec
from covey.tasks.registry import find_task
from covey.types import CoveyError

TASK = find_task("arithmetic", level="easy")
PAGE = Path(__file__).parents[2] / "docs" / "guide" / "preference-rewards.md"


@pytest.fixture(scope="module")
def reward_model(tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of a tiny reward model with a random head."""
    model = new_reward_model(str(tiny_directory))
    with torch.no_grad():
        model.model.get_parameter("score.weight").normal_(generator=torch.Generator().manual_seed(3))
    directory = tmp_path_factory.mktemp("reward-model")
    save_reward_model(model, directory)
    return str(directory)


def preference(**options: Any) -> Reward:
    return find_reward("preference", key="reward.name", options=options, rows=RECIPE_REWARDS)


def rewarder_of(**reward: Any) -> Rewarder:
    return make_rewarder(make_recipe({"reward": reward}), TASK)


def make_group(*completions: str, answer: object = "A") -> list[Sample]:
    prompt = make_prompt(answer=answer)
    return [make_sample(completion, prompt=prompt) for completion in completions]


def scores_of(directory: str, *completions: str) -> list[float]:
    """Return the model's own scores, each text alone."""
    model = load_reward_model(directory)
    found = [model.score([(make_prompt().messages, completion)])[0] for completion in completions]
    return [score for score in found if score is not None]


# --- in a run ----------------------------------------------------------------------------------------------------------


def test_a_run_is_paid_by_the_reward_model_that_its_recipe_names(
    tiny_directory: Path, reward_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    leave_out_slow_parts(monkeypatch)
    options: dict[str, Any] = {"num_steps": 1, "evaluation__num_prompts": 4, "max_draws": 1, "reward__num_workers": 2}
    run = covey.train(
        model=str(tiny_directory),
        quiet=True,
        run__directory=str(tmp_path),
        run__name="preferred",
        reward__name="preference",
        reward__options={"model": reward_model},
        **(SMALL | options),
    )
    rows = read_rows(run.path / "rollouts" / "step-000001.parquet")
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["prompt_id"]].append(row)
    assert [len(members) for members in groups.values()] == [4, 4, 4]
    messages, model = {prompt.prompt_id: prompt.messages for prompt in TASK.train}, load_reward_model(reward_model)
    for prompt_id, members in groups.items():
        scores = [model.score([(messages[prompt_id], row["completion"])])[0] or 0.0 for row in members]
        assert [json.loads(row["parts"])["score"] for row in members] == pytest.approx(scores, abs=1e-3)
        mean = sum(scores) / 4
        assert [row["reward"] for row in members] == pytest.approx([sigmoid(score - mean) for score in scores], abs=1e-3)


def test_the_model_is_loaded_once_and_stays_in_the_training_process(reward_model: str, monkeypatch: pytest.MonkeyPatch):
    loaded: list[str] = []

    def load(name: str, **options: Any) -> Any:
        loaded.append(name)
        return load_reward_model(name, **options)

    monkeypatch.setattr(covey.model_rewards, "load_reward_model", load)
    recipe = make_recipe({"reward": {"name": "preference", "options": {"model": reward_model}, "num_workers": 2}})
    with ExitStack() as closing:
        plain = make_rewarder(recipe, TASK)
        assert isolated(plain, recipe, closing).proxy is plain.proxy
    assert loaded == [reward_model]


@pytest.mark.parametrize("kind", CONTROLS)
def test_in_a_control_arm_the_model_stays_in_the_training_process(reward_model: str, kind: str):
    reward = preference(model=reward_model)
    with RewardWorkers(WorkerSpec(num_workers=1)) as workers:
        arm = workers.isolated(control_reward(kind, reward, seed=0))
        assert isinstance(arm, ControlReward)
        assert arm.reward is reward
        score_all(arm, make_group("A", "B"))
        assert workers.process_ids == []


# --- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODEL_REWARDS)
def test_every_option_has_a_default_and_a_kind_that_recipes_can_hold(name: str):
    for option in options_of(MODEL_REWARDS[name]).values():
        assert option.default is not inspect.Parameter.empty
        assert kind_in_words(option.kind)


def test_with_the_answer_as_the_reference_the_reward_is_the_probability_of_beating_it(reward_model: str):
    first, second, reference = scores_of(reward_model, "Yes.", "No!", "A")
    scores = score_all(preference(model=reward_model, reference_column="answer"), make_group("Yes.", "No!"))
    assert [score.value for score in scores] == pytest.approx(
        [sigmoid(first - reference), sigmoid(second - reference)], abs=1e-4
    )


def test_the_win_rate_of_two_is_the_probability_that_one_beats_the_other(reward_model: str):
    first, second = scores_of(reward_model, "Yes.", "No!")
    scores = score_all(preference(model=reward_model, bound="win_rate"), make_group("Yes.", "No!"))
    assert [score.value for score in scores] == pytest.approx([sigmoid(first - second), sigmoid(second - first)], abs=1e-4)


def test_without_a_bound_the_scores_are_paid_in_the_declared_range(reward_model: str):
    reward = preference(model=reward_model, bound="none", reward_range=[-100, 100], max_batch_tokens=1)
    assert (reward.low, reward.high) == (-100.0, 100.0)
    scores = score_all(reward, make_group("Yes.", "No!"))
    assert [score.value for score in scores] == pytest.approx(scores_of(reward_model, "Yes.", "No!"), abs=1e-4)


def test_a_reward_model_can_be_a_part(reward_model: str):
    parts = {"preference": 1.0, "asserted_number": 0.5}
    proxy = rewarder_of(parts=parts, options={"preference": {"model": reward_model, "reference_column": "answer"}}).proxy
    assert (getattr(proxy, "part_names", ()), proxy.low, proxy.high) == (("preference", "asserted_number"), 0.0, 1.5)
    [score] = score_all(proxy, make_group("21", answer=21))
    assert score.value == pytest.approx(0.5 + 0.5)  # It equals its reference, and it is the number.


def test_a_reward_model_can_be_gold(reward_model: str):
    gold = rewarder_of(gold="preference", gold_options={"model": reward_model, "reference_column": "answer"}).gold
    assert gold is not None
    assert score_all(gold, make_group("A"))[0].value == pytest.approx(0.5)


# --- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, r"^reward\.name='preference': it has no model; give the directory or the hub id of a reward model"),
        ({"mdoel": "x"}, r"'mdoel' is no option of it; it has model, bound, reference_column, reward_range, max_batch_tokens"),
        ({"model": "x", "bound": "softmax"}, r"bound='softmax' should be one of sigmoid, win_rate, none"),
        ({"model": "x", "bound": "none"}, r"reward_range goes with bound='none', and is needed there"),
        ({"model": "x", "bound": "none", "reward_range": [1]}, r"give two numbers, the lowest and the highest"),
        ({"model": "x", "bound": "none", "reward_range": [2, 1]}, r"the first number must be smaller than the second"),
        ({"model": "x", "bound": "none", "reward_range": [0.0, float("inf")]}, r"both finite"),
        ({"model": "x", "reward_range": "wide"}, r"reward_range='wide' should be a list of numbers"),
        ({"model": "x", "reward_range": [True, 2]}, r"reward_range=\[True, 2\] should be a list of numbers"),
        ({"model": "x", "bound": "win_rate", "reference_column": "best"}, r"a reference column goes with bound='sigmoid'"),
        ({"model": "x", "max_batch_tokens": 0}, r"max_batch_tokens=0: give at least 1"),
        ({"model": "no-such/reward-model"}, r"^reward\.name='preference': reward model='no-such/reward-model' is neither"),
    ],
)
def test_options_that_make_no_reward_are_refused(options: dict[str, Any], said: str):
    with pytest.raises(CoveyError, match=said):
        rewarder_of(name="preference", options=options)


def test_a_language_model_is_refused_with_what_to_do(tiny_directory: Path):
    said = r"^reward\.name='preference': .* has 2 outputs; .* make one of a language model and preference pairs$"
    with pytest.raises(CoveyError, match=said):
        rewarder_of(name="preference", options={"model": str(tiny_directory)})


@pytest.mark.parametrize("bound", ["sigmoid", "win_rate"])
def test_gold_that_compares_a_group_with_itself_is_refused(reward_model: str, bound: str):
    with pytest.raises(CoveyError, match=r"^reward\.gold='preference' compares .*reward\.gold_options\.reference_column"):
        rewarder_of(gold="preference", gold_options={"model": reward_model, "bound": bound})


def test_gold_with_another_range_is_refused(reward_model: str):
    options = {"model": reward_model, "bound": "none", "reward_range": [-9.0, 9.0]}
    with pytest.raises(
        CoveyError, match=r"^reward\.gold='preference' has the range \[-9\.0, 9\.0\]; give a verifier from 0 to 1"
    ):
        rewarder_of(gold="preference", gold_options=options)


def test_an_unknown_reward_of_a_recipe_is_refused_with_all_that_there_are():
    with pytest.raises(
        CoveyError, match=r"reward\.name='prefer' is not a reward.*pairwise_judge, preference, or name your own"
    ):
        rewarder_of(name="prefer")


# --- documentation -----------------------------------------------------------------------------------------------------


def test_the_rewards_in_the_recipes_of_the_guide_have_the_options_that_they_are_given():
    blocks = re.findall(r"^```toml\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    sections = [make_recipe(tomllib.loads(block)).reward for block in blocks if "[reward]" in block]
    assert [section.name for section in sections] == ["preference", "preference", "judge"]
    for section in sections:
        assert checked_options(RECIPE_REWARDS[section.name], section.options)
