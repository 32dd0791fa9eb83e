"""One reward made of several: their weighted sum, product or minimum, or one after the other as a tie-break."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from covey.rewards.base import Reward, Sample, as_reward, score_all
from covey.types import CoveyError, Score

How = Literal["sum", "product", "lexicographic", "min"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Combination:
    """How the values of several rewards become one."""

    title: str
    combine: Callable[..., float]
    """(values, parts, *, tie_break) -> the value. It rises with each value, so the ends of its range come from theirs."""
    takes_weights: bool
    takes_any_range: bool
    """False: every part must go from 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One of the rewards, with its weight."""

    name: str
    reward: Reward
    weight: float


def weighted_sum(values: Sequence[float], parts: Sequence[Part], *, tie_break: float) -> float:
    """Return sum_k w_k r_k."""
    return math.fsum(part.weight * value for part, value in zip(parts, values, strict=True))


def gated(values: Sequence[float], parts: Sequence[Part], *, tie_break: float) -> float:
    """Return prod_k r_k: with parts from 0 to 1, a part at 0 closes the gate whatever the others say."""
    return math.prod(values)


def lowest(values: Sequence[float], parts: Sequence[Part], *, tie_break: float) -> float:
    """Return min_k r_k: of several verifiers from 0 to 1, what the strictest gives. Fooling one of them earns nothing."""
    return min(values)


def lexicographic(values: Sequence[float], parts: Sequence[Part], *, tie_break: float) -> float:
    """Return u_1 + c u_2 + c^2 u_3 ..., with c = tie_break and u = (r - low) / (high - low).

    The first part decides wherever its u differs by more than c + c^2 + ...; below that, a later part can outweigh it.
    """
    return math.fsum(
        tie_break**place * (value - part.reward.low) / (part.reward.high - part.reward.low)
        for place, (part, value) in enumerate(zip(parts, values, strict=True))
    )


COMBINATIONS: dict[str, Combination] = {
    "sum": Combination(title="sum", combine=weighted_sum, takes_weights=True, takes_any_range=True),
    "product": Combination(title="product", combine=gated, takes_weights=False, takes_any_range=False),
    "lexicographic": Combination(title="ranking", combine=lexicographic, takes_weights=False, takes_any_range=True),
    "min": Combination(title="minimum", combine=lowest, takes_weights=False, takes_any_range=False),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CombinedReward:
    """A Reward made of several. `Score.parts` holds the raw value of each that could be scored, under its name.

    A part that could not be scored leaves the whole without a value: counted as 0, it would be an advantage or a
    penalty that nobody gave. The values of the others are recorded all the same.
    """

    name: str
    low: float
    high: float
    parts: tuple[Part, ...]
    how: How
    tie_break: float

    @property
    def part_names(self) -> tuple[str, ...]:
        """The keys of `Score.parts`, in the order of the parts."""
        return tuple(part.name for part in self.parts)

    @property
    def part_weights(self) -> tuple[float, ...]:
        """As given, whatever the combination makes of them."""
        return tuple(part.weight for part in self.parts)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the data row that some part cannot do without."""
        return tuple(column for part in self.parts for column in getattr(part.reward, "columns", ()))

    def __call__(self, sample: Sample) -> Score:
        return self.score_batch([sample])[0]

    def score_batch(self, samples: Sequence[Sample]) -> list[Score]:
        """Return the scores of all samples; each part is called once if it takes batches."""
        columns = [score_all(part.reward, samples) for part in self.parts]
        return [self._combined([scores[index] for scores in columns]) for index in range(len(samples))]

    def _combined(self, scores: Sequence[Score]) -> Score:
        named = list(zip(self.parts, scores, strict=True))
        inner = {f"{part.name}.{name}": value for part, score in named for name, value in score.parts.items()}
        own = {part.name: score.value for part, score in named if score.value is not None}
        extracted = next((score.extracted for score in scores if score.extracted is not None), None)
        failed = [f"part {part.name!r} could not be scored: {score.error}" for part, score in named if score.value is None]
        if failed:
            return Score(value=None, parts=inner | own, extracted=extracted, error="\n".join(failed))
        value = COMBINATIONS[self.how].combine(list(own.values()), self.parts, tie_break=self.tie_break)
        return Score(value=value, parts=inner | own, extracted=extracted)


def combine_rewards(parts: Mapping[str, tuple[Reward, float]], how: How = "sum", *, tie_break: float = 0.1) -> CombinedReward:
    """Return one Reward made of `parts`, name -> (reward, weight); its range follows from theirs.

    Raises:
        CoveyError: the parts do not go together in this way.
    """
    if how not in COMBINATIONS:
        raise CoveyError(f"rewards cannot be combined by {how!r}; choose one of {', '.join(COMBINATIONS)}")
    if not parts:
        raise CoveyError("no rewards were given to combine; give at least one")
    if not 0 < tie_break < 1:
        raise CoveyError(f"tie_break={tie_break}: give a number between 0 and 1, such as 0.1")
    row = COMBINATIONS[how]
    listed = tuple(Part(name=name, reward=reward, weight=float(weight)) for name, (reward, weight) in parts.items())
    for part in listed:
        refuse_part(part, row, how)
    lows, highs = [part.reward.low for part in listed], [part.reward.high for part in listed]
    return CombinedReward(
        name=f"{row.title} of {', '.join(parts)}",
        low=row.combine(lows, listed, tie_break=tie_break),
        high=row.combine(highs, listed, tie_break=tie_break),
        parts=listed,
        how=how,
        tie_break=tie_break,
    )


def refuse_part(part: Part, row: Combination, how: str) -> None:
    """Raise if the combination can make nothing of this weight or this range.

    Raises:
        CoveyError: it cannot.
    """
    if not (math.isfinite(part.weight) and part.weight > 0):
        raise CoveyError(
            f"reward {part.name!r} has the weight {part.weight}; give a positive one. For a penalty, return negative values "
            "and declare their range; to leave a reward out, drop it"
        )
    if not row.takes_weights and part.weight != 1:
        raise CoveyError(f"reward {part.name!r} has the weight {part.weight}, but a {how} has none: give 1")
    low, high = part.reward.low, part.reward.high
    if not row.takes_any_range and (low, high) != (0.0, 1.0):
        raise CoveyError(f"reward {part.name!r} has the range [{low}, {high}]; in a {how} every reward must go from 0 to 1")


def reward_of_mapping(
    rewards: Mapping[str, Any], reward_range: tuple[float, float], *, reward_weights: Sequence[float] | None = None
) -> CombinedReward:
    """Return the weighted sum of a mapping from names to a reward or to a pair (reward, weight).

    Raises:
        CoveyError: the weights stand in two places, or something is no reward.
    """
    if reward_weights is not None:
        raise CoveyError("reward_weights goes with a list of rewards; in a mapping, give {'name': (reward, weight), ...}")
    pairs = {str(name): given if isinstance(given, tuple) else (given, 1.0) for name, given in rewards.items()}
    for name, pair in pairs.items():
        if len(pair) != 2 or not isinstance(pair[1], int | float):
            raise CoveyError(f"reward {name!r} is {pair!r}; give a reward, or a pair (reward, weight)")
    return combine_rewards({name: (as_reward(given, reward_range), weight) for name, (given, weight) in pairs.items()})


def reward_of_list(
    rewards: Sequence[Any], reward_range: tuple[float, float], *, reward_weights: Sequence[float] | None = None
) -> CombinedReward:
    """Return the weighted sum of a list of rewards, under their own names; a name that comes again gets a number.

    Raises:
        CoveyError: there is not one weight for each, or something is no reward.
    """
    weights = [1.0] * len(rewards) if reward_weights is None else list(reward_weights)
    if len(weights) != len(rewards):
        raise CoveyError(f"there are {len(rewards)} rewards and {len(weights)} reward_weights; give one weight for each reward")
    parts: dict[str, tuple[Reward, float]] = {}
    for given, weight in zip(rewards, weights, strict=True):
        reward = as_reward(given, reward_range)
        name, count = reward.name, 1
        while name in parts:
            count += 1
            name = f"{reward.name}_{count}"
        parts[name] = (reward, weight)
    return combine_rewards(parts)
