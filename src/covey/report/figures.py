"""The plotly figures of a report, in the colours of a light page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go

from covey.guard.regression import Curve
from covey.report.charts import ALARM, BLUE, GREY, INK, ORANGE, PAPER, RULE, Chart, Line, Panel
from covey.report.distance import DistanceView, Point
from covey.report.load import Row, Run

_BAND_OPACITY = "24"  # hexadecimal: 14 %
_LABELS_A_ROW = 4
_LABELS_IN_A_WIDTH = 20
_CURVE_POINTS = 80


def step_rows(run: Run) -> list[Row]:
    """Return one row for each finished step: metrics, times and the share of groups that were flat otherwise."""
    times = {row["step"]: row for row in run.timing}
    return [{**times.get(row["step"], {}), **row, "group/other_flat_frac": _other_flat_frac(row)} for row in run.metrics]


def chart_figure(chart: Chart, rows: Sequence[Row]) -> go.Figure | None:
    """Return the chart over the given steps; None if none of its keys was recorded."""
    recorded = [tuple(line for line in panel.lines if _is_recorded(line, rows)) for panel in chart.panels]
    panels = [replace(panel, lines=lines) for panel, lines in zip(chart.panels, recorded, strict=True) if lines]
    if not panels:
        return None
    steps = [row["step"] for row in rows]
    figure = go.Figure(layout=_layout(top=8 + 16 * len(_label_rows(panels[0]))))
    figure.update_layout(barmode="stack", bargap=0.0, showlegend=False)
    for index, panel in enumerate(panels):
        axis = "y" if index == 0 else f"y{index + 1}"
        top = 1.0 - index / len(panels) - (0.11 if index else 0.0)
        bottom = 1.0 - (index + 1) / len(panels) + (0.11 if index + 1 < len(panels) else 0.0)
        for line in panel.lines:
            values = [row.get(line.key) for row in rows]
            figure.add_trace(_step_trace(line, steps, values, kind=panel.kind, axis=axis))
        place = {"x": 0, "y": top, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
        figure.add_annotation(text="<br>".join(_label_rows(panel)), align="left", showarrow=False, **place)
        y_axis = _y_axis((bottom, top), panel.tickformat, from_zero=panel.from_zero)
        figure.update_layout({f"yaxis{axis[1:]}": {**y_axis, "nticks": 6 // len(panels)}})
    figure.update_xaxes(anchor="y" if len(panels) == 1 else f"y{len(panels)}")
    return figure


def _label_rows(panel: Panel) -> list[str]:
    """Return the lines' names in their colours, a few a row: they stand where a legend would be."""
    labels = [f'<span style="color:{line.colour}"><b>{line.label}</b></span>' for line in panel.lines]
    return ["  ".join(labels[start : start + _LABELS_A_ROW]) for start in range(0, len(labels), _LABELS_A_ROW)]


def main_figure(run: Run) -> go.Figure | None:
    """Return gold and proxy on held-out questions against steps; None before there is a step or an evaluation.

    Each trace's `meta` holds its positions in steps and in minutes: the page switches between them.
    """
    if not run.metrics and not run.evals:
        return None
    figure = go.Figure(layout=_layout(top=8))
    for key, label, colour in (("gold/mean", "gold, training", BLUE), ("reward/mean", "proxy, training", ORANGE)):
        rows = [row for row in run.metrics if row.get(key) is not None]
        _add_line(figure, run, rows, key, label, opacity=0.4, line={"color": colour, "width": 1.2}, mode="lines")
    for score, colour in (("proxy", ORANGE), ("gold", BLUE)):
        for mode, dash in (("sampled", "dot"), ("greedy", "solid")):
            rows, label = _scored(run.evals, "choose", mode, score), f"{score}, {mode}"
            # Four bands over each other would be mud: greedy answers have bands, sampled ones whiskers.
            whiskers = {"error_y": _whiskers(rows, score)} if mode == "sampled" else {}
            if mode == "greedy":
                _add_band(figure, run, rows, score, label, colour)
            line = {"color": colour, "width": 2.4, "dash": dash}
            style = {"line": line, "mode": "lines+markers", **whiskers, **_interval_hover(rows, score)}
            _add_line(figure, run, rows, f"{score}_mean", label, **style)
    _add_test_part(figure, run)
    _add_alarms(figure, run)
    values = [value for trace in figure.data for value in trace.y]
    is_share = all(0.0 <= value <= 1.0 for value in values)
    figure.update_layout(
        yaxis=_y_axis((0.0, 1.0), ".0%" if is_share else ""),
        legend={"orientation": "h", "yanchor": "top", "y": -0.14, "x": 0, "font": {"size": 12}},
        xaxis={"title": {"text": "steps", "standoff": 6}},
    )
    return figure if values else None


def distance_figure(view: DistanceView) -> go.Figure | None:
    """Return proxy and gold over the distance from the reference, with the curve of gold; None without points."""
    if not view.points:
        return None
    figure = go.Figure(layout=_layout(top=16))
    for score, colour in (("proxy", ORANGE), ("gold", BLUE)):
        _add_gains(figure, [point for point in view.points if getattr(point, score) is not None], score, colour)
    if view.curve is not None and view.curve.is_identified:
        _add_curve(figure, view.curve, reach=max(point.distance for point in view.points))
    figure.update_layout(
        hovermode="closest",
        yaxis={**_y_axis((0.0, 1.0), "+.0%", from_zero=False), "zeroline": True, "zerolinecolor": GREY},
        legend={"orientation": "h", "yanchor": "top", "y": -0.2, "x": 0, "font": {"size": 12}},
    )
    figure.update_xaxes(rangemode="tozero", title={"text": "d = sqrt(KL)", "standoff": 6})
    return figure


def _add_gains(figure: go.Figure, points: Sequence[Point], score: str, colour: str) -> None:
    if not points:
        return
    gains = [getattr(point, score) for point in points]
    style: dict[str, Any] = {"mode": "lines+markers", "line": {"color": colour, "width": 1.6}, "marker": {"size": 7}}
    hover = [f"step {point.step}: {gain:+.3f}" for point, gain in zip(points, gains, strict=True)]
    if score == "proxy":  # Gold's points have whiskers in the way.
        style |= {"mode": "lines+markers+text", "text": _step_names(points), "textposition": "top center", "cliponaxis": False}
    else:
        ends = [(point.gold_low, point.gold_high) for point in points]
        above = [None if high is None else high - gain for (_, high), gain in zip(ends, gains, strict=True)]
        below = [None if low is None else gain - low for (low, _), gain in zip(ends, gains, strict=True)]
        whiskers = {"type": "data", "symmetric": False, "thickness": 1.2, "width": 3}
        style["error_y"] = {**whiskers, "array": above, "arrayminus": below}
    places = [point.distance for point in points]
    figure.add_scatter(x=places, y=gains, name=score, customdata=hover, hovertemplate="%{customdata}", **style)


def _step_names(points: Sequence[Point]) -> list[str]:
    """Return the step of each point, empty where it would be written over another."""
    room = max(point.distance for point in points) / _LABELS_IN_A_WIDTH
    taken: list[float] = []
    names: list[str] = []
    for point in points:
        is_free = all(abs(point.distance - other) >= room for other in taken)
        taken += [point.distance] if is_free else []
        names.append(str(point.step) if is_free else "")
    return names


def _add_curve(figure: go.Figure, curve: Curve, *, reach: float) -> None:
    """Draw d (alpha - beta ln d), which begins at 0, and mark where it is highest."""
    end = max(reach, curve.best_distance)
    places = [end * index / _CURVE_POINTS for index in range(1, _CURVE_POINTS + 1)]
    gains = [place * (curve.alpha - curve.beta * math.log(place)) for place in places]
    line = {"color": BLUE, "width": 1.4, "dash": "dash"}
    figure.add_scatter(x=[0.0, *places], y=[0.0, *gains], name="curve of gold", mode="lines", line=line, hoverinfo="skip")
    marker = {"symbol": "diamond", "size": 11, "color": INK}
    peak = f"highest at d = {curve.best_distance:.3g}: {curve.best_gain:+.3f}"
    style = {"mode": "markers", "marker": marker, "customdata": [peak], "hovertemplate": "%{customdata}"}
    figure.add_scatter(x=[curve.best_distance], y=[curve.best_gain], name="its peak", **style)


def _add_test_part(figure: go.Figure, run: Run) -> None:
    rows = _scored(run.evals, "test", "greedy", "gold")
    marker = {"symbol": "diamond", "size": 10, "color": INK}
    style = {"mode": "markers", "marker": marker, "error_y": _whiskers(rows, "gold"), **_interval_hover(rows, "gold")}
    _add_line(figure, run, rows, "gold_mean", "gold, test part", **style)


def _add_alarms(figure: go.Figure, run: Run) -> None:
    """Draw a line from bottom to top where the guard spoke."""
    values = [value for trace in figure.data for value in trace.y]
    bottom, top = min(0.0, *values, 0.0), max(values, default=1.0)
    seen: set[str] = set()
    for row in run.guard:
        if row["action"] != "note":
            label = f"guard: {row['detector'].replace('_', ' ')}"
            positions = _positions(run, [row, row])
            line = {"color": ALARM, "width": 1.6, "dash": "dash"}
            style = {"mode": "lines", "line": line, "hoverinfo": "name"}
            legend = {"legendgroup": label, "showlegend": label not in seen}
            figure.add_scatter(x=positions["steps"], y=[bottom, top], name=label, meta=positions, **legend, **style)
            seen.add(label)


def _whiskers(rows: Sequence[Row], score: str) -> dict[str, Any]:
    above = [row[f"{score}_high"] - row[f"{score}_mean"] for row in rows]
    below = [row[f"{score}_mean"] - row[f"{score}_low"] for row in rows]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.2, "width": 3}


def _interval_hover(rows: Sequence[Row], score: str) -> dict[str, Any]:
    intervals = [f"{row[f'{score}_low']:.2f} to {row[f'{score}_high']:.2f}" for row in rows]
    return {"customdata": intervals, "hovertemplate": "%{y:.3f} (%{customdata})"}


def _add_line(figure: go.Figure, run: Run, rows: Sequence[Row], key: str, label: str, **style: Any) -> None:
    if rows:
        positions = _positions(run, rows)
        values = [row[key] for row in rows]
        figure.add_scatter(x=positions["steps"], y=values, name=label, legendgroup=label, meta=positions, **style)


def _add_band(figure: go.Figure, run: Run, rows: Sequence[Row], score: str, label: str, colour: str) -> None:
    if rows:
        there_and_back = [*rows, *reversed(rows)]
        positions = _positions(run, there_and_back)
        lows, highs = ([row[f"{score}_{end}"] for row in rows] for end in ("low", "high"))
        figure.add_scatter(
            x=positions["steps"],
            y=[*highs, *reversed(lows)],
            fill="toself",
            fillcolor=colour + _BAND_OPACITY,
            mode="none",
            legendgroup=label,
            showlegend=False,
            hoverinfo="skip",
            meta=positions,
        )


def _positions(run: Run, rows: Iterable[Row]) -> dict[str, list[float | None]]:
    steps = [row["step"] for row in rows]
    seconds = [run.elapsed_s(step) for step in steps]
    minutes = [None if elapsed_s is None else round(elapsed_s / 60, 3) for elapsed_s in seconds]
    return {"steps": steps, "minutes": minutes}


def _scored(evals: Iterable[Row], part: str, mode: str, score: str) -> list[Row]:
    ends = (f"{score}_mean", f"{score}_low", f"{score}_high")
    rows = [row for row in evals if (row["part"], row["mode"]) == (part, mode)]
    return [row for row in rows if all(row.get(end) is not None for end in ends)]


def _step_trace(line: Line, steps: list[int], values: list[float | None], *, kind: str, axis: str) -> go.Scatter | go.Bar:
    common = {"x": steps, "y": values, "name": line.label, "yaxis": axis}
    if kind == "stack":
        return go.Bar(**common, marker={"color": line.colour, "line": {"width": 0}})
    mode = "lines" if len(steps) > 1 else "markers"
    return go.Scatter(**common, mode=mode, line={"color": line.colour, "width": 1.8})


def _layout(*, top: int) -> dict[str, Any]:
    return {
        "template": "none",
        "margin": {"l": 46, "r": 10, "t": top, "b": 28},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": INK},
        "dragmode": False,
        "hovermode": "x unified",
        "hoverlabel": {"bgcolor": PAPER, "bordercolor": RULE, "font": {"color": INK, "size": 12}},
        "xaxis": {"showgrid": False, "zeroline": False, "linecolor": RULE, "fixedrange": True, "nticks": 8},
    }


def _y_axis(domain: tuple[float, float], tickformat: str, *, from_zero: bool = True) -> dict[str, Any]:
    return {
        "domain": domain,
        "tickformat": tickformat,
        "gridcolor": RULE,
        "zeroline": False,
        "fixedrange": True,
        "rangemode": "tozero" if from_zero else "normal",
        "nticks": 5,
        "automargin": True,
        "exponentformat": "e",
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": "rgba(0,0,0,0)",
    }


def _is_recorded(line: Line, rows: Iterable[Row]) -> bool:
    return any(row.get(line.key) is not None for row in rows)


def _other_flat_frac(row: Row) -> float | None:
    shares = [row.get(f"group/{name}_frac") for name in ("usable", "all_correct", "all_wrong")]
    known = [share for share in shares if share is not None]
    return max(0.0, 1.0 - sum(known)) if len(known) == len(shares) else None
