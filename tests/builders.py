"""Small values of Covey's types for tests: only what a test is about has to be named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from covey.assembly import rollout_spec
from covey.config import make_recipe
from covey.models.policy import Policy
from covey.rewards.base import FunctionReward, Sample, score_of
from covey.types import Completion, Group, Message, Prompt, Rollout, Score

END = 257
"""The tiny tokenizer's end of turn; ids below 256 are bytes."""


def make_prompt(prompt_id: str = "p", text: str = "Say it.", answer: object = None, expression: str = "") -> Prompt:
    return Prompt(
        prompt_id=prompt_id,
        messages=(Message(role="user", content=text),),
        answer=answer,
        tags={"expression": expression} if expression else {},
    )


def make_sample(completion: str, *, prompt: Prompt | None = None, answer: object = None, expression: str = "") -> Sample:
    prompt = prompt or make_prompt(answer=answer, expression=expression)
    return Sample(prompt=prompt, completion=completion, num_tokens=len(completion), is_truncated=False)


def make_completion(token_ids: Sequence[int], *, logprob: float = 0.0, version: int = 0) -> Completion:
    return Completion(
        token_ids=list(token_ids),
        logprobs=[logprob] * len(token_ids),
        finish_reason="stop" if token_ids[-1] == END else "length",
        policy_version=version,
    )


def make_rollout(
    reward: float | None, *, gold: float | None = None, length: int = 2, is_truncated: bool = False, **parts: float
) -> Rollout:
    """Return a rollout of `length` tokens; `gold` None stands for a run without a verifier."""
    token_ids = [65] * length if is_truncated else [65] * (length - 1) + [END]
    return Rollout(
        prompt_ids=[1, 2],
        completion=make_completion(token_ids),
        text="A",
        reward=Score(value=reward, parts=parts, error="it failed" if reward is None else None),
        gold=None if gold is None else Score(value=gold),
    )


def make_group(rewards: Iterable[float | None], *, prompt_id: str = "p") -> Group:
    return Group(prompt=make_prompt(prompt_id), rollouts=tuple(make_rollout(reward) for reward in rewards))


def make_reward(
    function: Callable[[Sample], float], *, name: str = "reward", low: float = 0.0, high: float = 1.0
) -> FunctionReward:
    return FunctionReward(name=name, score=lambda sample: score_of(function(sample)), low=low, high=high)


def keeps(*, drop_flat_groups: bool = True) -> Callable[[Group], bool]:
    """Return which groups a run with the default algorithm trains on."""
    recipe = make_recipe({"train": {"drop_flat_groups": drop_flat_groups}})
    return rollout_spec(recipe, make_reward(lambda sample: 0.0)).keeps


def shake(policy: Policy, *, scale: float, seed: int = 1) -> None:
    """Change every weight by seeded noise."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
