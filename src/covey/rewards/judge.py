"""Rewards from a language model that judges: against a reference answer, or one completion against another.

Whatever comes back from the judge that is no verdict leaves the completion without a value, and is never a 0. A judge can be
fooled all the same: run `check_judge` before training, and keep a verifier that is not optimised.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from covey.rewards.base import Sample
from covey.rewards.chat_endpoint import ChatEndpoint, refuse_endpoint
from covey.rewards.judge_questions import (
    CORRECT,
    FIRST,
    INCORRECT,
    PAIRWISE,
    POINTWISE,
    SECOND,
    TIE,
    Question,
    Ruling,
    marked_question,
    question_text,
    rulings_of,
)
from covey.rewards.preference import reference_text
from covey.types import CoveyError, Prompt, Score

VERDICT = "verdict"
"""The part that holds what the judge said, as a number; it is the reward's value."""
AGREEMENT = "agreement"
"""The part that holds the share of askings that agreed: of repeated questions, or of the two orders of a pair."""

_OF_SWAPPED = {FIRST: SECOND, SECOND: FIRST, TIE: TIE}
_VALUES = {FIRST: 1.0, TIE: 0.5, SECOND: 0.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class PointwiseJudge:
    """A Reward: 1 if the judge finds that the completion says what the prompt's reference says, else 0.

    It is asked `num_asks` times, with the reference before the answer and behind it in turn. All of the verdicts must be
    "correct": one way of asking that can be fooled is then not enough.
    """

    endpoint: ChatEndpoint
    name: str
    reference_column: str
    """The column with the reference; "answer" for the prompt's answer."""
    criteria: str
    """What else the judge is told; empty = nothing."""
    num_asks: int
    max_parallel: int
    """Questions that wait for the endpoint at the same time."""
    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0
    part_names: ClassVar[tuple[str, ...]] = (VERDICT,)
    part_weights: ClassVar[tuple[float, ...]] = (1.0,)
    runs_inline: ClassVar[bool] = True
    """Every question has its own deadline."""

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.reference_column,)

    def __call__(self, sample: Sample) -> Score:
        return self.score_batch([sample])[0]

    def score_batch(self, samples: Sequence[Sample]) -> list[Score]:
        """Return the scores of all samples; a question that occurs twice is asked once."""
        asked = [[self._question(sample, ask) for ask in range(self.num_asks)] for sample in samples]
        rulings = rulings_of(self.endpoint, [question for row in asked for question in row], max_parallel=self.max_parallel)
        return [pointwise_score([rulings[question] for question in row]) for row in asked]

    def _question(self, sample: Sample, ask: int) -> Question:
        prompt = sample.prompt
        passages = {
            "QUESTION": question_text(prompt),
            "REFERENCE ANSWER": reference_text(prompt, self.reference_column, self.name),
            "SUBMITTED ANSWER": sample.completion,
        }
        order = ("QUESTION", "REFERENCE ANSWER", "SUBMITTED ANSWER")
        if ask % 2:
            order = ("QUESTION", "SUBMITTED ANSWER", "REFERENCE ANSWER")
        ordered = {title: passages[title] for title in order}
        return marked_question(POINTWISE, ordered, criteria=self.criteria, allowed=(CORRECT, INCORRECT), ask=ask // 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairwiseJudge:
    """A Reward: how often the judge prefers the completion to others of its group, or to the prompt's reference.

    P_i = mean over opponents j of 1 (won), 1/2 (tie) or 0 (lost), in [0, 1] (Pref-GRPO, arXiv 2508.20751). Each pair is shown
    in both orders. A verdict counts only if both agree; else the pair is a tie. A group is what one call holds of a prompt;
    one that is alone in it has 1/2.
    """

    endpoint: ChatEndpoint
    name: str
    reference_column: str
    """The column with an answer to beat; empty = the others of the group are the opponents."""
    criteria: str
    """What else the judge is told; empty = nothing."""
    num_rounds: int
    """In round r every completion meets the r-th behind it, in a circle: 2 opponents a round; 0 = all meet all."""
    max_parallel: int
    """Questions that wait for the endpoint at the same time."""
    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0
    part_names: ClassVar[tuple[str, ...]] = (VERDICT,)
    part_weights: ClassVar[tuple[float, ...]] = (1.0,)
    runs_inline: ClassVar[bool] = True
    """Every question has its own deadline."""

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.reference_column,) if self.reference_column else ()

    @property
    def compares_answers(self) -> bool:
        """Whether a value says how a completion compares with others, and not whether it is right."""
        return True

    @property
    def is_relative(self) -> bool:
        """Whether a value says how a completion compares with the others of its call, and nothing by itself."""
        return not self.reference_column

    def __call__(self, sample: Sample) -> Score:
        return self.score_batch([sample])[0]

    def score_batch(self, samples: Sequence[Sample]) -> list[Score]:
        """Return the scores of all samples; equal texts are a tie without being asked about."""
        matches = self._matches(samples)
        pairs = {match: self._questions(samples[match[0]].prompt, *self._texts(samples, match)) for match in matches}
        rulings = rulings_of(self.endpoint, [each for pair in pairs.values() for each in pair], max_parallel=self.max_parallel)
        outcomes: dict[int, list[Outcome]] = defaultdict(list)
        for match, pair in pairs.items():
            outcome = outcome_of([rulings[question] for question in pair])
            outcomes[match[0]].append(outcome)
            if match[1] is not None:
                outcomes[match[1]].append(outcome.seen_by_the_other)
        return [pairwise_score(outcomes[index]) for index in range(len(samples))]

    def _matches(self, samples: Sequence[Sample]) -> list[tuple[int, int | None]]:
        """Return who meets whom, as indices; None = the reference."""
        if self.reference_column:
            return [(index, None) for index in range(len(samples))]
        groups: dict[str, list[int]] = defaultdict(list)
        for index, sample in enumerate(samples):
            groups[sample.prompt.prompt_id].append(index)
        return [pair for members in groups.values() for pair in circle_pairs(members, num_rounds=self.num_rounds)]

    def _texts(self, samples: Sequence[Sample], match: tuple[int, int | None]) -> tuple[str, str]:
        first, second = match
        if second is None:
            return samples[first].completion, reference_text(samples[first].prompt, self.reference_column, self.name)
        return samples[first].completion, samples[second].completion

    def _questions(self, prompt: Prompt, first: str, second: str) -> list[Question]:
        """Return the question in both orders; none about equal texts."""
        if first == second:
            return []
        return [
            marked_question(
                PAIRWISE,
                {"PROMPT": question_text(prompt), "ANSWER A": one, "ANSWER B": other},
                criteria=self.criteria,
                allowed=(FIRST, SECOND, TIE),
            )
            for one, other in ((first, second), (second, first))
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a pair came out, for the first of the two."""

    value: float | None
    """1 = won, 1/2 = a tie, 0 = lost; None = the judge could not be read."""
    agrees: bool
    """Whether both orders gave the same."""
    error: str = ""

    @property
    def seen_by_the_other(self) -> Outcome:
        return Outcome(value=None if self.value is None else 1.0 - self.value, agrees=self.agrees, error=self.error)


def pointwise_judge(
    endpoint: ChatEndpoint,
    *,
    reference_column: str = "answer",
    criteria: str = "",
    num_asks: int = 1,
    max_parallel: int = 8,
    name: str = "judge",
) -> PointwiseJudge:
    """Return a Reward that asks a language model whether a completion says what the reference says.

    Raises:
        CoveyError: an option is wrong, or the environment variable with the key is not set.
    """
    refuse_endpoint(endpoint)
    refuse_counts(num_asks=num_asks, max_parallel=max_parallel)
    if not reference_column:
        raise CoveyError("a judge of single completions needs a reference: give the name of a column, or 'answer'")
    return PointwiseJudge(
        endpoint=endpoint,
        name=name,
        reference_column=reference_column,
        criteria=criteria,
        num_asks=num_asks,
        max_parallel=max_parallel,
    )


def pairwise_judge(
    endpoint: ChatEndpoint,
    *,
    reference_column: str = "",
    criteria: str = "",
    num_rounds: int = 0,
    max_parallel: int = 8,
    name: str = "pairwise_judge",
) -> PairwiseJudge:
    """Return a Reward that asks a language model which of two completions is better.

    Raises:
        CoveyError: an option is wrong, or the environment variable with the key is not set.
    """
    refuse_endpoint(endpoint)
    refuse_counts(max_parallel=max_parallel)
    if num_rounds < 0 or (num_rounds and reference_column):
        raise CoveyError(
            f"num_rounds={num_rounds}: give 0 for all pairs of a group, or more; with a reference there are no rounds"
        )
    return PairwiseJudge(
        endpoint=endpoint,
        name=name,
        reference_column=reference_column,
        criteria=criteria,
        num_rounds=num_rounds,
        max_parallel=max_parallel,
    )


def refuse_counts(**counts: int) -> None:
    """Raise if one of them is below 1.

    Raises:
        CoveyError: it is.
    """
    for name, count in counts.items():
        if count < 1:
            raise CoveyError(f"{name}={count}: give at least 1")


def pointwise_score(rulings: Sequence[Ruling]) -> Score:
    """Return 1 if every verdict is "correct", 0 if one is not, and None if neither is known."""
    verdicts = [ruling.verdict for ruling in rulings if ruling.verdict]
    parts = {AGREEMENT: Counter(verdicts).most_common(1)[0][1] / len(verdicts)} if len(verdicts) > 1 else {}
    if INCORRECT in verdicts:
        return Score(value=0.0, parts={VERDICT: 0.0, **parts}, extracted=INCORRECT)
    if len(verdicts) < len(rulings):
        return Score(value=None, parts=parts, error=next(ruling.error for ruling in rulings if not ruling.verdict))
    return Score(value=1.0, parts={VERDICT: 1.0, **parts}, extracted=CORRECT)


def outcome_of(rulings: Sequence[Ruling]) -> Outcome:
    """Return how a pair came out, from the verdicts in its two orders; without any, the texts are equal."""
    if not rulings:
        return Outcome(value=0.5, agrees=True)
    failed = next((ruling for ruling in rulings if not ruling.verdict), None)
    if failed is not None:
        return Outcome(value=None, agrees=False, error=failed.error)
    shown, swapped = (ruling.verdict for ruling in rulings)
    agrees = shown == _OF_SWAPPED[swapped]
    return Outcome(value=_VALUES[shown] if agrees else 0.5, agrees=agrees)


def pairwise_score(outcomes: Sequence[Outcome]) -> Score:
    """Return the mean over the pairs that could be read; 1/2 without opponents, and None if no pair could be read."""
    if not outcomes:
        return Score(value=0.5, parts={VERDICT: 0.5})
    values = [outcome.value for outcome in outcomes if outcome.value is not None]
    if not values:
        return Score(value=None, error=outcomes[0].error)
    value = math.fsum(values) / len(values)
    agreed = sum(outcome.agrees for outcome in outcomes if outcome.value is not None)
    return Score(value=value, parts={VERDICT: value, AGREEMENT: agreed / len(values)})


def circle_pairs(members: Sequence[int], *, num_rounds: int) -> list[tuple[int, int]]:
    """Return the pairs of a group, each once: in round r every member with the r-th behind it; 0 = all pairs."""
    size = len(members)
    pairs: dict[tuple[int, int], None] = {}
    for distance in range(1, min(num_rounds or size, size - 1) + 1):
        for place in range(size):
            first, second = sorted((place, (place + distance) % size))
            pairs[members[first], members[second]] = None
    return list(pairs)
