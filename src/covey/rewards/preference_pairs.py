"""Pairs of completions of which one was preferred: what a preference model is trained on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from covey.types import CoveyError, Message

NUM_NAMED_ROWS = 10
"""Bad rows that a message names; of the others it says how many they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferencePair:
    """Two completions of a prompt, of which the first was preferred."""

    messages: tuple[Message, ...]
    """The conversation that waits for an answer."""
    chosen: str
    rejected: str
    margin: float = 0.0
    """By how much the chosen score should at least be higher; 0 where nothing is known."""
    where: str = ""
    """File and line, for messages."""


class BadPairError(ValueError):
    """A row that no pair can be made of; the text says why."""


def read_preference_pairs(path: str | Path) -> list[PreferencePair]:
    """Return the pairs of a JSONL file. Blank lines are passed over.

    A row has `prompt`, `chosen` and `rejected`, each a text or a list of messages, and perhaps `margin`. Where `chosen` and
    `rejected` are whole conversations, `prompt` may be missing. Other columns are ignored.

    Raises:
        CoveyError: there is no such file, it holds no pair, or rows are bad; the message names them by file and line.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise CoveyError(f"there is no file {str(path)!r} with preference pairs; give a JSONL file")
    pairs: list[PreferencePair] = []
    bad: list[str] = []
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            pairs.append(replace(pair_of(values_of(line)), where=where))
        except BadPairError as error:
            bad.append(f"\n  {where}: {error}")
    if bad:
        rest = f"\n  and {len(bad) - NUM_NAMED_ROWS} more" if len(bad) > NUM_NAMED_ROWS else ""
        raise CoveyError(
            f"{file}: {len(bad)} of {len(bad) + len(pairs)} rows are no preference pair. Mend them, or take them out:"
            f"{''.join(bad[:NUM_NAMED_ROWS])}{rest}"
        )
    if not pairs:
        raise CoveyError(f"{file} has no rows; each line is an object with prompt, chosen and rejected")
    return pairs


def values_of(line: bytes) -> Mapping[str, Any]:
    """Return the object of JSON in a line.

    Raises:
        BadPairError: there is none.
    """
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadPairError(f"it is not UTF-8 (byte {error.start + 1} of the line)") from error
    except (ValueError, RecursionError) as error:
        raise BadPairError(f"it is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise BadPairError(f"it is no object with columns but {str(values)[:40]!r}")
    return values


def pair_of(values: Mapping[str, Any]) -> PreferencePair:
    """Return the pair of a row.

    Raises:
        BadPairError: none can be made of it.
    """
    prompt = prompt_turns(values["prompt"]) if values.get("prompt") is not None else ()
    (first, chosen), (second, rejected) = (answer_turns(values, column) for column in ("chosen", "rejected"))
    if first != second:
        raise BadPairError("the conversations before its 'chosen' and its 'rejected' answer differ")
    if prompt and first and first[-len(prompt) :] != prompt:
        raise BadPairError("its 'chosen' is a conversation that does not contain its 'prompt'")
    messages = first or prompt
    if not messages:
        raise BadPairError("it has no 'prompt', and its 'chosen' is no conversation that starts with one")
    if not chosen.strip():
        raise BadPairError("its 'chosen' answer is empty")
    if chosen == rejected:
        raise BadPairError("its 'chosen' and 'rejected' answers are the same")
    return PreferencePair(messages=messages, chosen=chosen, rejected=rejected, margin=margin_of(values))


def prompt_turns(value: Any) -> tuple[Message, ...]:
    """Return the turns of a prompt: a text is one turn of the user.

    Raises:
        BadPairError: it is neither, empty, or ends with an answer.
    """
    turns = (Message(role="user", content=value),) if isinstance(value, str) else messages_of(value, "prompt")
    if not turns or not turns[-1].content.strip():
        raise BadPairError("its 'prompt' is empty")
    if turns[-1].role == "assistant":
        raise BadPairError("its 'prompt' ends with a turn of the assistant; put that into 'chosen' and 'rejected'")
    return turns


def answer_turns(values: Mapping[str, Any], column: str) -> tuple[tuple[Message, ...], str]:
    """Return (the turns before the answer, the answer) of a column.

    Raises:
        BadPairError: the column is missing, or does not end with a turn of the assistant.
    """
    if values.get(column) is None:
        raise BadPairError(f"it has no {column!r}")
    if isinstance(values[column], str):
        return (), values[column]
    turns = messages_of(values[column], column)
    if not turns or turns[-1].role != "assistant":
        raise BadPairError(f"its {column!r} does not end with a turn of the assistant")
    return turns[:-1], turns[-1].content


def messages_of(value: Any, column: str) -> tuple[Message, ...]:
    """Return a list of messages as turns.

    Raises:
        BadPairError: it is none.
    """
    if not isinstance(value, list):
        raise BadPairError(f"its {column!r} is neither a text nor a list of messages but {str(value)[:40]!r}")
    turns: list[Message] = []
    for turn in value:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise BadPairError(f"a message of its {column!r} has no 'role' and 'content' that are texts: {str(turn)[:40]!r}")
        turns.append(Message(role=turn["role"], content=turn["content"]))
    return tuple(turns)


def margin_of(values: Mapping[str, Any]) -> float:
    """Return the row's margin, 0 if it has none.

    Raises:
        BadPairError: it is no finite number from 0.
    """
    margin = values.get("margin")
    if margin is None:
        return 0.0
    try:
        number = math.nan if isinstance(margin, bool | str) else float(margin)
    except (TypeError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise BadPairError(f"its 'margin' is {str(margin)[:40]!r}; give a number from 0")
    return number
