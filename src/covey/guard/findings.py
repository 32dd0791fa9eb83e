"""The result of an audit, as data, as JSON and as lines for people."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from covey.guard.measures import FamilyRow, Judged, KindRow, PartRow
from covey.guard.search import Exploit, SearchResult
from covey.guard.verdict import AuditLimits, Level, Reason, Verdict, shortened
from covey.types import Prompt, Score

LINES_OF_REASONS = 8

MARKS: dict[Level, str] = {"fail": "FAIL", "warn": "warn", "note": "note"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSample:
    """A completion that the model itself gave."""

    prompt: Prompt
    completion: str
    reward: Score
    gold: Score | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSummary:
    """What the reward and gold make of the model's own completions."""

    num_samples: int
    reward_mean: float | None
    gold_mean: float | None
    reward_std: float | None
    num_overpaid: int
    """Paid, and denied by gold."""
    num_underpaid: int
    """Not paid, and passed by gold."""
    to_read: tuple[ModelSample, ...]
    """Where the two disagree, the overpaid first; without gold, what was paid best."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallTimes:
    """Seconds that a call of the reward took."""

    mean_s: float
    max_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditResult:
    """What an audit found."""

    task: str
    reward: str
    gold: str | None
    verdict: Verdict
    reasons: tuple[Reason, ...]
    families: tuple[FamilyRow, ...]
    kinds: tuple[KindRow, ...]
    parts: tuple[PartRow, ...]
    separation: float | None
    """Worst-paid accepted right answer less the best-paid attack that breaks a reward, as a share of its range."""
    separation_all: float | None
    """The same with all attacks, also those that only who knows the answer can write."""
    junk_spread: float
    repeat_spread: float
    """The largest difference between two scores of the same completion, as a share of the range."""
    right_std: float | None
    wrong_std: float | None
    guess_rate: float
    """The share of the questions that the best blind habit gets right."""
    doubts: tuple[Judged, ...]
    """Attacks that gold passes."""
    search: SearchResult | None
    """None: there was no search."""
    samples: SampleSummary | None
    """None: there were none."""
    times: CallTimes
    num_prompts: int
    num_completions: int
    num_left_out: int
    """Completions that were not scored because the time was up."""
    elapsed_s: float
    is_short: bool
    seed: int
    limits: AuditLimits

    @property
    def num_wrong(self) -> int:
        return sum(row.num_wrong for row in self.families)

    @property
    def num_paid(self) -> int:
        return sum(row.num_paid for row in self.families)

    @property
    def num_right(self) -> int:
        return sum(row.num_right for row in self.families)

    @property
    def num_refused(self) -> int:
        return sum(row.num_refused for row in self.families)


def audit_row(result: AuditResult) -> dict[str, Any]:
    """Return the result as plain data, for JSON."""
    return {
        "task": result.task,
        "reward": result.reward,
        "gold": result.gold,
        "verdict": result.verdict,
        "reasons": [asdict(reason) for reason in result.reasons],
        "false_positives": {"num_paid": result.num_paid, "num_wrong": result.num_wrong},
        "false_negatives": {"num_refused": result.num_refused, "num_right": result.num_right},
        "kinds": [asdict(row) for row in result.kinds],
        "separation": result.separation,
        "separation_all": result.separation_all,
        "junk_spread": result.junk_spread,
        "repeat_spread": result.repeat_spread,
        "right_std": result.right_std,
        "wrong_std": result.wrong_std,
        "guess_rate": result.guess_rate,
        "families": [family_data(row) for row in result.families],
        "parts": [asdict(part) for part in result.parts],
        "doubts": [judged_data(row) for row in result.doubts],
        "search": search_data(result.search),
        "samples": samples_data(result.samples),
        "call_mean_s": result.times.mean_s,
        "call_max_s": result.times.max_s,
        "num_prompts": result.num_prompts,
        "num_completions": result.num_completions,
        "num_left_out": result.num_left_out,
        "elapsed_s": result.elapsed_s,
        "is_short": result.is_short,
        "seed": result.seed,
        "limits": asdict(result.limits),
    }


def family_data(row: FamilyRow) -> dict[str, Any]:
    """Return a family's row with its examples."""
    names = ("num_wrong", "num_paid", "num_right", "num_refused", "max_wrong", "min_right", "num_unscored", "num_doubted")
    return {
        "family": row.family,
        "kinds": list(row.kinds),
        **{name: getattr(row, name) for name in names},
        "false_positives": [judged_data(each) for each in row.false_positives],
        "false_negatives": [judged_data(each) for each in row.false_negatives],
    }


def judged_data(row: Judged) -> dict[str, Any]:
    """Return a completion with its scores."""
    own = {"family": row.attack.family, "variant": row.attack.variant, "kind": row.attack.kind}
    return own | completion_data(row.prompt, row.attack.completion, row.reward, row.gold)


def completion_data(prompt: Prompt, completion: str, reward: Score, gold: Score | None) -> dict[str, Any]:
    """Return a completion with its question and scores; what is long is shortened."""
    return {
        "question": shortened(prompt.text, 1000),
        "answer": shortened(str(prompt.answer), 1000),
        "completion": shortened(completion, 1000),
        "reward": reward.value,
        "gold": gold.value if gold is not None else None,
        "extracted": reward.extracted,
        "error": shortened(reward.error, 1000) if reward.error else None,
    }


def search_data(search: SearchResult | None) -> dict[str, Any] | None:
    """Return what the search found, with its trail."""
    if search is None:
        return None
    best = search.best
    return {
        "num_calls": search.num_calls,
        "trail": [
            {"num_calls": step.num_calls, "pay": step.pay, "template": [shortened(piece, 200) for piece in step.template]}
            for step in search.trail
        ],
        "best": None if best is None else exploit_data(best),
    }


def exploit_data(best: Exploit) -> dict[str, Any]:
    """Return the best exploit."""
    return {
        "template": [shortened(piece, 200) for piece in best.template],
        "pay": best.pay,
        "num_prompts": best.num_prompts,
        **completion_data(best.prompt, best.completion, best.reward, best.gold),
    }


def samples_data(samples: SampleSummary | None) -> dict[str, Any] | None:
    """Return what was made of the model's own completions."""
    if samples is None:
        return None
    names = ("num_samples", "reward_mean", "gold_mean", "reward_std", "num_overpaid", "num_underpaid")
    return {
        **{name: getattr(samples, name) for name in names},
        "to_read": [completion_data(row.prompt, row.completion, row.reward, row.gold) for row in samples.to_read],
    }


def audit_lines(result: AuditResult) -> list[str]:
    """Return what the console shows: the verdict, its reasons, a table of the families, and the figures."""
    width = max(len(row.family) for row in result.families) if result.families else 6
    lines = [headline(result), *(f"  {MARKS[reason.level]}  {reason.text}" for reason in result.reasons[:LINES_OF_REASONS])]
    if len(result.reasons) > LINES_OF_REASONS:
        lines.append(f"  and {len(result.reasons) - LINES_OF_REASONS} more, in the report")
    lines += ["", f"  {'family':<{width}}  wrong   paid   right  refused   most for wrong"]
    for row in result.families:
        most = "" if row.max_wrong is None else f"{row.max_wrong:.3g}"
        counts = f"{row.num_wrong:>5}  {row.num_paid:>5}  {row.num_right:>6}  {row.num_refused:>7}"
        lines.append(f"  {row.family:<{width}}  {counts}   {most:>14}")
    lines += ["", *(f"  {name}: {value}" for name, value in figures(result).items())]
    lines += [part_line(part) for part in result.parts]
    return lines


def headline(result: AuditResult) -> str:
    """Return the verdict in one line."""
    gold = f"gold {result.gold}" if result.gold else "no gold"
    return f"{result.reward} on {result.task} ({gold}): {result.verdict}"


def figures(result: AuditResult) -> dict[str, str]:
    """Return the figures that are no family's, with their names, as text."""
    shown = {
        "false positives": share(result.num_paid, result.num_wrong),
        "by kind": ", ".join(f"{row.kind} {row.num_paid} of {row.num_wrong}" for row in result.kinds),
        "false negatives": share(result.num_refused, result.num_right),
        "separation": decimal(result.separation),
        "separation, all attacks": decimal(result.separation_all),
        "junk spread": decimal(result.junk_spread),
        "standard deviation over right answers": decimal(result.right_std),
        "standard deviation over wrong ones": decimal(result.wrong_std),
        "time of a call": f"{1e3 * result.times.mean_s:.3g} ms, at most {1e3 * result.times.max_s:.3g} ms",
    }
    if result.search is not None:
        best = result.search.best
        shown["best exploit"] = f"{best.pay:.0%} of the reward" if best else "nothing wrong was paid anything"
        shown["best exploit"] += f", after {result.search.num_calls} calls"
    if result.samples is not None:
        own = result.samples
        apart = f"{own.num_overpaid} are paid and denied by gold, {own.num_underpaid} the other way round"
        shown["the model's own completions"] = f"{own.num_samples}, of which {apart}"
    if result.num_left_out:
        shown["left out, for time"] = f"{result.num_left_out} completions"
    return shown


def part_line(part: PartRow) -> str:
    """Return what is known of a part, in one line."""
    moved = "" if part.movable_frac is None else f" can move {part.movable_frac:.0%} of the total;"
    means = f"mean {decimal(part.right_mean)} for right answers, {decimal(part.wrong_mean)} for wrong ones"
    return f"  part {part.name}:{moved} {means}"


REASON_CHARACTERS = 200
"""Of a reason in a run's log; the audit's own report has all of it."""


def audit_message(result: AuditResult) -> str:
    """Return the audit in short, for the log of a run: the verdict, and the beginning of its gravest reason."""
    told = next((reason.text for reason in result.reasons if reason.level != "note"), "")
    clipped = told if len(told) <= REASON_CHARACTERS else f"{told[:REASON_CHARACTERS].rstrip()} ..."
    rest = f": {clipped}" if told else ""
    paid, refused = share(result.num_paid, result.num_wrong), share(result.num_refused, result.num_right)
    return f"reward audit of {result.reward}: {result.verdict}, {paid} wrong answers paid, {refused} right ones refused{rest}"


def share(count: int, total: int) -> str:
    """Return a count with what it is of."""
    return f"{count} of {total} ({count / total:.1%})" if total else "none tried"


def decimal(value: float | None) -> str:
    """Return a number with three digits, or that there is none."""
    return "none" if value is None or not math.isfinite(value) else f"{value:.3g}"
