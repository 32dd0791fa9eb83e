"""What has been graded since the last checkpoint, so that steps that are made again are not graded again.

A run that was killed makes the steps since its last checkpoint again, from the same bits, and so has the same completions to
score. Where the journal holds the scores of exactly these completions, in a call of exactly these, they are taken from it.
Grading that costs money or minutes is not paid twice, and a reward that does not answer the same question in the same way
twice leaves the resumed run with the same numbers all the same.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from covey.monitor.run_directory import JsonlLog, write_text_atomic
from covey.rewards.base import Rewarder, Sample
from covey.types import Score

ScorePair = tuple[Score, Score | None]
_START = 0
"""The segment of what is graded before there is a checkpoint."""


class Journal:
    """The graded calls of one process, in segments: one for the time since each checkpoint that is there.

    The segment of checkpoint N is `after-(N + 1).rank-R.jsonl`: steps from N + 1 on.
    """

    def __init__(self, directory: Path, *, rank: int = 0) -> None:
        self._directory, self._rank = directory, rank
        self._segment = _START
        self._num_calls = 0
        self._known: dict[str, deque[dict[str, Any]]] = defaultdict(deque)
        """Calls that were graded before a resumption and have not come again, by their key, in order."""

    @classmethod
    def opened(cls, directory: Path, *, after: int | None, rank: int) -> Self:
        """Return the journal of a process that goes on from the checkpoint of step `after` (None: from none)."""
        journal = cls(directory, rank=rank)
        journal.open(-1 if after is None else after)
        return journal

    def open(self, step: int) -> int:
        """Go on from the checkpoint of this step (-1: from none). Return how many graded calls there are to fall back on."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._segment = step + 1
        later = [number for number in self._segments() if number >= self._segment]
        # By its number, for a call may stand in two segments: one who was killed while making a new one leaves both.
        rows = {row["call"]: row for number in later for row in readable_rows(self._path(number))}
        for row in rows.values():
            self._known[row["key"]].append(row)
        self._num_calls = max(rows, default=0)
        write_text_atomic(self._path(self._segment), "".join(map(_line, rows.values())))
        for number in later:
            if number != self._segment:
                self._path(number).unlink()
        return len(rows)

    def begin(self, step: int, checkpoints: Sequence[int]) -> None:
        """Begin the segment of a checkpoint that is being saved; `checkpoints`: the steps of those that are there already.

        Segments of checkpoints that are gone are removed. What has not come again yet comes after this checkpoint.
        """
        newest = max(checkpoints, default=_START - 1)
        for number in self._segments():
            if number - 1 < newest and number - 1 not in checkpoints:
                self._path(number).unlink()
        self._segment = step + 1
        left = [row for rows in self._known.values() for row in rows]
        write_text_atomic(self._path(self._segment), "".join(map(_line, left)))

    def clear(self) -> None:
        """Remove everything: the run is finished, and nothing will be made again."""
        for number in self._segments():
            self._path(number).unlink()
        with suppress(OSError):  # The last one of several processes finds it empty.
            self._directory.rmdir()

    def remembered(self, key: str, size: int) -> list[ScorePair] | None:
        """Return the scores of a call with this key and so many completions, if it was made before; each counts once."""
        if not self._known.get(key):
            return None
        rows = self._known[key].popleft()["completions"]
        return [(_score(row["reward"]), _score(row["gold"])) for row in rows] if len(rows) == size else None

    def note(self, key: str, samples: Sequence[Sample], scores: Sequence[ScorePair]) -> None:
        """Append a graded call, with its completions."""
        rows = [
            {
                "prompt_id": sample.prompt.prompt_id,
                "completion": sample.completion,
                "reward": _plain(reward),
                "gold": None if gold is None else _plain(gold),
            }
            for sample, (reward, gold) in zip(samples, scores, strict=True)
        ]
        self._num_calls += 1
        JsonlLog(self._path(self._segment)).append({"call": self._num_calls, "key": key, "completions": rows})

    def _segments(self) -> list[int]:
        names = self._directory.glob(f"after-*.rank-{self._rank}.jsonl")
        return sorted(int(name.name.split(".")[0].removeprefix("after-")) for name in names)

    def _path(self, number: int) -> Path:
        return self._directory / f"after-{number:06d}.rank-{self._rank}.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class JournaledRewarder(Rewarder):
    """Reward and gold whose scores are written down, and not asked for again when a killed run makes its steps again."""

    journal: Journal
    code: str
    """A mark of the code of the user's own reward functions: others are asked anew."""
    max_error_frac: float
    """A call that failed for a larger share ends the run. It is asked again once what was wrong has been mended."""

    def score_all(self, samples: Sequence[Sample]) -> list[ScorePair]:
        """Return (proxy score, gold score) of every sample, from the journal if this very call stands in it."""
        key = call_key(self, samples, self.code)
        scores = self.journal.remembered(key, len(samples))
        if scores is None:
            scores = Rewarder.score_all(self, samples)
            num_failed = sum(reward.value is None for reward, _ in scores)
            if num_failed <= self.max_error_frac * len(scores):
                self.journal.note(key, samples, scores)
        return scores


def with_journal(rewarder: Rewarder, journal: Journal, *, code: str, max_error_frac: float) -> JournaledRewarder:
    """Return the rewarder, whose calls are written to the journal and taken from it."""
    return JournaledRewarder(
        proxy=rewarder.proxy, gold=rewarder.gold, journal=journal, code=code, max_error_frac=max_error_frac
    )


def call_key(rewarder: Rewarder, samples: Sequence[Sample], code: str) -> str:
    """Return a hash of all that a call is about: which reward and gold, their code, and the samples with their answers."""
    judges = [[judge.name, judge.low, judge.high] for judge in (rewarder.proxy, rewarder.gold) if judge is not None]
    digest = hashlib.sha256(json.dumps([judges, code]).encode())
    for sample in samples:
        prompt = sample.prompt
        facts = [prompt.prompt_id, repr(prompt.answer), sample.completion, sample.num_tokens, sample.is_truncated]
        digest.update(json.dumps([*facts, sample.token_ids and list(sample.token_ids)]).encode())
    return digest.hexdigest()


def readable_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a segment up to the first that cannot be read: a loss of power may have torn the rest."""
    rows: list[dict[str, Any]] = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or not {"call", "key", "completions"} <= set(row):
            break
        rows.append(row)
    return rows


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(dict(row), allow_nan=False, separators=(",", ":")) + "\n"


def _plain(score: Score) -> dict[str, Any]:
    return asdict(score) | {"parts": dict(score.parts)}


def _score(row: Mapping[str, Any] | None) -> Any:
    return None if row is None else Score(**row)
