"""A run that stands still says where: the stacks of all threads come into its directory, and the run is left alone."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from tests.digits import at_step, leave_out_slow_parts, train_digits

from covey.interrupts import watchdog


def stand_still(seconds: float) -> None:
    time.sleep(seconds)


def test_a_step_that_takes_too_long_leaves_the_stacks_of_all_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    leave_out_slow_parts(monkeypatch)
    done = threading.Event()
    threading.Thread(target=done.wait, name="other", daemon=True).start()
    reward = at_step(tmp_path / "run", 2, lambda: stand_still(2.5))
    run = train_digits(tmp_path, "run", num_steps=3, reward=reward, run__watchdog_s=1)
    done.set()
    text = (run.path / "stalled.txt").read_text()
    assert "stand_still" in text
    assert text.count("Timeout (0:00:01)!") >= 2
    assert text.count("hread 0x") >= 2
    assert (run.path / "stalled.txt").stat().st_mode & 0o777 == 0o600
    assert run.metrics[-1]["step"] == 3


def test_a_run_that_moves_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    leave_out_slow_parts(monkeypatch)
    assert not (train_digits(tmp_path, "run", num_steps=2).path / "stalled.txt").exists()


def test_moving_puts_the_deadline_off(tmp_path: Path):
    with watchdog(tmp_path / "stalled.txt", 1) as watch:
        for _ in range(6):
            time.sleep(0.3)
            watch.move()
    assert not (tmp_path / "stalled.txt").exists()


def test_no_time_means_no_watchdog(tmp_path: Path):
    with watchdog(tmp_path / "stalled.txt", 0) as watch:
        watch.move()
    assert not (tmp_path / "stalled.txt").exists()
