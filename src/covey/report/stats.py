"""What a report says in words and counts: the verdict, who was fixed and who was broken, where the time went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from covey.report.guard import guard_sentences
from covey.report.load import Row, Run

PHASES = {
    "rollout_s": "rollout",
    "reward_s": "reward",
    "scoring_s": "scoring",
    "update_s": "update",
    "load_weights_s": "load weights",
    "evaluate_s": "evaluate",
    "checkpoint_s": "checkpoint",
}
"""Keys of timing.jsonl that add up to the time of a step, and their names on the page."""

# Best evidence first: the test part has chosen nothing, and greedy decoding adds no sampling noise.
_PREFERENCE = [(part, mode) for part in ("test", "choose", "guard") for mode in ("greedy", "sampled")]

T = TypeVar("T")
Tone = Literal["up", "down", "unclear", "blind", "empty"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The evaluation before training and the last one of the same part and mode."""

    before: Row
    after: Row


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The first thing a reader sees."""

    headline: str
    notes: tuple[str, ...]
    tone: Tone


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One held-out question, answered before training and at the last evaluation."""

    before: Row
    after: Row


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseTotal:
    """The seconds one phase took over the whole run."""

    name: str
    total_s: float
    share_frac: float
    step_s: float
    """Mean over the steps."""


def comparison(evals: Iterable[Row]) -> Comparison | None:
    """Return the best evidence of a change: the test part, if it has been evaluated twice; None without any."""
    series: dict[tuple[str, str], list[Row]] = {}
    for row in evals:
        series.setdefault((row["part"], row["mode"]), []).append(row)
    found = [series[key] for key in _PREFERENCE if len(series.get(key, ())) > 1]
    return Comparison(before=found[0][0], after=found[0][-1]) if found else None


def verdict(run: Run) -> Verdict:
    """Return the run's result in a sentence, with the notes that keep it honest."""
    pair = comparison(run.evals)
    if pair is None:
        headline, tone, notes = _without_comparison(run), "empty" if run.has_gold else "blind", []
    elif run.has_gold:
        headline, tone = _change(run, pair, score="gold", noun="held-out accuracy")
        notes = _part_notes(pair)
    else:
        headline, tone = _change(run, pair, score="proxy", noun="the held-out proxy reward")[0], "blind"
        notes = ["Whether the answers became better is not known: nothing but the reward being optimised has judged them."]
    if not run.has_gold:
        headline = f"No gold verifier: this run is flying blind. {headline}"
    return Verdict(headline=headline, notes=(*guard_sentences(run), *notes, progress(run)), tone=tone)


def progress(run: Run) -> str:
    """Return how far the run has come, as a sentence."""
    done, planned = run.last_step, run.planned_steps
    if planned is None:
        return f"{done} steps are done; the recipe does not say how many were planned."
    if done >= planned:
        return f"All {planned} steps are done."
    if run.ended_by:
        return f"Ended by {run.ended_by} after {done} of {planned} steps."
    return f"{'Interrupted' if run.was_interrupted else 'Unfinished'}: {done} of {planned} steps are done."


def duration(seconds: float) -> str:
    """Return a duration in the unit a person would use."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def paired(before: Sequence[Row], after: Sequence[Row]) -> list[Pair]:
    """Return the completions of the same prompt and sample, in the order of the first evaluation."""
    later = {(row["prompt_id"], row["sample"]): row for row in after}
    keys = [(row, (row["prompt_id"], row["sample"])) for row in before]
    return [Pair(before=row, after=later[key]) for row, key in keys if key in later]


def fates(pairs: Iterable[Pair], *, has_gold: bool) -> dict[str, list[Pair]]:
    """Return the pairs by what became of the question; with gold a 2x2 table of right and wrong, else by the proxy."""
    names = ("fixed", "broken", "still wrong", "still right") if has_gold else ("higher", "lower", "equal")
    sorted_pairs: dict[str, list[Pair]] = {name: [] for name in names}
    for pair in pairs:
        name = _gold_fate(pair) if has_gold else _proxy_fate(pair)
        sorted_pairs.setdefault(name, []).append(pair)
    return sorted_pairs


def is_right(row: Row) -> bool:
    """Whether gold accepts the completion; a graded verifier counts from one half."""
    return row["gold"] >= 0.5


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """Return up to `count` items spread over the whole list, so that nobody picks them by hand."""
    shown = min(count, len(items))
    return [items[index * len(items) // shown] for index in range(shown)]


def phase_totals(timing: Iterable[Row]) -> list[PhaseTotal]:
    """Return the phases' seconds over the run, in the order of a step."""
    rows = list(timing)
    totals: Counter[str] = Counter()
    for row in rows:
        totals.update({key: row.get(key) or 0.0 for key in PHASES})
    whole = sum(totals.values()) or 1.0
    num_steps = sum(row["step"] > 0 for row in rows) or 1
    return [
        PhaseTotal(name=name, total_s=totals[key], share_frac=totals[key] / whole, step_s=totals[key] / num_steps)
        for key, name in PHASES.items()
    ]


def _change(run: Run, pair: Comparison, *, score: str, noun: str) -> tuple[str, Tone]:
    """Return the sentence on one score's change, and whether its interval is above 0, below 0 or neither."""
    before, after = pair.before[f"{score}_mean"], pair.after[f"{score}_mean"]
    if before is None or after is None:
        return f"{_capital(noun)} was not recorded.", "empty"
    value, unit = (_percent, " points") if score == "gold" else (_plain, "")
    difference = _percent_points if score == "gold" else _signed
    gain, low, high = (pair.after.get(f"{score}_gain{end}") for end in ("", "_low", "_high"))
    span = f"from {value(before)} to {value(after)} ({_description(pair.after)})"
    size = f"{difference(after - before if gain is None else gain)}{unit}"
    when = _when(run, pair.after["step"])
    if low is None or high is None:
        return f"{_capital(noun)} went {span}: {size}, no interval recorded{when}.", "unclear"
    interval = f"95 % interval {difference(low)} to {difference(high)}"
    if low > 0 or high < 0:
        verb, tone = ("rose", "up") if low > 0 else ("fell", "down")
        return f"{_capital(noun)} {verb} {span}: {size}, {interval}{when}.", tone
    return f"Inconclusive, the interval includes 0: {noun} went {span}: {size}, {interval}{when}.", "unclear"


def _without_comparison(run: Run) -> str:
    known = [row for row in run.evals if (row["part"], row["mode"]) in _PREFERENCE]
    if not known:
        return "No held-out evaluation yet: nothing can be said about learning."
    first = min(known, key=lambda row: _PREFERENCE.index((row["part"], row["mode"])))
    mean = first["gold_mean"] if run.has_gold else first["proxy_mean"]
    noun, value = ("Held-out accuracy", _percent) if run.has_gold else ("The held-out proxy reward", _plain)
    shown = "not recorded" if mean is None else value(mean)
    when = "before training" if first["step"] == 0 else f"after step {first['step']}"
    return f"{noun} {when} is {shown} ({_description(first)}); there is no second evaluation to compare it with yet."


def _part_notes(pair: Comparison) -> list[str]:
    if pair.after["part"] == "test":
        return []
    return [
        f"The test part has not been evaluated after training, so these are the {pair.after['part']} questions, "
        "which steer the run: read the number as a little optimistic."
    ]


def _when(run: Run, step: int) -> str:
    """Return ", after 20 of 40 steps" unless the evaluation is of the last step, and the time if it is known."""
    elapsed_s = run.elapsed_s(step)
    after = f", after {step} of {run.last_step} finished steps" if step < run.last_step else ""
    return after + (f", in {duration(elapsed_s)}" if elapsed_s is not None else "")


def _description(row: Row) -> str:
    return f"{row['part']} part, {row['mode']}, {row['num_prompts']} questions"


def _gold_fate(pair: Pair) -> str:
    if pair.before["gold"] is None or pair.after["gold"] is None:
        return "not scored"
    names = {
        (False, True): "fixed",
        (True, False): "broken",
        (False, False): "still wrong",
        (True, True): "still right",
    }
    return names[is_right(pair.before), is_right(pair.after)]


def _proxy_fate(pair: Pair) -> str:
    before, after = pair.before["proxy"], pair.after["proxy"]
    if before is None or after is None:
        return "not scored"
    return "higher" if after > before else "lower" if after < before else "equal"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _percent(value: float) -> str:
    return f"{_trimmed(100 * value)} %"


def _plain(value: float) -> str:
    return f"{value:.3g}"


def _percent_points(value: float) -> str:
    return _with_sign(_trimmed(100 * value))


def _signed(value: float) -> str:
    return _with_sign(_plain(value))


def _with_sign(number: str) -> str:
    return number if number.startswith("-") or float(number) == 0 else f"+{number}"


def _trimmed(value: float) -> str:
    """Return one decimal, or none if it would be 0."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text
