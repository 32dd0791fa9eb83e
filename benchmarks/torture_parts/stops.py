"""Runs that are told to stop at random times, and have to save at the step's end and to end with the same bits."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from tests.digits import leave_out_slow_parts
from tests.interrupted_runs import stopped_at_random_times

NUM_STOPS = 20


def random_stops() -> tuple[int, int, str]:
    """Send SIGTERM and SIGINT in turn at random times of a run: in sampling, rewards, updates, saves and between them."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        leave_out_slow_parts(patch)
        stopped, wrong = stopped_at_random_times(Path(name), NUM_STOPS)
    return NUM_STOPS, wrong, f"{NUM_STOPS} signals at random times, {stopped} runs were stopped by one, {wrong} changed"
