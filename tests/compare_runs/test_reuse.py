"""What is finished is not done again, and only for the recipe that it was made with; and what a command line may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.compare_runs.test_plan import plan_of
from typer.testing import CliRunner

from covey.cli import app
from covey.compare_runs.results import differing_keys, made_of, write_result
from covey.compare_runs.runs import run_comparison
from covey.config import make_recipe, with_changes
from covey.types import CoveyError


def test_a_comparison_whose_results_are_all_there_starts_nothing(tmp_path: Path):
    plan = plan_of("grpo", "raft", num_seeds=1, learning_rates=(1e-5,))
    recipes = {"base": make_recipe(plan.recipe)}
    recipes |= {piece.name: plan.recipe_of(piece, tmp_path) for piece in plan.finals({"grpo": 1e-5, "raft": 1e-5})}
    for name, recipe in recipes.items():
        write_result(tmp_path / "results" / f"{name}.json", {"name": name, **made_of(recipe, plan)})
    said: list[str] = []
    results = run_comparison(plan, tmp_path, say=said.append)
    assert [result["name"] for result in results] == ["base", "grpo-seed0", "raft-seed0"]
    assert said == []
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_trials_that_are_there_choose_the_rates_of_the_runs(tmp_path: Path):
    plan = plan_of("grpo", num_seeds=1, learning_rates=(1e-5, 1e-4))
    recipes = {"base": (make_recipe(plan.recipe), None)}
    golds = {1e-5: 0.2, 1e-4: 0.3}
    for piece in [*plan.trials(), *plan.finals({"grpo": 1e-4})]:
        recipes[piece.name] = (plan.recipe_of(piece, tmp_path), piece)
    for name, (recipe, piece) in recipes.items():
        made = {} if piece is None else {"arm": piece.arm.name, "learning_rate": piece.learning_rate}
        curve = [] if piece is None else [{"mode": "sampled", "gold": golds[piece.learning_rate]}]
        write_result(tmp_path / "results" / f"{name}.json", {"curve": curve, **made, **made_of(recipe, plan)})
    said: list[str] = []
    results = run_comparison(plan, tmp_path, say=said.append)
    assert results[-1]["learning_rate"] == 1e-4
    assert said == ["grpo: learning rate 0.0001, the best of 2 by held-out gold"]


def test_a_result_of_another_recipe_stops_the_comparison(tmp_path: Path):
    asked = plan_of()
    other = make_recipe(with_changes(dict(asked.recipe), [("train", "group_size", 5), ("run", "seed", 7)]))
    write_result(tmp_path / "results" / "base.json", made_of(other, asked))
    with pytest.raises(CoveyError, match=r"base\.json was made with other values of run\.seed, train\.group_size; give"):
        run_comparison(asked, tmp_path, say=lambda message: None)


def test_a_result_from_before_there_was_an_option_is_one_with_its_default(tmp_path: Path):
    """Else a new option would make an unfinished comparison begin anew."""
    for value in (None, 12):
        changes = [] if value is None else [("checkpoint", "every", value)]
        plan = plan_of("grpo", num_seeds=1, learning_rates=(1e-5,))
        wanted = made_of(make_recipe(with_changes(dict(plan.recipe), changes)), plan)
        older = json.loads(json.dumps(wanted))
        del older["recipe"]["checkpoint"]["every"]
        assert differing_keys(older, wanted) == ([] if value is None else ["checkpoint.every"])
        del older["recipe"]["guard"]
        assert differing_keys(older, wanted) == ([] if value is None else ["checkpoint.every"])


def test_a_result_with_an_option_that_is_no_more_is_another():
    plan = plan_of("grpo", num_seeds=1, learning_rates=(1e-5,))
    wanted = made_of(make_recipe(plan.recipe), plan)
    older = json.loads(json.dumps(wanted))
    older["recipe"]["train"]["gone"] = 3
    assert differing_keys(older, wanted) == ["train.gone"]


def test_results_with_other_measurements_are_refused_too(tmp_path: Path):
    """As when they are carried from a comparison that asked for fewer samples, or for no harder questions."""
    asked = plan_of("grpo", num_seeds=1, learning_rates=(1e-5,))
    others: tuple[dict[str, Any], ...] = ({"samples": 4}, {"best_of": 4}, {"harder": ("hard",)})
    for more in others:
        made = plan_of("grpo", num_seeds=1, learning_rates=(1e-5,), **more)
        write_result(tmp_path / "results" / "base.json", made_of(make_recipe(made.recipe), made))
        with pytest.raises(CoveyError, match=f"other values of {next(iter(more))}; give"):
            run_comparison(asked, tmp_path, say=lambda message: None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"--arms names no algorithm to train"),
        (["--arms", "grpo", "--budget", "hours=2"], r"--budget 'hours=2': give generated tokens"),
        (["--arms", "grpo", "--budget", "tokens=many"], r"--budget 'tokens=many'"),
        (["--arms", "grpo", "--seeds-of", "grpo"], r"--seeds-of 'grpo' is not of the form grpo=5"),
        (["--arms", "grpo", "--learning-rates", "1e-5,fast"], r"--learning-rates 'fast' is no number"),
        (["arithmetic", "other", "--arms", "grpo"], r"arithmetic, other: one recipe at a time"),
    ],
    ids=str,
)
def test_wrong_input_ends_with_what_to_do(words: list[str], message: str):
    result = CliRunner().invoke(app, ["compare", *words, "--dry-run"])
    assert isinstance(result.exception, CoveyError)
    with pytest.raises(CoveyError, match=message):
        raise result.exception
