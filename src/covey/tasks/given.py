"""Tasks that bring completions along: preference pairs and demonstrations, for rows that need not sample their own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from covey.rewards.base import FunctionReward, Sample
from covey.rewards.preference_pairs import (
    NUM_NAMED_ROWS,
    BadPairError,
    answer_turns,
    prompt_turns,
    read_preference_pairs,
    values_of,
)
from covey.sampling import stream_key
from covey.tasks.base import Part, Task
from covey.tasks.files import NO_VERIFIER
from covey.types import CoveyError, Message, Prompt, Score

GOOD, BAD = 1.0, 0.0
"""Rewards of what is to be learnt, and of what was rejected."""
HELD_OUT_SHARE = 0.2
MAX_HELD_OUT = 200
ANSWER_COLUMNS = ("completion", "response")
"""What a demonstration may be called."""
_OPTIONS = ("path", "held_out_path")


def preferences_task(options: Mapping[str, Any]) -> Task:
    """Return the pairs of a JSONL file as a task: of each prompt's two completions the chosen one has reward 1, the other 0.

    Raises:
        CoveyError: an option or a row cannot be used.
    """
    return given_task("preferences", options, read_pairs)


def demonstrations_task(options: Mapping[str, Any]) -> Task:
    """Return the demonstrations of a JSONL file as a task: each prompt has one completion, with reward 1.

    Raises:
        CoveyError: an option or a row cannot be used.
    """
    return given_task("demonstrations", options, read_demonstrations)


def given_task(name: str, options: Mapping[str, Any], read: Callable[[str], Sequence[Prompt]]) -> Task:
    """Return a task whose held-out prompts come from a file of their own, or are a fifth of all, by a hash of their words.

    Nothing says whether a sampled answer is right, so that its verifier is none, and what is measured is how well held-out
    completions are learnt.
    """
    if unknown := sorted(set(options) - set(_OPTIONS)):
        raise CoveyError(f"task.{unknown[0]} is no option of task.name={name!r}; it has {', '.join(_OPTIONS)}")
    if not options.get("path"):
        raise CoveyError(f"task.name={name!r} needs task.path: a JSONL file")
    prompts = read(options["path"])
    if options.get("held_out_path"):
        train, held_out = list(prompts), list(read(options["held_out_path"]))[:MAX_HELD_OUT]
    else:
        train, held_out = split(prompts)
    if not train:
        raise CoveyError(f"{options['path']}: all its prompts would be held out; give more of them, or task.held_out_path")
    trained = {prompt.messages for prompt in train}
    parts: dict[Part, Sequence[Prompt]] = {
        "choose": [_renamed(prompt, "held out") for prompt in held_out if prompt.messages not in trained]
    }
    nobody = FunctionReward(name=NO_VERIFIER, score=_no_score)
    return Task(name=name, train=train, held_out=parts, proxy=nobody, gold=None, probes=())


def read_pairs(path: str) -> list[Prompt]:
    """Return a prompt for each preference pair; one that occurs in several pairs comes as often."""
    pairs = read_preference_pairs(path)
    return list(_numbered((pair.messages, ((pair.chosen, GOOD), (pair.rejected, BAD))) for pair in pairs))


def read_demonstrations(path: str) -> list[Prompt]:
    """Return a prompt for each demonstration: a row with `prompt` and `completion` (or `response`), or with `messages`.

    Raises:
        CoveyError: there is no such file, it has no row, or rows are bad; the message names them by file and line.
    """
    file = Path(path).expanduser()
    if not os.path.isfile(file):  # Path.is_file() raises where no file could be called so.
        raise CoveyError(f"there is no file {path!r} with demonstrations; give a JSONL file")
    found: list[tuple[tuple[Message, ...], tuple[tuple[str, float], ...]]] = []
    bad: list[str] = []
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        if line.strip():
            try:
                turns, text = demonstration_of(values_of(line))
                found.append((turns, ((text, GOOD),)))
            except BadPairError as error:
                bad.append(f"\n  {file}:{number}: {error}")
    if bad:
        rest = f"\n  and {len(bad) - NUM_NAMED_ROWS} more" if len(bad) > NUM_NAMED_ROWS else ""
        raise CoveyError(f"{file}: {len(bad)} rows are no demonstration:{''.join(bad[:NUM_NAMED_ROWS])}{rest}")
    if not found:
        raise CoveyError(f"{file} has no rows; each line is an object with prompt and completion")
    return list(_numbered(found))


def demonstration_of(values: Mapping[str, Any]) -> tuple[tuple[Message, ...], str]:
    """Return (the turns before the answer, the answer) of a row.

    Raises:
        BadPairError: it has none.
    """
    if values.get("messages") is not None:
        turns, text = answer_turns(values, "messages")
    else:
        column = next((name for name in ANSWER_COLUMNS if values.get(name) is not None), ANSWER_COLUMNS[0])
        before, text = answer_turns(values, column)
        turns = before or prompt_turns(values.get("prompt") or "")
    if not turns:
        raise BadPairError("it has no question before its answer")
    if not text.strip():
        raise BadPairError("its answer is empty")
    return turns, text


def split(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """Return (train, held out): a prompt is on one side whole, however often it comes, and whatever else is in the file."""
    ranked = sorted({words_of(prompt) for prompt in prompts}, key=lambda words: stream_key(0, "given", words))
    kept = set(ranked[: min(MAX_HELD_OUT, int(HELD_OUT_SHARE * len(ranked)))])
    train = [prompt for prompt in prompts if words_of(prompt) not in kept]
    return train, [prompt for prompt in prompts if words_of(prompt) in kept][:MAX_HELD_OUT]


def words_of(prompt: Prompt) -> str:
    """Return the words by which two prompts are one."""
    return json.dumps([[message.role, message.content] for message in prompt.messages])


def _numbered(rows: Iterator[tuple[tuple[Message, ...], Any]] | Sequence[tuple[tuple[Message, ...], Any]]) -> Iterator[Prompt]:
    """Yield prompts whose ids are hashes of their words, with a number where the words come again."""
    seen: dict[str, int] = {}
    for messages, given in rows:
        prompt = Prompt(prompt_id="", messages=messages, given=given, is_conversation=True)
        name = hashlib.sha256(words_of(prompt).encode()).hexdigest()[:16]
        seen[name] = seen.get(name, 0) + 1
        yield _renamed(prompt, name if seen[name] == 1 else f"{name}-{seen[name]}", whole=True)


def _renamed(prompt: Prompt, name: str, *, whole: bool = False) -> Prompt:
    return dataclasses.replace(prompt, prompt_id=name if whole else f"{name}/{prompt.prompt_id}")


def _no_score(sample: Sample) -> Score:
    raise CoveyError(f"task.verifier={NO_VERIFIER!r}: the task has none")
