"""From the results of all runs to what the report says: intervals, verdicts, costs, curves, equal time."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from covey.algos.registry import ALGORITHMS
from covey.compare.power import resolution
from covey.compare.statistics import ArmScores, Estimate, difference, estimate
from covey.compare.verdicts import Contrast, Verdict, verdicts
from covey.compare_runs.base_arms import CHOOSE, ORACLE
from covey.compare_runs.clock import common_machine, is_timed, left_out, timed
from covey.compare_runs.plan import BASE, BEST_OF_N, MAJORITY, Arm, Plan
from covey.compare_runs.results import Json, last_gold, number_of
from covey.description import command_line
from covey.monitor.environment import describe_machine, describe_versions
from covey.stats import Interval
from covey.types import CoveyError

PRIMARY_KEY = "test/sampled"
BUDGET_TOLERANCE_FRAC = 0.02
_TITLES = {BASE: "the model as it is", BEST_OF_N: "best of n by the reward", MAJORITY: "majority of n"}


def summarise(plan: Plan, results: Sequence[Json]) -> Json:
    """Return the content of `summary.json`."""
    base = next(result for result in results if result["kind"] == "base")
    finals = [result for result in results if result["kind"] == "final"]
    keys = [PRIMARY_KEY, "test/greedy", *(f"{level}/sampled" for level in plan.harder)]
    tables = {key: tables_of(plan, key, base, finals) for key in keys}
    found = {key: verdicts_of(plan, tables[key]) for key in keys}
    clock = common_machine(finals)
    arms = [arm_summary(plan, arm, tables, base, results, clock) for arm in plan.arms]
    return {
        "plan": asdict(plan),
        "machine": clock or describe_machine(),
        "versions": describe_versions(),
        "command": command_line(sys.argv),
        "primary_key": PRIMARY_KEY,
        "arms": arms,
        "oracle": {key: _mean(base[ORACLE][key]) for key in base[ORACLE]},
        "resolution": resolution_sentence(plan, tables[PRIMARY_KEY]),
        "verdicts": {key: [verdict_json(verdict) for verdict in each] for key, each in found.items()},
        "equal_time": equal_time(plan, timed(finals, clock), base) | {"left_out": left_out(finals, clock)},
        "claims": claims(plan, found[PRIMARY_KEY], arms),
    }


def tables_of(plan: Plan, key: str, base: Json, finals: Sequence[Json], field: str = "scores") -> dict[str, ArmScores]:
    """Return the table [seeds, questions] of each arm that was measured there, its columns the base's questions."""
    untrained = {BASE: base[field].get(key)}
    if field == "scores":
        untrained |= {name: base[name].get(key) for name in (BEST_OF_N, MAJORITY)}
    prompt_ids = list(base[field][key])
    tables: dict[str, ArmScores] = {}
    for arm in plan.arms:
        own = [result for result in finals if result["arm"] == arm.name]
        rows = [result[field][key] for result in own] if arm.is_trained else [untrained.get(arm.name)]
        if rows and rows[0] is not None:
            scores = np.array([[number_of(found.get(prompt_id)) for prompt_id in prompt_ids] for found in rows])
            tables[arm.name] = ArmScores(name=arm.name, seeds=tuple(result["seed"] for result in own), scores=scores)
    return tables


def verdicts_of(plan: Plan, tables: Mapping[str, ArmScores]) -> list[Verdict]:
    """Return the verdict on the primary contrast, then on every arm against the base and against the primary arm."""
    if not {*plan.primary} <= set(tables):
        return []
    primary = Contrast(arm=plan.primary[0], reference=plan.primary[1])
    trained = [arm.name for arm in plan.trained if arm.name in tables]
    others = [Contrast(arm=name, reference=BASE) for name in trained]
    others += [Contrast(arm=name, reference=BASE) for name in (BEST_OF_N, MAJORITY) if name in tables]
    main = plan.primary[0]
    others += [Contrast(arm=name, reference=main) for name in tables if name not in (main, BASE)]
    kept = [contrast for contrast in others if {contrast.arm, contrast.reference} != {primary.arm, primary.reference}]
    return verdicts([*tables.values()], primary=primary, others=kept, margin=plan.margin)


def verdict_json(verdict: Verdict) -> Json:
    """Return a verdict as JSON can hold it."""
    return {
        **asdict(verdict.contrast),
        "is_primary": verdict.is_primary,
        "outcome": verdict.outcome,
        "sentence": verdict.sentence,
        **interval_json(verdict.estimate.interval),
        "p_value": verdict.p_value,
    }


def interval_json(interval: Interval) -> Json:
    return {name: _finite(getattr(interval, name)) for name in ("mean", "low", "high")}


def arm_summary(
    plan: Plan, arm: Arm, tables: Mapping[str, Mapping[str, ArmScores]], base: Json, results: Sequence[Json], clock: Json
) -> Json:
    """Return what the report says of one arm."""
    finals = [result for result in results if result["kind"] == "final" and result["arm"] == arm.name]
    trials = [result for result in results if result["kind"] == "trial" and result["arm"] == arm.name]
    proxies = {key: tables_of(plan, key, base, finals, "proxies").get(arm.name) for key in tables}
    spec = ALGORITHMS.get(algorithm_of(plan, arm)) if arm.is_trained else None
    own = tables[PRIMARY_KEY]
    has_gain = arm.name != BASE and arm.name in own
    return {
        "name": arm.name,
        "title": spec.title if spec else _TITLES[arm.name],
        "paper": spec.paper if spec else "",
        "trained": arm.is_trained,
        "seeds": list(arm.seeds),
        "learning_rate": finals[0]["learning_rate"] if finals else None,
        "trials": [{"learning_rate": trial["learning_rate"], "gold": last_gold(trial)} for trial in trials],
        "scores": {key: score_json(each[arm.name]) for key, each in tables.items() if arm.name in each},
        "proxy": {key: score_json(table) for key, table in proxies.items() if table is not None},
        "gain_over_base": interval_json(estimate(difference(own[arm.name], own[BASE])).interval) if has_gain else None,
        "curve": [seed_curve(result, base, has_seconds=is_timed(result, clock)) for result in finals],
        "costs": costs_of(finals, clock) if finals else untrained_costs(arm, base),
    }


def algorithm_of(plan: Plan, arm: Arm) -> str:
    """Return the row that a trained arm runs."""
    named = [override.partition("=")[2] for override in arm.overrides if override.startswith("algorithm.name=")]
    return named[-1] if named else str(plan.recipe["algorithm"]["name"])


def score_json(table: ArmScores) -> Json:
    """Return the mean over seeds and questions with its interval, and the mean of each seed."""
    try:
        found: Estimate | None = estimate(table)
    except CoveyError:
        found = None
    interval = found.interval if found else Interval(mean=math.nan, low=math.nan, high=math.nan)
    return {**interval_json(interval), "by_seed": [_finite(float(np.nanmean(row))) for row in table.scores]}


def seed_curve(result: Json, base: Json, *, has_seconds: bool = True) -> Json:
    """Return the validation curve of one seed, sampled completions. It begins at the base, which is the same for all."""
    keys = ("tokens", "train_s", "gold", "proxy") if has_seconds else ("tokens", "gold", "proxy")
    start = {"tokens": 0, "train_s": 0.0, "gold": _mean(base["scores"][CHOOSE]), "proxy": _mean(base["proxies"][CHOOSE])}
    points = [start, *(point for point in result["curve"] if point["mode"] == "sampled")]
    return {"seed": result["seed"]} | {key: [point[key] for point in points] for key in keys}


def costs_of(finals: Sequence[Json], clock: Json) -> Json:
    """Return the medians over seeds; those of seconds over the runs of one machine, and none if all were made elsewhere."""
    comparable = timed(finals, clock)
    budget = finals[0]["budget_tokens"]
    generated = _median(result["tokens"]["generated"] for result in finals)
    return {
        "parameters": finals[0]["parameters"],
        "memory_bytes": _medians([result["memory_bytes"] for result in finals]),
        "peak_rss_bytes": _median(result["peak_rss_bytes"] for result in finals),
        "seconds": _medians([result["seconds"] for result in comparable]),
        "train_s": _median(result["elapsed_s"] for result in comparable) if comparable else None,
        "timed_seeds": [result["seed"] for result in comparable],
        "tokens": {"generated": generated, "trained": _median(result["tokens"]["trained"] for result in finals)},
        "num_updates": _median(result["num_updates"] for result in finals),
        "num_steps": _median(result["num_steps"] for result in finals),
        "budget_missing_frac": max(abs(1 - result["tokens"]["generated"] / budget) for result in finals),
    }


def untrained_costs(arm: Arm, base: Json) -> Json:
    """Return what an answer costs where nothing is trained: tokens of each question."""
    per_question = base["tokens_per_question"]
    return {"tokens_per_question": per_question / base["best_of"] if arm.name == BASE else per_question}


def equal_time(plan: Plan, finals: Sequence[Json], base: Json) -> Json:
    """Return each arm's validation score when the fastest arm was done: its last evaluation until then."""
    spent = {arm.name: [result["elapsed_s"] for result in finals if result["arm"] == arm.name] for arm in plan.trained}
    times = {name: _median(each) for name, each in spent.items() if each}
    if not times:
        return {"seconds": None, "rows": [], "note": "no arm is finished"}
    limit = min(times.values())
    rows = []
    for name in times:
        golds = [gold_at(result, limit, base) for result in finals if result["arm"] == name]
        known = [gold for gold in golds if gold is not None]
        mean = sum(known) / len(known) if known else None
        rows.append({"arm": name, "mean": mean, "low": min(known, default=None), "high": max(known, default=None)})
    note = (
        "gold of part choose, sampled, at each arm's last evaluation within the training time of the fastest arm; mean, lowest "
        "and highest seed. The curve is coarse: read it as what had been reached, not as what is reached at that moment"
    )
    return {"seconds": limit, "rows": rows, "note": note}


def gold_at(result: Json, seconds: float, base: Json) -> float | None:
    """Return the gold of the last evaluation within these seconds of training; a run that is just as long counts whole."""
    own = seed_curve(result, base)
    reached = [gold for spent, gold in zip(own["train_s"], own["gold"], strict=True) if spent <= 1.02 * seconds]
    return reached[-1]


def claims(plan: Plan, found: Sequence[Verdict], arms: Sequence[Json]) -> list[str]:
    """Return in words which trained arms beat the base, and whether every arm has had its budget."""
    beats, rest = [], []
    for arm in arms:
        if arm["trained"] and arm["gain_over_base"]:
            (beats if (arm["gain_over_base"]["low"] or 0.0) > 0 else rest).append(arm["name"])
    said = []
    if beats:
        said.append(f"Better than the model as it is, the paired 95 % interval above 0: {', '.join(beats)}.")
    if rest:
        said.append(f"Not shown to be better than the model as it is: {', '.join(rest)}.")
    missing = {arm["name"]: arm["costs"].get("budget_missing_frac") or 0.0 for arm in arms}
    off = [f"{name} by {100 * value:.1f} %" for name, value in missing.items() if value > BUDGET_TOLERANCE_FRAC]
    said.append(
        f"Not at the budget of {plan.budget_tokens} tokens: {', '.join(off)}."
        if off
        else f"Every run generated {plan.budget_tokens} tokens within {100 * BUDGET_TOLERANCE_FRAC:g} %, recounted."
    )
    short = [arm["name"] for arm in arms if arm["trained"] and len(arm["curve"]) < len(arm["seeds"])]
    if short:
        said.append(f"Seeds are missing, because the comparison is not finished: {', '.join(short)}.")
    return said


def resolution_sentence(plan: Plan, tables: Mapping[str, ArmScores]) -> str:
    """Return what the primary contrast could find, by the assumptions made before."""
    counts = [len(plan.arm(name).seeds) for name in plan.primary if plan.arm(name).is_trained]
    num_prompts = next(iter(tables.values())).scores.shape[1]
    return resolution(num_seeds=min(counts, default=1), num_prompts=max(2, num_prompts)).sentence


def read_results(directory: Path) -> list[Json]:
    """Return the results that are finished, in the order of their names."""
    return [json.loads(path.read_text()) for path in sorted((directory / "results").glob("*.json"))]


def _mean(values: Mapping[str, float | None]) -> float | None:
    known = [value for value in values.values() if value is not None]
    return sum(known) / len(known) if known else None


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: _median(row[key] for row in rows) for key in (rows[0] if rows else ())}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
