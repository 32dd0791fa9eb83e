"""What a comparison settles before its first run, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from covey.compare_runs.plan import BASE, PLAN, Plan, keep_plan, make_plan, parse_arm, plan_lines
from covey.config import Recipe, load_recipe
from covey.types import CoveyError

SETTINGS: dict[str, Any] = {
    "budget_tokens": 9000,
    "learning_rates": (1e-5, 3e-5, 1e-4),
    "trial_frac": 1 / 3,
    "margin": None,
    "best_of": 8,
    "samples": 2,
    "harder": (),
}


def plan_of(*arms: str, recipe: Recipe | None = None, **changes: Any) -> Plan:
    return make_plan(recipe or load_recipe(None), arms=arms or ("grpo", "raft"), **(SETTINGS | changes))


def test_every_arm_tries_the_same_rates_with_one_seed_and_a_part_of_the_budget():
    trials = plan_of("grpo", "dpo", "ppo").trials()
    assert {piece.arm.name for piece in trials} == {"grpo", "dpo", "ppo"}
    by_arm = {name: [piece.learning_rate for piece in trials if piece.arm.name == name] for name in ("grpo", "dpo", "ppo")}
    assert set(map(tuple, by_arm.values())) == {SETTINGS["learning_rates"]}
    assert {(piece.seed, piece.budget_tokens, piece.is_trial) for piece in trials} == {(0, 3000, True)}


def test_one_rate_needs_no_trial():
    assert plan_of(learning_rates=(1e-4,)).trials() == []


def test_final_runs_go_seed_by_seed_so_that_a_cut_comparison_has_all_arms():
    plan = plan_of("grpo", "raft", "rloo", num_seeds=2, seeds_of={"grpo": 3})
    finals = plan.finals(dict.fromkeys(["grpo", "raft", "rloo"], 1e-4))
    assert [piece.name for piece in finals] == [
        *("grpo-seed0", "raft-seed0", "rloo-seed0"),
        *("grpo-seed1", "raft-seed1", "rloo-seed1"),
        "grpo-seed2",
    ]
    assert {piece.budget_tokens for piece in finals} == {9000}


def test_seeds_begin_at_the_recipes_own():
    plan = plan_of(recipe=load_recipe(None, ["run.seed=7"]), num_seeds=2)
    assert plan.arm("grpo").seeds == (7, 8)


def test_arms_share_everything_but_their_row_and_their_rate(tmp_path: Path):
    plan = plan_of("grpo", "raft", recipe=load_recipe(None, ["task.level=medium", "train.group_size=4"]))
    first, second = (
        plan.recipe_of(piece, tmp_path).model_dump() for piece in plan.finals({"grpo": 1e-4, "raft": 3e-5}) if piece.seed == 0
    )
    differing = {
        f"{section}.{key}" for section, values in first.items() for key in values if values[key] != second[section][key]
    }
    assert {key for key in differing if not key.startswith("algorithm.")} == {"train.learning_rate", "run.name"}
    assert first["task"]["level"] == second["task"]["level"] == "medium"


def test_tokens_end_a_run_and_not_steps(tmp_path: Path):
    plan = plan_of(recipe=load_recipe(None, ["train.prompts_per_step=2", "train.group_size=4", "train.num_steps=3"]))
    recipe = plan.recipe_of(plan.finals({"grpo": 1e-4, "raft": 1e-4})[0], tmp_path)
    assert recipe.train.max_generated_tokens == 9000
    assert recipe.train.num_steps * 2 * 4 > 9000  # Though every completion had a single token.


def test_a_trial_is_the_beginning_of_the_run_that_counts(tmp_path: Path):
    """With a schedule of its own it would not show that a rate is too high for the whole budget."""
    plan = plan_of(recipe=load_recipe(None, ["train.decay=true"]))
    trial, final = plan.trials()[0], plan.finals({"grpo": 1e-5, "raft": 1e-5})[0]
    first, second = (plan.recipe_of(piece, tmp_path).model_dump() for piece in (trial, final))
    differing = {
        f"{section}.{key}" for section, values in first.items() for key in values if values[key] != second[section][key]
    }
    assert differing == {"train.max_generated_tokens", "train.num_steps", "run.name"}
    assert first["train"]["decay_tokens"] == second["train"]["decay_tokens"] == 9000


def test_nobody_is_stopped_early_and_no_reward_is_audited(tmp_path: Path):
    recipe = load_recipe(None, ["guard.actions={gold_regression='stop'}"])
    plan = plan_of(recipe=recipe)
    found = plan.recipe_of(plan.finals({"grpo": 1e-4, "raft": 1e-4})[0], tmp_path)
    assert (found.guard.enabled, found.guard.actions, found.reward.audit) == (False, {}, False)


def test_an_arm_may_have_options_of_its_own(tmp_path: Path):
    plan = plan_of("grpo", custom=["with_kl: algorithm.name=grpo algorithm.beta=0.04"])
    beta = {
        piece.arm.name: plan.recipe_of(piece, tmp_path).algorithm.beta for piece in plan.finals({"grpo": 1e-4, "with_kl": 1e-4})
    }
    assert beta == {"grpo": 0.0, "with_kl": 0.04}


def test_the_base_is_always_there_and_the_other_untrained_arms_if_asked_for():
    assert [arm.name for arm in plan_of("grpo").arms] == [BASE, "grpo"]
    assert [arm.name for arm in plan_of("majority", "grpo", "best_of_n").arms] == [BASE, "best_of_n", "majority", "grpo"]


def test_the_question_is_declared_and_by_default_the_first_arm_against_the_second():
    assert plan_of("grpo", "raft", "rloo").primary == ("grpo", "raft")
    assert plan_of("grpo").primary == ("grpo", BASE)
    assert plan_of("grpo", "raft", primary="raft:base").primary == ("raft", BASE)


@pytest.mark.parametrize(
    ("arms", "changes", "words"),
    [
        (("grpo", "raff"), {}, "no arm 'raff'; did you mean 'raft'"),
        (("majority",), {}, "names no algorithm to train"),
        (("grpo", "raft"), {"primary": "grpo:dpo"}, "two different arms"),
        (("grpo", "raft"), {"primary": "grpo:grpo"}, "two different arms"),
        (("grpo", "raft"), {"primary": "grpo"}, "as arm:reference"),
        (("grpo", "raft"), {"seeds_of": {"rloo": 5}}, "--seeds-of names rloo"),
        (("grpo", "raft"), {"seeds_of": {"grpo": 0}}, "at least one seed"),
        (("grpo", "raft"), {"budget_tokens": 0}, "positive number of generated tokens"),
        (("grpo", "raft"), {"learning_rates": (0.0,)}, "rate above 0"),
        (("grpo", "raft"), {"trial_frac": 0.0}, "from above 0 to 1"),
        (("grpo", "raft"), {"harder": ("impossible",)}, "the task has the levels easy, medium, hard"),
        (("grpo",), {"custom": ["kl algorithm.beta=1"]}, "is not of the form"),
        (("grpo",), {"custom": ["base: algorithm.beta=1"]}, "choose another name"),
        (("grpo",), {"custom": ["a/b: algorithm.beta=1"]}, "choose another name"),
    ],
    ids=str,
)
def test_what_would_stop_a_run_later_is_refused_now(arms: tuple[str, ...], changes: dict[str, Any], words: str):
    with pytest.raises(CoveyError, match=words):
        plan_of(*arms, **changes)


def test_every_arm_whose_recipe_is_wrong_is_named_at_once():
    with pytest.raises(CoveyError) as caught:
        plan_of("grpo", "dpo", "remax", recipe=load_recipe(None, ["train.num_iterations=2"]))
    assert "arm dpo:" in str(caught.value)
    assert "arm remax:" in str(caught.value)
    assert "arm grpo" not in str(caught.value)


def test_a_comparison_needs_gold():
    with pytest.raises(CoveyError, match="no gold verifier"):
        plan_of(recipe=load_recipe(None, ["reward.gold=none"]))


def test_an_arm_is_a_name_and_overrides():
    assert parse_arm("kl:  algorithm.beta=0.04   train.group_size=4") == ("kl", ("algorithm.beta=0.04", "train.group_size=4"))


def test_a_kept_plan_is_gone_on_with_and_another_one_is_refused(tmp_path: Path):
    plan, directory = plan_of(), tmp_path / "comparison"
    keep_plan(plan, directory)
    keep_plan(plan, directory)
    assert json.loads((directory / PLAN).read_text())["budget_tokens"] == 9000
    with pytest.raises(CoveyError, match=r"another plan \(budget_tokens differ\)"):
        keep_plan(dataclasses.replace(plan, budget_tokens=1), directory)


def test_a_directory_with_something_else_in_it_is_left_alone(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CoveyError, match="holds no comparison"):
        keep_plan(plan_of(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_results_of_another_machine_may_lie_there_before_the_plan_does(tmp_path: Path):
    (tmp_path / "results").mkdir()
    keep_plan(plan_of(), tmp_path)
    assert (tmp_path / PLAN).is_file()


def test_the_plan_says_what_it_can_find_before_anything_is_measured():
    text = "\n".join(plan_lines(plan_of("grpo", "raft", num_seeds=5)))
    assert "is grpo better than raft?" in text
    assert "With 200 prompts and 5 seeds a difference of" in text
    assert "6 trials of 33%" in text
    assert "tokens in all: 108000" in text  # 10 runs of 9,000 and 6 of 3,000.
