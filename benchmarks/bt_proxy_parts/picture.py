"""Proxy and gold over the square root of KL, as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

PART = "choose"
"""The part that the curve is fitted on."""
COLOURS = {"proxy": "#e8590c", "gold": "#0b7285"}
LEFT, TOP, WIDTH, HEIGHT = 46, 30, 520, 250
NUM_CURVE_POINTS = 60
NAME_WIDTH = 14


def picture(result: Mapping[str, Any]) -> str:
    """Return the means of proxy and gold by distance, gold with its 95 % intervals, the fitted curve dashed and its peak."""
    points = [look for look in result.get("looks", []) if look["part"] == PART and look["distance"] is not None]
    curve = result.get("curve") or {"is_identified": False}
    lines = list(drawn(points, curve)) if points else []
    size = f"{LEFT + WIDTH + 84} {TOP + HEIGHT + 62}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif" font-size="11">'
    title = "<title>A learned proxy and gold over the distance from the reference</title>"
    paper = f'<rect width="{size.split()[0]}" height="{size.split()[1]}" fill="#ffffff"/>'
    return "\n".join([head, title, paper, *lines, "</svg>", ""])


def drawn(points: Sequence[Mapping[str, Any]], curve: Mapping[str, Any]) -> Iterator[str]:
    """Yield axes, points and curve. Both axes begin at 0; the upright one ends at 1, where both scores do."""
    peak = curve["best_distance"] if curve["is_identified"] else 0.0
    reach = max(peak, *(point["distance"] for point in points)) or 1.0
    x_of = {point["step"]: across(point["distance"], reach) for point in points}
    yield f'<path d="M{LEFT} {TOP}V{TOP + HEIGHT}H{LEFT + WIDTH}" fill="none" stroke="#868e96"/>'
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        yield f'<text x="{LEFT - 6}" y="{upright(share) + 4:.1f}" text-anchor="end">{share:.2f}</text>'
    for distance in round_distances(reach):
        yield f'<text x="{across(distance, reach):.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{distance:g}</text>'
    yield f'<text x="{LEFT}" y="{TOP + HEIGHT + 34}">sqrt(KL), KL in nats a completion; numbers at the points are steps</text>'
    for score, colour in COLOURS.items():
        spots = [(x_of[point["step"]], upright(point[f"{score}_mean"])) for point in points]
        drawn_spots = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        yield f'<polyline points="{drawn_spots}" fill="none" stroke="{colour}" stroke-width="2"/>'
        yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in spots)
        yield f'<text x="{spots[-1][0] + 8:.1f}" y="{spots[-1][1] + 4:.1f}" fill="{colour}">{score}</text>'
    yield from whiskers(points, x_of)
    yield from step_names(points, x_of)
    if curve["is_identified"]:
        yield from fitted(curve, points[0]["gold_mean"], reach)


def round_distances(reach: float) -> list[float]:
    """Return the multiples of 1, 2 or 5 times a power of ten up to `reach`: the widest apart that give 4 steps or more."""
    power = 10.0 ** math.floor(math.log10(reach))
    size = next(size for size in (5 * power, 2 * power, power, power / 2, power / 5) if reach >= 4 * size)
    return [round(index * size, 10) for index in range(math.floor(reach / size) + 1)]


def step_names(points: Sequence[Mapping[str, Any]], x_of: Mapping[int, float]) -> Iterator[str]:
    """Yield the steps above the points of the proxy, but for those that would be written over another."""
    taken: list[float] = []
    for point in points:
        x, y = x_of[point["step"]], upright(point["proxy_mean"]) - 7
        if all(abs(x - other) >= NAME_WIDTH for other in taken):
            yield f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" font-size="9">{point["step"]}</text>'
            taken.append(x)


def whiskers(points: Sequence[Mapping[str, Any]], x_of: Mapping[int, float]) -> Iterator[str]:
    """Yield the intervals of gold."""
    for point in points:
        if point["gold_low"] is not None and point["gold_high"] is not None:
            ends = f"M{x_of[point['step']]:.1f} {upright(point['gold_low']):.1f}V{upright(point['gold_high']):.1f}"
            yield f'<path d="{ends}" stroke="{COLOURS["gold"]}"/>'


def fitted(curve: Mapping[str, Any], start: float, reach: float) -> Iterator[str]:
    """Yield start + d (alpha - beta ln d), and a mark where it is highest."""
    places = [reach * index / NUM_CURVE_POINTS for index in range(1, NUM_CURVE_POINTS + 1)]
    gains = [(0.0, 0.0), *((place, place * (curve["alpha"] - curve["beta"] * math.log(place))) for place in places)]
    spots = " ".join(f"{across(place, reach):.1f},{upright(start + gain):.1f}" for place, gain in gains)
    yield f'<polyline points="{spots}" fill="none" stroke="#495057" stroke-dasharray="5 4"/>'
    x, y = across(curve["best_distance"], reach), upright(start + curve["best_gain"])
    yield f'<path d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z" fill="#495057"/>'
    label = f"gold = {start:.2f} + d ({curve['alpha']:.3g} - {curve['beta']:.3g} ln d), highest at {curve['best_distance']:.2f}"
    yield f'<text x="{LEFT}" y="{TOP + HEIGHT + 52}" fill="#495057">dashed: {label}</text>'


def across(distance: float, reach: float) -> float:
    return LEFT + WIDTH * distance / reach


def upright(score: float) -> float:
    return TOP + HEIGHT * (1.0 - score)
