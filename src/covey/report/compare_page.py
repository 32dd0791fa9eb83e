"""Writes the report of a comparison: a page that needs no network, Markdown, and every figure as SVG for a paper."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from covey.monitor.run_directory import write_text_atomic
from covey.report.charts import INK, PAPER, RULE
from covey.report.compare_figures import DARK_COLOURS, Axis, Figure, Series, shortened
from covey.report.compare_markdown import Pictures, Report, markdown, report_of
from covey.types import CoveyError

_BAND_OPACITY = 0.14
_BAR_SHARE = 0.6  # of a row
_MARKERS_SHOWN = 9  # of a line
_WIDTH, _TOP, _RIGHT, _BOTTOM = 720, 40, 24, 46  # SVG, in pixels
_PLOT_HEIGHT, _ROW_HEIGHT, _LEGEND_ROW = 320, 38, 20
_LETTER = 6.8  # mean width of a letter, 12 pixels high
Scale = Callable[[float], float]

_STYLE = """
.verdicts { margin: 6px 0 14px; padding-left: 1.2rem; font-size: .92rem; max-width: 62rem; }
.verdicts li { margin: 5px 0; overflow-wrap: anywhere; }
.verdicts.loud li:first-child { font-weight: 600; }
.lead + .lead { margin-top: 6px; } h3 { margin-top: 14px; } .grid h3 { margin-top: 0; }
.grid { grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); } .grid article { max-width: 760px; }
.scroll { margin: 10px 0 14px; } .scroll td, .scroll th { white-space: nowrap; } .scroll table { min-width: 0; }
.scroll :is(td, th):first-child { position: sticky; left: 0; background: var(--card); }
.prose :is(td, th) { white-space: normal; text-align: left; overflow-wrap: anywhere; }
.saves { display: inline-flex; gap: 6px; flex: none; }
.saves button { font: inherit; font-size: .75rem; padding: 2px 9px; border: 1px solid var(--rule); border-radius: 6px;
  background: none; color: var(--soft); cursor: pointer; }
.saves button:hover { color: var(--accent); border-color: var(--accent); }
@media (max-width: 640px) { .bar { align-items: flex-start; } .bar h2 { white-space: normal; } }
"""

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; \
script-src{% for hash in script_hashes %} '{{ hash }}'{% endfor %}">
<title>{{ report.name }} - Covey comparison</title>
<style>{{ style }}</style>
</head>
<body>
<main>
<header>
<p class="kicker">Covey comparison <span>{{ report.name }}</span></p>
<h1 class="{{ report.tone }}">{{ report.headline }}</h1>
{% for text in report.lead %}
<p class="lead">{{ text }}</p>
{% endfor %}
</header>
{% for section in report.sections %}
<section>
<h2>{{ section.title }}</h2>
{% for block in section.blocks %}
{% if block.kind == "text" %}
<p class="note">{{ block.text }}</p>
{% elif block.kind == "items" %}
<h3>{{ block.title }}</h3>
<ul class="verdicts{{ ' loud' if block.is_loud }}">{% for item in block.items %}<li>{{ item }}</li>{% endfor %}</ul>
{% elif block.kind == "table" %}
<div class="scroll{{ ' prose' if block.has_prose }}" tabindex="0"><table>
<thead><tr>{% for cell in block.header %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead><tbody>
{% for row in block.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% elif block.kind == "code" %}
{% if block.is_folded %}
<details><summary>{{ block.title }}</summary><pre>{{ block.text }}</pre></details>
{% else %}
<h3>{{ block.title }}</h3><pre>{{ block.text }}</pre>
{% endif %}
{% else %}
<div class="grid">
{% for figure in block.figures %}
<article><div class="bar"><h3>{{ figure.title }}</h3><span class="saves">
{% for format in ("png", "svg") %}
<button type="button" data-save="{{ format }}" data-of="{{ figure.name }}" \
aria-label="Save the figure as {{ format | upper }}">{{ format | upper }}</button>
{% endfor %}
</span></div>
<p class="note">{{ figure.note }}</p>
<div class="chart" style="height: {{ figure.height }}px" data-figure="{{ figure.name }}"></div></article>
{% endfor %}
</div>
{% endif %}
{% endfor %}
</section>
{% endfor %}
</main>
<noscript><p class="empty">The charts need JavaScript; it is all inside this file. \
The same charts lie in figures/ as SVG.</p></noscript>
<script type="application/json" id="figures">{{ figures }}</script>
{% for script in scripts %}
<script>{{ script }}</script>
{% endfor %}
</body>
</html>
"""

# Runs after charts.js, whose `figures` it reads: what is saved has the colours of a light page, whatever the reader's theme.
_SAVE_SCRIPT = """
for (const button of document.querySelectorAll("[data-save]"))
  button.addEventListener("click", () => {
    const name = button.dataset.of, node = document.querySelector(`[data-figure="${name}"]`);
    const { data, layout } = structuredClone(figures[name]);
    data.forEach((trace, index) => { trace.visible = node.data[index].visible ?? true; });
    layout.paper_bgcolor = "#ffffff";
    const size = { width: 900, height: Math.max(360, node.offsetHeight), scale: 3 };
    Plotly.downloadImage({ data, layout }, { format: button.dataset.save, filename: name, ...size });
  });
"""


def write_comparison(directory: Path) -> Path:
    """Write `report.html`, `report.md` and `figures/` from the comparison's `summary.json`, and return the page's path.

    Raises:
        CoveyError: there is no summary yet, or it is no JSON.
    """
    path = directory / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CoveyError(f"no {path}: a comparison has a report once its runs are finished; give its command again") from None
    except json.JSONDecodeError as error:
        raise CoveyError(f"{path} is no JSON ({error}); give the comparison's command again, which makes it anew") from None
    report = report_of(summary, name=directory.resolve().name)
    pictures = directory / "figures"
    pictures.mkdir(exist_ok=True)
    for figure in figures_in(report):
        write_text_atomic(pictures / f"{figure.name}.svg", svg(figure))
    write_text_atomic(directory / "report.md", markdown(report))
    write_text_atomic(directory / "report.html", comparison_html(report))
    return directory / "report.html"


def figures_in(report: Report) -> Iterator[Figure]:
    """Yield the figures in the order they are shown."""
    for section in report.sections:
        for block in section.blocks:
            if isinstance(block, Pictures):
                yield from block.figures


def comparison_html(report: Report) -> str:
    """Return the page of a comparison."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    scripts = [get_plotlyjs(), _resource("charts.js"), _SAVE_SCRIPT]
    drawn = {figure.name: json.loads(plotly_figure(figure).to_json()) for figure in figures_in(report)}
    payload = json.dumps({"figures": drawn, "dark": DARK_COLOURS}, separators=(",", ":"))
    return environment.from_string(_TEMPLATE).render(
        report=report,
        style=Markup(_resource("style.css") + _resource("audit.css") + _STYLE),
        scripts=[Markup(script) for script in scripts],
        script_hashes=[_content_hash(script) for script in scripts],
        figures=Markup(payload.replace("<", "\\u003c")),  # So that no text ends the script element it stands in.
    )


def _content_hash(script: str) -> str:
    """Return the script's name in a content security policy: the browser runs these scripts and no others."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _resource(name: str) -> str:
    return files("covey.report").joinpath(name).read_text(encoding="utf-8")


def plotly_figure(figure: Figure) -> go.Figure:
    """Return the figure for the page, in the colours of a light one. Plotly reads text as HTML, so all of it is escaped."""
    drawn = go.Figure(layout=_layout(figure))
    for series in figure.series:
        drawn.add_traces(list(_traces(series, figure)))
    return drawn


def _traces(series: Series, figure: Figure) -> Iterator[Any]:
    colour, name = series.mark.colour, html.escape(shortened(series.label))
    common: dict[str, Any] = {"name": name, "legendgroup": name, "showlegend": series.in_legend}
    if series.hover:
        said = [html.escape(text) for text in series.hover]
        common |= {"customdata": said, "hovertemplate": "%{customdata}<extra></extra>"}
    marker: dict[str, Any] = {"color": colour, "symbol": series.mark.symbol}
    if series.kind == "line":
        if series.lows:
            there_and_back = {"x": [*series.xs, *reversed(series.xs)], "y": [*series.highs, *reversed(series.lows)]}
            band = {"fill": "toself", "fillcolor": f"{colour}{round(255 * _BAND_OPACITY):02x}", "mode": "none"}
            yield go.Scatter(**there_and_back, **band, hoverinfo="skip", name=name, legendgroup=name, showlegend=False)
        line = {"color": colour, "width": 1.4 if series.is_dashed else 2.2, "dash": "dash" if series.is_dashed else "solid"}
        few = {**marker, "size": 6 if series.is_dashed else 8, "maxdisplayed": _MARKERS_SHOWN}
        yield go.Scatter(x=series.xs, y=series.ys, mode="lines+markers", line=line, marker=few, **common)
    elif series.kind == "interval":
        above = [high - x for x, high in zip(series.xs, series.highs, strict=True)]
        below = [x - low for x, low in zip(series.xs, series.lows, strict=True)]
        whiskers = {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 2.4, "width": 0}
        large = {**marker, "size": 12}
        yield go.Scatter(x=series.xs, y=series.ys, mode="markers", marker=large, error_x=whiskers, **common)
    elif series.kind == "points":
        small = {**marker, "size": 7, "symbol": f"{series.mark.symbol}-open"}
        yield go.Scatter(x=series.xs, y=series.ys, mode="markers", marker=small, **common)
    elif series.kind == "bar":
        widths = [high - low for low, high in zip(series.lows, series.highs, strict=True)]
        fill = {"color": colour, "line": {"width": 1, "color": PAPER}}
        yield go.Bar(x=widths, y=series.ys, base=series.lows, orientation="h", width=_BAR_SHARE, marker=fill, **common)
    else:
        dashes = {"color": colour, "width": 1.2, "dash": "dash"}
        for x in series.xs:
            ends = {"x": [x, x], "y": [figure.y.low, figure.y.high]}
            yield go.Scatter(**ends, mode="lines", line=dashes, hoverinfo="skip", **common)


def _layout(figure: Figure) -> dict[str, Any]:
    return {
        "template": "none",
        "margin": {"l": 46, "r": 14, "t": 8, "b": 42},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": INK},
        "dragmode": False,
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": PAPER, "bordercolor": RULE, "font": {"color": INK, "size": 12}},
        "barmode": "overlay",
        "legend": {"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "x": 0, "font": {"size": 12}},
        "xaxis": {**_axis(figure.x), "title": {"text": html.escape(figure.x.label), "standoff": 6}},
        "yaxis": {**_axis(figure.y), "showgrid": figure.num_rows is None},
    }


def _axis(axis: Axis) -> dict[str, Any]:
    return {
        "range": [axis.low, axis.high],
        "tickvals": [place for place, _ in axis.ticks],
        "ticktext": [html.escape(text) for _, text in axis.ticks],
        "gridcolor": RULE,
        "zeroline": False,
        "fixedrange": True,
        "automargin": True,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": "rgba(0,0,0,0)",
    }


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
        thick = _ROW_HEIGHT * _BAR_SHARE
        for y, low, high in zip(series.ys, series.lows, series.highs, strict=True):
            size = f'width="{across(high) - across(low):.1f}" height="{thick:.1f}" stroke="#ffffff"'
            yield f'<rect x="{across(low):.1f}" y="{up(y) - thick / 2:.1f}" {size} fill="{colour}"/>'
    elif series.kind == "line":
        edge = [*zip(series.xs, series.highs, strict=False), *reversed(list(zip(series.xs, series.lows, strict=False)))]
        band = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in edge)
        if band:
            yield f'<polygon points="{band}" fill="{colour}" fill-opacity="{_BAND_OPACITY}"/>'
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        width = 1.2 if series.is_dashed else 2
        yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}"{dash}/>'
        every = math.ceil(len(spots) / _MARKERS_SHOWN)
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
