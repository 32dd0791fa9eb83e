"""Many small steps, for what leaks slowly, and what a save costs."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.digits import digit_share, leave_out_slow_parts, train_digits

from covey.checkpoint import save_checkpoint
from covey.models.memory import resident_bytes

NUM_PARAMETERS = 10_000_000


def many_steps(num_steps: int) -> tuple[int, int, str]:
    """Train for thousands of steps; look at memory, open files and the seconds of a step."""
    seen: list[tuple[float, int]] = []

    def reward(completion: str) -> float:
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
    """Save 10 million parameters with their optimizer's state: how long training waits for it."""
    weights = {"weight": torch.randn(NUM_PARAMETERS)}
    moments = {"first": torch.randn(NUM_PARAMETERS), "second": torch.rand(NUM_PARAMETERS)}
    seconds = []
    with tempfile.TemporaryDirectory() as name:
        for step in range(1, 6):
            started = time.monotonic()
            save_checkpoint(
                Path(name) / "checkpoints",
                step,
                tensors={"model.safetensors": weights, "optimizer.safetensors": moments},
                texts={},
                state={},
                log_sizes={},
            )
            seconds.append(time.monotonic() - started)
    return (
        len(seconds),
        0,
        f"{sorted(seconds)[2]:.2f} s for {NUM_PARAMETERS // 10**6} million parameters and their moments; training waits",
    )
