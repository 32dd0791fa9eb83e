"""Control arms: rewards that teach nothing, and what the arms say together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.builders import make_prompt
from tests.digits import leave_out_slow_parts

from covey.config import load_recipe
from covey.control import Arm, compare_arms, run_controls
from covey.models.tiny import write_tiny_model
from covey.rewards.base import Sample
from covey.rewards.control import CONTROLS, control_reward
from covey.rewards.registry import find_reward
from covey.stats import Interval
from covey.types import CoveyError

LAST_NUMBER = find_reward("last_number", key="reward.name")


def samples(*completions: str, prompt_id: str = "p", answer: int = 7) -> list[Sample]:
    prompt = make_prompt(prompt_id, answer=answer)
    return [Sample(prompt=prompt, completion=text, num_tokens=3, is_truncated=False) for text in completions]


def arm(name: str, gain: float, *, low: float | None = None) -> Arm:
    interval = Interval(mean=gain, low=gain - 0.1 if low is None else low, high=gain + 0.1)
    return Arm(name=name, path=name, before=0.2, after=0.2 + gain, gain=interval)


def test_random_rewards_pay_about_half_and_do_not_read_the_answer():
    group = samples(*["7"] * 2000)
    values = [score.value for score in control_reward("random", LAST_NUMBER, seed=0).score_batch(group)]
    assert set(values) == {0.0, 1.0}
    assert sum(value or 0.0 for value in values) / 2000 == pytest.approx(0.5, abs=0.04)


def test_random_rewards_are_the_same_again_and_others_under_another_seed():
    group = samples(*[str(number) for number in range(64)])
    first, again = (control_reward("random", LAST_NUMBER, seed=0).score_batch(group) for _ in range(2))
    other = control_reward("random", LAST_NUMBER, seed=1).score_batch(group)
    assert [score.value for score in first] == [score.value for score in again]
    assert [score.value for score in first] != [score.value for score in other]


def test_shuffled_rewards_are_the_groups_own_in_another_order():
    batch = [*samples(*["7"] * 3, *["8"] * 5, prompt_id="a"), *samples(*["7"] * 8, prompt_id="b")]
    values = [score.value for score in control_reward("shuffled", LAST_NUMBER, seed=0).score_batch(batch)]
    assert sorted(value or 0.0 for value in values[:8]) == [0.0] * 5 + [1.0] * 3
    assert values[8:] == [1.0] * 8


def test_shuffling_deals_every_place_its_share():
    paid = [0] * 8
    for number in range(400):
        group = samples("7", *["8"] * 7, prompt_id=str(number))
        for place, score in enumerate(control_reward("shuffled", LAST_NUMBER, seed=0).score_batch(group)):
            paid[place] += score.value == 1.0
    assert min(paid) > 25, paid  # 50 each are expected, with a standard deviation of 6.6.


def test_the_format_arm_pays_any_answer_that_can_be_read():
    scores = control_reward("format", LAST_NUMBER, seed=0).score_batch(samples("8", "7", "no number", ""))
    assert [score.value for score in scores] == [1.0, 1.0, 0.0, 0.0]


def test_a_control_that_gains_half_as_much_explains_the_gain():
    verdict = compare_arms([arm("true", 0.4), arm("random", 0.05), arm("format", 0.2)])
    assert verdict.explained == pytest.approx({"random": 0.125, "format": 0.5})
    assert "not attributable" in verdict.sentences[-2]
    assert "format 50%" in verdict.sentences[-2]


def test_a_gain_that_no_control_makes_is_the_rewards():
    verdict = compare_arms([arm("true", 0.4), arm("random", 0.05), arm("shuffled", -0.1)])
    assert "is attributable to the reward: the best control, random, makes 12% of it" in verdict.sentences[-2]


def test_without_a_gain_there_is_nothing_to_attribute():
    verdict = compare_arms([arm("true", 0.1, low=-0.01), arm("random", 0.2)])
    assert verdict.explained == {}
    assert "nothing to attribute" in verdict.sentences[-1]


def test_the_arms_are_trained_and_finished_ones_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    leave_out_slow_parts(monkeypatch)
    model = write_tiny_model(tmp_path / "model")
    options = ["train.num_steps=1", "train.prompts_per_step=2", "train.group_size=2", "evaluation.num_prompts=4"]
    recipe = load_recipe(None, [f"model.name={model}", "sampling.max_new_tokens=4", "run.num_threads=1", *options])
    verdict = run_controls(recipe, tmp_path / "arms", arms=list(CONTROLS), quiet=True)
    assert [arm.name for arm in verdict.arms] == ["true", "random", "shuffled", "format"]
    written = json.loads((tmp_path / "arms" / "control.json").read_text())
    assert [arm["name"] for arm in written["arms"]] == ["true", *CONTROLS]
    before = {
        path: path.read_bytes() for path in (tmp_path / "arms").glob("*/*.jsonl") if path.stem in ("metrics", "timing", "eval")
    }
    again = run_controls(recipe, tmp_path / "arms", arms=list(CONTROLS), quiet=True)
    assert again.sentences == verdict.sentences
    assert len(before) == 12
    assert {path: path.read_bytes() for path in before} == before


def test_arms_of_another_recipe_are_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    leave_out_slow_parts(monkeypatch)
    (tmp_path / "true").mkdir()
    (tmp_path / "true" / "recipe.toml").write_text("[run]\n")
    with pytest.raises(CoveyError, match="made from another recipe"):
        run_controls(load_recipe(None, ["model.name=tiny"]), tmp_path, arms=["random"], quiet=True)


def test_a_control_that_does_not_exist_is_refused(tmp_path: Path):
    with pytest.raises(CoveyError, match="no such control: noise"):
        run_controls(load_recipe(None, []), tmp_path, arms=["noise"])
