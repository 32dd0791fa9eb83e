"""What a finished run leaves for the comparison: one small JSON file, made from its run directory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from covey.algos.registry import ALGORITHMS
from covey.compare_runs.plan import Piece, Plan
from covey.config import Recipe, make_recipe
from covey.evaluate import MODES, prompt_means
from covey.monitor.environment import describe_machine
from covey.monitor.run_directory import RunDirectory, read_jsonl, read_rows, write_text_atomic
from covey.types import CoveyError

Json = dict[str, Any]
TEST = "test"
TRAINING_PHASES = ("rollout_s", "reward_s", "scoring_s", "update_s", "load_weights_s")
"""What counts as training time: evaluations and checkpoints are the comparison's own doing."""


def recipe_values(recipe: Recipe) -> dict[str, Json]:
    """Return everything that determines a run's numbers, by section and key; where it lies does not."""
    values = recipe.model_dump(mode="json", exclude_none=True)
    for key in ("name", "directory"):
        values["run"].pop(key)
    return values


def made_of(recipe: Recipe, plan: Plan) -> Json:
    """Return everything that determines a result: the run's recipe, and what is measured once it is done."""
    measured = {"best_of": plan.best_of, "samples": plan.samples, "harder": list(plan.harder)}
    return {"recipe": recipe_values(recipe), "measured": measured}


def differing_keys(made: Json, wanted: Json) -> list[str]:
    """Return the keys in which two of `made_of` differ.

    A key that the first does not have came with a later version of Covey, whose default is what was done before.
    """
    algorithm = wanted["recipe"]["algorithm"]["name"]
    defaults = _flat(recipe_values(make_recipe({"algorithm": {"name": algorithm}})))
    before, now = defaults | _flat(made["recipe"]), _flat(wanted["recipe"])
    differing = [key for key in sorted(now.keys() | _flat(made["recipe"]).keys()) if before.get(key) != now.get(key)]
    return differing + [key for key in wanted["measured"] if made["measured"].get(key) != wanted["measured"][key]]


def _flat(sections: Mapping[str, Json]) -> Json:
    return {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}


def read_result(path: Path, *, wanted: Json) -> Json | None:
    """Return a finished piece's result, None if there is none yet. `wanted`: of `made_of`.

    Raises:
        CoveyError: it was made from another recipe, or something else was measured.
    """
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    if differing := differing_keys(found, wanted):
        raise CoveyError(
            f"{path} was made with other values of {', '.join(differing)}; give the comparison another --name, or remove "
            "the file"
        )
    return found


def collect(piece: Piece, recipe: Recipe, run: RunDirectory, harder: Mapping[str, Sequence[Json]]) -> Json:
    """Return the result of a finished run. `harder`: the rows of its last weights on each level that nothing was trained on."""
    metrics, evaluations = read_jsonl(run.metrics), read_jsonl(run.eval)
    costs = json.loads(run.costs.read_text())
    last = metrics[-1]["step"]
    rows = {f"{TEST}/{mode}": read_rows(run.evals_of(last, part=TEST, mode=mode)) for mode in MODES if not piece.is_trial}
    rows |= {f"{level}/sampled": list(found) for level, found in harder.items()}
    return {
        "arm": piece.arm.name,
        "kind": "trial" if piece.is_trial else "final",
        "seed": piece.seed,
        "learning_rate": piece.learning_rate,
        "budget_tokens": piece.budget_tokens,
        "run": f"runs/{piece.name}",
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "tokens": {"generated": recounted_tokens(run, recipe, metrics), "trained": costs["tokens"]["trained"]},
        "num_steps": last,
        "num_updates": costs["num_updates"],
        "machine": describe_machine(),
        "elapsed_s": sum(training_seconds(run).values()),
        **{key: costs[key] for key in ("parameters", "memory_bytes", "peak_rss_bytes", "seconds")},
        "curve": curve(metrics, evaluations, training_seconds(run)),
        "scores": {key: dict(prompt_means(found, "gold")) for key, found in rows.items()},
        "proxies": {key: dict(prompt_means(found, "proxy")) for key, found in rows.items()},
    }


def recounted_tokens(run: RunDirectory, recipe: Recipe, metrics: Sequence[Json]) -> int:
    """Return how many tokens training has generated, counted from the saved completions.

    Raises:
        CoveyError: the run's own count says something else.
    """
    files = [run.rollouts_of(row["step"]) for row in metrics]
    recounted = sum(row["num_tokens"] for file in files for row in read_rows(file))
    logged = int(sum(row["tokens/generated"] for row in metrics))
    if ALGORITHMS[recipe.algorithm.name].needs_baseline:
        return logged  # Greedy completions are counted as they are made, and not saved.
    if recounted != logged:
        raise CoveyError(f"{run.path}: {recounted} tokens in the saved completions, and {logged} in metrics.jsonl")
    return recounted


def training_seconds(run: RunDirectory) -> dict[int, float]:
    """Return the seconds of training of each step."""
    return {row["step"]: sum(row[phase] for phase in TRAINING_PHASES) for row in read_jsonl(run.timing) if row["step"] > 0}


def curve(metrics: Sequence[Json], evaluations: Sequence[Json], seconds: Mapping[int, float]) -> list[Json]:
    """Return the evaluations of part `choose` with the tokens and the seconds of training until then."""
    return [
        {
            "step": row["step"],
            "tokens": int(sum(each["tokens/generated"] for each in metrics if each["step"] <= row["step"])),
            "train_s": round(sum(spent for step, spent in seconds.items() if step <= row["step"]), 3),
            "mode": row["mode"],
            "gold": row["gold_mean"],
            "proxy": row["proxy_mean"],
            "length": row["length_mean"],
        }
        for row in evaluations
        if row["part"] == "choose"
    ]


def last_gold(result: Json) -> float | None:
    """Return gold of sampled completions at the last evaluation that has any: what a learning rate is chosen by."""
    golds = [point["gold"] for point in result["curve"] if point["mode"] == "sampled" and point["gold"] is not None]
    return golds[-1] if golds else None


def number_of(value: float | None) -> float:
    """Return a score of a result as statistics take it: NaN where there is none."""
    return math.nan if value is None else float(value)


def write_result(path: Path, result: Json) -> None:
    """Write a result, whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    write_text_atomic(path, json.dumps(result, indent=1) + "\n")
