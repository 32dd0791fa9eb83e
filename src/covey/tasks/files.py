"""A task made of a user's own rows: JSONL, JSON, Parquet or a data set on the hub, with every bad row named before step 0."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from covey.rewards.base import FunctionReward, Reward, Sample, safe_score
from covey.rewards.registry import find_reward
from covey.sampling import stream_key
from covey.tasks.base import PARTS, TRUE_ANSWER, Part, Probe, Task
from covey.tasks.data_options import DataOptions, data_options
from covey.tasks.data_rows import BadRow, Row, read_rows
from covey.tasks.overlap import overlap_notes
from covey.tasks.presets import PRESETS, Preset, columns_preset
from covey.tasks.row_values import RowError, value_of
from covey.types import CoveyError, Message, Prompt, Score

HELD_OUT_SHARE = 0.2
MAX_HELD_OUT = 200
"""Questions in a held-out part, at most."""
NUM_HONEYPOTS = 40
NUM_PROBED = 20
NUM_NAMED_ROWS = 10
"""Bad rows that a message names; of the others it says how many they are."""
PAYS_ITS_KEY = ("last_number", "asserted_number", "numeric", "exact", "choice")
"""Verifiers that must pay a row's own answer as a completion: if they do not, nothing can earn anything there."""

NO_VERIFIER = "none"
"""A task of this verifier has no reward of its own: the recipe names one."""

_SPLIT_SEED = 1  # Another value is another split.


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """What a file held."""

    prompts: dict[str, tuple[Prompt, str]]
    """By the words of the question: the prompt and where it stands."""
    bad: list[BadRow]
    num_rows: int
    num_repeated: int
    """Rows that ask a question again, with the same answer; they are left out."""


def files_task(options: Mapping[str, Any]) -> Task:
    """Return the task of a user's rows.

    Raises:
        CoveyError: an option is wrong, or rows are bad; the message names them by file and line.
    """
    chosen = data_options(options)
    preset = preset_of(chosen)
    verifier = verifier_of(chosen, preset)
    train = load(chosen, preset, verifier, path=chosen.path, split=chosen.split)
    notes = notes_of(train, chosen, path=chosen.path)
    if chosen.held_out_path or chosen.held_out_split:
        path, split = chosen.held_out_path or chosen.path, chosen.held_out_split or chosen.split
        # Two files may number their rows alike.
        measured = load(chosen, preset, verifier, path=path, split=split, id_prefix="held_out/")
        notes += notes_of(measured, chosen, path=path)
        shared = [
            BadRow(where=where, reason=f"its question is held out, too: {measured.prompts[words][1]}")
            for words, (_, where) in train.prompts.items()
            if words in measured.prompts
        ]
        notes += refused_or_noted(shared, train.num_rows, chosen, path=chosen.path)
        train_prompts = [prompt for words, (prompt, _) in train.prompts.items() if words not in measured.prompts]
        parts, _ = split_by_hash(measured, share=1.0)
    else:
        parts, train_prompts = split_by_hash(train, share=HELD_OUT_SHARE)
    if not train_prompts:
        raise CoveyError(f"{chosen.path} leaves no question to train on; it has {train.num_rows} rows")
    for part in PARTS:
        notes += overlap_notes(train_prompts, parts[part], part=part, template=preset.template)
    gold = preset.gold() if preset.gold is not None and not (chosen.verifier or chosen.template) else None
    return Task(
        name=f"files/{Path(chosen.path).name}",
        train=train_prompts,
        held_out=parts,
        proxy=verifier,
        gold=gold,
        probes=own_probes(train_prompts, gold),
        honeypots=honeypots(parts["guard"], verifier, gold),
        notes=notes,
    )


def preset_of(options: DataOptions) -> Preset:
    """Return how rows are read: the preset, with what the options name in its place."""
    base = PRESETS.get(options.preset)
    preset = columns_preset(options.prompt_column, options.answer_column, base=base)
    return dataclasses.replace(preset, template=options.template or preset.template)


def verifier_of(options: DataOptions, preset: Preset) -> Reward:
    """Return the verifier that the options or the preset name.

    Raises:
        CoveyError: neither names one, or there is none of that name.
    """
    name = options.verifier or preset.verifier
    if name == NO_VERIFIER:
        return FunctionReward(name=NO_VERIFIER, score=_no_score)
    if not name:
        raise CoveyError(
            "no verifier is named; set task.verifier to a row of the reward table or to your own as 'module:function', or to "
            f"{NO_VERIFIER!r} if reward.name says what is optimised"
        )
    return find_reward(name, key="task.verifier", options=options.verifier_options)


def _no_score(sample: Sample) -> Score:
    raise CoveyError(f"task.verifier={NO_VERIFIER!r}: the task has none")


def load(
    options: DataOptions, preset: Preset, verifier: Reward | None, *, path: str, split: str, id_prefix: str = ""
) -> Loaded:
    """Return the questions of a file, and the rows that no question could be made of."""
    prompts: dict[str, tuple[Prompt, str]] = {}
    bad: list[BadRow] = []
    ids: set[str] = set()
    num_rows = num_repeated = 0
    for row in read_rows(path, file_format=options.format, config=options.hub_config, split=split):
        if num_rows == options.max_rows > 0:
            break
        num_rows += 1
        try:
            prompt = prompt_of(row, options, preset, verifier, id_prefix=id_prefix)
        except RowError as error:
            bad.append(BadRow(where=row.where, reason=str(error)))
            continue
        words = words_of(prompt)
        if words in prompts:
            first, where = prompts[words]
            if first.answer == prompt.answer:
                num_repeated += 1
            else:
                bad.append(BadRow(where=row.where, reason=f"its question has another answer at {where}"))
        elif prompt.prompt_id in ids:
            bad.append(BadRow(where=row.where, reason=f"its id {prompt.prompt_id!r} is that of an earlier row"))
        else:
            prompts[words] = prompt, row.where
            ids.add(prompt.prompt_id)
    return Loaded(prompts=prompts, bad=bad, num_rows=num_rows, num_repeated=num_repeated)


def prompt_of(
    row: Row | BadRow, options: DataOptions, preset: Preset, verifier: Reward | None, *, id_prefix: str = ""
) -> Prompt:
    """Return the question of a row.

    Raises:
        RowError: none can be made of it.
    """
    if isinstance(row, BadRow):
        raise RowError(row.reason)
    turns, is_conversation = messages_of(preset.prompt(row.values), preset.template)
    answer = preset.answer(row.values)
    system = [Message(role="system", content=options.system)] if options.system else []
    messages = (*system, *turns)
    digest = hashlib.sha256(json.dumps([[turn.role, turn.content] for turn in messages]).encode()).hexdigest()[:16]
    prompt = Prompt(
        prompt_id=id_prefix + (str(value_of(row.values, options.id_column)) if options.id_column else digest),
        messages=messages,
        answer=answer,
        task=f"files/{Path(options.path).name}",
        columns={name: value for name, value in row.values.items() if name not in preset.columns},
        is_conversation=is_conversation,
    )
    if verifier is not None and verifier.name in PAYS_ITS_KEY:
        verdict = judged(verifier, prompt, str(answer))
        if verdict is None or verdict < verifier.high:
            raise RowError(f"the verifier {verifier.name!r} does not pay the row's own answer {str(answer)[:40]!r}")
    return prompt


def messages_of(value: Any, template: str) -> tuple[list[Message], bool]:
    """Return the turns of a question, and whether they were given as messages. The template is put around the last one.

    Raises:
        RowError: it is neither a text nor a list of turns with role and content.
    """
    if isinstance(value, str):
        return [Message(role="user", content=template.replace("{prompt}", value.strip()))], False
    if not isinstance(value, list | tuple):
        raise RowError(f"its question {str(value)[:40]!r} is neither a text nor a list of messages")
    turns: list[Message] = []
    for turn in value:
        if not isinstance(turn, Mapping) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise RowError(f"its message {str(turn)[:40]!r} has no 'role' and 'content' that are texts")
        turns.append(Message(role=turn["role"], content=turn["content"]))
    last = turns[-1]
    return [*turns[:-1], dataclasses.replace(last, content=template.replace("{prompt}", last.content))], True


def words_of(prompt: Prompt) -> str:
    """Return the words of a question by which two are one: without case, in NFKC, with single blanks."""
    turns = [f"{message.role} {message.content}" for message in prompt.messages]
    return " ".join(unicodedata.normalize("NFKC", "\n".join(turns)).casefold().split())


def judged(verifier: Reward, prompt: Prompt, completion: str) -> float | None:
    """Return what the verifier gives to a completion."""
    sample = Sample(prompt=prompt, completion=completion, num_tokens=len(completion.split()), is_truncated=False)
    return safe_score(verifier, sample).value


def notes_of(loaded: Loaded, options: DataOptions, *, path: str) -> list[str]:
    """Return what was left out of a file.

    Raises:
        CoveyError: rows are bad, and more than may be.
    """
    if not loaded.num_rows:
        raise CoveyError(f"{path} has no rows")
    notes = refused_or_noted(loaded.bad, loaded.num_rows, options, path=path)
    if loaded.num_repeated:
        notes.append(f"{path}: {loaded.num_repeated} of {loaded.num_rows} rows repeat a question and were left out")
    return notes


def refused_or_noted(bad: Sequence[BadRow], num_rows: int, options: DataOptions, *, path: str) -> list[str]:
    """Return a note on the rows that are skipped.

    Raises:
        CoveyError: none may be, or not as many.
    """
    if not bad:
        return []
    named = "".join(f"\n  {row.where}: {row.reason}" for row in bad[:NUM_NAMED_ROWS])
    rest = f"\n  and {len(bad) - NUM_NAMED_ROWS} more" if len(bad) > NUM_NAMED_ROWS else ""
    counted = f"{path}: {len(bad)} of {num_rows} rows are bad"
    if options.bad_rows == "error":
        raise CoveyError(f"{counted}. Mend them, or set task.bad_rows = 'skip':{named}{rest}")
    if len(bad) > options.max_bad_frac * num_rows:
        raise CoveyError(f"{counted}, more than the share task.max_bad_frac={options.max_bad_frac}:{named}{rest}")
    return [f"{counted} and were left out:{named}{rest}"]


def split_by_hash(loaded: Loaded, *, share: float) -> tuple[dict[Part, Sequence[Prompt]], list[Prompt]]:
    """Return the held-out parts, which get `share` of the questions and at most MAX_HELD_OUT each, and the other questions.

    The order is that of a hash of the question's words: it depends on nothing else.
    """
    ranked = sorted(loaded.prompts, key=lambda words: stream_key(_SPLIT_SEED, "split", words))
    size = min(MAX_HELD_OUT, int(len(ranked) * share) // len(PARTS))
    parts: dict[Part, Sequence[Prompt]] = {
        part: [loaded.prompts[words][0] for words in ranked[index * size : (index + 1) * size]]
        for index, part in enumerate(PARTS)
    }
    return parts, [loaded.prompts[words][0] for words in ranked[size * len(PARTS) :]]


def own_probes(train: Sequence[Prompt], gold: Reward | None) -> list[Probe]:
    """Return an empty completion for some questions: whatever is right there, this is not."""
    return [Probe(prompt=prompt, completion="", is_right=False) for prompt in train[:NUM_PROBED]] if gold is not None else []


def honeypots(prompts: Sequence[Prompt], verifier: Reward, gold: Reward | None) -> list[Prompt]:
    """Return questions of the guard part with keys that are wrong: other numbers, or the answers of other questions.

    A key is left out if the verifier pays the true answer for it, for then it is not wrong. There are none for a verifier
    that a key is no completion for, such as one that runs tests.
    """
    if gold is None and verifier.name not in PAYS_ITS_KEY:
        return []
    texts = [prompt.answer for prompt in prompts if isinstance(prompt.answer, str)]
    found: list[Prompt] = []
    for index, prompt in enumerate(prompts[:NUM_HONEYPOTS]):
        key = wrong_key(prompt.answer, texts, index)
        if key is None:
            continue
        tags = {**prompt.tags, TRUE_ANSWER: str(prompt.answer)}
        honeypot = dataclasses.replace(prompt, prompt_id=f"{prompt.prompt_id}/honeypot", answer=key, tags=tags)
        judges = [verifier, *([gold] if gold is not None else [])]
        if all(judged(reward, honeypot, str(prompt.answer)) == reward.low for reward in judges):
            found.append(honeypot)
    return found


def wrong_key(answer: Any, texts: Sequence[str], index: int) -> Any:
    """Return an answer that is wrong, None if there is none."""
    if isinstance(answer, int | float | str) and not isinstance(answer, bool):
        offset = 1013 + 37 * (index % 11)
        try:
            shifted = str(Decimal(str(answer)) + offset)
            return shifted if isinstance(answer, str) else type(answer)(shifted)
        except InvalidOperation:
            others = [text for text in texts if text.split() != str(answer).split()]
            return others[index % len(others)] if others else None
    return None
