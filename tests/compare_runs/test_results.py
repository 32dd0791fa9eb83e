"""A run's result file: made from its directory, recounted from its saved completions, reused only for the same recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.compare_runs.test_plan import plan_of

from covey.compare_runs.results import collect, made_of, read_result, recipe_values, recounted_tokens, write_result
from covey.config import Recipe, load_recipe
from covey.monitor.run_directory import RunDirectory, read_jsonl, write_rows
from covey.types import CoveyError


def row(prompt_id: str, sample: int, **changes: Any) -> dict[str, Any]:
    """Return a row of an evaluation."""
    return {"prompt_id": prompt_id, "sample": sample, "gold": 0.0, "proxy": 0.0} | changes


GRPO = load_recipe(None, ["algorithm.name=grpo"])
REMAX = load_recipe(None, ["algorithm.name=remax"])
COSTS = {
    "parameters": {"policy": 9, "trained": 9, "reference": 0, "critic": 0},
    "memory_bytes": {"policy": 72},
    "peak_rss_bytes": 100,
    "seconds": {"sampling": 3.0},
    "tokens": {"generated": 57, "trained": 31},
    "num_updates": 2,
}


def timing(step: int, **seconds: float) -> dict[str, Any]:
    phases = ("rollout_s", "reward_s", "scoring_s", "update_s", "load_weights_s", "evaluate_s", "checkpoint_s")
    return {"step": step, **dict.fromkeys(phases, 0.0), **seconds}


def evaluated(step: int, part: str, mode: str, gold: float) -> dict[str, Any]:
    return {"step": step, "part": part, "mode": mode, "gold_mean": gold, "proxy_mean": gold + 0.1, "length_mean": 5.0}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run of two steps, 30 and 27 tokens, with a group among them that was dropped."""
    made = RunDirectory.create(tmp_path / "grpo-seed0")
    logs = made.logs()
    for step, lengths in ((1, (10, 12, 8)), (2, (9, 9, 9))):
        write_rows(made.rollouts_of(step), [{"num_tokens": length, "used": length != 8} for length in lengths])
        logs["metrics"].append({"step": step, "tokens/generated": float(sum(lengths))})
    for record in (
        timing(0, evaluate_s=50.0),
        timing(1, rollout_s=1.0, reward_s=0.25, scoring_s=0.25, update_s=1.5, evaluate_s=40.0),
        timing(2, rollout_s=2.0, load_weights_s=0.5, checkpoint_s=30.0),
    ):
        logs["timing"].append(record)
    for record in (
        evaluated(0, "choose", "sampled", 0.25),
        evaluated(0, "test", "sampled", 0.2),
        evaluated(1, "choose", "greedy", 0.3),
        evaluated(2, "choose", "sampled", 0.5),
    ):
        logs["eval"].append(record)
    for mode, golds in (("greedy", (1.0, 0.0)), ("sampled", (1.0, 0.0, 0.0, 0.0))):
        count = len(golds) // 2
        rows = [row("ab"[index // count], index % count, gold=gold, proxy=1.0) for index, gold in enumerate(golds)]
        write_rows(made.evals_of(2, part="test", mode=mode), rows)
    made.costs.write_text(json.dumps(COSTS))
    return made


def result_of(run: RunDirectory, recipe: Recipe = GRPO) -> dict[str, Any]:
    piece = plan_of("grpo", "raft").finals({"grpo": 1e-5, "raft": 1e-5})[0]
    return collect(piece, recipe, run, {"hard": [row("c", 0, gold=1.0), row("c", 1)]})


def test_tokens_are_counted_over_all_saved_completions_dropped_ones_too(run: RunDirectory) -> None:
    assert recounted_tokens(run, GRPO, read_jsonl(run.metrics)) == 57
    assert result_of(run)["tokens"] == {"generated": 57, "trained": 31}


def test_a_count_that_the_saved_completions_do_not_bear_out_is_refused(run: RunDirectory) -> None:
    write_rows(run.rollouts_of(2), [{"num_tokens": 28, "used": True}])
    with pytest.raises(CoveyError, match=r"58 tokens in the saved completions, and 57 in metrics\.jsonl"):
        recounted_tokens(run, GRPO, read_jsonl(run.metrics))


def test_greedy_baselines_which_are_not_saved_count_too(run: RunDirectory) -> None:
    metrics = [{**record, "tokens/generated": record["tokens/generated"] + 7} for record in read_jsonl(run.metrics)]
    assert recounted_tokens(run, REMAX, metrics) == 57 + 14


def test_evaluations_and_checkpoints_are_not_training_time(run: RunDirectory) -> None:
    assert result_of(run)["elapsed_s"] == 5.5


def test_the_curve_has_tokens_and_seconds_of_training_until_each_evaluation(run: RunDirectory) -> None:
    points = [(each["step"], each["tokens"], each["train_s"], each["mode"], each["gold"]) for each in result_of(run)["curve"]]
    assert points == [(0, 0, 0, "sampled", 0.25), (1, 30, 3.0, "greedy", 0.3), (2, 57, 5.5, "sampled", 0.5)]


def test_scores_are_means_over_a_questions_samples_at_the_last_step(run: RunDirectory) -> None:
    result = result_of(run)
    assert result["scores"] == {
        "test/greedy": {"a": 1.0, "b": 0.0},
        "test/sampled": {"a": 0.5, "b": 0.0},
        "hard/sampled": {"c": 0.5},
    }
    assert result["proxies"]["test/sampled"] == {"a": 1.0, "b": 1.0}
    assert (result["num_steps"], result["num_updates"], result["peak_rss_bytes"]) == (2, 2, 100)


def test_a_result_is_for_its_recipe_wherever_the_run_lies() -> None:
    moved = load_recipe(None, ["run.seed=3", "run.name=other", "run.directory=elsewhere"])
    assert recipe_values(moved) == recipe_values(load_recipe(None, ["run.seed=3"]))
    for change in ("run.seed=1", "train.learning_rate=1e-3", "algorithm.name=raft", "train.max_generated_tokens=5"):
        assert recipe_values(load_recipe(None, [change])) != recipe_values(moved)


def test_a_result_is_read_back(tmp_path: Path) -> None:
    path, made = tmp_path / "results" / "grpo-seed0.json", made_of(GRPO, plan_of())
    assert read_result(path, wanted=made) is None
    write_result(path, {"seed": 3, **made})
    assert read_result(path, wanted=made) == {"seed": 3, **made}


def test_a_result_of_another_recipe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results" / "grpo-seed0.json"
    write_result(path, made_of(GRPO, plan_of()))
    with pytest.raises(CoveyError, match=r"other values of .*algorithm\.name"):
        read_result(path, wanted=made_of(REMAX, plan_of()))
