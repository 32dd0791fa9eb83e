"""Completions of a few prompts, and how far an engine's log-probabilities are from the trainer's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tests.builders import END, make_prompt
from torch import Tensor

from covey.batch import make_tokens
from covey.engines.base import Engine
from covey.models.policy import Policy
from covey.models.scoring import plan_packs, score_completions
from covey.sampling import Sampling, stream_key
from covey.types import Completion, Group, Rollout, Score

# Several end ids, and so many that completions of all lengths end by themselves.
STOP_IDS = frozenset({END, *range(3, 256, 9)})
PROMPTS = [list(b"17 + 4?"), list(b"x"), list(b"What is the sum of 2 and 2?")]
GROUP_SIZE = 4
SAMPLING = Sampling(temperature=1.0, max_new_tokens=12)


def keys_of(num_prompts: int, group_size: int, *, name: str = "test") -> list[list[int]]:
    return [[stream_key(0, name, prompt, sample) for sample in range(group_size)] for prompt in range(num_prompts)]


def generate(
    engine: Engine,
    prompts: Sequence[list[int]],
    *,
    sampling: Sampling = SAMPLING,
    group_size: int = GROUP_SIZE,
    name: str = "test",
) -> list[list[Completion]]:
    return engine.generate(prompts, sampling, group_size=group_size, keys=keys_of(len(prompts), group_size, name=name))


def tokens_of(groups: Sequence[Sequence[Completion]]) -> list[list[list[int]]]:
    return [[completion.token_ids for completion in group] for group in groups]


def as_groups(prompts: Sequence[list[int]], completions: Sequence[Sequence[Completion]]) -> list[Group]:
    return [
        Group(
            prompt=make_prompt(str(index)),
            rollouts=tuple(
                Rollout(prompt_ids=ids, completion=completion, text="", reward=Score(value=0.0), gold=None)
                for completion in group
            ),
        )
        for index, (ids, group) in enumerate(zip(prompts, completions, strict=True))
    ]


def trainer_gap(
    policy: Policy,
    prompts: Sequence[list[int]],
    completions: Sequence[Sequence[Completion]],
    *,
    sampling: Sampling = SAMPLING,
    max_shared_tokens: int = 0,
) -> float:
    """Return the largest distance between the engine's log-probs and the trainer's."""
    difference = trainer_differences(policy, prompts, completions, sampling=sampling, max_shared_tokens=max_shared_tokens)
    return float(difference.abs().max())


def trainer_differences(
    policy: Policy,
    prompts: Sequence[list[int]],
    completions: Sequence[Sequence[Completion]],
    *,
    sampling: Sampling = SAMPLING,
    max_shared_tokens: int = 0,
) -> Tensor:
    """Return trainer minus engine log-prob of each token; each row is scored by itself, unless told to share prompts."""
    tokens = make_tokens(as_groups(prompts, completions))
    packs = plan_packs(tokens, range(len(tokens.completion_ids)), max_shared_tokens=max_shared_tokens)
    with torch.no_grad():
        scores = score_completions(policy.model, tokens, packs, sampling=sampling, compute_dtype=torch.float32)
    assert tokens.sampling_logprobs is not None
    return (scores.logprobs - tokens.sampling_logprobs)[tokens.completion_mask]
