"""Rewards for the shape of a completion: a penalty for repetition, and length where the answer is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from covey.rewards.base import FunctionReward, Reward, Sample, score_all, score_of
from covey.rewards.extract import MAX_TEXT_CHARACTERS
from covey.types import CoveyError, Score

Unit = Literal["words", "tokens"]

SHAPE = "length_shape"
"""The part of the score that holds the factor for length."""


def repetition_frac(items: Sequence[object], *, ngram: int) -> float:
    """Return 1 - unique / total over the n-grams of a sequence, 0 where there are none (arXiv 2502.03373, section 4.2)."""
    grams = [tuple(items[start : start + ngram]) for start in range(len(items) - ngram + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def cosine_shape(num_tokens: int, *, max_tokens: int, at_limit: float) -> float:
    """Return at_limit + (1 - at_limit)(1 + cos(pi T / L)) / 2, with T tokens of L = max_tokens: 1 at T = 0, at_limit from L on.

    The cosine of arXiv 2502.03373, section 4.1, for right answers alone.
    """
    share = min(1.0, num_tokens / max_tokens)
    return at_limit + (1 - at_limit) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class RepetitionPenalty:
    """Takes penalty * repetition_frac from the completion's n-grams of words or tokens."""

    ngram: int
    penalty: float
    unit: Unit

    def __call__(self, sample: Sample) -> Score:
        if self.unit == "tokens" and sample.token_ids is None:
            raise CoveyError("unit='tokens' needs tokens, but this text was not sampled by a model; choose unit='words'")
        words = sample.completion[:MAX_TEXT_CHARACTERS].split()
        items = words if self.unit == "words" else list(sample.token_ids or ())
        return score_of(0.0 - self.penalty * repetition_frac(items, ngram=self.ngram))


def repetition(*, ngram: int = 3, penalty: float = 1.0, unit: Unit = "words") -> FunctionReward:
    """Return the penalty for repetition, as a reward from -penalty to 0.

    Raises:
        CoveyError: n-grams of less than one item, or a penalty that is not positive.
    """
    if ngram < 1:
        raise CoveyError(f"ngram={ngram}: give 1 or more")
    if not 0 < penalty < math.inf:
        raise CoveyError(f"penalty={penalty}: give a positive number; it is subtracted")
    score = RepetitionPenalty(ngram=ngram, penalty=penalty, unit=unit)
    return FunctionReward(name="repetition", score=score, low=-penalty, high=0.0, runs_inline=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class CosineLength:
    """A Reward with what it pays above its lowest value multiplied by cosine_shape. What earns nothing is not touched.

    So length counts among right answers alone, and a long right answer is worth more than any wrong one.
    """

    reward: Reward
    max_tokens: int
    at_limit: float

    @property
    def name(self) -> str:
        return "cosine_length"

    @property
    def low(self) -> float:
        return self.reward.low

    @property
    def high(self) -> float:
        return self.reward.high

    @property
    def columns(self) -> tuple[str, ...]:
        return getattr(self.reward, "columns", ())

    @property
    def runs_inline(self) -> bool:
        return getattr(self.reward, "runs_inline", False)

    def __call__(self, sample: Sample) -> Score:
        return self.score_batch([sample])[0]

    def score_batch(self, samples: Sequence[Sample]) -> list[Score]:
        """Return the scores of all samples; the reward is called once if it takes batches."""
        return [self._shaped(sample, score) for sample, score in zip(samples, score_all(self.reward, samples), strict=True)]

    def _shaped(self, sample: Sample, score: Score) -> Score:
        if score.value is None:
            return score
        factor = cosine_shape(sample.num_tokens, max_tokens=self.max_tokens, at_limit=self.at_limit)
        value = self.low + (score.value - self.low) * factor
        return replace(score, value=value, parts={**score.parts, self.reward.name: score.value, SHAPE: factor})


def with_cosine_length(reward: Reward, *, max_tokens: int, at_limit: float = 0.5) -> CosineLength:
    """Return the reward with right answers worth less the longer they are, `at_limit` of it at the token limit.

    Raises:
        CoveyError: there is no token limit, or a long right answer would be worth nothing.
    """
    if max_tokens < 1:
        raise CoveyError(f"max_tokens={max_tokens}: give the token limit of a completion, sampling.max_new_tokens")
    if not 0 < at_limit <= 1:
        raise CoveyError(
            f"at_limit={at_limit}: give a share above 0, up to 1: a long right answer must be worth more than a wrong one"
        )
    return CosineLength(reward=reward, max_tokens=max_tokens, at_limit=at_limit)
