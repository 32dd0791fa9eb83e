"""Writes a run's report: a single page that needs no network, in which every word of a model is escaped."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from covey.monitor.run_directory import write_text_atomic
from covey.report.charts import CHARTS, DARK, reward_parts_chart
from covey.report.distance import distance_view, entropy_sentence, history_of
from covey.report.figures import chart_figure, distance_figure, main_figure, step_rows
from covey.report.guard import done, guard_view
from covey.report.load import Row, Run, load_run
from covey.report.stats import comparison, duration, evenly_spaced, fates, is_right, paired, phase_totals, verdict

_PAIRS_SHOWN = {"fixed": 3, "broken": 2, "still wrong": 2, "still right": 1, "higher": 3, "lower": 2, "equal": 1}
_GROUPS_SHOWN = 3
_EVENTS_SHOWN = 60
_TEXT_SHOWN = 4000  # characters of one completion
_PROMPT_SHOWN = 120  # characters of the end of a prompt, where its question stands


def write_report(run_path: Path) -> Path:
    """Write `report.html` into the run directory from nothing but what is in it, and return its path."""
    run = load_run(run_path)
    write_text_atomic(run.directory.report, report_html(run))
    return run.directory.report


def report_html(run: Run) -> str:
    """Return the page of a run."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(number=_number, duration=duration, clipped=_clipped, ending=_ending, done=done)
    scripts = [get_plotlyjs(), _resource("charts.js")]
    rows, history = step_rows(run), history_of(run)
    charts = {"parts": reward_parts_chart(rows), **CHARTS}
    charts["entropy"] = replace(charts["entropy"], note=charts["entropy"].note + entropy_sentence(history))
    small = {key: figure for key, chart in charts.items() if (figure := chart_figure(chart, rows)) is not None}
    distance = distance_view(run, history)
    large = {"main": main_figure(run), "distance": distance_figure(distance)}
    figures = {**{key: figure for key, figure in large.items() if figure is not None}, **small}
    return environment.from_string(_resource("template.html.j2")).render(
        run=run,
        is_right=is_right,
        verdict=verdict(run),
        guard=guard_view(run),
        facts=_facts(run),
        shown=figures.keys(),
        distance=distance,
        prompt_shown=_PROMPT_SHOWN,
        has_minutes=any(row.get("elapsed_s") is not None for row in run.timing if row["step"] > 0),
        charts={key: charts[key] for key in small},
        missing=[chart.title for key, chart in charts.items() if key not in small],
        phases=phase_totals(run.timing),
        examples=_examples(run),
        rollouts=_rollouts(run),
        events=run.events[-_EVENTS_SHOWN:],
        environment=list(_flat(run.env)),
        style=Markup(_resource("style.css")),
        scripts=[Markup(script) for script in scripts],
        script_hashes=[_content_hash(script) for script in scripts],
        figures=_embedded_json(
            {"figures": {key: json.loads(figure.to_json()) for key, figure in figures.items()}, "dark": DARK}
        ),
    )


def _facts(run: Run) -> dict[str, str]:
    """Return the few words that say what was trained on what, in the order they are shown."""
    model, machine = run.env.get("model") or {}, run.env.get("machine") or {}
    last = run.metrics[-1] if run.metrics else {}
    planned = "?" if run.planned_steps is None else run.planned_steps
    elapsed_s = run.elapsed_s(run.last_step) if run.last_step else None
    facts = {
        "Steps": f"{run.last_step} of {planned}",
        "Time": duration(elapsed_s) if elapsed_s is not None else None,
        "Updates": last.get("optimizer/num_updates"),
        "Model": model.get("name"),
        "Algorithm": run.env.get("algorithm"),
        "Task": run.env.get("task"),
        "Sandbox": (run.env.get("sandbox") or {}).get("tier"),
        "Machine": machine.get("cpu"),
    }
    return {name: str(value) for name, value in facts.items() if value is not None}


def _examples(run: Run) -> dict[str, Any] | None:
    """Return the same held-out questions before and after, by what became of them; None without two evaluations."""
    pair = comparison(run.evals)
    pairs = paired(run.completions(pair.before), run.completions(pair.after)) if pair else []
    if pair is None or not pairs:
        return None
    found = fates(pairs, has_gold=run.has_gold)
    return {
        "comparison": pair,
        "counts": {name: len(members) for name, members in found.items()},
        "shown": {name: evenly_spaced(members, _PAIRS_SHOWN.get(name, 0)) for name, members in found.items()},
    }


def _rollouts(run: Run) -> dict[str, Any]:
    """Return a few groups of the newest recorded step."""
    step, rows = run.last_rollouts()
    groups = [list(members) for _, members in itertools.groupby(rows, key=lambda row: (row["draw"], row["prompt_id"]))]
    return {
        "step": step,
        "num_groups": len(groups),
        "groups": [_group(rows) for rows in evenly_spaced(groups, _GROUPS_SHOWN)],
    }


def _group(rows: Sequence[Row]) -> dict[str, Any]:
    rewards = [row["reward"] for row in rows if row["reward"] is not None]
    return {"question": rows[0]["question"], "answer": rows[0]["answer"], "rewards": rewards, "rows": rows}


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield a nested mapping's leaves as (dotted key, text)."""
    for key, value in mapping.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield prefix + key, " ".join(map(str, value))
        else:
            yield prefix + key, "none" if value is None else str(value)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _clipped(text: str | None) -> str:
    shown = text or ""
    return shown if len(shown) <= _TEXT_SHOWN else f"{shown[:_TEXT_SHOWN]} ... ({len(shown) - _TEXT_SHOWN} more characters)"


def _ending(text: str) -> str:
    """Return the last words of a text, where a prompt with examples has its question."""
    return "... " + text[-_PROMPT_SHOWN:].partition(" ")[2]


def _embedded_json(payload: Mapping[str, Any]) -> Markup:
    """Return JSON that cannot end the script element it stands in."""
    return Markup(json.dumps(payload, separators=(",", ":")).replace("<", "\\u003c"))


def _content_hash(script: str) -> str:
    """Return the script's name in a content security policy: the browser runs these scripts and no others."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _resource(name: str) -> str:
    return files("covey.report").joinpath(name).read_text(encoding="utf-8")
