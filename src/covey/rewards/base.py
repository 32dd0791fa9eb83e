"""What a reward is, and how the proxy and the gold verifier are applied to a completion."""

from __future__ import annotations

import inspect
import math
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

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


class Reward(Protocol):
    """A pure, deterministic function of a sample, with a name and a declared range."""

    @property
    def name(self) -> str: ...

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...

    def __call__(self, sample: Sample) -> Score: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class FunctionReward:
    """A Reward made of a function."""

    name: str
    score: Callable[[Sample], Score]
    low: float = 0.0
    high: float = 1.0

    def __call__(self, sample: Sample) -> Score:
        return self.score(sample)


_ARGUMENTS: dict[str, Callable[[Sample], Any]] = {
    "completion": lambda sample: sample.completion,
    "answer": lambda sample: sample.prompt.answer,
    "prompt": lambda sample: sample.prompt.text,
    "sample": lambda sample: sample,
}
"""What a user's function may ask for, by parameter name."""


def reward_from_function(function: Callable[..., Any], *, low: float = 0.0, high: float = 1.0) -> FunctionReward:
    """Return a Reward that calls `function` with those of completion, answer, prompt, sample that it names as parameters.

    It returns a number, a bool, a Score, or None for "could not be scored".

    Raises:
        CoveyError: the function has a required parameter with another name, or is a coroutine function.
    """
    name = getattr(function, "__name__", type(function).__name__)
    if inspect.iscoroutinefunction(function):
        raise CoveyError(f"reward {name!r} is a coroutine function; give an ordinary function")
    wanted: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in _ARGUMENTS:
            wanted.append(parameter.name)
        elif parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            raise CoveyError(
                f"reward {name!r} has a parameter {parameter.name!r}; a reward function may take {', '.join(_ARGUMENTS)}"
            )

    def score(sample: Sample) -> Score:
        result = function(**{argument: _ARGUMENTS[argument](sample) for argument in wanted})
        return result if isinstance(result, Score) else Score(value=None if result is None else float(result))

    return FunctionReward(name=name, score=score, low=low, high=high)


def as_reward(reward: Callable[..., Any] | Reward, reward_range: tuple[float, float] = (0.0, 1.0)) -> Reward:
    """Return a Reward as it is, and a plain function wrapped as one with the declared range.

    Raises:
        CoveyError: it is no function, or the range is empty.
    """
    if not callable(reward):
        raise CoveyError(f"reward {reward!r} is not a function; give one that scores a completion")
    if all(hasattr(reward, name) for name in ("name", "low", "high")):
        return reward  # ty: ignore[invalid-explicit-return]
    low, high = reward_range
    if not low < high:
        raise CoveyError(f"reward_range={reward_range}: the first number must be smaller than the second")
    return reward_from_function(reward, low=low, high=high)


def safe_score(reward: Reward, sample: Sample) -> Score:
    """Return the reward's score; a failure or a value outside its declared range becomes a Score without value."""
    started = time.monotonic()
    try:
        score = with_plain_values(reward(sample))
        is_in_range = score.value is None or (math.isfinite(score.value) and reward.low <= score.value <= reward.high)
    except (Exception, SystemExit):  # Whatever a user's function raises is data about it; it must not end the run here.
        return Score(value=None, error=traceback.format_exc(limit=-3), elapsed_s=time.monotonic() - started)
    elapsed_s = time.monotonic() - started
    if score.value is None:
        return replace(score, error=score.error or f"{reward.name} returned None", elapsed_s=elapsed_s)
    if not is_in_range:
        error = (
            f"{reward.name} returned {score.value}, outside its declared range [{reward.low}, {reward.high}]; "
            "scale it, or declare the range it really has"
        )
        return replace(score, value=None, error=error, elapsed_s=elapsed_s)
    return replace(score, elapsed_s=elapsed_s)


def with_plain_values(score: Score) -> Score:
    """Return the score with plain floats and text in it, whatever number types a user's function has put there."""
    if isinstance(score.value, str):
        raise TypeError(f"the value of a Score must be a number, not the text {score.value!r}")
    return replace(
        score,
        value=None if score.value is None else float(score.value),
        parts={str(name): float(part) for name, part in score.parts.items()},
        extracted=None if score.extracted is None else str(score.extracted),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Rewarder:
    """The reward that is optimised and the verifier that never is, applied to the same completions."""

    proxy: Reward
    gold: Reward | None

    def score(self, sample: Sample) -> tuple[Score, Score | None]:
        """Return (proxy score, gold score); the second is None iff the run has no gold verifier."""
        return safe_score(self.proxy, sample), safe_score(self.gold, sample) if self.gold else None


def score_of(value: float, *, extracted: str | None = None, parts: Mapping[str, float] | None = None) -> Score:
    """Return a Score with a value."""
    return Score(value=value, extracted=extracted, parts=parts or {})
