"""Completions that other trainers have logged, as detectors see them: so that the guard can be tried before a switch.

TRL (`log_completions=True`) writes `completions/completions_NNNNN.parquet` with the columns step, prompt, completion, one for
each reward function under its name, and advantage. verl (`trainer.rollout_data_dir`) writes `STEP.jsonl` with input, output,
score, step and what the reward function returned besides. Neither has a gold verifier: a reward function that was logged but
not optimised (weight 0), or one of those columns, stands for it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covey.guard.history import History, Step
from covey.guard.replay import step_of
from covey.monitor.run_directory import read_jsonl, read_rows
from covey.types import CoveyError

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Log:
    """How a trainer logs completions."""

    pattern: str
    """Of its files, in the directory that a user names or below."""
    read: Callable[[Path], Sequence[Row]]
    prompt: str
    completion: str
    proxy: str | None
    """The optimised reward; None: it has the names of the user's functions, and must be said."""
    own_columns: frozenset[str]
    """Columns that are no reward."""


LOGS: dict[str, Log] = {
    "trl": Log(
        pattern="completions_*.parquet",
        read=read_rows,
        prompt="prompt",
        completion="completion",
        proxy=None,
        own_columns=frozenset({"step", "prompt", "completion", "advantage"}),
    ),
    "verl": Log(
        pattern="*.jsonl",
        read=read_jsonl,
        prompt="input",
        completion="output",
        proxy="score",
        own_columns=frozenset({"input", "output", "gts", "step", "score"}),
    ),
}
"""By the name of the trainer."""


def read_log(
    directory: Path,
    *,
    trainer: str,
    gold: str,
    proxy: str | None = None,
    reward_range: tuple[float, float] | None = None,
) -> History:
    """Return the training steps of a log. It has no evaluations, so only detectors of training rollouts can speak.

    `proxy`, `gold`: columns. `reward_range`: of the proxy; None = from the lowest to the highest value that was logged.
    Lengths are in characters: the tokens were not logged.

    Raises:
        CoveyError: there are no such files, or a column is missing, empty or no number.
    """
    log = LOGS[trainer]
    paths = sorted(directory.rglob(log.pattern))
    if not paths:
        raise CoveyError(f"{directory} holds no {log.pattern}: name the directory that {trainer} logged completions to")
    rows = [row for path in paths for row in log.read(path)]
    columns = sorted({name for row in rows for name in row} - log.own_columns)
    proxy = proxy or log.proxy
    if proxy is None:
        raise CoveyError(f"say which column is the optimised reward, with --proxy; there are {', '.join(columns) or 'none'}")
    wanted = {"proxy": proxy, "gold": gold}
    for option, column in wanted.items():
        if not any(column in row for row in rows):
            raise CoveyError(f"--{option} {column!r} is no column of the log; there are {', '.join(columns) or 'none'}")
    low, high = reward_range or _range_of(rows, proxy)
    by_step: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_step[int(row["step"])].append(_as_recorded(row, log, proxy=proxy, gold=gold))
    steps = [
        step_of(by_step[step], step=step, metrics={}, reward_range=(low, high)) for step in sorted(by_step) if by_step[step]
    ]
    return History(looks=[], steps=steps, planned_looks=1, group_size=_group_size(steps))


def _as_recorded(row: Row, log: Log, *, proxy: str, gold: str) -> dict[str, Any]:
    """Return a row with the columns of rollouts/*.parquet."""
    prompt = json.dumps(row[log.prompt], ensure_ascii=False)
    return {
        "prompt_id": hashlib.sha256(prompt.encode()).hexdigest()[:16],
        "reward": _number(row.get(proxy), proxy),
        "gold": _number(row.get(gold), gold),
        "num_tokens": len(str(row[log.completion])),
        "finish_reason": "stop",
    }


def _number(value: Any, column: str) -> float | None:
    if value is None or isinstance(value, bool | int | float):
        return None if value is None else float(value)
    raise CoveyError(f"the column {column!r} holds {value!r}: name a column of numbers")


def _range_of(rows: Sequence[Row], column: str) -> tuple[float, float]:
    values = [value for row in rows if (value := _number(row.get(column), column)) is not None]
    low, high = min(values, default=0.0), max(values, default=0.0)
    if low == high:
        raise CoveyError(f"the column {column!r} always is {low}: there is nothing to watch. Name another")
    return low, high


def _group_size(steps: Sequence[Step]) -> int:
    """Return how often the most frequent prompt of a step comes: the size of a group."""
    return max((count for step in steps for count in Counter(step.answers.prompt_ids).values()), default=1)
