"""A task made of a user's own prompts and functions."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from covey.rewards.base import Reward, as_reward, refuse_missing_columns
from covey.sampling import stream_key
from covey.tasks.base import PARTS, Part, Task
from covey.tasks.row_values import holds_half_character
from covey.types import CoveyError, Message, Prompt

PromptLike = str | Mapping[str, Any] | Prompt
"""A question; or a mapping with "prompt" (a text or messages) or "messages", optionally "answer" and "id", and columns of
any other name for the reward; or a Prompt."""

RewardLike = Callable[..., Any] | Reward | Sequence[Any] | Mapping[str, Any]
"""What `as_reward` takes: one reward, a list of them, or a mapping from names to (reward, weight)."""

CUSTOM_TASK = "python"
"""Task name in the recipe of a run whose prompts came from Python."""

OWN_KEYS = ("prompt", "messages", "answer", "id")
"""The keys of a mapping that are not columns."""

OTHER_NAMES_OF_PROMPT = ("question", "problem", "query", "instruction", "input", "text", "prompts", "message")
"""What data sets call a question. Beside a prompt each is a column like any other."""

SLIP_CUTOFF = 0.82
"""How alike (difflib's ratio) a key must be to one of ours to count as a slip: one wrong or swapped letter."""

WANTED_KEYS = (
    "give a text, or a mapping with 'prompt' or 'messages', optionally 'answer' and 'id', and columns of any other name for "
    "the reward"
)

HELD_OUT_SHARE = 0.2
MAX_HELD_OUT = 200


def task_of_prompts(
    prompts: Iterable[PromptLike],
    held_out: Iterable[PromptLike] | None,
    reward: RewardLike | None,
    gold: RewardLike | None,
    reward_range: tuple[float, float],
    *,
    reward_weights: Sequence[float] | None = None,
) -> Task:
    """Return a task made of a user's prompts and functions. `reward_weights` goes with a list of rewards."""
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
    proxy = as_reward(reward, reward_range, reward_weights=reward_weights)
    verifier = as_gold(gold) if gold is not None else None
    for judge in filter(None, (proxy, verifier)):
        refuse_missing_columns(judge, [*train_prompts, *itertools.chain.from_iterable(parts.values())])
    return Task(name=CUSTOM_TASK, train=train_prompts, held_out=parts, proxy=proxy, gold=verifier, probes=())


def as_gold(gold: RewardLike) -> Reward:
    """Return the gold verifier. Its mean is read as an accuracy, so its range is [0, 1] whatever the reward's is."""
    verifier = as_reward(gold)
    if (verifier.low, verifier.high) != (0.0, 1.0):
        raise CoveyError(f"gold {verifier.name!r} has the range [{verifier.low}, {verifier.high}]; give a verifier from 0 to 1")
    return verifier


def make_prompt(prompt: PromptLike, number: int) -> Prompt:
    """Return a Prompt; its id is a hash of the question and the answer unless one is given.

    What else a mapping holds becomes the prompt's columns.
    """
    if isinstance(prompt, Prompt):
        return prompt
    if not isinstance(prompt, str | Mapping):
        raise CoveyError(f"prompts[{number}] is {prompt!r}; give a text, a mapping or a covey.Prompt")
    fields = {"prompt": prompt} if isinstance(prompt, str) else dict(prompt)
    refuse_wrong_keys(fields, number)
    given = fields.get("prompt", fields.get("messages"))
    is_conversation = isinstance(given, list | tuple) or "messages" in fields
    if is_conversation:
        messages = tuple(make_message(turn, number) for turn in given)
    else:
        messages = (Message(role="user", content=text_of(given, number)),)
    if not messages:
        raise CoveyError(f"prompts[{number}] has no messages; at least one is needed")
    content = json.dumps([[m.role, m.content] for m in messages] + [str(fields.get("answer"))])
    given_id = fields.get("id")
    return Prompt(
        prompt_id=hashlib.sha256(content.encode()).hexdigest()[:16] if given_id is None else str(given_id),
        messages=messages,
        answer=fields.get("answer"),
        task=CUSTOM_TASK,
        columns={key: value for key, value in fields.items() if key not in OWN_KEYS},
        is_conversation=is_conversation,
    )


def refuse_wrong_keys(fields: Mapping[str, Any], number: int) -> None:
    """Raise if the question is missing or there twice, or if a key is nearly one of ours and would pass for a column.

    Raises:
        CoveyError: one of these; the message says which key to rename.
    """
    slips = {key: meant for key in fields if (meant := meant_key(key)) is not None}
    if not slips and "prompt" not in fields and "messages" not in fields:
        slips = dict.fromkeys([name for name in OTHER_NAMES_OF_PROMPT if name in fields][:1], "prompt")
    if slips:
        renames = ", ".join(f"{key!r} to {meant!r}" for key, meant in slips.items())
        raise CoveyError(f"prompts[{number}] has the keys {sorted(fields)}; rename {renames}: {WANTED_KEYS}")
    if ("prompt" in fields) == ("messages" in fields):
        raise CoveyError(f"prompts[{number}] has the keys {sorted(fields)}; {WANTED_KEYS}")


def meant_key(key: str) -> str | None:
    """Return the key of ours that `key` is a slip of: other case, or a letter wrong. Another number is a name of its own."""
    if key in OWN_KEYS or key.removesuffix("s") in OWN_KEYS or f"{key}s" in OWN_KEYS:
        return None
    if key.lower() in OWN_KEYS:
        return key.lower()
    close = difflib.get_close_matches(key.lower(), ("prompt", "messages", "answer"), n=1, cutoff=SLIP_CUTOFF)
    return close[0] if close else None


def make_message(turn: Any, number: int) -> Message:
    """Return one turn of a conversation."""
    if not isinstance(turn, Mapping) or set(turn) != {"role", "content"}:
        raise CoveyError(f"prompts[{number}] has the turn {turn!r}; give a mapping with 'role' and 'content'")
    return Message(role=str(turn["role"]), content=text_of(turn["content"], number))


def text_of(value: Any, number: int) -> str:
    """Return a text or a number as a text."""
    if value is None or isinstance(value, Mapping | list | tuple):
        raise CoveyError(f"prompts[{number}] has {value!r} where a text is wanted; Covey trains on texts alone")
    if holds_half_character(value):
        raise CoveyError(f"prompts[{number}] holds half a character (a lone surrogate): {value!r}. No tokenizer takes it")
    return str(value)
