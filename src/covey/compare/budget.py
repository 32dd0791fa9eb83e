"""The score of an arm at a budget of generated tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from covey.types import CoveyError

BUDGET_TOLERANCE_FRAC = 0.02
"""An arm whose counted evaluation comes this much before the budget has still had the budget."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """One evaluation of an arm."""

    num_generated_tokens: int
    """All that was sampled for training until then, rollouts that were rejected or filtered out included."""
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class AtBudget:
    """The evaluation that counts for a budget."""

    evaluated: Evaluated
    budget_tokens: int
    tolerance_frac: float

    @property
    def missing_frac(self) -> float:
        """The share of the budget that was not spent yet at this evaluation."""
        return 1.0 - self.evaluated.num_generated_tokens / self.budget_tokens

    @property
    def is_reached(self) -> bool:
        return self.budget_tokens - self.evaluated.num_generated_tokens <= self.tolerance_frac * self.budget_tokens


def at_budget(
    evaluations: Iterable[Evaluated], budget_tokens: int, *, tolerance_frac: float = BUDGET_TOLERANCE_FRAC
) -> AtBudget:
    """Return the last evaluation at or before the budget; nothing is interpolated, and nothing after the budget counts.

    Of several evaluations at the same number of tokens the last one counts, as when a run was resumed.

    Raises:
        CoveyError: no budget, or no evaluation within it.
    """
    if budget_tokens <= 0:
        raise CoveyError(f"budget_tokens={budget_tokens}: a budget is a positive number of generated tokens")
    chosen: Evaluated | None = None
    for evaluated in evaluations:
        is_later = chosen is None or evaluated.num_generated_tokens >= chosen.num_generated_tokens
        if evaluated.num_generated_tokens <= budget_tokens and is_later:
            chosen = evaluated
    if chosen is None:
        raise CoveyError(f"no evaluation within {budget_tokens} generated tokens: evaluate more often, or give more tokens")
    return AtBudget(evaluated=chosen, budget_tokens=budget_tokens, tolerance_frac=tolerance_frac)
