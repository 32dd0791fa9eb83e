"""A plan of the tiny model: the probe is plausible, and the words and the JSON say what the numbers are."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from covey.config import Recipe, load_recipe
from covey.plan import Plan, plan_json, plan_lines, plan_recipe
from covey.plan.predict import evaluation_calls, frozen_passes, saved_copy, workload
from covey.plan.text import remedy
from covey.tasks.registry import find_task

OPTIONS = ["model.compute_dtype=float32", "run.num_threads=1", "sampling.max_new_tokens=6", "train.num_steps=10"]


def recipe_for(directory: Path, *changes: str) -> Recipe:
    return load_recipe(None, [f"model.name={directory}", *OPTIONS, *changes])


@pytest.fixture(scope="module")
def plan(tiny_directory: Path) -> Plan:
    changes = ("engine.name=native", "train.max_draws=2", "train.prompts_per_step=4", "train.group_size=4")
    return plan_recipe(recipe_for(tiny_directory, *changes))


def test_everything_that_was_measured_takes_some_time_and_not_for_ever(plan: Plan) -> None:
    rates = plan.measured.rates
    seconds = [
        rates.decoding.prefill_token_s,
        *(step_s for _, step_s in rates.decoding.steps),
        rates.training.body_token_s,
        rates.training.head_token_s,
        rates.training.pair_s,
        rates.optimizer_s,
        rates.load_weights_s,
    ]
    assert all(0 < value < 60 for value in seconds)
    assert [rows for rows, _ in rates.decoding.steps] == [8, 16]


def test_a_plan_is_never_above_its_upper_bound(plan: Plan) -> None:
    assert 0 < plan.expected.step_s <= plan.at_most.step_s
    assert plan.expected.run_s <= plan.at_most.run_s


def test_a_run_is_its_steps_and_its_evaluations(plan: Plan) -> None:
    assert plan.at_most.run_s == pytest.approx(10 * plan.at_most.step_s + plan.at_most.evaluations_s)


def test_a_token_needs_memory_for_its_backward_pass(plan: Plan) -> None:
    """At least the hidden states before each norm of each layer, in float32."""
    sizes = plan.measured.sizes
    assert 2 * sizes.num_layers * sizes.num_heads * sizes.head_dim * 4 < plan.measured.activation_token_bytes < 1e6


def test_a_small_model_fits(plan: Plan) -> None:
    assert plan.fits
    assert not any("does not fit" in line for line in plan_lines(plan))


def test_a_plan_that_does_not_fit_says_what_to_lower(plan: Plan) -> None:
    starved = dataclasses.replace(plan, available_bytes=1, memory=plan.memory | {"update: activations": 1e9})
    assert plan_lines(starved)[-1].startswith("warning: it does not fit. Lower train.max_tokens_per_micro_batch")
    assert "adapters" in remedy(dataclasses.replace(plan, memory=plan.memory | {"moments of AdamW": 1e9}))


@pytest.mark.parametrize(
    ("changes", "free", "copied"),
    [
        ((), 25, True),
        ((), 23, False),
        (("checkpoint.in_background=false",), 1e12, False),
        (("checkpoint.every=0",), 1e12, False),
    ],
)
def test_a_copy_for_saving_counts_where_a_run_would_make_one(
    plan: Plan, tiny_directory: Path, changes: tuple[str, ...], free: float, copied: bool
) -> None:
    sizes = dataclasses.replace(plan.measured.sizes, num_trained=1)
    recipe = recipe_for(tiny_directory, "checkpoint.every=5", *changes)
    assert saved_copy(recipe, sizes, free=free) == (12.0 if copied else 0.0)


def test_a_run_with_little_memory_is_planned_as_it_would_be_cut(tiny_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("covey.session.affordable_tokens", lambda *_, **__: 300)
    starved = plan_recipe(recipe_for(tiny_directory, "train.max_tokens_per_micro_batch=2048"))
    assert starved.recipe.train.max_tokens_per_micro_batch == 300
    assert any("a micro-batch has 300 tokens and not 2048" in note for note in starved.notes)
    kept = plan_recipe(recipe_for(tiny_directory, "train.max_tokens_per_micro_batch=256"))
    assert kept.recipe.train.max_tokens_per_micro_batch == 256
    assert not any("a micro-batch has" in note for note in kept.notes)


def test_layers_that_are_computed_again_take_less_memory_and_not_none(plan: Plan, tiny_directory: Path) -> None:
    changes = ("engine.name=native", "train.prompts_per_step=4", "train.group_size=4", "train.gradient_checkpointing=true")
    again = plan_recipe(recipe_for(tiny_directory, *changes))
    assert again.memory["update: activations"] > 0
    assert again.measured.activation_token_bytes < plan.measured.activation_token_bytes
    tokens = plan.memory["update: activations"] / plan.measured.activation_token_bytes
    assert again.memory["update: activations"] > 1.1 * tokens * again.measured.activation_token_bytes


def test_a_busy_machine_is_reported(plan: Plan) -> None:
    busy, quiet = (
        dataclasses.replace(plan, measured=dataclasses.replace(plan.measured, processor_frac=frac)) for frac in (0.4, 0.95)
    )
    assert any("the machine was busy" in line for line in plan_lines(busy))
    assert not any("the machine was busy" in line for line in plan_lines(quiet))


def test_the_table_shows_both_columns_and_the_total(plan: Plan) -> None:
    lines = plan_lines(plan)
    [step] = [line.split() for line in lines if line.startswith("a step")]
    assert step[2:] == [f"{plan.expected.step_s:.2f}", f"{plan.at_most.step_s:.2f}"]
    assert any(line.startswith("10 steps and evaluations") for line in lines)


def test_the_json_holds_what_the_plan_holds(plan: Plan) -> None:
    document = json.loads(json.dumps(plan_json(plan), allow_nan=False))
    assert document["at_most"]["step_s"] == pytest.approx(sum(plan.at_most.step.values()))
    assert document["memory"]["peak"] == round(plan.peak_bytes)
    assert document["lengths"]["at_most"] == 6


def test_planning_leaves_nothing_behind(tiny_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tiny_directory.iterdir()}
    plan_recipe(recipe_for(tiny_directory))
    assert list(tmp_path.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in tiny_directory.iterdir()} == before


def test_the_evaluations_of_a_run_are_counted() -> None:
    task = find_task("arithmetic", level="easy")
    recipe = load_recipe(None, ["train.num_steps=10", "evaluation.every=4", "evaluation.num_prompts=50"])
    # Before and after: choose and test; after steps 4 and 8: choose. Each greedily and sampled.
    assert evaluation_calls(recipe, task) == [(50, 1)] * 2 * (2 + 2 + 2)


def test_an_evaluation_that_falls_on_the_last_step_is_made_once() -> None:
    task = find_task("arithmetic", level="easy")
    recipe = load_recipe(None, ["train.num_steps=8", "evaluation.every=4"])
    assert len(evaluation_calls(recipe, task)) == 2 * (2 + 2 + 1)


def test_a_reference_is_scored_once_a_step_and_the_policy_if_credit_needs_it(tiny_directory: Path) -> None:
    from covey.models.policy import load_policy

    policy = load_policy(str(tiny_directory), compute_dtype="float32")
    found = {
        change: frozen_passes(recipe_for(tiny_directory, change), policy)
        for change in ("algorithm.beta=0", "algorithm.beta=0.04", "algorithm.track_kl=true")
    }
    assert found == {"algorithm.beta=0": 0, "algorithm.beta=0.04": 1, "algorithm.track_kl=true": 2}


def test_the_workload_is_that_of_the_recipe(tiny_directory: Path) -> None:
    recipe = recipe_for(tiny_directory, "train.num_iterations=2", "algorithm.name=grpo", "train.num_minibatches=4")
    found = workload(recipe, [[1, 2], [3, 4, 5, 6]], (6,), num_draws=1, num_frozen_passes=0)
    assert (found.prompt_tokens, found.num_updates, found.row_lengths) == (3.0, 8, [6] * 64)
