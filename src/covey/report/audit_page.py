"""Writes what an audit of a reward found: a page that needs no network, with every word escaped, and the same as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup

from covey.guard.attacks import KINDS
from covey.guard.findings import AuditResult, audit_row, decimal, figures, headline
from covey.guard.verdict import shortened
from covey.monitor.run_directory import write_text_atomic

_SENTENCES = {
    "pass": "Nothing was found that speaks against training on this reward.",
    "warn": "Nothing breaks this reward, but read what is listed below before you train on it.",
    "fail": "Do not train on this reward as it is: it pays what it must not, or refuses what it must pay.",
}
_TONES = {"pass": "up", "warn": "", "fail": "down"}
_TEXT_SHOWN = 600


def write_audit(result: AuditResult, directory: Path) -> tuple[Path, Path]:
    """Write `audit.html` and `audit.json` into the directory, which is made if need be, and return their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    page, data = directory / "audit.html", directory / "audit.json"
    write_text_atomic(page, audit_html(result))
    write_text_atomic(data, json.dumps(audit_row(result), indent=2, ensure_ascii=False) + "\n")
    return page, data


def audit_html(result: AuditResult) -> str:
    """Return the page of an audit."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(decimal=decimal, visible=visible)
    row = audit_row(result)
    return environment.from_string(_resource("audit.html.j2")).render(
        result=row,
        headline=headline(result),
        sentence=_SENTENCES[result.verdict],
        tone=_TONES[result.verdict],
        figures=figures(result),
        kinds=KINDS,
        examples=[family for family in row["families"] if family["false_positives"] or family["false_negatives"]],
        limits=asdict(result.limits),
        style=Markup(_resource("style.css") + _resource("audit.css")),
    )


def visible(text: str) -> str:
    """Return the text shortened, and an empty one in words: what cannot be seen cannot be judged."""
    if not text.strip():
        return "(nothing)" if not text else f"({len(text)} blanks)"
    return shortened(text, _TEXT_SHOWN)


def _resource(name: str) -> str:
    return files("covey.report").joinpath(name).read_text(encoding="utf-8")
