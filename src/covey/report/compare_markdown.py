"""What the report of a comparison says, section by section, and as one Markdown file; `compare_page` makes the page of it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from covey.compare.verdicts import ALPHA, signed_points
from covey.report.compare_figures import (
    MEMORY_PARTS,
    TRAINING_PHASES,
    Figure,
    Json,
    as_count,
    figures_of,
    gold_by_seed,
    in_order,
    number_at,
)

NOTHING = "-"
_CONFIDENCE = f"{100 * (1 - ALPHA):g} %"
_OTHER_SECONDS = ("evaluation", "checkpoint")
_TONES = {"better": "up", "worse": "down"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Items:
    """Sentences of equal rank; `is_loud` marks the first of them."""

    kind: ClassVar[str] = "items"
    title: str
    items: tuple[str, ...]
    is_loud: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Cells of text; every row is as long as the header."""

    kind: ClassVar[str] = "table"
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    has_prose: bool = False
    """Whether lines may break within a cell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """Text to be copied; `is_folded`: the page shows it when asked."""

    kind: ClassVar[str] = "code"
    title: str
    text: str
    is_folded: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """Figures beside each other."""

    kind: ClassVar[str] = "pictures"
    figures: tuple[Figure, ...]


Block = Text | Items | Table | Code | Pictures


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """All of it, from the answer to how to repeat it."""

    name: str
    headline: str
    tone: str
    """"up", "down" or, where neither is shown, empty."""
    lead: tuple[str, ...]
    sections: tuple[Section, ...]


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
    headline = f"{heads.get(str(outcome), f'Inconclusive whether {arm} is better than {reference}')}: {_gain(found)} of gold"
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
        gain = _gain(arm.get("gain_over_base") or {}, unit="")
        shares = (_share(arm, "scores", main), _share(arm, "proxy", main))
        elsewhere = (_share(arm, "scores", key) for key in keys)
        rows.append((arm["name"], arm.get("title") or NOTHING, *shares, gap, gain, *elsewhere))
    oracle = number_at(summary, "oracle", main)
    notes = [
        f"In brackets: {_CONFIDENCE} intervals over seeds and questions. Gaps and gains are points of 100, "
        "gains paired by question."
    ]
    if oracle is not None:
        notes.append(
            f"Somebody who could tell right from wrong would find a right answer among the n for {100 * oracle:.1f} %."
        )
    blocks: list[Block] = [Table(header=header, rows=tuple(rows)), Text(text=" ".join(notes))]
    by_seed = {arm["name"]: dict(gold_by_seed(arm, main)) for arm in arms if arm.get("trained")}
    seeds = list(dict.fromkeys(seed for golds in by_seed.values() for seed in golds))
    cells = tuple((name, *(_percent(golds.get(seed)) for seed in seeds)) for name, golds in by_seed.items())
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
            blocks.append(Items(title=_capital(_place(key)), items=said, is_loud=key == primary_key(summary)))
    return blocks if len(blocks) > 1 else [Text(text="There is no verdict yet.")]


def equal_time_blocks(summary: Json) -> list[Block]:
    """Return what each arm had reached when the fastest one was done."""
    found = summary.get("equal_time") or {}
    rows = tuple(
        (row["arm"], *(_percent(number_at(row, end)) for end in ("mean", "low", "high"))) for row in found.get("rows") or ()
    )
    seconds, note = number_at(found, "seconds"), found.get("note") or ""
    when = "" if seconds is None else f"After {seconds:.0f} s of training, when the fastest arm was done: "
    said: list[Block] = [Text(text=when + note)] if when or note else []
    return [*said, Table(header=("arm", "gold %", "lowest seed", "highest seed"), rows=rows)] if rows else said


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
        (arm["name"], *(_counted(number_at(arm, "costs", *path)) for path in counts.values()), _off_budget(arm))
        for arm in trained
    ]
    memory = [
        (arm["name"], *(_gigabytes(arm, "memory_bytes", part) for part in MEMORY_PARTS), _gigabytes(arm, "peak_rss_bytes"))
        for arm in trained
    ]
    phases = (*TRAINING_PHASES, *_OTHER_SECONDS)
    seconds = [(arm["name"], *(_whole(number_at(arm, "costs", "seconds", phase)) for phase in phases)) for arm in trained]
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
            *(_percent(reached[arm["name"]].get(rate)) for rate in rates),
            _plain(number_at(arm, "learning_rate")),
        )
        for arm in arms
    )
    return [Table(header=("gold % of part choose", *map(_plain, rates), "trained with"), rows=rows)]


def repeat_blocks(summary: Json) -> list[Block]:
    """Return the command, what it was run on, the whole plan, and what the numbers do not cover."""
    plan = summary.get("plan") or {}
    command = summary.get("command") or "covey compare"
    machine, versions = summary.get("machine") or {}, summary.get("versions") or {}
    facts = {key: value for key, value in plan.items() if key not in ("recipe", "arms")}
    changes = {arm["name"]: " ".join(arm.get("overrides") or ()) for arm in plan.get("arms") or ()}
    arms = tuple(_settings(arm, changes.get(arm["name"], "")) for arm in in_order(summary["arms"]))
    rows = [
        (f"{group}{key}", _said(value))
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
        _plain(number_at(arm, "learning_rate")),
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
    single = [arm["name"] for arm in summary["arms"] if arm.get("trained") and len(arm.get("seeds") or ()) == 1]
    if single:
        yield f"Other training seeds of {', '.join(single)}: there is one, so the interval is over questions alone."
    if not plan.get("harder"):
        yield "Harder questions than those trained on: none were asked."
    yield "Other machines: memory and seconds are those of one process on this one."


def markdown(report: Report) -> str:
    """Return the report as Markdown, its figures linked from beside it."""
    parts = [f"# {escaped(report.headline)}", *(escaped(text) for text in report.lead)]
    for section in report.sections:
        parts += [f"## {escaped(section.title)}", *(part for block in section.blocks for part in _block_lines(block))]
    return "\n\n".join(parts) + "\n"


def _block_lines(block: Block) -> Iterator[str]:
    if isinstance(block, Text):
        yield escaped(block.text)
    elif isinstance(block, Items):
        yield f"### {escaped(block.title)}"
        yield "\n".join(f"- {escaped(item)}" for item in block.items)
    elif isinstance(block, Table):
        header, *rows = ([escaped(cell) for cell in cells] for cells in (block.header, *block.rows))
        yield "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))
    elif isinstance(block, Code):
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", block.text)), default=0))
        yield f"### {escaped(block.title)}"
        yield f"{fence}text\n{block.text}\n{fence}"
    else:
        for figure in block.figures:
            yield f"![{escaped(figure.title)}](figures/{figure.name}.svg)"
            yield escaped(figure.note)


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    line = " ".join(text.split()).replace("&", "&amp;")
    line = re.sub(r"([\\`*\[\]<>|~])", r"\\\1", line)
    # An underscore within a word is nothing but itself, and arms are called best_of_n.
    line = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)
    return f"\\{line}" if line.startswith(("#", "+ ", "- ", "=")) else line


def _place(key: str) -> str:
    level, _, mode = key.partition("/")
    return f"{level} questions, {mode}"


def _gain(interval: Json, *, unit: str = " points") -> str:
    mean, low, high = (number_at(interval, end) for end in ("mean", "low", "high"))
    if mean is None:
        return NOTHING if not unit else "not measured"
    if low is None or high is None:
        return f"{signed_points(mean)}{unit}"
    if not unit:
        return f"{signed_points(mean)} [{signed_points(low)}, {signed_points(high)}]"
    return f"{signed_points(mean)}{unit} ({_CONFIDENCE} interval {signed_points(low)} to {signed_points(high)})"


def _share(arm: Json, *path: str) -> str:
    mean, low, high = (number_at(arm, *path, end) for end in ("mean", "low", "high"))
    return _percent(mean) + ("" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]")


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.1f}"


def _plain(value: float | None) -> str:
    return NOTHING if value is None else f"{value:g}"


def _whole(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def _counted(value: float | None) -> str:
    return NOTHING if value is None else as_count(value)


def _gigabytes(arm: Json, *path: str) -> str:
    value = number_at(arm, "costs", *path)
    return NOTHING if value is None else f"{value / 1e9:.2f}"


def _off_budget(arm: Json) -> str:
    missing = number_at(arm, "costs", "budget_missing_frac")
    return NOTHING if missing is None else f"{100 * missing:.1f} %"


def _said(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value) if isinstance(value, Mapping) else " ".join(map(str, value))
    return "none" if value is None else str(value)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
