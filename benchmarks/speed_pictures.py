"""The pictures of docs/speed.md: bars of a step's seconds, and how a step grows, as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

COLOURS = {"Covey": "#0b7285", "TRL": "#adb5bd", "floor": "#212529"}


def picture(result: Mapping[str, Any]) -> str:
    """Return bars of the seconds of a step, as SVG."""
    records = {name: record for name, record in result.get("workloads", {}).items() if "covey_s" in record}
    most = max([record.get("trl_s", record["covey_s"]) for record in records.values()], default=1.0)
    lines, top = [], 10
    for name, record in records.items():
        lines.append(f'<text x="8" y="{top + 24}" font-weight="bold">{name}</text>')
        for key, label in (("covey_s", "Covey"), ("trl_s", "TRL"), ("floor_s", "floor")):
            if key not in record:
                continue
            width = max(1, round(500 * record[key] / most))
            text = f"{label} {record[key]:.1f} s"
            lines.append(f'<rect x="90" y="{top}" width="{width}" height="14" fill="{COLOURS[label]}"/>')
            lines.append(f'<text x="{96 + width}" y="{top + 12}">{text}</text>')
            top += 17
        top += 14
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 {top}" font-family="sans-serif" font-size="12">'
    title = "<title>Seconds of a training step</title>"
    return "\n".join([head, title, f'<rect width="720" height="{top}" fill="#ffffff"/>', *lines, "</svg>", ""])


def scaling_picture(result: Mapping[str, Any]) -> str:
    """Return one panel an axis: seconds of a step, of its sampling, and GB, as SVG. Both axes begin at 0."""
    panels = [(axis, record["points"]) for axis, record in result.get("axes", {}).items() if record["points"]]
    lines = [line for place, (axis, points) in enumerate(panels) for line in _panel(axis, points, left=46 + 240 * place)]
    size = 30 + 240 * max(1, len(panels))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} 240" font-family="sans-serif" font-size="11">'
    title = "<title>How a training step grows</title>"
    note = '<text x="46" y="228" fill="#495057">dark: a step; light: its sampling; orange: memory</text>'
    return "\n".join([head, title, f'<rect width="{size}" height="240" fill="#ffffff"/>', *lines, note, "</svg>", ""])


def _panel(axis: str, points: Sequence[Mapping[str, Any]], *, left: int) -> Iterator[str]:
    top, width, height = 34, 170, 150
    most = {key: max(point[key] for point in points) for key in ("value", "total_s", "gb")}
    most["sampling_s"] = most["total_s"]  # On the scale of the whole step.
    yield f'<path d="M{left} {top}V{top + height}H{left + width}" fill="none" stroke="#868e96"/>'
    yield f'<text x="{left}" y="{top - 14}" font-weight="bold">{axis}</text>'
    places = [left + width * point["value"] / most["value"] for point in points]
    for key, colour, unit, below in (
        ("total_s", "#0b7285", "s", 4),
        ("sampling_s", "#74c0fc", "s", 4),
        ("gb", "#e8590c", "GB", 12),
    ):
        spots = [(x, top + height * (1 - point[key] / most[key])) for x, point in zip(places, points, strict=True)]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        yield f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>'
        yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in spots)
        end = f"{points[-1][key]:.1f} {unit}"
        yield f'<text x="{left + width + 5}" y="{spots[-1][1] + below:.1f}" fill="{colour}">{end}</text>'
    for x, point in zip(places, points, strict=True):
        yield f'<text x="{x:.1f}" y="{top + height + 14}" text-anchor="middle">{point["value"]:.0f}</text>'
