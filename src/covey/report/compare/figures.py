"""What the figures of a comparison show, in data coordinates: `page` and `svg` draw the same figure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from covey.report.charts import AMBER, BLUE, DARK, GREEN, GREY, INK, ORANGE, PURPLE, SKY
from covey.report.compare.axes import (
    Axis,
    as_count,
    as_gigabytes,
    as_percent,
    as_seconds,
    number_axis,
    row_axis,
    slug,
)

Json = Mapping[str, Any]


BASE = "base"


MEMORY_PARTS = ("policy", "reference", "critic", "optimizer", "engine", "libraries", "activations and cache")


TRAINING_PHASES = ("sampling", "rewards", "scoring", "update", "load_weights")
"""The seconds that count as training; evaluations and checkpoints are the comparison's own doing."""


# The palette of the other reports, which is Okabe & Ito's; their yellow is darkened, because it cannot be seen on white paper.
YELLOW, BROWN = "#8f8000", "#6f4a1f"


ARM_COLOURS = (BLUE, ORANGE, GREEN, AMBER, PURPLE, SKY, YELLOW, BROWN, GREY)


SYMBOLS = ("square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star", "pentagon", "hexagon")


PART_COLOURS = (BLUE, SKY, ORANGE, AMBER, GREEN, GREY, PURPLE)


DARK_COLOURS = {**DARK, YELLOW: "#d6c93a", BROWN: "#c79a68"}


BAND_OPACITY = 0.14
BAR_SHARE = 0.6  # of a row
MARKERS_SHOWN = 9  # of a line
_SEED_OFFSET = 0.25  # of a row, below the interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """How an arm looks: never by its colour alone."""

    colour: str
    symbol: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Marks that belong together.

    "line": through the points, with a band from `lows` to `highs` along y where they are given. "interval": at each point a
    line from `lows` to `highs` along x. "points": alone. "bar": from `lows` to `highs` along x at `ys`. "rule": a line from
    bottom to top at each of `xs`.
    """

    label: str
    kind: Literal["line", "interval", "points", "bar", "rule"]
    mark: Mark
    xs: tuple[float, ...]
    ys: tuple[float, ...] = ()
    lows: tuple[float, ...] = ()
    highs: tuple[float, ...] = ()
    hover: tuple[str, ...] = ()
    is_dashed: bool = False
    in_legend: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One chart. `name` is safe as a file name."""

    name: str
    title: str
    note: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    num_rows: int | None = None
    """How many rows with a name each the y axis has; None: it is an axis of numbers."""

    @property
    def height(self) -> int:
        """Pixels on the page."""
        num_entries = sum(series.in_legend for series in self.series)
        legend = 26 * math.ceil(num_entries / 4)
        return (70 + 40 * self.num_rows if self.num_rows is not None else 360) + legend


def number_at(values: Any, *keys: str) -> float | None:
    """Return the number at the end of these keys; None if there is none, or none that is finite."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    is_number = isinstance(values, int | float) and not isinstance(values, bool)
    return float(values) if is_number and math.isfinite(values) else None


def in_order(arms: Sequence[Json]) -> list[Json]:
    """Return the arms as they are shown: those that are trained, then the untrained ones, the base last."""
    return sorted(arms, key=lambda arm: (not arm.get("trained"), arm["name"] == BASE))


def arm_marks(arms: Sequence[Json]) -> dict[str, Mark]:
    """Return each arm's colour and symbol, which stay the same in all figures."""
    names = [arm["name"] for arm in in_order(arms) if arm["name"] != BASE]
    looks = zip(itertools.cycle(ARM_COLOURS), itertools.cycle(SYMBOLS), strict=True)
    marks = {name: Mark(colour=colour, symbol=symbol) for name, (colour, symbol) in zip(names, looks, strict=False)}
    return {**marks, BASE: Mark(colour=INK, symbol="circle")}


def figures_of(summary: Json) -> list[Figure]:
    """Return every figure for which there are numbers."""
    arms = summary["arms"]
    keys = dict.fromkeys(key for arm in arms for key in arm.get("scores") or {} if key.endswith("/sampled"))
    made = [
        *(forest(arms, key, place) for place, key in enumerate(keys)),
        curves(arms, "tokens"),
        curves(arms, "train_s"),
        rates(arms),
        stacks(arms, "memory_bytes", MEMORY_PARTS),
        stacks(arms, "seconds", TRAINING_PHASES),
    ]
    return [figure for figure in made if figure is not None]


def forest(arms: Sequence[Json], key: str, place: int = 0) -> Figure | None:
    """Return each arm's gold with its interval and its seeds, and the base as a line; None if nothing was measured there."""
    shown = [(arm, found) for arm in in_order(arms) if (found := interval_at(arm, key)) is not None]
    if not shown:
        return None
    marks = arm_marks(arms)
    series: list[Series] = []
    for row, (arm, (mean, low, high)) in enumerate(shown):
        name, y = arm["name"], float(len(shown) - 1 - row)
        hover = f"{name}: {100 * mean:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
        if name == BASE:
            series.append(Series(label=name, kind="rule", mark=marks[name], xs=(mean,), is_dashed=True, in_legend=False))
        common: dict[str, Any] = {"label": name, "mark": marks[name], "in_legend": False}
        ends: dict[str, Any] = {"lows": (low,), "highs": (high,), "hover": (hover,)}
        series.append(Series(kind="interval", xs=(mean,), ys=(y,), **ends, **common))
        seeds = [(seed, gold) for seed, gold in gold_by_seed(arm, key) if gold is not None] if arm.get("trained") else []
        if seeds:
            said = tuple(f"{name}, seed {seed}: {100 * gold:.1f} %" for seed, gold in seeds)
            golds = tuple(gold for _, gold in seeds)
            series.append(Series(kind="points", xs=golds, ys=(y - _SEED_OFFSET,) * len(golds), hover=said, **common))
    values = [value for each in series for value in (*each.xs, *each.lows, *each.highs)]
    level, _, _ = key.partition("/")
    return Figure(
        name=f"forest-{place}-{slug(level)}" if place else "forest-test",
        title=f"Gold, {level} questions",
        note="Large marks: mean with its 95 % interval. Small marks: one training seed each. Dashed line: the untrained model.",
        x=number_axis("gold", values, as_percent),
        y=row_axis([arm["name"] for arm, _ in shown]),
        series=tuple(series),
        num_rows=len(shown),
    )


def gold_by_seed(arm: Json, key: str) -> list[tuple[Any, float | None]]:
    """Return (seed, gold) of each seed that has been measured."""
    golds = [number_at({"gold": gold}, "gold") for gold in ((arm.get("scores") or {}).get(key) or {}).get("by_seed") or ()]
    return list(zip(arm.get("seeds") or range(len(golds)), golds, strict=False))


def curves(arms: Sequence[Json], across: Literal["tokens", "train_s"]) -> Figure | None:
    """Return gold and proxy of each arm against tokens or seconds, means over seeds; None without two evaluations."""
    marks = arm_marks(arms)
    lines: list[Series] = []
    for (score, label), arm in itertools.product((("gold", "{}"), ("proxy", "{}, proxy")), in_order(arms)):
        xs, means, lows, highs = mean_over_seeds(arm.get("curve") or (), across, score)
        if len(xs) > 1:
            name = label.format(arm["name"])
            unit = as_count if across == "tokens" else as_seconds
            lines.append(
                Series(
                    label=name,
                    kind="line",
                    mark=marks[arm["name"]],
                    xs=xs,
                    ys=means,
                    # Bands of proxy and gold over each other would be mud.
                    lows=lows if score == "gold" and lows != highs else (),
                    highs=highs if score == "gold" and lows != highs else (),
                    hover=tuple(f"{name}: {100 * y:.1f} % at {unit(x)}" for x, y in zip(xs, means, strict=True)),
                    is_dashed=score == "proxy",
                )
            )
    if not lines:
        return None
    values = [value for line in lines for value in (*line.ys, *line.lows, *line.highs)]
    places = [0.0, *(x for line in lines for x in line.xs)]
    is_tokens = across == "tokens"
    return Figure(
        name="curve-tokens" if is_tokens else "curve-time",
        title=f"Gold and proxy against {'generated tokens' if is_tokens else 'seconds of training'}",
        note=(
            "Part choose, sampled: these questions steer the runs and are not the test. Lines: mean over seeds, between two "
            "evaluations a straight line. Bands: from the lowest to the highest seed, no confidence interval. Dashed: the "
            "proxy, which is what is optimised."
        ),
        x=number_axis("generated tokens", places, as_count)
        if is_tokens
        else number_axis("seconds of training", places, as_seconds),
        y=number_axis("score", values, as_percent),
        series=tuple(lines),
    )


Line = tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...]]


def mean_over_seeds(seeds: Sequence[Json], across: str, score: str) -> Line:
    """Return positions and, over the seeds, mean, lowest and highest score there.

    Seeds are evaluated at slightly different tokens: each is read between its evaluations by a straight line, at the positions
    of all of them, and only where all of them reach.
    """
    found = [points for seed in seeds if (points := _known_points(seed.get(across) or (), seed.get(score) or ()))]
    if not found:
        return (), (), (), ()
    start, end = max(min(points) for points in found), min(max(points) for points in found)
    xs = sorted({x for points in found for x in points if start <= x <= end})
    table = np.array([np.interp(xs, sorted(points), [points[x] for x in sorted(points)]) for points in found])
    rows = (table.mean(axis=0), table.min(axis=0), table.max(axis=0)) if xs else ([], [], [])
    means, lows, highs = (tuple(float(value) for value in row) for row in rows)
    return tuple(xs), means, lows, highs


def _known_points(places: Sequence[Any], scores: Sequence[Any]) -> dict[float, float]:
    """Return score by position; of two evaluations at one position the later counts."""
    pairs = [(number_at({"x": x}, "x"), number_at({"y": y}, "y")) for x, y in zip(places, scores, strict=False)]
    return {x: y for x, y in pairs if x is not None and y is not None}


def rates(arms: Sequence[Json]) -> Figure | None:
    """Return what each learning rate reached in the trials, a line for each arm; None without trials."""
    marks = arm_marks(arms)
    lines = []
    for arm in in_order(arms):
        trials = [(number_at(trial, "learning_rate"), number_at(trial, "gold")) for trial in arm.get("trials") or ()]
        known = sorted((math.log10(rate), gold) for rate, gold in trials if rate and rate > 0 and gold is not None)
        if known:
            xs, ys = zip(*known, strict=True)
            hover = tuple(f"{arm['name']}: {100 * y:.1f} % at {10**x:.3g}" for x, y in known)
            lines.append(Series(label=arm["name"], kind="line", mark=marks[arm["name"]], xs=xs, ys=ys, hover=hover))
    if not lines:
        return None
    places = sorted({x for line in lines for x in line.xs})
    margin = 0.1 * (places[-1] - places[0]) or 0.5
    return Figure(
        name="learning-rates",
        title="Learning-rate trials",
        note="Gold of part choose at the end of each trial: one seed, part of the budget, the same rates for every arm.",
        x=Axis(
            label="learning rate",
            low=places[0] - margin,
            high=places[-1] + margin,
            ticks=tuple((x, f"{10**x:.3g}") for x in places),
        ),
        y=number_axis("gold", [y for line in lines for y in line.ys], as_percent),
        series=tuple(lines),
    )


def stacks(arms: Sequence[Json], cost: Literal["memory_bytes", "seconds"], parts: Sequence[str]) -> Figure | None:
    """Return stacked bars of what each trained arm costs, part by part; None if no cost is known."""
    is_memory = cost == "memory_bytes"
    unit: Callable[[float], str] = as_gigabytes if is_memory else as_seconds
    costs = {arm["name"]: [number_at(arm, "costs", cost, part) or 0.0 for part in parts] for arm in in_order(arms)}
    costs = {name: values for name, values in costs.items() if any(values)}
    if not costs:
        return None
    ys = tuple(float(len(costs) - 1 - row) for row in range(len(costs)))
    ends = {name: list(itertools.accumulate(values, initial=0.0)) for name, values in costs.items()}
    series = []
    for index, (part, colour) in enumerate(zip(parts, PART_COLOURS, strict=False)):
        if any(values[index] for values in costs.values()):
            lows, highs = (tuple(each[index + place] for each in ends.values()) for place in (0, 1))
            label = part.replace("_", " ")
            hover = tuple(f"{name}, {label}: {unit(values[index])}" for name, values in costs.items())
            mark = Mark(colour=colour, symbol="square")
            series.append(Series(label=label, kind="bar", mark=mark, xs=highs, ys=ys, lows=lows, highs=highs, hover=hover))
    return Figure(
        name="memory" if is_memory else "seconds",
        title="Peak memory by what holds it" if is_memory else "Seconds of training by phase",
        note=(
            "Of the whole process, medians over seeds. What no holder claims, up to the peak, is activations and cache."
            if is_memory
            else "Medians over seeds. Evaluations and checkpoints are not in it."
        ),
        x=number_axis(
            "peak memory" if is_memory else "seconds of training", [0.0, *(each[-1] for each in ends.values())], unit
        ),
        y=row_axis(list(costs)),
        series=tuple(series),
        num_rows=len(costs),
    )


def interval_at(arm: Json, key: str) -> tuple[float, float, float] | None:
    """Return mean, low and high of an arm's gold, None if it was not measured; ends that are not known are the mean."""
    mean, low, high = (number_at(arm, "scores", key, end) for end in ("mean", "low", "high"))
    return None if mean is None else (mean, mean if low is None else low, mean if high is None else high)
