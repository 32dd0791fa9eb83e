"""What the report of a comparison says of costs: value models, counts, memory, seconds and tried learning rates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from covey.report.compare.axes import as_count
from covey.report.compare.blocks import Block, Table, Text
from covey.report.compare.cells import (
    counted_text,
    gigabytes_text,
    off_budget_text,
    percent_text,
    plain_text,
    whole_text,
)
from covey.report.compare.figures import (
    MEMORY_PARTS,
    TRAINING_PHASES,
    Json,
    in_order,
    number_at,
)

_OTHER_SECONDS = ("evaluation", "checkpoint")


def critic_blocks(summary: Json) -> list[Block]:
    return [Text(text=text) for text in critic_sentences(summary["arms"])]


def critic_sentences(arms: Sequence[Json]) -> Iterator[str]:
    """Yield, for each arm with a value model, what it adds to the arm's own peak, and the peak of an arm without one."""
    peaks = {arm["name"]: number_at(arm, "costs", "peak_rss_bytes") for arm in arms}
    critics = {arm["name"]: number_at(arm, "costs", "memory_bytes", "critic") or 0.0 for arm in arms}
    without = [arm["name"] for arm in in_order(arms) if arm.get("trained") and not critics[arm["name"]] and peaks[arm["name"]]]
    for name, critic in critics.items():
        peak = peaks[name]
        if not critic or peak is None or peak <= critic or not without:
            continue
        other = without[0]
        parameters = number_at(next(arm for arm in arms if arm["name"] == name), "costs", "parameters", "critic")
        size = f" ({as_count(parameters)} parameters)" if parameters else ""
        difference = peak - (peaks[other] or 0.0)
        yield (
            f"The critic of {name}{size} adds {critic / 1e9:.2f} GB ({100 * critic / (peak - critic):.0f} %) to what the arm "
            f"would need without it. Measured against {other}, the peak is {peak / 1e9:.2f} GB instead of "
            f"{(peaks[other] or 0.0) / 1e9:.2f} GB: {difference / 1e9:+.2f} GB."
        )


def cost_blocks(summary: Json) -> list[Block]:
    """Return the tables of counts, of memory and of seconds, and what an untrained arm spends on an answer."""
    arms = in_order(summary["arms"])
    trained = [arm for arm in arms if arm.get("trained")]
    counts = {
        "policy": ("parameters", "policy"),
        "trained": ("parameters", "trained"),
        "reference": ("parameters", "reference"),
        "critic": ("parameters", "critic"),
        "generated tokens": ("tokens", "generated"),
        "trained tokens": ("tokens", "trained"),
        "steps": ("num_steps",),
        "updates": ("num_updates",),
    }
    rows = [
        (arm["name"], *(counted_text(number_at(arm, "costs", *path)) for path in counts.values()), off_budget_text(arm))
        for arm in trained
    ]
    memory = [
        (
            arm["name"],
            *(gigabytes_text(arm, "memory_bytes", part) for part in MEMORY_PARTS),
            gigabytes_text(arm, "peak_rss_bytes"),
        )
        for arm in trained
    ]
    phases = (*TRAINING_PHASES, *_OTHER_SECONDS)
    seconds = [(arm["name"], *(whole_text(number_at(arm, "costs", "seconds", phase)) for phase in phases)) for arm in trained]
    titles = (phase.replace("_", " ") for phase in phases)
    blocks: list[Block] = [
        Table(header=("arm", *counts, "off the budget"), rows=tuple(rows)),
        Table(header=("GB", *MEMORY_PARTS, "peak"), rows=tuple(memory)),
        Table(header=("seconds", *titles), rows=tuple(seconds)),
    ]
    spent = {arm["name"]: number_at(arm, "costs", "tokens_per_question") for arm in arms if not arm.get("trained")}
    answers = [f"{name} {tokens:.0f}" for name, tokens in spent.items() if tokens is not None]
    said = f"Tokens that an untrained arm spends on a question: {', '.join(answers)}."
    return [*(blocks if trained else []), *([Text(text=said)] if answers else [])]


def trial_blocks(summary: Json) -> list[Block]:
    """Return what each learning rate reached, and which one each arm trained with."""
    arms = [arm for arm in in_order(summary["arms"]) if arm.get("trained")]
    reached = {
        arm["name"]: {number_at(trial, "learning_rate"): number_at(trial, "gold") for trial in arm.get("trials") or ()}
        for arm in arms
    }
    rates = sorted({rate for trials in reached.values() for rate in trials if rate is not None})
    if not rates:
        return [Text(text="No rates were tried: every arm trained with the same one, which may suit one better than another.")]
    rows = tuple(
        (
            arm["name"],
            *(percent_text(reached[arm["name"]].get(rate)) for rate in rates),
            plain_text(number_at(arm, "learning_rate")),
        )
        for arm in arms
    )
    return [Table(header=("gold % of part choose", *map(plain_text, rates), "trained with"), rows=rows)]
