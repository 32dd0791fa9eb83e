"""The report of a run: one self-contained page made from its run directory. Imports neither torch nor transformers."""

from covey.report.html import write_report

__all__ = ["write_report"]
