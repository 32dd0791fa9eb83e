"""Is anything left to try? Entropy and the diversity of answers, when gold stays where it is.

Key of the shapes: T steps, C groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from covey.guard.history import Finding, History, Level, Step
from covey.guard.learning import MIN_PROMPTS, PASSES, gold_is_flat, recorded, rollouts
from covey.guard.pairing import lineage


@dataclass(frozen=True, kw_only=True, slots=True)
class EntropyFit:
    """Least squares of gold = b - a exp(H) over steps, H the entropy: gold is bought with entropy (arXiv 2505.22617)."""

    a: float
    b: float
    num_steps: int

    @property
    def ceiling(self) -> float:
        """The gold score that the fit has for H = 0, when nothing is left to buy with: b - a."""
        return self.b - self.a


def entropy_fit(history: History, *, min_steps: int = 8) -> EntropyFit | None:
    """Return the fit over all steps; None with too few, or where gold does not rise as entropy falls. Information, no test."""
    entropy, gold = _entropy_and_gold(lineage(history.steps))
    if len(gold) < min_steps or entropy.max() == entropy.min():
        return None
    slope, intercept = np.polyfit(np.exp(entropy), gold, 1)
    return EntropyFit(a=-float(slope), b=float(intercept), num_steps=len(gold)) if slope < 0.0 else None


def _entropy_and_gold(steps: Sequence[Step]) -> tuple[Float64[np.ndarray, "T"], Float64[np.ndarray, "T"]]:
    """Return entropy and mean gold of the steps that have both."""
    rows = [
        (entropy, float(np.nanmean(step.answers.gold)))
        for step in steps
        if (entropy := step.metrics.get("entropy/mean")) is not None
        and math.isfinite(entropy)
        and np.isfinite(step.answers.gold).any()
    ]
    entropy, gold = np.array(rows, dtype=np.float64).reshape(-1, 2).T
    return entropy, gold


def is_rising(series: Float64[np.ndarray, "T"], *, alpha: float = 0.05) -> bool:
    """Return whether Mann and Kendall's test, one-sided, finds a rising trend: Kendall's tau with time, ties allowed for."""
    from scipy.stats import kendalltau  # Loading scipy takes a moment that `covey --help` does not have.

    return bool(kendalltau(np.arange(len(series)), series, alternative="greater").pvalue < alpha)


def distinct_answers(steps: Sequence[Step]) -> Float64[np.ndarray, "C"]:
    """Return distinct answers / completions of each group that gold does not pass wholly; no answer is one, too."""
    shares: list[float] = []
    for step in steps:
        groups: dict[str, list[tuple[str | None, float]]] = {}
        for name, answer, gold in zip(step.answers.prompt_ids, step.answers.extracted, step.answers.gold.tolist(), strict=True):
            if not math.isnan(gold):
                groups.setdefault(name, []).append((answer, gold))
        shares += [
            len({answer for answer, _ in group}) / len(group)
            for group in groups.values()
            if len(group) > 1 and min(gold for _, gold in group) < PASSES
        ]
    return np.array(shares, dtype=np.float64)


def entropy_collapse(
    history: History,
    *,
    num_steps: int = 10,
    max_left: float = 0.2,
    max_distinct: float = 0.2,
    mastery: float = 0.9,
    min_gold: int = 8,
) -> Finding | None:
    """Ask whether the policy has nothing left to try, without having learnt the task.

    The newest `num_steps` steps are compared with the run's first. It speaks when

    - the mean entropy is below `max_left` of what it was; or a group that is not all right has on average fewer than
      `max_distinct` times as many distinct answers as completions, and at most half of the share it had (up to 5 completions a
      group cannot be that few);
    - gold does not rise over the last half of the steps (`is_rising`), of which there are at least `min_gold`;
    - gold is below `mastery`: who knows the answer need not try others.

    It is a warning if gold is flat since the start (`gold_is_flat`), and a note if it rose and stays where it is. Thresholds in
    nats would be wrong for small models and short tasks. It is no test of a hypothesis, and no error rate is claimed: a mean
    over `num_steps` steps does not fall to a fifth by chance, but a rise of gold that is too slow for the trend test counts as
    none.
    """
    steps = lineage(history.steps)
    if len(steps) < 2 * num_steps:
        return None
    first, last = steps[:num_steps], steps[-num_steps:]
    left, distinct = _entropy_left(first, last), _distinct_share(last)
    distinct_before = _distinct_share(first) if distinct < max_distinct else math.nan
    if not (left < max_left or distinct <= distinct_before / 2.0):
        return None
    recent, series = _mean_gold(last), _mean_gold(steps)
    series = series[len(series) // 2 :]
    if not recent.size or len(series) < min_gold or recent.mean() >= mastery or is_rising(series):
        return None
    level: Level = "warn" if gold_is_flat(history, rollouts(first), rollouts(last)) else "note"
    found = {"entropy_left": left, "distinct_before": distinct_before, "distinct": distinct, "gold": float(recent.mean())}
    fit = entropy_fit(history)
    if fit is not None:
        found["ceiling"] = fit.ceiling
    if left < max_left:
        seen = f"Entropy is {left:.0%} of what it was"
    else:
        seen = f"Groups have {distinct:.2f} distinct answers a completion, {distinct_before:.2f} at the start"
    message = f"{seen}, and gold stays at {found['gold']:.2f}: the policy has little left to try."
    figures = {name: value for name, value in found.items() if math.isfinite(value)}
    return Finding(detector="entropy_collapse", step=steps[-1].step, level=level, message=message, figures=figures)


def _mean_gold(steps: Sequence[Step]) -> Float64[np.ndarray, "T"]:
    """Return the mean gold score of each step that has any."""
    return np.array([np.nanmean(step.answers.gold) for step in steps if np.isfinite(step.answers.gold).any()], dtype=np.float64)


def _entropy_left(first: Sequence[Step], last: Sequence[Step]) -> float:
    """Return the mean entropy now over that at the start; NaN without either."""
    start, end = recorded(first, "entropy/mean"), recorded(last, "entropy/mean")
    return float(end.mean() / start.mean()) if start.size and end.size and start.mean() > 0.0 else math.nan


def _distinct_share(steps: Sequence[Step]) -> float:
    """Return the mean of `distinct_answers`; NaN with fewer than `MIN_PROMPTS` groups."""
    shares = distinct_answers(steps)
    return float(shares.mean()) if len(shares) >= MIN_PROMPTS else math.nan
