"""A penalty for completions that come near the token limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from covey.rewards.base import Reward, Sample, score_all
from covey.types import CoveyError, Score

OVERLONG = "overlong"
"""The part of the score that holds the penalty."""


def soft_overlong_penalty(num_tokens: int, *, max_tokens: int, buffer: int) -> float:
    """Return 0 up to L - c tokens, ((L - c) - T)/c up to L, and -1 above, with L = max_tokens and c = buffer.

    Soft overlong punishment of DAPO (arXiv 2503.14476, section 3.4, eq. 13). T counts tokens, never characters or padding.
    """
    over = num_tokens - (max_tokens - buffer)
    return -min(1.0, over / buffer) if over > 0 else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class OverlongPenalised:
    """A Reward with factor * soft_overlong_penalty added; `low` lies lower by the factor, `high` is the reward's own."""

    reward: Reward
    max_tokens: int
    buffer: int
    factor: float

    @property
    def name(self) -> str:
        return self.reward.name

    @property
    def low(self) -> float:
        return self.reward.low - self.factor

    @property
    def high(self) -> float:
        return self.reward.high

    @property
    def part_names(self) -> tuple[str, ...]:
        """Those of the reward, or its name where it has no parts; and the penalty."""
        return (*getattr(self.reward, "part_names", (self.reward.name,)), OVERLONG)

    @property
    def part_weights(self) -> tuple[float, ...]:
        return (*getattr(self.reward, "part_weights", (1.0,)), self.factor)

    @property
    def columns(self) -> tuple[str, ...]:
        return getattr(self.reward, "columns", ())

    def __call__(self, sample: Sample) -> Score:
        return self.score_batch([sample])[0]

    def score_batch(self, samples: Sequence[Sample]) -> list[Score]:
        """Return the scores of all samples; the reward is called once if it takes batches."""
        return [self._penalised(sample, score) for sample, score in zip(samples, score_all(self.reward, samples), strict=True)]

    def _penalised(self, sample: Sample, score: Score) -> Score:
        penalty = soft_overlong_penalty(sample.num_tokens, max_tokens=self.max_tokens, buffer=self.buffer)
        has_value_as_part = score.value is not None and not hasattr(self.reward, "part_names")
        own = {self.reward.name: score.value} if has_value_as_part else {}
        value = None if score.value is None else score.value + self.factor * penalty
        return replace(score, value=value, parts=dict(score.parts) | own | {OVERLONG: penalty})


def with_overlong_penalty(reward: Reward, *, max_tokens: int, buffer: int, factor: float = 1.0) -> OverlongPenalised:
    """Return the reward with a penalty of up to `factor` for the last `buffer` tokens before the limit.

    Raises:
        CoveyError: the buffer is no part of the limit, the factor is not positive, or the reward has an overlong part.
    """
    if not 0 < buffer <= max_tokens:
        raise CoveyError(f"an overlong buffer of {buffer} tokens: give 1 to {max_tokens}, the token limit of a completion")
    if not factor > 0:
        raise CoveyError(f"an overlong penalty of {factor}: give a positive number; it is subtracted")
    if OVERLONG in getattr(reward, "part_names", (reward.name,)):
        raise CoveyError(f"the reward {reward.name!r} has a part {OVERLONG!r} already; rename it, or leave the penalty out")
    return OverlongPenalised(reward=reward, max_tokens=max_tokens, buffer=buffer, factor=factor)
