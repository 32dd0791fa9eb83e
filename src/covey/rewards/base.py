"""What a reward is, and how the proxy and the gold verifier are applied to completions."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from covey.rewards.failures import failure_text
from covey.types import CoveyError, Prompt, Score


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One completion as a reward sees it."""

    prompt: Prompt
    completion: str
    """Decoded without special tokens."""
    num_tokens: int
    is_truncated: bool
    """Whether it hit the token limit instead of ending by itself."""
    token_ids: Sequence[int] | None = None
    """None: a text that no model sampled, such as a probe."""


class Reward(Protocol):
    """A pure, deterministic function of a sample, with a name and a declared range."""

    @property
    def name(self) -> str: ...

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...

    def __call__(self, sample: Sample) -> Score: ...


@runtime_checkable
class ScoresBatches(Protocol):
    """The optional side of a reward: one call for all the completions of a draw, in their order."""

    def score_batch(self, samples: Sequence[Sample]) -> Sequence[Score]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class FunctionReward:
    """A Reward made of a function."""

    name: str
    score: Callable[[Sample], Score]
    low: float = 0.0
    high: float = 1.0
    columns: tuple[str, ...] = ()
    """The columns of the data row that the function cannot do without."""
    runs_inline: bool = False
    """Whether it may run in the training process where rewards run in workers: its time is bounded, and it changes nothing."""

    def __call__(self, sample: Sample) -> Score:
        return self.score(sample)


_ARGUMENTS: dict[str, Callable[[Sample], Any]] = {
    "completion": lambda sample: sample.completion,
    "answer": lambda sample: sample.prompt.answer,
    "prompt": lambda sample: sample.prompt.text,
    "sample": lambda sample: sample,
}
"""What a user's function may ask for, by parameter name, whatever columns the data has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """What the parameters of a user's function ask for."""

    name: str
    """Of the function."""
    wanted: tuple[str, ...]
    optional: tuple[str, ...]
    columns: tuple[str, ...]

    def of(self, sample: Sample) -> dict[str, Any]:
        """Return the arguments of a call.

        Raises:
            CoveyError: the prompt lacks a column.
        """
        row = sample.prompt.columns
        arguments = {argument: _ARGUMENTS[argument](sample) for argument in self.wanted}
        arguments |= {column: row[column] for column in self.optional if column in row}
        return arguments | {column: value_of_column(sample.prompt, column, self.name) for column in self.columns}


def arguments_of(function: Callable[..., Any], name: str) -> Arguments:
    """Return what the function's parameters ask for by their names."""
    wanted, optional, columns = [], [], []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in _ARGUMENTS:
            wanted.append(parameter.name)
        elif parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            (columns if parameter.default is parameter.empty else optional).append(parameter.name)
    return Arguments(name=name, wanted=tuple(wanted), optional=tuple(optional), columns=tuple(columns))


def reward_from_function(function: Callable[..., Any], *, low: float = 0.0, high: float = 1.0) -> FunctionReward:
    """Return a Reward that calls `function` with what its parameters name: completion, answer, prompt, sample, or a column.

    A column is any other key of the prompt's data row. It returns a number, a bool, a Score, or None for "could not be
    scored".

    Raises:
        CoveyError: the function is a coroutine function.
    """
    name = name_of(function)
    refuse_coroutine(function, name)
    arguments = arguments_of(function, name)

    def score(sample: Sample) -> Score:
        return score_of_result(function(**arguments.of(sample)), name)

    return FunctionReward(name=name, score=score, low=low, high=high, columns=arguments.columns)


def score_of_result(result: Any, name: str) -> Score:
    """Return what a user's function gave back as a Score.

    Raises:
        CoveyError: it is no number, bool, Score or None.
    """
    if isinstance(result, Score):
        return result
    if result is None:
        return Score(value=None)
    try:
        value = float(result)
        if isinstance(result, str | bytes | bytearray):
            raise TypeError("a text is no number, whatever it says")
    except (TypeError, ValueError, OverflowError) as error:
        kind = type(result).__name__
        raise CoveyError(
            f"reward {name!r} returned a value of type {kind}; return one number, a bool, a Score or None"
        ) from error
    return Score(value=value)


def value_of_column(prompt: Prompt, column: str, name: str) -> Any:
    """Return the prompt's value of a column that the reward `name` asks for.

    Raises:
        CoveyError: the prompt's data row has no such column.
    """
    if column not in prompt.columns:
        raise CoveyError(
            f"reward {name!r} has a parameter {column!r}, but prompt {prompt.prompt_id!r} has no column of that name; a reward "
            f"function may take {', '.join(_ARGUMENTS)}, and columns of the data: here {', '.join(prompt.columns) or 'none'}"
        )
    return prompt.columns[column]


def refuse_missing_columns(reward: Reward, prompts: Sequence[Prompt]) -> None:
    """Raise before anything is sampled if the reward asks for a column that a prompt does not have.

    Raises:
        CoveyError: it does.
    """
    for column in getattr(reward, "columns", ()):
        for prompt in prompts:
            if not (column == "answer" and prompt.answer is not None):
                value_of_column(prompt, column, reward.name)


def name_of(function: Callable[..., Any]) -> str:
    """Return what a function is called, or a callable object's class."""
    return getattr(function, "__name__", type(function).__name__)


def is_coroutine(function: Callable[..., Any]) -> bool:
    """Whether calling the function returns something to await."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def refuse_coroutine(function: Callable[..., Any], name: str) -> None:
    """Raise if calling the function would return something to await.

    Raises:
        CoveyError: it would.
    """
    if is_coroutine(function):
        raise CoveyError(f"reward {name!r} is a coroutine function; Covey awaits nothing here: let `as_reward` make the reward")


def as_reward(
    reward: Any, reward_range: tuple[float, float] = (0.0, 1.0), *, reward_weights: Sequence[float] | None = None
) -> Reward:
    """Return the Reward of whatever a user may give as one.

    A Reward as it is; a function or coroutine function wrapped with the declared range, also one written for TRL; the
    weighted sum of a list of them (`reward_weights`, 1 each if not given) or of a mapping from names to a reward or to a
    pair (reward, weight). The range is that of each function.

    Raises:
        CoveyError: it is none of these, or the range is empty.
    """
    from covey.rewards.asynchronous import awaited, reward_from_coroutine
    from covey.rewards.combine import reward_of_list, reward_of_mapping
    from covey.rewards.trl import is_trl_function, reward_from_trl

    if isinstance(reward, Mapping):
        return reward_of_mapping(reward, reward_range, reward_weights=reward_weights)
    if isinstance(reward, list | tuple):
        return reward_of_list(reward, reward_range, reward_weights=reward_weights)
    if reward_weights is not None:
        raise CoveyError("reward_weights goes with a list of rewards; give reward=[first, second, ...], or leave it out")
    if not callable(reward):
        raise CoveyError(f"reward {reward!r} is not a function; give one that scores a completion")
    if all(hasattr(reward, name) for name in ("name", "low", "high")):
        return reward
    low, high = reward_range
    if not low < high:
        raise CoveyError(f"reward_range={reward_range}: the first number must be smaller than the second")
    if is_trl_function(reward):
        return reward_from_trl(awaited(reward) if is_coroutine(reward) else reward, low=low, high=high)
    return (reward_from_coroutine if is_coroutine(reward) else reward_from_function)(reward, low=low, high=high)


def safe_score(reward: Reward, sample: Sample) -> Score:
    """Return the reward's score; a failure or a value outside its declared range becomes a Score without value."""
    started = time.monotonic()
    try:
        score = with_plain_values(reward(sample))
    except (Exception, SystemExit) as error:  # Whatever a user's function raises is data about it, and must not end the run.
        return Score(value=None, error=failure_text(error), elapsed_s=time.monotonic() - started)
    return within_range(reward, score, elapsed_s=time.monotonic() - started)


def score_all(reward: Reward, samples: Sequence[Sample]) -> list[Score]:
    """Return the scores of all samples: from one call if the reward takes batches, and else one by one.

    A call that fails leaves every sample of its batch without a value. The time of a batch is divided evenly, but for scores
    that bring their own.
    """
    if not isinstance(reward, ScoresBatches):
        return [safe_score(reward, sample) for sample in samples]
    if not samples:
        return []
    started = time.monotonic()
    try:
        scores = [with_plain_values(score) for score in reward.score_batch(samples)]
        if len(scores) != len(samples):
            raise CoveyError(f"{reward.name} returned {len(scores)} scores for {len(samples)} completions; give one for each")
    except (Exception, SystemExit) as error:  # As in safe_score.
        scores = [Score(value=None, error=failure_text(error))] * len(samples)
    elapsed_s = (time.monotonic() - started) / len(samples)
    return [within_range(reward, score, elapsed_s=score.elapsed_s or elapsed_s) for score in scores]


def within_range(reward: Reward, score: Score, *, elapsed_s: float) -> Score:
    """Return the score with the time it took; a value outside the declared range is taken from it, with the reason."""
    if score.value is None:
        return replace(score, error=score.error or f"none: {reward.name} returned None", elapsed_s=elapsed_s)
    if bad := [name for name, part in score.parts.items() if not math.isfinite(part)]:
        error = f"invalid: {reward.name}: the part {bad[0]!r} is {score.parts[bad[0]]}; give a finite number"
        return replace(score, value=None, error=error, elapsed_s=elapsed_s)
    if not (math.isfinite(score.value) and reward.low <= score.value <= reward.high):
        error = (
            f"invalid: {reward.name} returned {score.value}, outside its declared range [{reward.low}, {reward.high}]; "
            "scale it, or declare the range it really has"
        )
        return replace(score, value=None, error=error, elapsed_s=elapsed_s)
    return replace(score, elapsed_s=elapsed_s)


def with_plain_values(score: Score) -> Score:
    """Return the score with plain floats and text in it, whatever number types a user's function has put there.

    Raises:
        CoveyError: it is no Score, or there is something else than numbers in it.
    """
    try:
        if isinstance(score.value, str):
            raise TypeError(f"the value is the text {score.value!r}")
        return replace(
            score,
            value=None if score.value is None else float(score.value),
            parts={str(name): float(part) for name, part in score.parts.items()},
            extracted=None if score.extracted is None else str(score.extracted),
            error=None if score.error is None else str(score.error),
        )
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise CoveyError(f"a {type(score).__name__} came back for a completion; return a Score, with numbers in it") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Rewarder:
    """The reward that is optimised and the verifier that never is, applied to the same completions."""

    proxy: Reward
    gold: Reward | None

    def score(self, sample: Sample) -> tuple[Score, Score | None]:
        """Return (proxy score, gold score); the second is None iff the run has no gold verifier."""
        return self.score_all([sample])[0]

    def score_all(self, samples: Sequence[Sample]) -> list[tuple[Score, Score | None]]:
        """Return (proxy score, gold score) of every sample; each of the two is called once if it takes batches."""
        proxies = score_all(self.proxy, samples)
        golds = score_all(self.gold, samples) if self.gold else [None] * len(samples)
        return list(zip(proxies, golds, strict=True))


def score_of(value: float, *, extracted: str | None = None, parts: Mapping[str, float] | None = None) -> Score:
    """Return a Score with a value."""
    return Score(value=value, extracted=extracted, parts=parts or {})
