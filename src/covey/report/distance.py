"""Proxy and gold over the distance from the reference, and the fits that the guard makes: a run as detectors see it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from covey.guard.entropy import EntropyFit, entropy_fit
from covey.guard.history import Answers, History, Step
from covey.guard.pairing import mode_at_start
from covey.guard.regression import Curve, distances_at, gain_curve
from covey.guard.replay import look_of
from covey.report.load import Row, Run

MIN_LOOKS = 3
"""Evaluations at a known distance that make a chart."""
_PARTS = ("choose", "guard")
"""In order of preference: the curve is fitted on the first."""
_MISSING = "Proxy and gold over the distance from the reference are not shown:"


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One evaluation. Gains are over step 0, paired by question; None = not recorded."""

    step: int
    distance: float
    """sqrt(KL), KL in nats a completion."""
    proxy: float | None
    """As a share of the reward's declared range."""
    gold: float | None
    gold_low: float | None
    gold_high: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class DistanceView:
    """What a report says of the distance."""

    points: tuple[Point, ...]
    """By step, that of step 0 first; empty where too few evaluations are at a known distance."""
    curve: Curve | None
    """Of gold; None without gold, or without points of part choose."""
    note: str
    """What the chart shows, or why there is none."""


def history_of(run: Run) -> History:
    """Return the run as far as the curves need it: evaluations of the parts that they read, and the metrics of each step.

    Of a step's completions there is the mean of gold alone, as a single answer: reading all their files would take long. The
    numbers that only tests share an error rate among are not the run's.
    """
    low, high = _reward_range(run)
    looks = [
        look_of(rows, step=row["step"], part=row["part"], mode=row["mode"], reward_range=(low, high))
        for row in run.evals
        if row["part"] in _PARTS and (rows := run.completions(row))
    ]
    steps = [Step(step=row["step"], answers=_mean_answer(row), metrics=row) for row in run.metrics]
    return History(looks=looks, steps=steps, planned_looks=len(looks), group_size=1)


def distance_view(run: Run, history: History) -> DistanceView:
    """Return proxy and gold by distance, with the curve of the guard; without points, which option would give them."""
    if not any(row.get("kl/sequence") is not None for row in run.metrics):
        return DistanceView(
            points=(), curve=None, note=f"{_MISSING} the distance was not recorded. algorithm.track_kl = true records it."
        )
    part, mode = next(((part, mode) for part in _PARTS if (mode := mode_at_start(history, part))), ("choose", "sampled"))
    distances = distances_at(history, history.looks_at(part, mode))
    rows = [row for row in run.evals if (row["part"], row["mode"]) == (part, mode) and row["step"] in distances]
    if len(rows) < MIN_LOOKS:
        note = (
            f"{_MISSING} {len(rows)} evaluations are at a distance that algorithm.track_kl has recorded, and {MIN_LOOKS} are "
            "needed. evaluation.every says how often there is one."
        )
        return DistanceView(points=(), curve=None, note=note)
    low, high = _reward_range(run)
    points = [_point(row, distances[row["step"]], reward_size=high - low) for row in rows]
    has_gold = any(point.gold is not None for point in points)
    zero = 0.0 if has_gold else None
    start = Point(step=0, distance=0.0, proxy=0.0, gold=zero, gold_low=zero, gold_high=zero)
    curve = gain_curve(history) if part == "choose" else None
    note = f"{_explanation(part, mode, has_gold=has_gold, reward_range=(low, high))}{_curve_sentence(curve)}"
    return DistanceView(points=(start, *points), curve=curve, note=note)


def entropy_sentence(history: History) -> str:
    """Return what the fit of gold over the entropy says; empty where gold does not rise as entropy falls."""
    fit = entropy_fit(history)
    if fit is None:
        return ""
    return (
        f" Over {fit.num_steps} steps the nearest curve gold = b - a exp(H) has a = {fit.a:.3g} and b = {fit.b:.3g}: "
        f"{_ceiling(fit)} (arXiv 2505.22617). A description, and no test."
    )


def _ceiling(fit: EntropyFit) -> str:
    if fit.ceiling > 1.0:
        return "at entropy 0 gold would be above 1, so that it shows no ceiling"
    return f"at entropy 0, with nothing left to try, gold would be {fit.ceiling:.2f}"


def _point(row: Row, distance: float, *, reward_size: float) -> Point:
    proxy = row.get("proxy_gain")
    return Point(
        step=row["step"],
        distance=distance,
        proxy=None if proxy is None else proxy / reward_size,
        gold=row.get("gold_gain"),
        gold_low=row.get("gold_gain_low"),
        gold_high=row.get("gold_gain_high"),
    )


def _explanation(part: str, mode: str, *, has_gold: bool, reward_range: tuple[float, float]) -> str:
    scale = "" if reward_range == (0.0, 1.0) else ", the proxy's as a share of its declared range"
    turn = " Where gold turns down and the proxy goes on, it is over-optimised (arXiv 2210.10760)." if has_gold else ""
    return (
        f"Changes since step 0{scale}, over d = sqrt(KL), KL in nats a completion. Each point is an evaluation of the {part} "
        f"part, {mode}, with its step{'; whiskers are 95 % intervals' if has_gold else ''}.{turn}"
    )


def _curve_sentence(curve: Curve | None) -> str:
    if curve is None:
        return ""
    if not curve.is_identified:
        return f" No curve is fitted to gold: {curve.not_identified}."
    return (
        f" The curve d (a - b ln d) with a = {curve.alpha:.3g} and b = {curve.beta:.3g} is fitted to gold, and highest at "
        f"d = {curve.best_distance:.3g}: {curve.best_gain:+.3f}. A description, and no law."
    )


def _mean_answer(row: Row) -> Answers:
    gold = row.get("gold/mean")
    return Answers(
        prompt_ids=[""],
        proxy=np.array([np.nan]),
        gold=np.array([np.nan if gold is None else gold], dtype=np.float64),
        num_tokens=np.array([0], dtype=np.int64),
        is_truncated=np.array([False]),
        extracted=[None],
        expected=[None],
    )


def _reward_range(run: Run) -> tuple[float, float]:
    low, high = run.env.get("reward_range") or (0.0, 1.0)
    return float(low), float(high)
