"""What the report of a comparison says, section by section; `page` and `markdown` show the same."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

from covey.compare.verdicts import signed_points
from covey.report.compare.blocks import Block, Code, Items, Pictures, Report, Section, Table, Text
from covey.report.compare.cells import (
    CONFIDENCE,
    NOTHING,
    capitalised,
    gain_text,
    percent_text,
    place_text,
    plain_text,
    said,
    share_text,
)
from covey.report.compare.costs import cost_blocks, critic_blocks, trial_blocks
from covey.report.compare.figures import (
    Json,
    figures_of,
    gold_by_seed,
    in_order,
    number_at,
)

_TONES = {"better": "up", "worse": "down"}


def report_of(summary: Json, *, name: str) -> Report:
    """Return the report of a comparison's `summary.json`; every number of it may be null."""
    figures = {figure.name: figure for figure in figures_of(summary)}

    def pictures(*starts: str) -> list[Block]:
        own = tuple(figure for name, figure in figures.items() if name.startswith(starts))
        return [Pictures(figures=own)] if own else []

    headline, tone, lead = answer(summary)
    sections = {
        "Gold on questions nobody trained on": [*pictures("forest"), *score_blocks(summary)],
        "On the way": pictures("curve") or [Text(text="No arm was evaluated twice.")],
        "All verdicts": verdict_blocks(summary),
        "At equal time": equal_time_blocks(summary),
        "What it costs": [*critic_blocks(summary), *pictures("memory", "seconds"), *cost_blocks(summary)],
        "Learning rates": [*pictures("learning-rates"), *trial_blocks(summary)],
        "How to repeat it": repeat_blocks(summary),
    }
    made = tuple(Section(title=title, blocks=tuple(blocks)) for title, blocks in sections.items())
    return Report(name=name, headline=headline, tone=tone, lead=lead, sections=made)


def answer(summary: Json) -> tuple[str, str, tuple[str, ...]]:
    """Return the headline, its tone, and what is said below: the primary contrast, what could be found, who beats the base."""
    claims = tuple(summary.get("claims") or ())
    resolution = summary.get("resolution") or ""
    found = next((row for row in verdicts_at(summary, primary_key(summary)) if row.get("is_primary")), None)
    if found is None:
        return "The contrast that was declared has not been measured yet", "", (*claims, resolution)
    arm, reference, outcome = found["arm"], found["reference"], found.get("outcome")
    heads = {
        "better": f"{arm} is better than {reference}",
        "worse": f"{arm} is worse than {reference}",
        "equivalent": f"{arm} and {reference} are equivalent",
    }
    headline = (
        f"{heads.get(str(outcome), f'Inconclusive whether {arm} is better than {reference}')}: {gain_text(found)} of gold"
    )
    said = [found.get("sentence") or ""]
    if outcome == "inconclusive":
        said.append(
            "Inconclusive is a normal answer: these runs cannot tell the two apart. It does not say that they are equal."
        )
    return headline, _TONES.get(str(outcome), ""), tuple(text for text in (*said, resolution, *claims) if text)


def primary_key(summary: Json) -> str:
    return str(summary.get("primary_key") or "test/sampled")


def verdicts_at(summary: Json, key: str) -> list[Json]:
    return list((summary.get("verdicts") or {}).get(key) or ())


def score_blocks(summary: Json) -> list[Block]:
    """Return the table of arms, and that of seeds."""
    arms, main = in_order(summary["arms"]), primary_key(summary)
    keys = list(dict.fromkeys(key for arm in arms for key in arm.get("scores") or {} if key != main))
    others = [key.replace("/", ", ") for key in keys]
    header = ("arm", "algorithm", "gold %", "proxy %", "proxy - gold", "gain over base", *others)
    rows = []
    for arm in arms:
        gold, proxy = number_at(arm, "scores", main, "mean"), number_at(arm, "proxy", main, "mean")
        gap = NOTHING if gold is None or proxy is None else signed_points(proxy - gold)
        gain = gain_text(arm.get("gain_over_base") or {}, unit="")
        shares = (share_text(arm, "scores", main), share_text(arm, "proxy", main))
        elsewhere = (share_text(arm, "scores", key) for key in keys)
        rows.append((arm["name"], arm.get("title") or NOTHING, *shares, gap, gain, *elsewhere))
    oracle = number_at(summary, "oracle", main)
    notes = [
        f"In brackets: {CONFIDENCE} intervals over seeds and questions. Gaps and gains are points of 100, "
        "gains paired by question."
    ]
    if oracle is not None:
        notes.append(
            f"Somebody who could tell right from wrong would find a right answer among the n for {100 * oracle:.1f} %."
        )
    blocks: list[Block] = [Table(header=header, rows=tuple(rows)), Text(text=" ".join(notes))]
    by_seed = {arm["name"]: dict(gold_by_seed(arm, main)) for arm in arms if arm.get("trained")}
    seeds = list(dict.fromkeys(seed for golds in by_seed.values() for seed in golds))
    cells = tuple((name, *(percent_text(golds.get(seed)) for seed in seeds)) for name, golds in by_seed.items())
    if seeds:
        blocks.append(Table(header=("gold % by seed", *map(str, seeds)), rows=cells))
    return blocks


def verdict_blocks(summary: Json) -> list[Block]:
    """Return the verdicts as sentences: the primary one first, then the others of its questions, then other questions."""
    keys = dict.fromkeys([primary_key(summary), *(summary.get("verdicts") or {})])
    blocks: list[Block] = [
        Text(
            text="The first sentence is of the contrast that was declared before the first run, and is tested alone; "
            "the others of its list share one alpha by Holm's method. The same contrasts on other questions are treated alike, "
            "list by list: with several lists there are more chances of one wrong verdict, so read those as supplements."
        )
    ]
    for key in keys:
        rows = sorted(verdicts_at(summary, key), key=lambda row: not row.get("is_primary"))
        said = tuple(row.get("sentence") or f"{row['arm']} against {row['reference']}: not measured" for row in rows)
        if said:
            blocks.append(Items(title=capitalised(place_text(key)), items=said, is_loud=key == primary_key(summary)))
    return blocks if len(blocks) > 1 else [Text(text="There is no verdict yet.")]


def equal_time_blocks(summary: Json) -> list[Block]:
    """Return what each arm had reached when the fastest one was done."""
    found = summary.get("equal_time") or {}
    rows = tuple(
        (row["arm"], *(percent_text(number_at(row, end)) for end in ("mean", "low", "high"))) for row in found.get("rows") or ()
    )
    seconds, note = number_at(found, "seconds"), found.get("note") or ""
    when = "" if seconds is None else f"After {seconds:.0f} s of training, when the fastest arm was done: "
    said: list[Block] = [Text(text=when + note)] if when or note else []
    if names := found.get("left_out"):
        text = "Made on another machine, whose seconds are others, and left out here and wherever seconds are shown: "
        said.append(Text(text=text + "; ".join(names)))
    return [*said, Table(header=("arm", "gold %", "lowest seed", "highest seed"), rows=rows)] if rows else said


def repeat_blocks(summary: Json) -> list[Block]:
    """Return the command, what it was run on, the whole plan, and what the numbers do not cover."""
    plan = summary.get("plan") or {}
    command = summary.get("command") or "covey compare"
    machine, versions = summary.get("machine") or {}, summary.get("versions") or {}
    facts = {key: value for key, value in plan.items() if key not in ("recipe", "arms")}
    changes = {arm["name"]: " ".join(arm.get("overrides") or ()) for arm in plan.get("arms") or ()}
    arms = tuple(_settings(arm, changes.get(arm["name"], "")) for arm in in_order(summary["arms"]))
    rows = [
        (f"{group}{key}", said(value))
        for group, values in (("", facts), ("machine: ", machine), ("version: ", versions))
        for key, value in values.items()
    ]
    blocks: list[Block] = [Code(title="Command", text=command if isinstance(command, str) else shlex.join(map(str, command)))]
    if arms:
        header = ("arm", "changes to the recipe", "seeds", "learning rate", "paper")
        blocks.append(Table(header=header, rows=arms, has_prose=True))
    blocks.append(Table(header=("", "value"), rows=tuple(rows), has_prose=True))
    if plan.get("recipe"):
        blocks.append(Code(title="Recipe that all arms share", text=json.dumps(plan["recipe"], indent=1), is_folded=True))
    return [*blocks, Items(title="What the numbers do not cover", items=tuple(not_covered(summary)))]


def _settings(arm: Json, changes: str) -> tuple[str, ...]:
    seeds = " ".join(map(str, arm.get("seeds") or ()))
    return (
        arm["name"],
        changes or NOTHING,
        seeds or NOTHING,
        plain_text(number_at(arm, "learning_rate")),
        arm.get("paper") or NOTHING,
    )


def not_covered(summary: Json) -> Iterator[str]:
    """Yield what a reader must not conclude."""
    plan = summary.get("plan") or {}
    yield "Other tasks, models and budgets: the intervals are over training seeds and questions of this task."
    rates = plan.get("learning_rates") or ()
    tuned = (
        f"one of {len(rates)} learning rates, chosen by one seed" if len(rates) > 1 else "nothing, not even the learning rate"
    )
    yield f"Better settings of an arm: tuned was {tuned}."
    tried = [rate for rate in rates if isinstance(rate, (int, float))]
    at_edge = [arm["name"] for arm in summary["arms"] if len(tried) > 1 and number_at(arm, "learning_rate") == max(tried)]
    if at_edge:
        yield f"Higher learning rates: {', '.join(at_edge)} did best with the highest that was tried."
    single = [arm["name"] for arm in summary["arms"] if arm.get("trained") and len(arm.get("seeds") or ()) == 1]
    if single:
        yield f"Other training seeds of {', '.join(single)}: there is one, so the interval is over questions alone."
    if not plan.get("harder"):
        yield "Harder questions than those trained on: none were asked."
    yield "Other machines: memory and seconds are those of one process on this one."
