"""`runs/<name>/`: the paths, the lock and the files that training writes and everything else reads.

`docs/run-directory.md` is the reference; the constants below are its keys and columns, pinned to it by a test. One
process writes and holds the lock; readers never wait for it. Plain Python, because reports must start without torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from covey.monitor.lock import held
from covey.types import CoveyError

SCHEMA_VERSION = 1
ENV_KEYS = (
    *("schema_version", "covey_version", "name", "created_at", "command", "machine", "versions", "num_threads", "num_ranks"),
    *("settings", "micro_batch_tokens", "sandbox"),
    *("compute_dtype", "model", "reward_range", "reference", "has_gold", "reward_code", "task", "algorithm", "formula"),
)
TIMING_KEYS = (
    *("step", "elapsed_s", "rollout_s", "reward_s", "scoring_s", "update_s", "load_weights_s", "evaluate_s"),
    *("checkpoint_s", "generated_tokens_per_s"),
)
EVAL_KEYS = (
    *("step", "part", "mode", "num_prompts", "samples_per_prompt"),
    *("gold_mean", "gold_low", "gold_high", "proxy_mean", "proxy_low", "proxy_high"),
    *("gold_gain", "gold_gain_low", "gold_gain_high", "proxy_gain", "proxy_gain_low", "proxy_gain_high"),
    *("pass_at", "length_mean", "truncated_frac", "error_frac"),
)
GUARD_KEYS = ("step", "detector", "level", "action", "message", "figures")
COSTS_KEYS = ("parameters", "memory_bytes", "peak_rss_bytes", "seconds", "tokens", "num_updates")
PROFILE_KEYS = (
    *("first_step", "last_step", "num_steps", "step_median_s", "step_p90_s", "sampled_tokens_per_s", "trained_tokens_per_s"),
    *("peak_rss_bytes", "phases"),
)
PROFILE_PHASE_KEYS = ("name", "part_of", "total_s", "share_frac", "num_calls", "num_steps", "median_s", "p90_s")
EVAL_COLUMNS = (
    *("prompt_id", "question", "answer", "sample", "completion", "extracted", "gold", "proxy", "num_tokens"),
    *("finish_reason", "error"),
)
ROLLOUT_COLUMNS = (
    *("prompt_id", "question", "answer", "draw", "sample", "completion", "num_tokens", "finish_reason"),
    *("policy_version", "reward", "parts", "extracted", "gold", "error", "used"),
    *("kl", "kl_max", "kl_max_token"),
)

# Fixed, because a type inferred from one file's values would differ from step to step (a column of nulls has none).
_COLUMN_TYPES = {
    **dict.fromkeys(("prompt_id", "question", "answer", "completion", "finish_reason"), "string"),
    **dict.fromkeys(("parts", "extracted", "error", "kl_max_token"), "string"),
    **dict.fromkeys(("draw", "sample", "num_tokens", "policy_version"), "int64"),
    **dict.fromkeys(("reward", "gold", "proxy", "kl", "kl_max"), "float64"),
    "used": "bool",
}


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The paths of one run. Nothing is read or written until a method is called."""

    path: Path

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make the directory of a new run. Lock it and write `recipe.toml` next: that file makes it a run."""
        path = Path(path)
        refuse_occupied(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(exist_ok=True)
        path.chmod(0o700)
        fsync(path.parent)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Return the run at `path`, for reading or resuming."""
        run = cls(Path(path))
        if not os.path.isfile(run.recipe):  # Path.is_file() raises where no file could be called so.
            raise CoveyError(f"{path} is not the directory of a run: there is no {run.recipe.name} in it")
        return run

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def env(self) -> Path:
        return self.path / "env.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def timing(self) -> Path:
        return self.path / "timing.jsonl"

    @property
    def eval(self) -> Path:
        return self.path / "eval.jsonl"

    @property
    def guard(self) -> Path:
        return self.path / "guard.jsonl"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def evals(self) -> Path:
        return self.path / "evals"

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def journal(self) -> Path:
        return self.path / "journal"

    def checkpoint_of(self, step: int) -> Path:
        """The directory of a step's checkpoint."""
        return self.checkpoints / f"step-{step:06d}"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def reward_output(self) -> Path:
        """What reward functions print."""
        return self.path / "reward-output.log"

    @property
    def profile(self) -> Path:
        return self.path / "profile.json"

    @property
    def stalled(self) -> Path:
        return self.path / "stalled.txt"

    @property
    def costs(self) -> Path:
        return self.path / "costs.json"

    @property
    def lock_file(self) -> Path:
        return self.path / ".lock"

    def rollouts_of(self, step: int) -> Path:
        """The Parquet file with the training completions of one step."""
        return self.rollouts / f"step-{step:06d}.parquet"

    def evals_of(self, step: int, *, part: str, mode: str) -> Path:
        """The Parquet file with the completions of one evaluation."""
        return self.evals / f"{part}-{mode}-step-{step:06d}.parquet"

    def forget_after(self, step: int) -> None:
        """Remove the completions of later steps: a resumed run makes those steps again, or never."""
        for file in [*self.rollouts.glob("step-*.parquet"), *self.evals.glob("*-step-*.parquet")]:
            if int(file.stem.rpartition("-")[2]) > step:
                file.unlink()

    def logs(self) -> dict[str, JsonlLog]:
        """Return the append-only logs by name: what a checkpoint records the sizes of."""
        return {path.stem: JsonlLog(path) for path in (self.metrics, self.timing, self.eval, self.guard, self.events)}

    @contextmanager
    def lock(self) -> Generator[None]:
        """Hold the run for writing. The kernel lets go of it when the process ends, however it ends."""
        with held(self.lock_file, what=self.path):
            yield


def refuse_occupied(path: Path) -> None:
    """Raise if `path` holds anything but hidden files: a new run overwrites nothing."""
    if path.exists() and any(not entry.name.startswith(".") for entry in path.iterdir()):
        raise CoveyError(f"{path} is not empty: choose another name, or continue the run in it with --resume")


def free_run_name(parent: Path, base: str) -> str:
    """Return `base`, or the first of base-2, base-3 ... that `parent` has no entry for."""
    name, number = base, 1
    while (parent / name).exists():
        number += 1
        name = f"{base}-{number}"
    return name


@dataclass(frozen=True, slots=True)
class JsonlLog:
    """An append-only file with one JSON object a line. A record counts once its newline is there."""

    path: Path

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record through to the kernel: it survives the process; `sync` makes it survive the machine."""
        line = json.dumps(dict(record), allow_nan=False, separators=(",", ":")).encode() + b"\n"
        with open(self.path, "ab+", opener=_open_private) as file:
            file.truncate(_complete_size(file))  # what a killed writer left of its last line
            file.write(line)

    @property
    def size(self) -> int:
        """Bytes; 0 before the first record."""
        return self.path.stat().st_size if self.path.exists() else 0

    def truncate(self, size: int) -> None:
        """Drop everything after the first `size` bytes: what was logged after the checkpoint that is resumed from."""
        if size > self.size:
            raise CoveyError(f"{self.path} has lost lines: {self.size} bytes, and the checkpoint says {size}")
        if self.path.exists():
            os.truncate(self.path, size)

    def sync(self) -> None:
        """Put what was appended, and the file's name, on the disk."""
        if self.path.exists():
            fsync(self.path)
            fsync(self.path.parent)


def _complete_size(file: BinaryIO) -> int:
    """Return the size of an open binary file up to and including its last newline."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 4096)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the records of a log; none if it has not been started. A torn last line is left out, any other refused."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise CoveyError(f"{path}:{number} is not JSON ({error}): the file was changed by something else") from None
    return records


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def fsync(path: Path) -> None:
    """Put a file's bytes, or a directory's entries, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes_synced(path: Path, data: bytes) -> None:
    """Write a new file with mode 0600 and put its bytes on the disk; its name needs an `fsync` of the directory."""
    with open(path, "xb", opener=_open_private) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _replacing(path: Path) -> Generator[Path]:
    """Yield a temporary path to fill; at the end it becomes `path`, or is removed after an error."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


def write_text_atomic(path: Path, text: str) -> None:
    """Write a file that readers see whole: the old text or the new one, whatever happens in between."""
    with _replacing(path) as temporary:
        write_bytes_synced(temporary, text.encode())


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as a Parquet file that readers see whole. Documented columns have fixed types; others are inferred."""
    import pyarrow as pa  # here, because it would be most of the start-up time of a command that needs none
    import pyarrow.parquet as pq

    names = dict.fromkeys(name for row in rows for name in row)
    types = {name: pa.type_for_alias(_COLUMN_TYPES[name]) if name in _COLUMN_TYPES else None for name in names}
    table = pa.table({name: pa.array([row.get(name) for row in rows], type=types[name]) for name in names})
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with _replacing(path) as temporary:
        with open(temporary, "xb", opener=_open_private) as file:
            pq.write_table(table, file, compression="zstd")
        fsync(temporary)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a Parquet file."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).read().to_pylist()
