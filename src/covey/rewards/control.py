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

Deal = Callable[[Reward, Sequence[Sample], int], list[Score]]
"""(the true reward, the completions, the seed) -> what they are paid instead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlReward:
    """A reward that stands in for the true one: same range, same columns, other reasons."""

    kind: str
    reward: Reward
    seed: int
    deal: Deal

    @property
    def name(self) -> str:
        return f"{self.reward.name}, {self.kind}"

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
        """Return what the completions of a draw are paid."""
        return self.deal(self.reward, samples, self.seed)


def random_pay(reward: Reward, samples: Sequence[Sample], seed: int) -> list[Score]:
    """Pay with chance 1/2, whatever the completion says: the reward's highest value or its lowest.

    The coin depends on the seed, the prompt, the place in the batch and the text alone, so that a run that goes on sees the
    same.
    """
    scores: list[Score] = []
    for place, sample in enumerate(samples):
        coin = stream_key(seed, "random reward", sample.prompt.prompt_id, place, sample.completion) % 2
        scores.append(score_of(reward.high if coin else reward.low))
    return scores


def shuffled_pay(reward: Reward, samples: Sequence[Sample], seed: int) -> list[Score]:
    """Deal the true rewards of a group out to its completions at random: the same groups have a spread, none has a reason."""
    true = score_all(reward, samples)
    places: dict[str, list[int]] = defaultdict(list)
    for place, sample in enumerate(samples):
        places[sample.prompt.prompt_id].append(place)
    dealt: dict[int, Score] = {}
    for prompt_id, members in places.items():
        texts = [samples[place].completion for place in members]
        order = permutation(stream_key(seed, "shuffled reward", prompt_id, *texts), len(members))
        dealt |= {place: replace(true[members[other]], extracted=None) for place, other in zip(members, order, strict=True)}
    return [dealt[place] for place in range(len(samples))]


def format_pay(reward: Reward, samples: Sequence[Sample], seed: int) -> list[Score]:
    """Pay whatever the reward can read an answer out of, right or wrong."""
    return [
        replace(score, value=reward.low if score.extracted is None else reward.high, parts={})
        if score.value is not None
        else score
        for score in score_all(reward, samples)
    ]


CONTROLS: Mapping[str, Deal] = {"random": random_pay, "shuffled": shuffled_pay, "format": format_pay}
"""By the name of the arm."""


def control_reward(kind: str, reward: Reward, *, seed: int) -> ControlReward:
    """Return the reward that a control arm trains on, one of CONTROLS."""
    return ControlReward(kind=kind, reward=reward, seed=seed, deal=CONTROLS[kind])
