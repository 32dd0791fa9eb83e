"""Many small steps, for what leaks slowly, and what a save costs."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.digits import digit_share, leave_out_slow_parts, train_digits

from covey.background import Background
from covey.checkpoint import Buffers, copy_tensors, save_checkpoint
from covey.models.memory import resident_bytes

NUM_PARAMETERS = 10_000_000
MAX_BLOCKED_S = 0.05
CALLS_BETWEEN_LOOKS = 240
"""Twenty steps."""


def many_steps(num_steps: int) -> tuple[int, int, str]:
    """Train for thousands of steps; look at memory and open files every so often: what is noted grows as well."""
    seen: list[tuple[float, int]] = []
    num_calls = 0

    def reward(completion: str) -> float:
        nonlocal num_calls
        num_calls += 1
        if num_calls % CALLS_BETWEEN_LOOKS == 0:
            seen.append((resident_bytes() / 1e6, len(os.listdir("/proc/self/fd"))))
        return digit_share(completion)

    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        leave_out_slow_parts(patch)
        changes = {"evaluation__every": 0, "checkpoint__every": 500, "checkpoint__rollouts_every": 0}
        train_digits(Path(name), "run", num_steps=num_steps, reward=reward, **changes)
    rest = seen[len(seen) // 5 :]
    memory, files = np.array([each[0] for each in rest]), [each[1] for each in rest]
    slope = float(np.polyfit(np.linspace(0, 0.8 * num_steps / 1000, len(rest)), memory, 1)[0])
    failed = (slope > 1.0) + (max(files) > min(files) + 2)
    return num_steps, failed, f"{num_steps} steps: {slope:+.2f} MB of memory per 1,000, {min(files)} to {max(files)} open files"


def save_seconds() -> tuple[int, int, str]:
    """Save 10 million parameters and their moments: how long training waits, and how long the save itself takes."""
    files = {
        "model.safetensors": {"weight": torch.randn(NUM_PARAMETERS)},
        "optimizer.safetensors": {"first": torch.randn(NUM_PARAMETERS), "second": torch.rand(NUM_PARAMETERS)},
    }
    buffers: Buffers = {}
    waited, taken = [], []
    with tempfile.TemporaryDirectory() as name, Background() as background:
        directory = Path(name) / "checkpoints"
        for step in range(1, 8):
            started = time.monotonic()
            copy_tensors(files, buffers)
            background.start(lambda step=step: _save(directory, step, buffers))
            waited.append(time.monotonic() - started)
            background.wait()
            taken.append(time.monotonic() - started)
    blocked, whole = statistics.median(waited), statistics.median(taken)
    size = f"{NUM_PARAMETERS // 10**6} million parameters and their moments"
    shown = f"{size}: training waits {1000 * blocked:.0f} ms of {whole:.2f} s"
    return len(waited), int(blocked > MAX_BLOCKED_S), shown


def _save(directory: Path, step: int, tensors: Buffers) -> None:
    save_checkpoint(directory, step, tensors=tensors, texts={}, state={}, log_sizes={})
