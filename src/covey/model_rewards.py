"""Rewards that hold a model: rows of a table of their own, because the table in `covey.rewards` must not load torch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from covey.models.policy import ComputeDtype
from covey.models.reward_model import load_reward_model
from covey.rewards.base import Reward
from covey.rewards.preference import Bound, PreferenceReward, preference_range, preference_reward
from covey.rewards.registry import REWARDS
from covey.types import CoveyError


def preference(
    *,
    model: str = "",
    bound: Bound = "sigmoid",
    reference_column: str = "",
    reward_range: tuple[float, ...] = (),
    max_batch_tokens: int = 16_384,
    compute_dtype: ComputeDtype = "float32",
) -> PreferenceReward:
    """Return the reward of a Bradley-Terry model, which is loaded now and stays in this process.

    Raises:
        CoveyError: there is no such model, it is none that scores completions, or the options do not go together.
    """
    if not model:
        raise CoveyError(
            "it has no model; give the directory or the hub id of a reward model: a sequence classifier with one output"
        )
    if len(reward_range) not in (0, 2):
        raise CoveyError(f"reward_range={reward_range}: give two numbers, the lowest and the highest score")
    ends = (reward_range[0], reward_range[1]) if reward_range else None
    preference_range(bound, reference_column=reference_column, reward_range=ends)  # Before gigabytes are read.
    if max_batch_tokens < 1:
        raise CoveyError(f"max_batch_tokens={max_batch_tokens}: give at least 1; a text that is longer is scored alone")
    loaded = load_reward_model(model, compute_dtype=compute_dtype)
    score_texts = functools.partial(loaded.score, max_batch_tokens=max_batch_tokens)
    return preference_reward(score_texts, bound=bound, reference_column=reference_column, reward_range=ends)


MODEL_REWARDS: Mapping[str, Callable[..., Reward]] = {"preference": preference}
"""By name: what makes the reward, as in `covey.rewards.registry.REWARDS`."""

RECIPE_REWARDS: Mapping[str, Callable[..., Reward]] = {**REWARDS, **MODEL_REWARDS}
"""All rows that `reward.name`, `reward.parts` and `reward.gold` can name."""
