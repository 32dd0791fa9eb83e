"""Rewards made of the scores of a preference model, which is injected: a function from texts to scores.

A Bradley-Terry model gives a completion y of a prompt x the score s(x, y), with P(y1 is preferred to y2) =
sigmoid(s(x, y1) - s(x, y2)). The score itself is a poor reward: it has no bound, so a policy that finds a flaw of the model is
paid without end, and no zero, so that scores of two prompts cannot be compared. What is paid here is a probability.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeGuard

from covey.rewards.base import Sample, value_of_column
from covey.types import CoveyError, Message, Prompt, Score

TextScorer = Callable[[Sequence[tuple[Sequence[Message], str]]], Sequence[float | None]]
"""(conversation, completion) of each text -> its score s(x, y); None = the model cannot read it."""

Bound = Literal["sigmoid", "win_rate", "none"]

SCORE = "score"
"""The part that holds the model's own score."""
REFERENCE = "reference"
"""The part that holds the score of the reference completion."""


def sigmoid(difference: float) -> float:
    """Return 1 / (1 + exp(-d)), written so that no d overflows."""
    return 0.5 * (1.0 + math.tanh(0.5 * difference))


def centred_sigmoids(scores: Sequence[float], *, baseline: float) -> list[float]:
    """Return sigmoid(s_i - b): the probability that completion i is preferred to one with the score b."""
    return [sigmoid(score - baseline) for score in scores]


def win_rates(scores: Sequence[float]) -> list[float]:
    """Return P_i = mean over j != i of sigmoid(s_i - s_j): how often i is preferred to another of its group; 1/2 if alone.

    Pref-GRPO (arXiv 2508.20751), which counts wins; here each pair has its probability. The pair (i, i) is left out, so that
    the best of a group of any size can come near 1. The mean over a group is 1/2, always.
    """
    if len(scores) == 1:
        return [0.5]
    return [
        math.fsum(sigmoid(score - other) for place, other in enumerate(scores) if place != index) / (len(scores) - 1)
        for index, score in enumerate(scores)
    ]


def group_sigmoids(scores: Sequence[float]) -> list[float]:
    """Return sigmoid(s_i - mean_j s_j)."""
    return centred_sigmoids(scores, baseline=math.fsum(scores) / len(scores))


def unbounded(scores: Sequence[float]) -> list[float]:
    """Return s_i."""
    return list(scores)


BOUNDS: dict[str, Callable[[Sequence[float]], list[float]]] = {
    "sigmoid": group_sigmoids,
    "win_rate": win_rates,
    "none": unbounded,
}
"""The scores of one group -> its rewards. With a reference completion "sigmoid" is `centred_sigmoids` instead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceReward:
    """A Reward made of a preference model. `preference_reward` makes one and checks what it is given.

    bound = "sigmoid" is Preference As Reward (PAR, arXiv 2502.18770): sigmoid(s(x, y) - s(x, reference)), the probability that
    the completion is preferred to the prompt's reference completion. Without references, the mean score of the group takes
    the reference's place. The part "score" holds the model's own score.

    A group is what one call holds of a prompt. All members enter its mean, a greedy baseline among them.
    """

    score_texts: TextScorer
    name: str
    low: float
    high: float
    bound: Bound
    reference_column: str
    """The column with a completion to beat, "answer" for the prompt's answer; empty = none."""
    runs_inline: ClassVar[bool] = True
    """The model lives in the training process."""

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.reference_column,) if self.reference_column else ()

    @property
    def compares_answers(self) -> bool:
        """Whether a value says how a completion compares with others or with a reference, and not whether it is right."""
        return self.bound != "none"

    @property
    def is_relative(self) -> bool:
        """Whether a value says how a completion compares with the others of its call, and nothing by itself."""
        return self.bound != "none" and not self.reference_column

    def __call__(self, sample: Sample) -> Score:
        """Return the score of a group of one: without a reference, "sigmoid" and "win_rate" give 1/2."""
        return self.score_batch([sample])[0]

    def score_batch(self, samples: Sequence[Sample]) -> list[Score]:
        """Return the scores of all samples; the model is called once, also for the references."""
        groups: dict[str, list[int]] = defaultdict(list)
        for index, sample in enumerate(samples):
            groups[sample.prompt.prompt_id].append(index)
        prompts = {prompt_id: samples[members[0]].prompt for prompt_id, members in groups.items()}
        references = (
            [(prompt.messages, reference_text(prompt, self.reference_column, self.name)) for prompt in prompts.values()]
            if self.reference_column
            else []
        )
        found = self.score_texts([*((sample.prompt.messages, sample.completion) for sample in samples), *references])
        if len(found) != len(samples) + len(references):
            raise CoveyError(
                f"the model of {self.name} returned {len(found)} scores for {len(samples) + len(references)} texts; it must "
                "return one for each"
            )
        baselines = dict(zip(prompts, found[len(samples) :], strict=True)) if references else {}
        scores: dict[int, Score] = {}
        for prompt_id, members in groups.items():
            values = self._group_scores([found[index] for index in members], baselines.get(prompt_id))
            scores |= dict(zip(members, values, strict=True))
        return [scores[index] for index in range(len(samples))]

    def _group_scores(self, found: Sequence[float | None], baseline: float | None) -> list[Score]:
        """Return the scores of a group; what the model could not read is left out of the others' comparison."""
        readable = [score for score in found if is_readable(score)]
        if not self.reference_column:
            rewards, parts = iter(BOUNDS[self.bound](readable) if readable else []), {}
        elif is_readable(baseline):
            rewards, parts = iter(centred_sigmoids(readable, baseline=baseline)), {REFERENCE: baseline}
        else:
            error = f"invalid: the model of {self.name} cannot score the prompt's {self.reference_column!r}: {baseline}"
            return [Score(value=None, error=error)] * len(found)
        return [
            Score(value=next(rewards), parts={SCORE: score, **parts})
            if is_readable(score)
            else Score(value=None, error=f"invalid: the model of {self.name} cannot score this completion: {score}")
            for score in found
        ]


def preference_reward(
    score_texts: TextScorer,
    *,
    bound: Bound = "sigmoid",
    reference_column: str = "",
    reward_range: tuple[float, float] | None = None,
    name: str = "preference",
) -> PreferenceReward:
    """Return a Reward made of a preference model's scores, such as `RewardModel.score`.

    `reward_range` belongs to bound = "none" alone: the others go from 0 to 1.

    Raises:
        CoveyError: the options do not go together.
    """
    if bound not in BOUNDS:
        raise CoveyError(f"the bound {bound!r} of the reward {name!r} is none of {', '.join(BOUNDS)}")
    low, high = preference_range(bound, reference_column=reference_column, reward_range=reward_range)
    return PreferenceReward(
        score_texts=score_texts, name=name, low=low, high=high, bound=bound, reference_column=reference_column
    )


def preference_range(bound: Bound, *, reference_column: str, reward_range: tuple[float, float] | None) -> tuple[float, float]:
    """Return the lowest and the highest value of a preference reward with these options.

    Raises:
        CoveyError: the options do not go together.
    """
    if reference_column and bound != "sigmoid":
        raise CoveyError(f"a reference column goes with bound='sigmoid', and not with {bound!r}; leave one of them out")
    if (bound == "none") != (reward_range is not None):
        raise CoveyError("reward_range goes with bound='none', and is needed there; the other bounds make the range 0 to 1")
    low, high = reward_range or (0.0, 1.0)
    if not -math.inf < low < high < math.inf:
        raise CoveyError(f"reward_range={reward_range}: the first number must be smaller than the second, and both finite")
    return low, high


def is_readable(score: float | None) -> TypeGuard[float]:
    """Whether it is a finite number."""
    return score is not None and math.isfinite(score)


def reference_text(prompt: Prompt, column: str, name: str) -> str:
    """Return the prompt's reference completion: its answer if the column is "answer", else that column of its row.

    Raises:
        CoveyError: there is none, or it is no text and no number.
    """
    has_answer = column == "answer" and prompt.answer is not None
    value = prompt.answer if has_answer else value_of_column(prompt, column, name)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise CoveyError(
            f"reward {name!r}: the {column!r} of prompt {prompt.prompt_id!r} is a {type(value).__name__}; give a text"
        )
    return str(value)
