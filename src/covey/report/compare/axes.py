"""Axes of the figures of a comparison, and how numbers and names are written on them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_NUM_TICKS = 6


_NAME_SHOWN = 26


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """From where to where, and what is written at it."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]


def row_axis(names: Sequence[str]) -> Axis:
    """Return the axis of rows, the first on top."""
    ticks = tuple((float(len(names) - 1 - row), shortened(name)) for row, name in enumerate(names))
    return Axis(label="", low=-0.5, high=len(names) - 0.5, ticks=ticks)


def number_axis(label: str, values: Sequence[float], text: Callable[[float], str]) -> Axis:
    """Return the axis over all values, its ends a little beyond them, with ticks at round numbers.

    One that begins at 0 begins there exactly.
    """
    least, most = min(values), max(values)
    margin = 0.04 * (most - least) or 0.05 * abs(most) or 0.5
    low, high = (0.0 if least == 0 else least - margin), most + margin
    return Axis(label=label, low=low, high=high, ticks=tuple((tick, text(tick)) for tick in _round_numbers(low, high)))


def _round_numbers(low: float, high: float) -> Iterator[float]:
    """Yield multiples of 1, 2 or 5 times a power of ten from low to high."""
    rough = (high - low) / _NUM_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    for index in range(math.ceil(low / step), math.floor(high / step) + 1):
        yield index * step


def as_percent(value: float) -> str:
    return f"{round(100 * value, 6):g} %"


def as_count(value: float) -> str:
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{name}"
    return f"{value:.4g}"


def as_seconds(value: float) -> str:
    return f"{value:.4g} s"


def as_gigabytes(value: float) -> str:
    return f"{value / 1e9:.3g} GB"


def slug(text: str) -> str:
    """Return the text as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "level"


def shortened(name: str) -> str:
    return name if len(name) <= _NAME_SHOWN else name[: _NAME_SHOWN - 1] + "…"
