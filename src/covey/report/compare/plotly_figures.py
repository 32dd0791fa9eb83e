"""The figures of a comparison as plotly draws them on the page."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

import plotly.graph_objects as go

from covey.report.charts import INK, PAPER, RULE
from covey.report.compare.axes import Axis, shortened
from covey.report.compare.figures import BAND_OPACITY, BAR_SHARE, MARKERS_SHOWN, Figure, Series


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
            band = {"fill": "toself", "fillcolor": f"{colour}{round(255 * BAND_OPACITY):02x}", "mode": "none"}
            yield go.Scatter(**there_and_back, **band, hoverinfo="skip", name=name, legendgroup=name, showlegend=False)
        line = {"color": colour, "width": 1.4 if series.is_dashed else 2.2, "dash": "dash" if series.is_dashed else "solid"}
        few = {**marker, "size": 6 if series.is_dashed else 8, "maxdisplayed": MARKERS_SHOWN}
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
        yield go.Bar(x=widths, y=series.ys, base=series.lows, orientation="h", width=BAR_SHARE, marker=fill, **common)
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
