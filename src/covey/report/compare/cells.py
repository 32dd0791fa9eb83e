"""How numbers of a comparison's summary stand in text; what is not there is a dash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from covey.compare.verdicts import ALPHA, signed_points
from covey.report.compare.axes import as_count
from covey.report.compare.figures import Json, number_at

NOTHING = "-"


CONFIDENCE = f"{100 * (1 - ALPHA):g} %"


def place_text(key: str) -> str:
    level, _, mode = key.partition("/")
    return f"{level} questions, {mode}"


def gain_text(interval: Json, *, unit: str = " points") -> str:
    mean, low, high = (number_at(interval, end) for end in ("mean", "low", "high"))
    if mean is None:
        return NOTHING if not unit else "not measured"
    if low is None or high is None:
        return f"{signed_points(mean)}{unit}"
    if not unit:
        return f"{signed_points(mean)} [{signed_points(low)}, {signed_points(high)}]"
    return f"{signed_points(mean)}{unit} ({CONFIDENCE} interval {signed_points(low)} to {signed_points(high)})"


def share_text(arm: Json, *path: str) -> str:
    mean, low, high = (number_at(arm, *path, end) for end in ("mean", "low", "high"))
    return percent_text(mean) + ("" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]")


def percent_text(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.1f}"


def plain_text(value: float | None) -> str:
    return NOTHING if value is None else f"{value:g}"


def whole_text(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def counted_text(value: float | None) -> str:
    return NOTHING if value is None else as_count(value)


def gigabytes_text(arm: Json, *path: str) -> str:
    value = number_at(arm, "costs", *path)
    return NOTHING if value is None else f"{value / 1e9:.2f}"


def off_budget_text(arm: Json) -> str:
    missing = number_at(arm, "costs", "budget_missing_frac")
    return NOTHING if missing is None else f"{100 * missing:.1f} %"


def said(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value) if isinstance(value, Mapping) else " ".join(map(str, value))
    return "none" if value is None else str(value)


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
