"""A budget of generated tokens: how large the next step may be, and when the run has had it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBudget:
    """What a run may generate for training, and how far it is."""

    limit: int
    num_spent: int
    tokens_per_prompt: float
    """Of the last step: all that it generated, redrawn groups included, for each prompt it asked for. 0 before the first."""
    decay_tokens: int = 0
    """Where the learning rate reaches 0; 0 = at the limit."""

    @property
    def left_frac(self) -> float:
        """What is left for the learning rate to fall over."""
        return max(0.0, 1 - self.num_spent / (self.decay_tokens or self.limit))

    @property
    def is_spent(self) -> bool:
        """Whether another prompt would lead farther away from the limit than none."""
        return self.num_spent + self.tokens_per_prompt / 2 >= self.limit

    def prompts_within(self, most: int) -> int:
        """Return how many prompts the next step may ask for: `most`, or what is likely to use up the rest."""
        if not self.tokens_per_prompt:
            return most
        return min(most, max(1, round((self.limit - self.num_spent) / self.tokens_per_prompt)))
