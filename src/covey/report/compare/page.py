"""Writes the report of a comparison: a page that needs no network, Markdown, and every figure as SVG for a paper."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from covey.monitor.run_directory import write_text_atomic
from covey.report.compare.blocks import Pictures, Report
from covey.report.compare.content import report_of
from covey.report.compare.figures import DARK_COLOURS, Figure
from covey.report.compare.markdown import markdown
from covey.report.compare.plotly_figures import plotly_figure
from covey.report.compare.svg import svg
from covey.types import CoveyError


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
    scripts = [get_plotlyjs(), _resource("charts.js"), _resource("compare/compare.js")]
    drawn = {figure.name: json.loads(plotly_figure(figure).to_json()) for figure in figures_in(report)}
    payload = json.dumps({"figures": drawn, "dark": DARK_COLOURS}, separators=(",", ":"))
    return environment.from_string(_resource("compare/compare.html.j2")).render(
        report=report,
        style=Markup(_resource("style.css") + _resource("audit.css") + _resource("compare/compare.css")),
        scripts=[Markup(script) for script in scripts],
        script_hashes=[_content_hash(script) for script in scripts],
        figures=Markup(payload.replace("<", "\\u003c")),  # So that no text ends the script element it stands in.
    )


def _content_hash(script: str) -> str:
    """Return the script's name in a content security policy: the browser runs these scripts and no others."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _resource(name: str) -> str:
    return files("covey.report").joinpath(name).read_text(encoding="utf-8")
