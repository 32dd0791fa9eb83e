"""A wall clock that jumps changes no number of a run, and no decision."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
from tests.digits import bits_of, leave_out_slow_parts, train_digits

from covey.monitor.run_directory import read_jsonl


def test_a_jumping_clock_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    leave_out_slow_parts(monkeypatch)
    plain = train_digits(tmp_path, "plain")
    jumps, real = itertools.cycle([0.0, -3600.0, 86_400.0, -7200.0]), time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    jumped = train_digits(tmp_path, "jumped")
    assert bits_of(jumped.path) == bits_of(plain.path)
    seconds = [row["elapsed_s"] for row in read_jsonl(jumped.path / "timing.jsonl")]
    assert seconds == sorted(seconds)
    assert 0 <= seconds[-1] < 600
