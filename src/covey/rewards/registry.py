"""The table of rewards that recipes can name. `module:function` is the way to a user's own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from covey.rewards.base import FunctionReward, Reward, as_reward
from covey.rewards.chat_endpoint import AnswerFormat, ChatEndpoint
from covey.rewards.code import hidden_tests, public_tests
from covey.rewards.combine import CombinedReward, How, combine_rewards
from covey.rewards.judge import PairwiseJudge, PointwiseJudge, pairwise_judge, pointwise_judge
from covey.rewards.math import math_answer
from covey.rewards.numeric import asserted_number, last_number, numeric
from covey.rewards.options import checked_options
from covey.rewards.pattern import pattern, tags
from covey.rewards.schema import json_answer
from covey.rewards.shape import CosineLength, repetition, with_cosine_length
from covey.rewards.text import choice, exact
from covey.types import CoveyError

NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})

_NOWHERE = ChatEndpoint(base_url="", model="")
"""What it has besides are the defaults of the judges' options."""


def make_last_number() -> FunctionReward:
    """Return the reward for a last number that is the answer."""
    return FunctionReward(name="last_number", score=last_number, runs_inline=True)


def make_asserted_number() -> FunctionReward:
    """Return the reward for the answer as the only number."""
    return FunctionReward(name="asserted_number", score=asserted_number, runs_inline=True)


def cosine_length(
    *, of: str = "asserted_number", of_options: Mapping[str, Any] = NO_OPTIONS, max_tokens: int = 0, at_limit: float = 0.5
) -> CosineLength:
    """Return another row's reward with right answers worth less the longer they are.

    Raises:
        CoveyError: the row is unknown, or there is no token limit.
    """
    return with_cosine_length(find_reward(of, key="of", options=of_options), max_tokens=max_tokens, at_limit=at_limit)


def make_judge(
    *,
    base_url: str = _NOWHERE.base_url,
    model: str = _NOWHERE.model,
    key_variable: str = _NOWHERE.key_variable,
    reference_column: str = "answer",
    criteria: str = "",
    num_asks: int = 1,
    max_parallel: int = 8,
    deadline_s: float = _NOWHERE.deadline_s,
    max_attempts: int = _NOWHERE.max_attempts,
    backoff_s: float = _NOWHERE.backoff_s,
    max_answer_tokens: int = _NOWHERE.max_answer_tokens,
    max_response_bytes: int = _NOWHERE.max_response_bytes,
    answer_format: AnswerFormat = _NOWHERE.answer_format,
) -> PointwiseJudge:
    """Return the judge of single completions. The parameters, more than seven, are what a recipe can say.

    Raises:
        CoveyError: an option is missing or wrong.
    """
    refuse_no_address(base_url)
    endpoint = ChatEndpoint(
        base_url=base_url,
        model=model,
        key_variable=key_variable,
        deadline_s=deadline_s,
        max_attempts=max_attempts,
        backoff_s=backoff_s,
        max_answer_tokens=max_answer_tokens,
        max_response_bytes=max_response_bytes,
        answer_format=answer_format,
    )
    return pointwise_judge(
        endpoint, reference_column=reference_column, criteria=criteria, num_asks=num_asks, max_parallel=max_parallel
    )


def make_pairwise_judge(
    *,
    base_url: str = _NOWHERE.base_url,
    model: str = _NOWHERE.model,
    key_variable: str = _NOWHERE.key_variable,
    reference_column: str = "",
    criteria: str = "",
    num_rounds: int = 0,
    max_parallel: int = 8,
    deadline_s: float = _NOWHERE.deadline_s,
    max_attempts: int = _NOWHERE.max_attempts,
    backoff_s: float = _NOWHERE.backoff_s,
    max_answer_tokens: int = _NOWHERE.max_answer_tokens,
    max_response_bytes: int = _NOWHERE.max_response_bytes,
    answer_format: AnswerFormat = _NOWHERE.answer_format,
) -> PairwiseJudge:
    """Return the judge of pairs. The parameters, more than seven, are what a recipe can say.

    Raises:
        CoveyError: an option is missing or wrong.
    """
    refuse_no_address(base_url)
    endpoint = ChatEndpoint(
        base_url=base_url,
        model=model,
        key_variable=key_variable,
        deadline_s=deadline_s,
        max_attempts=max_attempts,
        backoff_s=backoff_s,
        max_answer_tokens=max_answer_tokens,
        max_response_bytes=max_response_bytes,
        answer_format=answer_format,
    )
    return pairwise_judge(
        endpoint, reference_column=reference_column, criteria=criteria, num_rounds=num_rounds, max_parallel=max_parallel
    )


def refuse_no_address(base_url: str) -> None:
    """Raise if a recipe does not say where the judge is.

    Raises:
        CoveyError: it does not.
    """
    if not base_url:
        raise CoveyError("the judge has no base_url; give the address of its endpoint, such as http://localhost:8000/v1")


REWARDS: Mapping[str, Callable[..., Reward]] = {
    "last_number": make_last_number,
    "asserted_number": make_asserted_number,
    "exact": exact,
    "choice": choice,
    "numeric": numeric,
    "math": math_answer,
    "json": json_answer,
    "tags": tags,
    "pattern": pattern,
    "repetition": repetition,
    "cosine_length": cosine_length,
    "public_tests": public_tests,
    "hidden_tests": hidden_tests,
    "judge": make_judge,
    "pairwise_judge": make_pairwise_judge,
}
"""By name: what makes the reward. Its keyword-only parameters are the reward's options."""


def find_reward(
    name: str, *, key: str, options: Mapping[str, Any] = NO_OPTIONS, rows: Mapping[str, Callable[..., Reward]] = REWARDS
) -> Reward:
    """Return the reward named in the recipe under `key`, one of the rows or "module:function", with its options.

    Raises:
        CoveyError: there is no such reward, or an option is unknown or wrong.
    """
    if name in rows:
        try:
            return rows[name](**checked_options(rows[name], options))
        except CoveyError as error:
            raise CoveyError(f"{key}={name!r}: {error}") from error
    module, _, attribute = name.partition(":")
    if not attribute:
        raise CoveyError(
            f"{key}={name!r} is not a reward. Choose one of {', '.join(rows)}, or name your own as 'module:function'"
        )
    if options:
        raise CoveyError(
            f"{key}={name!r} is your own function and takes no options, but {', '.join(options)} came: give its parameters "
            "defaults in its module"
        )
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise CoveyError(f"{key}={name!r} could not be imported ({error}). Is the module on PYTHONPATH?") from error
    return as_reward(function)


def find_rewards(
    weights: Mapping[str, float],
    how: How,
    *,
    key: str,
    options: Mapping[str, Mapping[str, Any]] = NO_OPTIONS,
    tie_break: float = 0.1,
    rows: Mapping[str, Callable[..., Reward]] = REWARDS,
) -> CombinedReward:
    """Return the rewards named in the recipe under `key`, with their weights, as one. `options` are those of each part.

    A part has the name of its row or function; the whole "module:function" where two functions have the same name.

    Raises:
        CoveyError: there is no such reward, they do not go together in this way, or there are options for no part.
    """
    if strangers := [name for name in options if name not in weights]:
        raise CoveyError(f"there are options for {strangers[0]!r}, which is none of the {key}: {', '.join(weights)}")
    found = {name: find_reward(name, key=key, options=options.get(name, NO_OPTIONS), rows=rows) for name in weights}
    names = [reward.name for reward in found.values()]
    return combine_rewards(
        {(reward.name if names.count(reward.name) == 1 else name): (reward, weights[name]) for name, reward in found.items()},
        how,
        tie_break=tie_break,
    )
