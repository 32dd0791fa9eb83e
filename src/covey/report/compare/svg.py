"""The figures of a comparison as SVG files for a paper: text stays text, and no browser is needed."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterator

from covey.report.charts import RULE
from covey.report.compare.axes import shortened
from covey.report.compare.figures import BAND_OPACITY, BAR_SHARE, MARKERS_SHOWN, Figure, Series

_WIDTH, _TOP, _RIGHT, _BOTTOM = 720, 40, 24, 46  # SVG, in pixels


_PLOT_HEIGHT, _ROW_HEIGHT, _LEGEND_ROW = 320, 38, 20


_LETTER = 6.8  # mean width of a letter, 12 pixels high


Scale = Callable[[float], float]


def svg(figure: Figure) -> str:
    """Return the figure as an SVG file for a paper: text stays text, and no browser is needed."""
    is_by_row = figure.num_rows is not None
    left = 58.0 if not is_by_row else 20 + _LETTER * max(len(text) for _, text in figure.y.ticks)
    height = _ROW_HEIGHT * figure.num_rows if figure.num_rows is not None else _PLOT_HEIGHT
    right, bottom = _WIDTH - _RIGHT, _TOP + height

    def across(x: float) -> float:
        return left + (right - left) * (x - figure.x.low) / (figure.x.high - figure.x.low)

    def up(y: float) -> float:
        return bottom - height * (y - figure.y.low) / (figure.y.high - figure.y.low)

    lines = [f'<text x="{left:.1f}" y="22" font-size="14" font-weight="bold">{_xml(figure.title)}</text>']
    for x, text in figure.x.ticks:
        lines.append(f'<path d="M{across(x):.1f} {_TOP}V{bottom}" stroke="{RULE}"/>')
        lines.append(f'<text x="{across(x):.1f}" y="{bottom + 17}" text-anchor="middle">{_xml(text)}</text>')
    for y, text in figure.y.ticks:
        lines += [] if is_by_row else [f'<path d="M{left:.1f} {up(y):.1f}H{right}" stroke="{RULE}"/>']
        lines.append(f'<text x="{left - 8:.1f}" y="{up(y) + 4:.1f}" text-anchor="end">{_xml(text)}</text>')
    lines.append(f'<text x="{(left + right) / 2:.1f}" y="{bottom + 36}" text-anchor="middle">{_xml(figure.x.label)}</text>')
    if figure.y.label:
        place = f'transform="translate(14 {(_TOP + bottom) / 2:.0f}) rotate(-90)"'
        lines.append(f'<text {place} text-anchor="middle">{_xml(figure.y.label)}</text>')
    for series in figure.series:
        lines += _drawn(series, across, up, ends=(_TOP, bottom))
    legend, legend_height = _legend(figure, left=left, top=bottom + _BOTTOM)
    size = f'viewBox="0 0 {_WIDTH} {bottom + _BOTTOM + legend_height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="Helvetica, Arial, sans-serif" font-size="12">'
    title = f"<title>{_xml(figure.title)}</title><desc>{_xml(figure.note)}</desc>"
    return "\n".join([head, title, '<rect width="100%" height="100%" fill="#ffffff"/>', *lines, *legend, "</svg>", ""])


def _drawn(series: Series, across: Scale, up: Scale, *, ends: tuple[float, float]) -> Iterator[str]:
    colour, symbol = series.mark.colour, series.mark.symbol
    dash = ' stroke-dasharray="5 4"' if series.is_dashed else ""
    spots = [(across(x), up(y)) for x, y in zip(series.xs, series.ys, strict=False)]
    if series.kind == "rule":
        for x in series.xs:
            yield f'<path d="M{across(x):.1f} {ends[0]}V{ends[1]}" stroke="{colour}"{dash}/>'
    elif series.kind == "bar":
        thick = _ROW_HEIGHT * BAR_SHARE
        for y, low, high in zip(series.ys, series.lows, series.highs, strict=True):
            size = f'width="{across(high) - across(low):.1f}" height="{thick:.1f}" stroke="#ffffff"'
            yield f'<rect x="{across(low):.1f}" y="{up(y) - thick / 2:.1f}" {size} fill="{colour}"/>'
    elif series.kind == "line":
        edge = [*zip(series.xs, series.highs, strict=False), *reversed(list(zip(series.xs, series.lows, strict=False)))]
        band = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in edge)
        if band:
            yield f'<polygon points="{band}" fill="{colour}" fill-opacity="{BAND_OPACITY}"/>'
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        width = 1.2 if series.is_dashed else 2
        yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}"{dash}/>'
        every = math.ceil(len(spots) / MARKERS_SHOWN)
        yield from (
            _marker(symbol, x, y, size=3 if series.is_dashed else 4, paint=f'fill="{colour}"') for x, y in spots[::every]
        )
    elif series.kind == "interval":
        for (x, y), low, high in zip(spots, series.lows, series.highs, strict=True):
            yield f'<path d="M{across(low):.1f} {y:.1f}H{across(high):.1f}" stroke="{colour}" stroke-width="2.4"/>'
            yield _marker(symbol, x, y, size=6, paint=f'fill="{colour}"')
    else:
        yield from (_marker(symbol, x, y, size=3, paint=f'fill="none" stroke="{colour}"') for x, y in spots)


def _legend(figure: Figure, *, left: float, top: float) -> tuple[list[str], int]:
    """Return the names of the series in columns, and the height that they take."""
    shown = [series for series in figure.series if series.in_legend]
    if not shown:
        return [], 0
    width = 44 + _LETTER * max(len(shortened(series.label)) for series in shown)
    num_columns = max(1, int((_WIDTH - _RIGHT - left) // width))
    lines = []
    for index, series in enumerate(shown):
        x, y = left + width * (index % num_columns), top + 8 + _LEGEND_ROW * (index // num_columns)
        colour, dash = series.mark.colour, ' stroke-dasharray="5 4"' if series.is_dashed else ""
        if series.kind == "line":
            lines.append(f'<path d="M{x:.1f} {y:.1f}h24" stroke="{colour}" stroke-width="2"{dash}/>')
        lines.append(_marker(series.mark.symbol, x + 12, y, size=5, paint=f'fill="{colour}"'))
        lines.append(f'<text x="{x + 30:.1f}" y="{y + 4:.1f}">{_xml(shortened(series.label))}</text>')
    return lines, 12 + _LEGEND_ROW * math.ceil(len(shown) / num_columns)


def _marker(symbol: str, x: float, y: float, *, size: float, paint: str) -> str:
    if symbol not in OUTLINES:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" {paint}/>'
    points = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in OUTLINES[symbol])
    return f'<polygon points="{points}" {paint}/>'


def _xml(text: str) -> str:
    """Return the text as XML can hold it: control characters cannot stand in it at all."""
    return html.escape(re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text))


def _spikes(num: int, *radii: float, turn_frac: float = 0.0) -> tuple[tuple[float, float], ...]:
    """Return corners at equal angles, the first on top; their distance from the middle goes through `radii` in turn."""
    angles = [2 * math.pi * ((index + turn_frac) / num) for index in range(num)]
    return tuple((radii[i % len(radii)] * math.sin(a), -radii[i % len(radii)] * math.cos(a)) for i, a in enumerate(angles))


_PLUS = ((-0.4, -1.1), (0.4, -1.1), (0.4, -0.4), (1.1, -0.4), (1.1, 0.4), (0.4, 0.4))


OUTLINES = {
    "square": _spikes(4, 1.25, turn_frac=0.5),
    "diamond": _spikes(4, 1.3),
    "triangle-up": _spikes(3, 1.3),
    "triangle-down": _spikes(3, 1.3, turn_frac=0.5),
    "cross": (*_PLUS, *((-x, -y) for x, y in _PLUS)),
    "x": tuple((0.71 * (x - y), 0.71 * (x + y)) for x, y in (*_PLUS, *((-x, -y) for x, y in _PLUS))),
    "star": _spikes(10, 1.4, 0.6),
    "pentagon": _spikes(5, 1.2),
    "hexagon": _spikes(6, 1.2),
}
"""The corners of each symbol around its middle, y downwards; a symbol that is not here is a circle."""
