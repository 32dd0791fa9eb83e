"""The table of rewards that recipes can name. `module:function` is the way to a user's own."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from covey.rewards.base import FunctionReward, Reward, as_reward
from covey.rewards.combine import CombinedReward, How, combine_rewards
from covey.rewards.numeric import asserted_number, last_number
from covey.types import CoveyError

REWARDS: dict[str, Reward] = {
    "last_number": FunctionReward(name="last_number", score=last_number),
    "asserted_number": FunctionReward(name="asserted_number", score=asserted_number),
}


def find_reward(name: str, *, key: str) -> Reward:
    """Return the reward named in the recipe under `key`: a row of the table or "module:function".

    Raises:
        CoveyError: there is no such reward.
    """
    if name in REWARDS:
        return REWARDS[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        raise CoveyError(
            f"{key}={name!r} is not a reward. Choose one of {', '.join(REWARDS)}, or name your own as 'module:function'"
        )
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise CoveyError(f"{key}={name!r} could not be imported ({error}). Is the module on PYTHONPATH?") from error
    return as_reward(function)


def find_rewards(weights: Mapping[str, float], how: How, *, key: str, tie_break: float = 0.1) -> CombinedReward:
    """Return the rewards named in the recipe under `key`, with their weights, as one.

    A part has the name of its row or function; the whole "module:function" where two functions have the same name.

    Raises:
        CoveyError: there is no such reward, or they do not go together in this way.
    """
    found = {name: find_reward(name, key=key) for name in weights}
    names = [reward.name for reward in found.values()]
    return combine_rewards(
        {(reward.name if names.count(reward.name) == 1 else name): (reward, weights[name]) for name, reward in found.items()},
        how,
        tie_break=tie_break,
    )
