"""The report of a comparison."""

from __future__ import annotations

from pathlib import Path


def write_comparison(directory: Path) -> Path:
    return directory / "report.html"
