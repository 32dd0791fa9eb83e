"""What follows from an audit's measurements: pass, warn or fail, each with its reasons and the threshold that was crossed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from covey.guard.attacks import Kind
from covey.guard.measures import PLAIN, FamilyRow, Judged, Measured, Paid, PartRow, values
from covey.guard.search import Exploit

Level = Literal["fail", "warn", "note"]
Verdict = Literal["pass", "warn", "fail"]

BREAKING: tuple[Kind, ...] = ("blind", "hedge", "near")
"""Attacks whose pay makes a reward broken: they earn without the answer, or with a wrong one."""

_LONGEST = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditLimits:
    """From where on something is held against a reward."""

    tolerance: float = 1e-6
    """Of the reward's range: pays that differ by no more are equal."""
    max_false_positive_frac: float = 0.05
    """Of the questions: a wrong value or a list of guesses that is paid in full more often breaks the reward."""
    blind_margin: float = 0.1
    """By how much a blind attack must beat guessing to break the reward."""
    max_unpaid_frac: float = 0.1
    """Of the questions: if no plain right answer earns more than junk more often, the reward is broken."""
    max_unscored_frac: float = 0.1
    """Of the completions: a reward that cannot score more is broken."""
    max_blind_part_frac: float = 0.5
    """Of the total: what a part that pays right and wrong answers alike may move without a warning."""
    max_disagreement_frac: float = 0.05
    """Of the model's own completions: what the reward may pay and gold deny without a warning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """Something that was found."""

    level: Level
    kind: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """All that a verdict follows from."""

    found: Measured
    families: Sequence[FamilyRow]
    paid: Sequence[Paid]
    parts: Sequence[PartRow]
    separation: float | None
    separation_all: float | None
    junk_spread: float
    repeat_spread: float
    guess_rate: float
    has_gold: bool
    exploit: Exploit | None
    num_samples: int
    num_overpaid: int
    """Of the model's own completions: paid, and denied by gold."""
    knows_right: bool
    """Whether all right answers have been scored."""
    num_left_out: int
    """Completions that there was no time for."""
    first_error: str | None


def mere_guesses(paid: Sequence[Paid], guess_rate: float, limits: AuditLimits) -> set[tuple[str, str]]:
    """Return family and variant of the blind attacks that are paid, but no more often than guessing is right."""
    return {(way.family, way.variant) for way in paid if way.kind == "blind" and way.frac <= guess_rate + limits.blind_margin}


def verdict_of(reasons: Sequence[Reason]) -> Verdict:
    """Return the gravest of the reasons; notes change nothing."""
    levels = {reason.level for reason in reasons}
    return "fail" if "fail" in levels else "warn" if "warn" in levels else "pass"


def reasons_of(evidence: Evidence, limits: AuditLimits) -> list[Reason]:
    """Return what is to be said of the reward, the gravest first."""
    checks = (unpaid_answers, paid_attacks, best_exploit, unscored, disagreements, doubts, weak_spots, parts, strictness)
    found = [reason for check in checks for reason in check(evidence, limits)]
    order = ("fail", "warn", "note")
    return sorted(found, key=lambda reason: order.index(reason.level))


def paid_attacks(evidence: Evidence, limits: AuditLimits) -> Iterator[Reason]:
    """Say which attacks are paid like the right answer: for each family and kind its worst variant, and twists together."""
    seen: set[tuple[str, str]] = set()
    guesses = mere_guesses(evidence.paid, evidence.guess_rate, limits)
    for way in evidence.paid:
        if (way.family, way.kind) in seen:
            continue
        seen.add((way.family, way.kind))
        told = f"{way.family} ({way.variant}) is paid in full in {way.frac:.0%} of the questions: {quoted(way.example)}"
        if way.kind == "blind":
            guess = f"Guessing is right in {evidence.guess_rate:.0%}"
            if (way.family, way.variant) not in guesses:
                yield Reason(level="fail", kind="blind", text=f"{told}. It needs no idea of the answer. {guess}")
            else:
                yield Reason(level="note", kind="blind", text=f"{told}. That is no more than a guess. {guess}")
        elif way.kind != "twist":
            why = "wrong values" if way.kind == "near" else "several answers at once, in every order,"
            level: Level = "fail" if way.frac > limits.max_false_positive_frac else "warn"
            yield Reason(level=level, kind=way.kind, text=f"{told}. It pays {why} like the right one")
    twists = list({way.family: way for way in reversed(evidence.paid) if way.kind == "twist"}.values())[::-1]
    if twists:
        named = "; ".join(f"{way.family}, {quoted(way.example)}" for way in twists[:4])
        text = f"lenient: the right value is paid although it is taken back or bent. Only who knows it can earn this: {named}"
        yield Reason(level="warn", kind="twist", text=text)


def unpaid_answers(evidence: Evidence, limits: AuditLimits) -> Iterator[Reason]:
    """Say whether right answers can earn anything at all, and whether the task's own are refused."""
    found = evidence.found
    asked = {row.prompt.prompt_id for row in found.rows if row.attack.family in PLAIN and row.is_right}
    unpaid = [name for name in asked if found.scales[name].lowest is None]
    frac = len(unpaid) / len(asked) if asked else 0.0
    if unpaid:
        level: Level = "fail" if frac > limits.max_unpaid_frac and evidence.knows_right else "warn"
        tried = [
            row for row in found.rows if row.prompt.prompt_id == min(unpaid) and row.attack.family in PLAIN and row.is_right
        ]
        text = f"in {frac:.0%} of the questions no right answer earns more than junk; {len(tried)} wordings were tried: "
        yield Reason(level=level, kind="unpaid", text=text + ", ".join(map(quoted, tried[:3])))
    own = [row for row in found.rows if row.attack.family == PLAIN[1] and row.is_right and found.is_refused(row)]
    if own and frac <= limits.max_unpaid_frac:
        yield Reason(level="fail", kind="unpaid", text=f"it refuses what the task itself calls right: {quoted(own[0])}")
    if not asked and all(scale.lowest is None for scale in found.scales.values()):
        text = "no right answer is known: the prompts have none that could be worded. Give the task probes, or gold and samples"
        yield Reason(level="warn", kind="unknown", text=text)


def best_exploit(evidence: Evidence, limits: AuditLimits) -> Iterator[Reason]:
    """Say whether the search has found a text for all questions that is paid like the right answer."""
    best, found = evidence.exploit, evidence.found
    if best is None or best.pay <= 0:
        return
    span = found.reward.high - found.reward.low
    top = (min(scale.top for scale in found.scales.values()) - found.reward.low - found.slack) / span
    frac = sum(pay >= top for pay in best.pays) / len(best.pays)
    text = f"the search found a text that earns {best.pay:.0%} of the reward: {shortened(best.completion)!r}"
    if frac > evidence.guess_rate + limits.blind_margin:
        yield Reason(level="fail", kind="search", text=f"{text}. It is paid in full in {frac:.0%} of the questions")
    else:
        yield Reason(level="note", kind="search", text=text)


def unscored(evidence: Evidence, limits: AuditLimits) -> Iterator[Reason]:
    """Say how many completions could not be scored."""
    num, failed = len(evidence.found.rows), sum(row.reward.value is None for row in evidence.found.rows)
    if failed:
        level: Level = "fail" if failed > limits.max_unscored_frac * num else "warn"
        first = (evidence.first_error or "").strip().splitlines()
        text = f"{failed} of {num} completions could not be scored; the first: {first[-1] if first else 'no reason given'}"
        yield Reason(level=level, kind="unscored", text=text)


def disagreements(evidence: Evidence, limits: AuditLimits) -> Iterator[Reason]:
    """Say how often the reward pays completions of the model that gold denies."""
    if evidence.num_samples and evidence.num_overpaid > limits.max_disagreement_frac * evidence.num_samples:
        counts = f"of {evidence.num_samples} completions of the model, {evidence.num_overpaid}"
        text = f"{counts} are paid and denied by gold: read them"
        yield Reason(level="warn", kind="samples", text=text)


def doubts(evidence: Evidence, limits: AuditLimits) -> Iterator[Reason]:
    """Say where gold itself may be wrong, and that there is none."""
    if not evidence.has_gold:
        text = "there is no gold verifier: right and wrong are by construction alone, and training will be blind"
        yield Reason(level="note", kind="gold", text=text)
        return
    doubted = [row for row in evidence.found.rows if not row.attack.is_right and row.gold_passes]
    if doubted:
        text = f"gold may be wrong: it passes {len(doubted)} attacks, such as {quoted(doubted[0])}. They are not counted"
        yield Reason(level="warn", kind="gold", text=text)


def weak_spots(evidence: Evidence, limits: AuditLimits) -> Iterator[Reason]:
    """Say where right and wrong lie too close together, where junk differs, and whether the reward repeats itself."""
    if evidence.separation is not None and evidence.separation <= limits.tolerance:
        text = f"the separation is {evidence.separation:.2f}: some wrong answer earns as much as some right one"
        yield Reason(level="warn", kind="separation", text=text)
    if evidence.junk_spread > limits.tolerance:
        text = (
            f"junk is told apart: up to {evidence.junk_spread:.0%} of the range lies between two completions without content. "
            "Divided by the group's standard deviation that is a full advantage; gate it, or set algorithm.min_group_std"
        )
        yield Reason(level="warn", kind="junk", text=text)
    if evidence.repeat_spread > limits.tolerance:
        text = f"the same completion scored twice differs by up to {evidence.repeat_spread:.0%} of the range"
        yield Reason(level="warn", kind="repeat", text=text)


def parts(evidence: Evidence, limits: AuditLimits) -> Iterator[Reason]:
    """Say which part can move much of the total and does not tell right from wrong."""
    for part in evidence.parts:
        known = part.right_mean is not None and part.wrong_mean is not None and part.movable_frac is not None
        if known and part.movable_frac > limits.max_blind_part_frac and part.right_mean <= part.wrong_mean:
            text = (
                f"the part {part.name!r} can move {part.movable_frac:.0%} of the total and pays wrong answers "
                f"{part.wrong_mean:.2f}, right ones {part.right_mean:.2f}"
            )
            yield Reason(level="warn", kind="parts", text=text)


def strictness(evidence: Evidence, limits: AuditLimits) -> Iterator[Reason]:
    """Say which wordings of right answers are refused. Strict is not broken: a demanded form is a demand."""
    right = [row for row in evidence.found.rows if row.is_right and row.reward.value is not None]
    refused = [row for row in right if evidence.found.is_refused(row)]
    if refused and len(refused) < len(right):
        kinds = ", ".join(dict.fromkeys(f"{row.attack.family} ({row.attack.variant})" for row in refused[:200]))
        text = f"strict: {len(refused)} of {len(right)} right completions are refused: {shortened(kinds, 200)}"
        yield Reason(level="note", kind="strict", text=text)


def quoted(row: Judged) -> str:
    """Return the completion in quotes, shortened, with what it is an answer to."""
    return f"{shortened(row.attack.completion)!r} (answer {shortened(str(row.prompt.answer))})"


def shortened(text: str, most: int = _LONGEST) -> str:
    """Return the text, its middle left out if it is long."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def spread(rows: Sequence[Judged]) -> float | None:
    """Return the standard deviation of the rewards; None without any."""
    pays = values(rows)
    mean = sum(pays) / len(pays) if pays else 0.0
    return (sum((pay - mean) ** 2 for pay in pays) / len(pays)) ** 0.5 if pays else None
