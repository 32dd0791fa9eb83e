"""A task made of a user's own prompts and functions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from covey.rewards.base import Reward, as_reward
from covey.sampling import stream_key
from covey.tasks.base import PARTS, Part, Task
from covey.types import CoveyError, Message, Prompt

PromptLike = str | Mapping[str, Any] | Prompt
"""A question; or a mapping with "prompt" (text) or "messages", and optionally "answer" and "id"; or a Prompt."""

RewardLike = Callable[..., Any] | Reward

CUSTOM_TASK = "python"
"""Task name in the recipe of a run whose prompts came from Python."""

HELD_OUT_SHARE = 0.2
MAX_HELD_OUT = 200


def task_of_prompts(
    prompts: Iterable[PromptLike],
    held_out: Iterable[PromptLike] | None,
    reward: RewardLike | None,
    gold: RewardLike | None,
    reward_range: tuple[float, float],
) -> Task:
    """Return a task made of a user's prompts and functions."""
    if reward is None:
        raise CoveyError("prompts were given without a reward; give reward=function, which scores a completion")
    listed = [make_prompt(prompt, number) for number, prompt in enumerate(prompts)]
    if not listed:
        raise CoveyError("prompts is empty; at least one is needed")
    if held_out is not None:
        measured = [make_prompt(prompt, number) for number, prompt in enumerate(held_out)]
        parts: dict[Part, Sequence[Prompt]] = {"choose": measured, "test": []}
        train_prompts = listed
    else:
        size = min(MAX_HELD_OUT, int(len(listed) * HELD_OUT_SHARE) // len(PARTS))
        ranked = sorted(listed, key=lambda prompt: stream_key(0, "split", prompt.prompt_id))
        parts = {part: ranked[index * size : (index + 1) * size] for index, part in enumerate(PARTS)}
        train_prompts = ranked[size * len(PARTS) :]
    return Task(
        name=CUSTOM_TASK,
        train=train_prompts,
        held_out=parts,
        proxy=as_reward(reward, reward_range),
        gold=as_gold(gold) if gold is not None else None,
        probes=(),
    )


def as_gold(gold: RewardLike) -> Reward:
    """Return the gold verifier. Its mean is read as an accuracy, so its range is [0, 1] whatever the reward's is."""
    verifier = as_reward(gold)
    if (verifier.low, verifier.high) != (0.0, 1.0):
        raise CoveyError(f"gold {verifier.name!r} has the range [{verifier.low}, {verifier.high}]; give a verifier from 0 to 1")
    return verifier


def make_prompt(prompt: PromptLike, number: int) -> Prompt:
    """Return a Prompt; its id is a hash of the question and the answer unless one is given."""
    if isinstance(prompt, Prompt):
        return prompt
    if not isinstance(prompt, str | Mapping):
        raise CoveyError(f"prompts[{number}] is {prompt!r}; give a text, a mapping or a covey.Prompt")
    fields = {"prompt": prompt} if isinstance(prompt, str) else dict(prompt)
    unknown = set(fields) - {"prompt", "messages", "answer", "id"}
    if unknown or ("prompt" in fields) == ("messages" in fields):
        raise CoveyError(
            f"prompts[{number}] has the keys {sorted(fields)}; give a text, or a mapping with 'prompt' or 'messages' and "
            "optionally 'answer' and 'id'"
        )
    if "prompt" in fields:
        messages = (Message(role="user", content=str(fields["prompt"])),)
    else:
        messages = tuple(make_message(turn, number) for turn in fields["messages"])
    if not messages:
        raise CoveyError(f"prompts[{number}] has no messages; at least one is needed")
    content = json.dumps([[m.role, m.content] for m in messages] + [str(fields.get("answer"))])
    given = fields.get("id")
    prompt_id = hashlib.sha256(content.encode()).hexdigest()[:16] if given is None else str(given)
    return Prompt(prompt_id=prompt_id, messages=messages, answer=fields.get("answer"), task=CUSTOM_TASK)


def make_message(turn: Any, number: int) -> Message:
    """Return one turn of a conversation."""
    if not isinstance(turn, Mapping) or set(turn) != {"role", "content"}:
        raise CoveyError(f"prompts[{number}] has the turn {turn!r}; give a mapping with 'role' and 'content'")
    return Message(role=str(turn["role"]), content=str(turn["content"]))
