"""What a person is told about a step, and the pure functions that put it into words."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from rich.cells import chop_cells, set_cell_size

__all__ = [
    "LOSS_NOTE",
    "StepRecord",
    "clip_lines",
    "duration",
    "eta_s",
    "evaluation_line",
    "number",
    "one_line",
    "percent",
    "printable",
    "sparkline",
    "step_line",
    "step_time_s",
]

LOSS_NOTE = (
    "The loss is not shown: on policy it is about 0 by construction (advantages sum to zero in each group). "
    "Watch reward, gold and usable groups."
)
BLOCKS, ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-~=+*#"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """A finished training step as the console shows it."""

    step: int
    num_steps: int
    elapsed_s: float
    """Training seconds since step 0, as in `timing.jsonl`."""
    metrics: Mapping[str, float | None]
    """The keys of docs/metrics.md."""
    timing: Mapping[str, float | None]
    """The keys of `timing.jsonl`."""
    question: str = ""
    completion: str = ""
    """One completion of the step, as sampled: it is cleaned before it is shown."""
    verdict: str = ""


def step_time_s(records: Sequence[StepRecord]) -> float:
    """Return the median time between consecutive records, or the mean since step 0 while there is only one."""
    times = [later.elapsed_s - earlier.elapsed_s for earlier, later in pairwise(records)]
    return median(times) if times else records[-1].elapsed_s / records[-1].step


def eta_s(records: Sequence[StepRecord]) -> float:
    """Return the seconds until the last step, at the pace of the given records (oldest first)."""
    return step_time_s(records) * (records[-1].num_steps - records[-1].step)


def duration(seconds: float) -> str:
    """Return h:mm:ss."""
    minutes, whole_seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{whole_seconds:02d}"


def number(value: float | None, spec: str = ".3f") -> str:
    """Return the formatted value, or a dash where there is none."""
    return "-" if value is None else format(value, spec)


def percent(frac: float | None) -> str:
    """Return a share in per cent, or a dash where there is none."""
    return "-" if frac is None else f"{100 * frac:.0f} %"


def sparkline(values: Sequence[float | None], *, blocks: str = BLOCKS) -> str:
    """Return one character a value, scaled from the smallest to the largest of them; missing values are blank."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    levels = [None if value is None else round((value - low) / span * (len(blocks) - 1)) if span else 0 for value in values]
    return "".join(" " if level is None else blocks[level] for level in levels)


def printable(text: str, encoding: str = "utf-8") -> str:
    """Return text that can do nothing to a terminal: no control, direction or other invisible characters but newlines.

    What the encoding lacks becomes a question mark.
    """
    kept = "".join(char for char in text.expandtabs(4) if char == "\n" or unicodedata.category(char)[0] != "C")
    return kept.encode(encoding, "replace").decode(encoding)


def one_line(text: str, encoding: str = "utf-8") -> str:
    """Return printable text in which every run of white space is one space."""
    return printable(" ".join(text.split()), encoding)


def clip_lines(text: str, width: int, *, num_lines: int = 2) -> list[str]:
    """Return the text in lines of at most `width` cells; what does not fit into `num_lines` of them becomes dots."""
    # No character is wider than a line here, and a completion may be long: look no further than can be shown.
    lines = chop_cells(text[: width * num_lines + 1], width)
    if len(lines) <= num_lines:
        return lines
    return [*lines[: num_lines - 1], set_cell_size(lines[num_lines - 1], width - 4).rstrip() + " ..."]


def interval(record: Mapping[str, Any], kind: str, spec: str) -> str:
    """Return 'mean [low,high]' of gold_mean, gold_low, gold_high or of gold_gain, gold_gain_low, gold_gain_high.

    There is no blank in the brackets, so that an interval is not broken over two lines.
    """
    stem = kind.removesuffix("_mean")
    low, high = record.get(f"{stem}_low"), record.get(f"{stem}_high")
    return f"{number(record.get(kind), spec)} [{number(low, spec)},{number(high, spec)}]"


def evaluation_line(step: int, part: str, mode: str, record: Mapping[str, Any]) -> str:
    """Return a held-out result: gold, or the proxy in a run without gold, with interval and gain over step 0."""
    kind = "proxy" if record.get("gold_mean") is None else "gold"
    name = "reward (no gold)" if kind == "proxy" else kind
    line = f"{part}, {mode}, step {step}: {name} {interval(record, f'{kind}_mean', '.3f')}"
    if record.get(f"{kind}_gain") is not None:
        line += f", gain {interval(record, f'{kind}_gain', '+.3f')}"
    if kind == "gold" and (tries := record.get("pass_at")):
        most = max(tries, key=int)
        line += f", pass@{most} {number(tries[most]['mean'])}"
    return line


def step_line(records: Sequence[StepRecord]) -> str:
    """Return the last step in one short line."""
    record = records[-1]
    metrics = record.metrics
    gold = [f"gold {number(metrics['gold/mean'])}"] if metrics.get("gold/mean") is not None else []
    used, sampled = metrics.get("group/num_used"), metrics.get("group/num_sampled")
    words = [
        f"step {record.step}/{record.num_steps}",
        f"reward {number(metrics.get('reward/mean'))}",
        *gold,
        f"groups {number(used, '.0f')}/{number(sampled, '.0f')}",
        f"length {number(metrics.get('completion/length_mean'), '.0f')}",
        f"{number(record.timing.get('generated_tokens_per_s'), '.0f')} tokens/s",
        f"{step_time_s(records):.1f} s/step",
        f"left {duration(eta_s(records))}",
    ]
    return "  ".join(words)
