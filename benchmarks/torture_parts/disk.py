"""Disks that fail at one write of a run after the other: each run has to end with the bits of one that was left alone."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from tests.digits import bits_of, leave_out_slow_parts, train_digits
from tests.disk_faults import FAULTS, after_failing_write, num_writes

NUM_POINTS = 12
"""Unless in full: then at every write."""


def failing_disks(*, full: bool) -> tuple[int, int, str]:
    """Fail a write of a run, with each of the errors in turn, and let the run go on with a whole disk."""
    failed = 0
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        leave_out_slow_parts(patch)
        directory = Path(name)
        alone = bits_of(train_digits(directory, "alone").path)
        count = num_writes(directory)
        points = range(1, count + 1, 1 if full else count // NUM_POINTS)
        for index, number in enumerate(points):
            run = f"write {number}"
            told = after_failing_write(directory, run, number=number, code=FAULTS[index % len(FAULTS)])
            failed += not told or bits_of(directory / run) != alone
    return (
        len(points),
        failed,
        f"{len(points)} of {count} writes of a run failed in turn, {failed} runs changed or told nothing",
    )
