"""Which charts a report has: a row each. Colours are those of a light page, swapped by `DARK` on a dark one."""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from covey.report.load import Row
from covey.report.stats import PHASES

# Okabe & Ito's palette for the colour-blind (https://jfly.uni-koeln.de/color/), with lighter twins for a dark page.
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
SKY, PURPLE, AMBER, GREY = "#56b4e9", "#b0588f", "#e69f00", "#8a8f98"
ALARM = "#c92a2a"
INK, RULE, PAPER = "#3b4351", "#e3e6ea", "#fffffe"
DARK = {
    BLUE: "#58a9ee",
    ORANGE: "#ff8f4d",
    GREEN: "#2cc79a",
    SKY: "#8fd0f7",
    PURPLE: "#e396c6",
    AMBER: "#f2b93b",
    GREY: "#8d949e",
    ALARM: "#ff7b7b",
    INK: "#c9d1d9",
    RULE: "#30363d",
    PAPER: "#161b22",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One key of metrics.jsonl or timing.jsonl."""

    key: str
    label: str
    colour: str = BLUE


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """Lines that share a y axis, or bars stacked on each other."""

    lines: tuple[Line, ...]
    kind: Literal["line", "stack"] = "line"
    tickformat: str = ""
    from_zero: bool = True
    """Whether the axis starts at 0; not for numbers that live around 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """One small chart: its panels stand above each other over the same steps."""

    title: str
    note: str
    panels: tuple[Panel, ...]


CHARTS: dict[str, Chart] = {
    "groups": Chart(
        title="What the groups were good for",
        note="Only usable groups carry a gradient. Many all correct: the task is too easy. Many all wrong: too hard.",
        panels=(
            Panel(
                kind="stack",
                tickformat=".0%",
                lines=(
                    Line(key="group/usable_frac", label="usable", colour=GREEN),
                    Line(key="group/all_correct_frac", label="all correct", colour=SKY),
                    Line(key="group/all_wrong_frac", label="all wrong", colour=ORANGE),
                    Line(key="group/other_flat_frac", label="other flat", colour=GREY),
                ),
            ),
        ),
    ),
    "length": Chart(
        title="Completion length",
        note="Growing length with flat accuracy, or many truncated completions, is a warning.",
        panels=(
            Panel(lines=(Line(key="completion/length_mean", label="mean tokens"),)),
            Panel(lines=(Line(key="completion/truncated_frac", label="truncated share", colour=ORANGE),), tickformat=".0%"),
        ),
    ),
    "entropy": Chart(
        title="Entropy",
        note="Nats a token. A slow fall is normal; a collapse towards 0 means that exploration is over.",
        panels=(Panel(lines=(Line(key="entropy/mean", label="mean entropy", colour=PURPLE),)),),
    ),
    "gradient": Chart(
        title="Gradient and learning rate",
        note="The norm is taken before clipping. This, not the loss, shows that learning goes on.",
        panels=(
            Panel(lines=(Line(key="grad/norm", label="gradient norm"),)),
            Panel(lines=(Line(key="optimizer/lr", label="learning rate", colour=GREY),), tickformat=".1~e"),
        ),
    ),
    "clip": Chart(
        title="Clipping and ratio",
        note="Ratio of policy to old policy: exactly 1, and nothing clipped, on the first update of a batch.",
        panels=(
            Panel(
                tickformat=".1~%",
                lines=(
                    Line(key="clip/low_frac", label="clipped low", colour=ORANGE),
                    Line(key="clip/high_frac", label="clipped high"),
                ),
            ),
            Panel(
                from_zero=False,
                lines=(
                    Line(key="ratio/mean", label="mean ratio", colour=GREEN),
                    Line(key="ratio/max", label="largest ratio", colour=GREY),
                ),
            ),
        ),
    ),
    "kl": Chart(
        title="Distance from the reference",
        note="k3 estimate of the divergence from the reference model, nats a token.",
        panels=(Panel(lines=(Line(key="kl/ref", label="KL to reference", colour=PURPLE),)),),
    ),
    "mismatch": Chart(
        title="Engine against trainer",
        note="Log-probabilities of the same tokens, computed twice. They should agree; a drift spoils the gradient.",
        panels=(
            Panel(lines=(Line(key="mismatch/abs_mean", label="mean difference"),)),
            Panel(lines=(Line(key="mismatch/max", label="largest difference", colour=GREY),)),
        ),
    ),
    "timing": Chart(
        title="Where the time goes",
        note="Seconds a step, by phase.",
        panels=(
            Panel(
                kind="stack",
                lines=tuple(
                    Line(key=key, label=name, colour=colour)
                    for (key, name), colour in zip(PHASES.items(), (BLUE, AMBER, PURPLE, ORANGE, GREY, GREEN, SKY), strict=True)
                ),
            ),
        ),
    ),
    "speed": Chart(
        title="Sampling speed",
        note="Completion tokens generated a second.",
        panels=(Panel(lines=(Line(key="generated_tokens_per_s", label="tokens a second", colour=GREEN),)),),
    ),
}

_PART = "reward/part/"


def reward_parts_chart(rows: Sequence[Row]) -> Chart:
    """Return the chart of the reward's parts, whose names are the recipe's."""
    names = sorted({key.removeprefix(_PART) for row in rows for key in row if key.startswith(_PART)})
    colours = itertools.cycle((GREEN, PURPLE, SKY, AMBER, ORANGE))
    parts = [Line(key=_PART + name, label=html.escape(name), colour=next(colours)) for name in names]
    return Chart(
        title="Parts of the reward",
        note="Training completions. A part that rises alone, such as a format, is how proxies are gamed.",
        panels=(Panel(lines=(Line(key="reward/mean", label="reward"), *parts)),),
    )
