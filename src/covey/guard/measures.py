"""What a reward makes of right answers and attacks: who is paid, who is refused, how far the two lie apart, what parts do."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from covey.guard.attacks import JUNK, KINDS, Attack, Kind
from covey.rewards.base import Reward
from covey.rewards.combine import COMBINATIONS, CombinedReward
from covey.types import Prompt, Score

PASSES = 0.5
"""A gold score from here on says that the completion is right."""
PLAIN = ("right answer", "the task's right answer")
"""Families of answers in plain wordings, and of the answers that the task's own probes call right."""
POSSIBLE = "the key as it stands"
"""Family of answers that may be right: keys that a verifier may work with rather than compare, such as tests."""
CHEATS = "the task's cheats"


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A completion with what it deserves and what it got."""

    prompt: Prompt
    attack: Attack
    reward: Score
    gold: Score | None
    """None: there is no gold verifier."""

    @property
    def gold_passes(self) -> bool:
        return self.gold is not None and self.gold.value is not None and self.gold.value >= PASSES

    @property
    def gold_fails(self) -> bool:
        return self.gold is not None and self.gold.value is not None and self.gold.value < PASSES

    @property
    def is_right(self) -> bool:
        """Whether it must be paid: right by construction, and gold does not object."""
        return self.attack.is_right and not self.gold_fails

    @property
    def is_wrong(self) -> bool:
        """Whether it must not be paid: wrong by construction, and gold does not object."""
        return not self.attack.is_right and not self.gold_passes


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """What a question's right answers and its junk earn."""

    top: float
    """The best-paid plain right answer; all that the reward can pay if none earns more than junk."""
    lowest: float | None
    """The worst-paid plain right answer of those that earn more than junk; None: none does."""
    junk: float
    """The median of what junk earns: a single piece of it that is paid does not make right answers worthless."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """The judged completions of an audit, with the scale of each question."""

    rows: tuple[Judged, ...]
    scales: Mapping[str, Scale]
    reward: Reward
    tolerance: float
    """Of the reward's range: pays that differ by no more are equal."""

    @property
    def slack(self) -> float:
        return self.tolerance * (self.reward.high - self.reward.low)

    def is_paid(self, row: Judged) -> bool:
        """Whether the completion earns what the best right answer does."""
        return row.reward.value is not None and row.reward.value >= self.scales[row.prompt.prompt_id].top - self.slack

    def is_refused(self, row: Judged) -> bool:
        """Whether the completion earns no more than junk."""
        return row.reward.value is not None and row.reward.value <= self.scales[row.prompt.prompt_id].junk + self.slack


def measured(rows: Sequence[Judged], reward: Reward, *, tolerance: float) -> Measured:
    """Return the completions with the scale of each question."""
    by_prompt: dict[str, list[Judged]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt.prompt_id, []).append(row)
    scales = {name: scale_of(members, reward, tolerance=tolerance) for name, members in by_prompt.items()}
    return Measured(rows=tuple(rows), scales=scales, reward=reward, tolerance=tolerance)


def scale_of(rows: Sequence[Judged], reward: Reward, *, tolerance: float) -> Scale:
    """Return what the right answers and the junk of one question earn."""
    pays = values(row for row in rows if row.attack.family in JUNK and row.is_wrong)
    junk = median(pays) if pays else reward.low
    plain = values(row for row in rows if row.attack.family in (*PLAIN, POSSIBLE) and row.is_right)
    accepted = [value for value in plain if value > junk + tolerance * (reward.high - reward.low)]
    return Scale(top=max(accepted, default=reward.high), lowest=min(accepted, default=None), junk=junk)


def values(rows: Iterable[Judged]) -> list[float]:
    """Return the rewards of those that could be scored."""
    return [row.reward.value for row in rows if row.reward.value is not None]


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyRow:
    """What became of one family."""

    family: str
    kinds: tuple[Kind, ...]
    num_wrong: int
    num_paid: int
    """False positives: wrong, and paid as much as the best right answer."""
    num_right: int
    num_refused: int
    """False negatives: right, and paid no more than junk."""
    max_wrong: float | None
    min_right: float | None
    num_unscored: int
    num_doubted: int
    """Wrong by construction, and passed by gold: not counted."""
    false_positives: tuple[Judged, ...]
    false_negatives: tuple[Judged, ...]


def family_rows(found: Measured, *, num_examples: int) -> list[FamilyRow]:
    """Return a row for each family, in the order of their kinds; examples are of different variants."""
    families: dict[str, list[Judged]] = {}
    for row in sorted(found.rows, key=lambda row: tuple(KINDS).index(row.attack.kind)):
        families.setdefault(row.attack.family, []).append(row)
    table = []
    for family, rows in families.items():
        wrong, right = [row for row in rows if row.is_wrong], [row for row in rows if row.is_right]
        paid, refused = [row for row in wrong if found.is_paid(row)], [row for row in right if found.is_refused(row)]
        table.append(
            FamilyRow(
                family=family,
                kinds=tuple(dict.fromkeys(row.attack.kind for row in rows)),
                num_wrong=len(wrong),
                num_paid=len(paid),
                num_right=len(right),
                num_refused=len(refused),
                max_wrong=max(values(wrong), default=None),
                min_right=min(values(right), default=None),
                num_unscored=sum(row.reward.value is None for row in rows),
                num_doubted=sum(not row.attack.is_right and row.gold_passes for row in rows),
                false_positives=tuple(different(paid, num_examples)),
                false_negatives=tuple(different(refused, num_examples)),
            )
        )
    return table


@dataclass(frozen=True, kw_only=True, slots=True)
class KindRow:
    """What became of one kind of attack."""

    kind: Kind
    num_wrong: int
    """Of hedges: sets of guesses."""
    num_paid: int
    """Of hedges: sets that are paid in every order."""


def kind_rows(found: Measured) -> list[KindRow]:
    """Return a row for each kind of attack."""
    cases: dict[tuple[Kind, str], list[bool]] = {}
    for number, row in enumerate(found.rows):
        if row.is_wrong and row.reward.value is not None:
            of_set = f"{row.prompt.prompt_id}/{row.attack.family}/{row.attack.variant}"
            case = of_set if row.attack.kind == "hedge" else str(number)
            cases.setdefault((row.attack.kind, case), []).append(found.is_paid(row))
    counted = {key: all(paid) for key, paid in cases.items() if key[0] != "hedge" or len(paid) > 1}
    return [
        KindRow(
            kind=kind,
            num_wrong=sum(key[0] == kind for key in counted),
            num_paid=sum(key[0] == kind and is_paid for key, is_paid in counted.items()),
        )
        for kind in KINDS
        if kind != "right"
    ]


def different(rows: Sequence[Judged], count: int) -> list[Judged]:
    """Return up to `count` rows, of as many variants as there are."""
    first = list({row.attack.variant: row for row in reversed(rows)}.values())[::-1]
    chosen = {id(row) for row in first}
    return [*first, *(row for row in rows if id(row) not in chosen)][:count]


@dataclass(frozen=True, kw_only=True, slots=True)
class Paid:
    """A way to be paid for nothing: one variant of an attack, over all questions."""

    family: str
    variant: str
    kind: Kind
    frac: float
    """The share of questions in which it is paid as much as the best right answer. A hedge is, if every order of it is."""
    num_prompts: int
    example: Judged


def paid_variants(found: Measured) -> list[Paid]:
    """Return the variants that are paid for any question, the most often paid first."""
    groups: dict[tuple[str, str, Kind], dict[str, list[Judged]]] = {}
    for row in found.rows:
        if row.is_wrong and row.reward.value is not None:
            key = (row.attack.family, row.attack.variant, row.attack.kind)
            groups.setdefault(key, {}).setdefault(row.prompt.prompt_id, []).append(row)
    ways = []
    for (family, variant, kind), prompts in groups.items():
        if kind == "hedge":  # One order alone says nothing.
            prompts = {name: rows for name, rows in prompts.items() if len(rows) > 1}
        paid = [rows[0] for rows in prompts.values() if all(map(found.is_paid, rows))]
        if paid:
            frac = len(paid) / len(prompts)
            ways.append(Paid(family=family, variant=variant, kind=kind, frac=frac, num_prompts=len(prompts), example=paid[0]))
    return sorted(ways, key=lambda way: -way.frac)


def separation(found: Measured, kinds: Sequence[Kind], *, without: Collection[tuple[str, str]] = ()) -> float | None:
    """Return the least, over questions, of the worst-paid accepted right answer less the best-paid wrong one of these kinds.

    A share of the reward's range. None: nowhere is there both. Of a hedge the worst-paid order counts, for who hedges does
    not know which order is the good one. `without`: families and variants that are left out, for they earn no more than a
    guess does.
    """
    gaps = []
    for name, scale in found.scales.items():
        rows = [
            row
            for row in found.rows
            if row.prompt.prompt_id == name and row.is_wrong and row.attack.kind in kinds
            if (row.attack.family, row.attack.variant) not in without
        ]
        orders: dict[tuple[str, str], list[Judged]] = {}
        for row in rows:
            if row.attack.kind == "hedge":
                orders.setdefault((row.attack.family, row.attack.variant), []).append(row)
        best = values(row for row in rows if row.attack.kind != "hedge")
        best += [min(pays) for members in orders.values() if len(pays := values(members)) > 1]
        if best and scale.lowest is not None:
            gaps.append((scale.lowest - max(best)) / (found.reward.high - found.reward.low))
    return min(gaps, default=None)


def junk_spread(found: Measured) -> float:
    """Return the largest difference, over questions, of what two pieces of junk earn, as a share of the reward's range.

    Where the advantages are divided by the group's standard deviation, any difference at all becomes a full advantage.
    """
    spreads = [0.0]
    for name in found.scales:
        pays = values(r for r in found.rows if r.prompt.prompt_id == name and r.attack.family in JUNK and r.is_wrong)
        spreads.append(max(pays, default=0.0) - min(pays, default=0.0))
    return max(spreads) / (found.reward.high - found.reward.low)


@dataclass(frozen=True, kw_only=True, slots=True)
class PartRow:
    """What one part of a combined reward can do."""

    name: str
    weight: float | None
    """None: the reward names no weights."""
    movable_frac: float | None
    """How much of the total's range the part alone can move, with the others at their best. None: unknown."""
    variance_frac: float | None
    """Its share of the total's variance over the audit's completions, cov(w x, total) / var(total); of sums alone."""
    right_mean: float | None
    wrong_mean: float | None


def part_rows(found: Measured) -> list[PartRow]:
    """Return a row for each part; nothing for a reward without parts."""
    names = list(dict.fromkeys(name for row in found.rows for name in row.reward.parts))
    weights: dict[str, float] = dict(
        zip(getattr(found.reward, "part_names", ()), getattr(found.reward, "part_weights", ()), strict=False)
    )
    movable = movable_fracs(found.reward)
    table = []
    for name in names:
        own = [row for row in found.rows if name in row.reward.parts and row.reward.value is not None]
        part = np.array([row.reward.parts[name] for row in own])
        total = np.array(values(own))
        is_right, is_wrong = (np.array([getattr(row, side) for row in own], bool) for side in ("is_right", "is_wrong"))
        variance = float(total.var()) if own else 0.0
        weight = weights.get(name)
        is_shared = weight is not None and how_of(found.reward) == "sum" and variance > 0
        share = float(weight * np.cov(part, total, ddof=0)[0, 1] / variance) if is_shared else None
        table.append(
            PartRow(
                name=name,
                weight=weight,
                movable_frac=movable.get(name),
                variance_frac=share,
                right_mean=float(part[is_right].mean()) if is_right.any() else None,
                wrong_mean=float(part[is_wrong].mean()) if is_wrong.any() else None,
            )
        )
    return table


def combined_of(reward: Any) -> CombinedReward | None:
    """Return the combined reward itself, whatever runs or penalises it; None if it is none."""
    while not isinstance(reward, CombinedReward):
        reward = getattr(reward, "reward", None)
        if reward is None:
            return None
    return reward


def how_of(reward: Reward) -> str | None:
    """Return how the parts are combined; None if that is not known."""
    combined = combined_of(reward)
    return None if combined is None else combined.how


def movable_fracs(reward: Reward) -> dict[str, float]:
    """Return what share of the total's range each part moves from its lowest to its highest, with all others at their highest.

    In a product every part can move everything.
    """
    combined = combined_of(reward)
    if combined is None:
        return {}
    combine = COMBINATIONS[combined.how].combine
    highs = [part.reward.high for part in combined.parts]
    moved = {}
    for place, part in enumerate(combined.parts):
        lowered = [*highs[:place], part.reward.low, *highs[place + 1 :]]
        top, bottom = (combine(each, combined.parts, tie_break=combined.tie_break) for each in (highs, lowered))
        moved[part.name] = (top - bottom) / (combined.high - combined.low)
    return moved
