"""What the run of `bt_proxy.py` has to show: its evaluations by distance, the fitted curve, and what the guard said."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from covey.guard.history import History
from covey.guard.regression import distances_at, gain_curve
from covey.guard.replay import read_history
from covey.monitor.run_directory import RunDirectory, read_jsonl, read_rows

MODE = "sampled"
PARTS = ("choose", "guard")
_MEASURED = (
    *("gold_mean", "gold_low", "gold_high", "gold_gain", "gold_gain_low", "gold_gain_high"),
    *("proxy_mean", "proxy_low", "proxy_high", "proxy_gain", "length_mean"),
)


def record_of(run: RunDirectory, words_of: Callable[[str], Sequence[str]]) -> dict[str, Any]:
    """Return the record of a finished run."""
    history = read_history(run)
    looks = [look for part in PARTS for look in looks_of(run, history, part, words_of)]
    curve = gain_curve(history)
    found = [{key: row[key] for key in ("step", "detector", "level", "action", "message")} for row in read_jsonl(run.guard)]
    return {
        "num_steps": max(step.step for step in history.steps),
        "looks": looks,
        "curve": None if curve is None else without_nan(asdict(curve)) | {"is_identified": curve.is_identified},
        "findings": found,
        "summary": summary(looks),
        "kl_by_step": [step.metrics.get("kl/sequence") for step in history.steps],
        "minutes": round(read_jsonl(run.timing)[-1]["elapsed_s"] / 60, 1),
    }


def looks_of(run: RunDirectory, history: History, part: str, words_of: Callable[[str], Sequence[str]]) -> list[dict[str, Any]]:
    """Return the part's evaluations in order. `kl`: that of the distance, a mean over the last steps; 0 before training."""
    distances = {0: 0.0} | distances_at(history, history.looks_at(part, MODE))
    looks = []
    for row in read_jsonl(run.eval):
        if (row["part"], row["mode"]) != (part, MODE):
            continue
        counts = [len(words_of(answer["completion"])) for answer in read_rows(run.evals_of(row["step"], part=part, mode=MODE))]
        distance = distances.get(row["step"])
        looks.append(
            {
                "step": row["step"],
                "part": part,
                "kl": None if distance is None else round(distance**2, 4),
                "distance": None if distance is None else round(distance, 4),
                **{key: row[key] if row[key] is None else round(row[key], 5) for key in _MEASURED},
                "words_mean": round(sum(counts) / len(counts), 2),
            }
        )
    return looks


def summary(looks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return gold and proxy of part guard at the start, at the best evaluation of part choose, and at the end."""
    chosen, guarded = ([look for look in looks if look["part"] == part] for part in PARTS)
    best_step = max(chosen, key=lambda look: (look["gold_mean"], -look["step"]))["step"]
    at = {look["step"]: look for look in guarded}
    steps = {"start": 0, "best": best_step, "end": max(at)}
    keys = ("step", "distance", "gold_mean", "proxy_mean", "words_mean")
    return {name: {key: at[step][key] for key in keys} for name, step in steps.items()}


def without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with None where there is no number."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()}
