"""Which arm is better, said in words: one contrast that was declared before, all others corrected for their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from covey.compare.statistics import ArmScores, Estimate, difference, equivalence_p_value, estimate, p_value
from covey.types import CoveyError

ALPHA = 0.05

Outcome = Literal["better", "worse", "equivalent", "inconclusive"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contrast:
    """Two arms by name: the question is whether the first is better."""

    arm: str
    reference: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The answer to one contrast."""

    contrast: Contrast
    estimate: Estimate
    """Of the arm minus the reference; its interval is for this contrast alone, at 1 - alpha."""
    is_primary: bool
    num_tests: int
    """How many contrasts the p-values are corrected for; 1 for the primary one."""
    alpha: float
    p_value: float
    """Of "there is no difference", two-sided; corrected by `holm`."""
    margin: float | None
    """Differences smaller than this do not matter, as declared before; None: nothing was declared."""
    equivalence_p_value: float
    """Of "the difference is as large as the margin", corrected; 1 without a margin."""

    @property
    def is_within_margin(self) -> bool:
        return self.margin is not None and self.equivalence_p_value <= self.alpha

    @property
    def outcome(self) -> Outcome:
        """A difference that is there is named by its direction, however small: `is_within_margin` says whether it matters."""
        if self.p_value <= self.alpha:
            return "better" if self.estimate.interval.mean > 0 else "worse"
        return "equivalent" if self.is_within_margin else "inconclusive"

    @property
    def sentence(self) -> str:
        """The verdict in words, with the difference in points and what it rests on."""
        arm, reference = self.contrast.arm, self.contrast.reference
        heads = {
            "better": f"{arm} is better than {reference}",
            "worse": f"{arm} is worse than {reference}",
            "equivalent": f"{arm} and {reference} are equivalent, within {points(self.margin or 0.0)} points",
            "inconclusive": f"inconclusive whether {arm} is better than {reference}",
        }
        test = "declared before" if self.is_primary else f"corrected for {self.num_tests} contrasts"
        numbers = f"{gain(self.estimate, confidence=1 - self.alpha)}, {p_text(self.p_value)}, {test}"
        return f"{heads[self.outcome]}: {numbers}; {basis(self.estimate)}.{self._remarks()}"

    def _remarks(self) -> str:
        interval = self.estimate.interval
        remarks = []
        if self.outcome in ("better", "worse") and self.is_within_margin:
            remarks.append(f"The difference is smaller than the {points(self.margin or 0.0)} points declared to matter.")
        if self.outcome in ("equivalent", "inconclusive") and interval.excludes(0.0) and self.num_tests > 1:
            remarks.append(f"Its own interval excludes 0, but among {self.num_tests} contrasts one does so too easily.")
        if self.estimate.std_error == 0.0 and interval.mean:
            remarks.append("Every cell differs by as much, so the p-value is that of a sign test over the prompts.")
        return "".join(f" {remark}" for remark in remarks)


def contrasts_with(reference: str, arms: Sequence[ArmScores]) -> list[Contrast]:
    """Return the contrast of every other arm with the reference."""
    return [Contrast(arm=arm.name, reference=reference) for arm in arms if arm.name != reference]


def verdicts(
    arms: Sequence[ArmScores],
    *,
    primary: Contrast,
    others: Sequence[Contrast] = (),
    alpha: float = ALPHA,
    margin: float | None = None,
) -> list[Verdict]:
    """Return the verdict on the primary contrast, and then on the others, in their order.

    The primary contrast is tested at `alpha` alone, because it was declared before anything was seen. The others share an
    `alpha` by Holm's method, and so do their tests of equivalence (two one-sided tests), which need a declared `margin`.

    Raises:
        CoveyError: an unknown arm, two arms of one name, a contrast of an arm with itself, or a margin that is not positive.
    """
    tables = {arm.name: arm for arm in arms}
    if len(tables) != len(arms):
        raise CoveyError("two arms have the same name: name each differently")
    if margin is not None and margin <= 0:
        raise CoveyError(f"margin={margin}: give the smallest difference that matters, above 0, or none")
    corrected = [contrast for contrast in dict.fromkeys(others) if contrast != primary]
    estimates = [_contrasted(tables, contrast, confidence=1 - alpha) for contrast in (primary, *corrected)]
    differ = [p_value(estimated) for estimated in estimates]
    agree = [1.0 if margin is None else equivalence_p_value(estimated, margin) for estimated in estimates]
    return [
        Verdict(
            contrast=contrast,
            estimate=estimated,
            is_primary=contrast == primary,
            num_tests=1 if contrast == primary else len(corrected),
            alpha=alpha,
            p_value=p_differ,
            margin=margin,
            equivalence_p_value=p_agree,
        )
        for contrast, estimated, p_differ, p_agree in zip(
            (primary, *corrected), estimates, differ[:1] + holm(differ[1:]), agree[:1] + holm(agree[1:]), strict=True
        )
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values corrected for their number, in their order.

    The i-th smallest of m becomes the largest of min(1, (m - j + 1) p_(j)) over j <= i (Holm 1979, Scand. J. Statist. 6:65), so
    that the chance of one wrong rejection or more stays below alpha, however the tests depend on each other.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def gain(estimated: Estimate, *, confidence: float) -> str:
    """Return "+6.2 points (95 % interval +1.1 to +11.3)"."""
    interval = estimated.interval
    span = f"{signed_points(interval.low)} to {signed_points(interval.high)}"
    return f"{signed_points(interval.mean)} points ({100 * confidence:g} % interval {span})"


def basis(estimated: Estimate) -> str:
    """Return what an interval holds for: how many seeds and prompts, and what is not in it."""
    parts = [f"{estimated.num_prompts} prompts"]
    if estimated.num_seeds:
        parts.insert(0, f"{estimated.num_seeds} {'seed' if estimated.num_seeds == 1 else 'seeds'}")
    if not estimated.covers_seeds:
        parts.append("what another seed would change is not in the interval")
    if estimated.num_unscored:
        parts.append(f"{estimated.num_unscored} prompts left out that were never scored")
    if estimated.num_partly_scored:
        parts.append(f"{estimated.num_partly_scored} prompts left out that were not scored everywhere")
    return ", ".join(parts)


def points(value: float) -> str:
    """Return a score difference in points of 100, with one decimal unless it is 0."""
    text = f"{100 * value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def signed_points(value: float) -> str:
    text = points(value)
    return text if text.startswith("-") or text == "0" else f"+{text}"


def p_text(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _contrasted(tables: dict[str, ArmScores], contrast: Contrast, *, confidence: float) -> Estimate:
    unknown = [name for name in (contrast.arm, contrast.reference) if name not in tables]
    if unknown:
        raise CoveyError(f"no arm {unknown[0]!r} to compare: there are {', '.join(tables)}")
    if contrast.arm == contrast.reference:
        raise CoveyError(f"arm {contrast.arm!r} is compared with itself: name two arms")
    return estimate(difference(tables[contrast.arm], tables[contrast.reference]), confidence=confidence)
