"""Rewards that teach nothing about the task, for arms beside the true one: what they gain is not the reward's doing.

(Spurious rewards: arXiv 2506.10947 found gains under random rewards that came from clipping, on one family of models.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from covey.rewards.base import Reward, Sample, score_all, score_of
from covey.sampling import permutation, stream_key
from covey.types import Score


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomReward:
    """Pays with chance 1/2, whatever the completion says: the reward's highest value or its lowest.

    The coin of a completion depends on the seed, the prompt, its place in the group and its text alone, so that a run that
    goes on sees the same.
    """

    reward: Reward
    seed: int

    @property
    def name(self) -> str:
        return f"random instead of {self.reward.name}"

    @property
    def low(self) -> float:
        return self.reward.low

    @property
    def high(self) -> float:
        return self.reward.high

    def __call__(self, sample: Sample) -> Score:
        return self.score_batch([sample])[0]

    def score_batch(self, samples: Sequence[Sample]) -> list[Score]:
        scores: list[Score] = []
        for place, sample in enumerate(samples):
            coin = stream_key(self.seed, "random reward", sample.prompt.prompt_id, place, sample.completion) % 2
            scores.append(score_of(self.high if coin else self.low))
        return scores


@dataclass(frozen=True, kw_only=True, slots=True)
class ShuffledReward:
    """The true rewards of a group, dealt out to its completions at random: the same groups have a spread, none has a reason."""

    reward: Reward
    seed: int

    @property
    def name(self) -> str:
        return f"{self.reward.name}, shuffled within groups"

    @property
    def low(self) -> float:
        return self.reward.low

    @property
    def high(self) -> float:
        return self.reward.high

    @property
    def columns(self) -> tuple[str, ...]:
        return getattr(self.reward, "columns", ())

    def __call__(self, sample: Sample) -> Score:
        return self.score_batch([sample])[0]

    def score_batch(self, samples: Sequence[Sample]) -> list[Score]:
        true = score_all(self.reward, samples)
        places: dict[str, list[int]] = defaultdict(list)
        for place, sample in enumerate(samples):
            places[sample.prompt.prompt_id].append(place)
        dealt: dict[int, Score] = {}
        for prompt_id, members in places.items():
            texts = [samples[place].completion for place in members]
            order = permutation(stream_key(self.seed, "shuffled reward", prompt_id, *texts), len(members))
            dealt |= {place: replace(true[members[other]], extracted=None) for place, other in zip(members, order, strict=True)}
        return [dealt[place] for place in range(len(samples))]


@dataclass(frozen=True, kw_only=True, slots=True)
class FormatReward:
    """Pays whatever the reward can read an answer out of, right or wrong."""

    reward: Reward
    seed: int

    @property
    def name(self) -> str:
        return f"an answer that {self.reward.name} can read"

    @property
    def low(self) -> float:
        return self.reward.low

    @property
    def high(self) -> float:
        return self.reward.high

    @property
    def columns(self) -> tuple[str, ...]:
        return getattr(self.reward, "columns", ())

    def __call__(self, sample: Sample) -> Score:
        return self.score_batch([sample])[0]

    def score_batch(self, samples: Sequence[Sample]) -> list[Score]:
        true = score_all(self.reward, samples)
        return [
            score
            if score.value is None
            else score_of(self.low if score.extracted is None else self.high, extracted=score.extracted)
            for score in true
        ]


CONTROLS: Mapping[str, Callable[..., Reward]] = {
    "random": RandomReward,
    "shuffled": ShuffledReward,
    "format": FormatReward,
}
"""By the name of the arm: (reward=, seed=) -> the reward that it trains on."""
