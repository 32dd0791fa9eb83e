"""Steps and evaluations as a console is told of them, and a stream that knows only ASCII."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from covey.monitor.console import StepRecord

METRICS: dict[str, float | None] = {
    "reward/mean": 0.5,
    "gold/mean": 0.25,
    "group/num_used": 6.0,
    "group/num_sampled": 8.0,
    "group/all_correct_frac": 0.25,
    "group/all_wrong_frac": 0.0,
    "completion/length_mean": 143.4,
    "completion/truncated_frac": 0.03,
    "loss/value": 1e-9,
}
EVALUATION = {
    "gold_mean": 0.41,
    "gold_low": 0.35,
    "gold_high": 0.47,
    "gold_gain": 0.06,
    "gold_gain_low": -0.01,
    "gold_gain_high": 0.13,
    "proxy_mean": 0.6,
    "proxy_low": 0.5,
    "proxy_high": 0.7,
    "proxy_gain": None,
}


def record(step: int, *, elapsed_s: float | None = None, **changes: Any) -> StepRecord:
    values: dict[str, Any] = {
        "num_steps": 200,
        "elapsed_s": 8.0 * step if elapsed_s is None else elapsed_s,
        "metrics": METRICS,
        "timing": {"generated_tokens_per_s": 1812.3},
        "question": "What is 2 + 2?",
        "completion": "It is 4.",
        "verdict": "reward 1, gold 1",
    }
    return StepRecord(step=step, **(values | changes))


def metrics(**changes: float | None) -> Mapping[str, float | None]:
    return METRICS | {key.replace("__", "/"): value for key, value in changes.items()}


class AsciiStream(io.StringIO):
    encoding = "ascii"
