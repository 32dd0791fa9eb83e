"""A run that a tiny random model learns from in seconds: the more of a completion is digits, the higher its reward."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import covey
from covey.api import Run
from covey.checkpoint import newest_valid_checkpoint
from covey.models.tiny import write_tiny_model
from covey.monitor.run_directory import RunDirectory, read_rows

PROMPTS = [f"Say digits, {number}" for number in range(20)]
HELD_OUT = [f"Say digits, {number}" for number in range(90, 96)]

SMALL: dict[str, Any] = {
    "num_threads": 1,
    "compute_dtype": "float32",
    "max_new_tokens": 8,
    "prompts_per_step": 3,
    "group_size": 4,
    "learning_rate": 3e-3,
    "warmup_steps": 2,
    "decay": False,
    "num_steps": 6,
    "evaluation__every": 3,
    "checkpoint__every": 2,
    "guard__enabled": False,  # It keeps the first checkpoint, and has tests of its own.
    "reward__num_workers": 0,  # Rewards here act on their test from within,
    "reward__audit": False,  # and count their calls.
}
"""Options of a run that takes about a second. Groups of four still have rewards that differ, mostly."""


def digit_share(completion: str) -> float:
    """The reward: the share of the characters that are ASCII digits."""
    return sum(character in "0123456789" for character in completion) / max(1, len(completion))


def starts_with_digit(completion: str) -> bool:
    """A gold verifier that asks for less, and for something else."""
    return completion[:1] in set("0123456789")


def leave_out_slow_parts(patch: pytest.MonkeyPatch) -> None:
    """Write no report and wait for no disk: what is left is all that a killed process, unlike a power cut, can spoil."""
    patch.setattr("covey.api.write_report", lambda path: path / "report.html")
    patch.setattr(os, "fsync", lambda descriptor: None)


def tiny_model(directory: Path) -> Path:
    """Return the tiny model in `directory`, written there if it is not yet."""
    return directory if directory.exists() else write_tiny_model(directory)


def train_digits(directory: Path, name: str, **changes: Any) -> Run:
    """Train in `directory`/`name` and return the run; `changes` are arguments of `covey.train`."""
    arguments: dict[str, Any] = {
        "model": str(tiny_model(directory / "model")),
        "prompts": PROMPTS,
        "held_out": HELD_OUT,
        "reward": digit_share,
        "gold": starts_with_digit,
        "quiet": True,
        "run__directory": str(directory),
        "run__name": name,
    }
    return covey.train(**(arguments | SMALL | changes))


def resume_digits(directory: Path, name: str, **changes: Any) -> Run:
    """Go on with `directory`/`name`, the same prompts and rewards given again."""
    arguments: dict[str, Any] = {
        "prompts": PROMPTS,
        "held_out": HELD_OUT,
        "reward": digit_share,
        "gold": starts_with_digit,
        "quiet": True,
        "resume": directory / name,
    }
    return covey.train(**(arguments | changes))


def at_step(
    run: Path, step: int, act: Callable[[], Any], reward: Callable[[str], float] = digit_share
) -> Callable[[str], float]:
    """Return the reward as a function that also calls `act`, once, in the midst of `step` (0: before training)."""
    has_acted = False

    def acting_reward(completion: str) -> float:
        nonlocal has_acted
        if not has_acted and num_timed_steps(run) >= step:
            has_acted = True
            act()
        return reward(completion)

    return acting_reward


def stop_at(run: Path, step: int) -> Callable[[str], float]:
    """Return the reward as a function that also sends this process a SIGTERM in the midst of `step`."""
    return at_step(run, step, lambda: os.kill(os.getpid(), signal.SIGTERM))


def num_timed_steps(run: Path) -> int:
    """Return how many lines `timing.jsonl` holds: one for the time before training, one for each finished step."""
    log = run / "timing.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def weights_of(run: Path) -> str:
    """Return a hash of the trained weights."""
    return digest(newest(run) / "model.safetensors")


def bits_of(run: Path) -> dict[str, Any]:
    """Return everything that a resumed run must have in common with an uninterrupted one, to the last bit."""
    checkpoint = newest(run)
    tables = [*run.glob("rollouts/*.parquet"), *run.glob("evals/*.parquet")]
    return {
        "model": digest(checkpoint / "model.safetensors"),
        "optimizer": digest(checkpoint / "optimizer.safetensors"),
        "critic": digest(checkpoint / "critic.safetensors") if (checkpoint / "critic.safetensors").exists() else None,
        "metrics": (run / "metrics.jsonl").read_text(),
        "eval": (run / "eval.jsonl").read_text(),
        "tables": {table.name: hashlib.sha256(repr(read_rows(table)).encode()).hexdigest() for table in sorted(tables)},
    }


def newest(run: Path) -> Path:
    """Return the newest checkpoint."""
    path, _ = newest_valid_checkpoint(RunDirectory.open(run).checkpoints)
    assert path is not None
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


_DISK_CALLS = ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "truncate", "ftruncate")


def train_killed(directory: Path, name: str, num_events: int, changes: dict[str, Any]) -> None:
    """Train or go on, and die by SIGKILL at the event of that number: a change of the disk, or a call of the reward."""
    count = 0

    def happen() -> None:
        nonlocal count
        count += 1
        if count == num_events:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            happen()
            return function(*arguments, **options)

        return call

    def reward(completion: str) -> float:
        happen()
        return digit_share(completion)

    patch = pytest.MonkeyPatch()
    leave_out_slow_parts(patch)
    model = tiny_model(directory / "model")
    for call in _DISK_CALLS:
        patch.setattr(os, call, counted(getattr(os, call)))
    if (directory / name / "recipe.toml").exists():
        resume_digits(directory, name, reward=reward)
    else:
        train_digits(directory, name, **({"reward": reward, "model": str(model)} | changes))
