"""Runs that are killed with SIGKILL, again and again, and have to end with the bits of one that was left alone."""

from __future__ import annotations

import random
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
from tests import processes
from tests.digits import bits_of as bits_of_model
from tests.digits import digest, leave_out_slow_parts, newest, train_digits, train_killed
from tests.interrupted_runs import log_problems

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "with adapters": {"lora__rank": 2},
    "with several updates": {"num_iterations": 2, "num_minibatches": 2},
    "saved in the foreground": {"checkpoint__in_background": False},
}
NUM_RANDOM_KILLS = 200


def bits_of(run: Path) -> dict[str, Any]:
    """Return what must be the same; of a run that trains adapters, these in the model's place."""
    adapters = newest(run) / "adapter_model.safetensors"
    if not adapters.exists():
        return bits_of_model(run)
    files = {name: digest(newest(run) / name) for name in ("adapter_model.safetensors", "optimizer.safetensors")}
    return files | {"metrics": (run / "metrics.jsonl").read_text(), "eval": (run / "eval.jsonl").read_text()}


def killed_runs(*, full: bool) -> tuple[int, int, str]:
    """Kill runs at random events (a change of the disk, or a call of the reward); in full also at every event of a run."""
    tried = failed = finished = 0
    choose = random.Random(0)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        leave_out_slow_parts(patch)
        directory = Path(name)
        alone = {
            variant: bits_of(train_digits(directory, f"alone {variant}", **VARIANTS[variant]).path) for variant in VARIANTS
        }
        while tried < NUM_RANDOM_KILLS:
            variant = list(VARIANTS)[finished % len(VARIANTS)]
            kills, is_same = _until_finished(directory, f"random {finished}", variant, lambda: choose.randrange(40, 200), alone)
            tried, failed, finished = tried + kills, failed + (not is_same), finished + 1
        shown = f"{tried} kills at random events in {finished} runs of {len(VARIANTS)} kinds, {failed} changed"
        if full:
            points, changed = _every_event(directory, alone)
            tried, failed = tried + points, failed + changed
            shown += f"; killed at each of {points} events, {changed} changed"
    return tried, failed, shown


def _until_finished(directory: Path, name: str, variant: str, event: Any, alone: dict[str, Any]) -> tuple[int, bool]:
    """Train, be killed and go on until the run is through. Return how often it was killed and whether its bits are right."""
    changes = VARIANTS[variant] | {"checkpoint__every": 1}
    kills = 0
    while True:
        done = processes.call(train_killed, directory, name, event(), changes, directory=directory / "processes")
        if done.code == 0:
            return kills, bits_of(directory / name) == alone[variant]
        if done.code != -signal.SIGKILL:
            raise RuntimeError(f"{name} ended with {done.code}: {done.err[-500:]}")
        if problems := log_problems(directory / name):
            raise RuntimeError(f"a kill has left the logs of {name} broken: {problems}")
        kills += 1


def _every_event(directory: Path, alone: dict[str, Any]) -> tuple[int, int]:
    """Kill one run after the other, each an event later than the one before, and let it finish undisturbed."""
    number = changed = 0
    while True:
        number += 1
        events = iter([number])
        kills, is_same = _until_finished(
            directory, f"event {number}", "plain", lambda events=events: next(events, 10**9), alone
        )
        changed += not is_same
        if not kills:
            return number - 1, changed
