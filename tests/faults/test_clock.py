"""A wall clock that jumps changes no number of a run, and no decision."""

from __future__ import annotations

import ast
import datetime
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import bad_rewards
from tests.bad_rewards import BAD, FINE, ordinary, samples_of
from tests.checkpoints import save
from tests.digits import bits_of, leave_out_slow_parts, train_digits

from covey import recorder
from covey.checkpoint import newest_valid_checkpoint
from covey.interrupts import watchdog
from covey.monitor.run_directory import read_jsonl
from covey.rewards.base import as_reward, score_all
from covey.rewards.failures import error_kind
from covey.rewards.workers import RewardWorkers, WorkerSpec

JUMPS = (0.0, -3600.0, 86_400.0, -7200.0)
"""Seconds by which the wall clock is off, call after call: an hour back, a day on, two hours back."""
SOURCE = Path(__file__).parents[2] / "src" / "covey"


def jumping(clock: Callable[[], float]) -> Callable[[], float]:
    jumps = itertools.cycle((86_400.0, -3600.0))
    return lambda: clock() + next(jumps)


class JumpingDatetime(datetime.datetime):
    """A wall clock whose date jumps as well."""

    jumps = itertools.cycle((86_400.0, -3600.0))

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        return datetime.datetime.now(tz) + datetime.timedelta(seconds=next(cls.jumps))


def test_a_jumping_clock_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    leave_out_slow_parts(monkeypatch)
    plain = train_digits(tmp_path, "plain")
    monkeypatch.setattr(time, "time", jumping(time.time))
    monkeypatch.setattr(recorder, "datetime", JumpingDatetime)
    jumped = train_digits(tmp_path, "jumped")
    assert bits_of(jumped.path) == bits_of(plain.path)
    seconds = [row["elapsed_s"] for row in read_jsonl(jumped.path / "timing.jsonl")]
    assert seconds == sorted(seconds)
    assert 0 <= seconds[-1] < 600
    days = [event["at"][:10] for event in read_jsonl(jumped.path / "events.jsonl")]
    assert len(set(days)) > 1, "the clock did not jump"


def test_the_other_clock_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The positive control: times of a run are read from the monotonic clock, which never jumps; here it does."""
    leave_out_slow_parts(monkeypatch)
    monkeypatch.setattr(time, "monotonic", jumping(time.monotonic))
    jumped = train_digits(tmp_path, "jumped", num_steps=3, evaluation__every=0)
    seconds = [row["elapsed_s"] for row in read_jsonl(jumped.path / "timing.jsonl")]
    assert seconds != sorted(seconds) or seconds[-1] > 600


def test_a_deadline_of_a_reward_does_not_jump(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(time, "time", jumping(time.time))
    started = time.monotonic()
    with RewardWorkers(WorkerSpec(num_workers=1, timeout_s=0.5, give_up_frac=1.0)) as workers:
        reward = workers.isolated(as_reward(ordinary(bad_rewards.hang_in_python)))
        scores = score_all(reward, samples_of(["fine", BAD, "fine"]))
    assert [score.value for score in scores] == [FINE, None, FINE]
    assert error_kind(scores[1]) == "timeout"
    assert time.monotonic() - started < 10


def test_the_watchdog_does_not_bark_when_the_clock_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(time, "time", jumping(time.time))
    with watchdog(tmp_path / "stalled.txt", 5) as watch:
        watch.move()
        time.sleep(0.05)
    assert not (tmp_path / "stalled.txt").exists()


def test_the_newest_checkpoint_is_that_of_the_last_step_whatever_the_times_of_its_files(tmp_path: Path):
    for step, day in ((1, 30), (2, 20), (3, 10)):
        path = save(tmp_path / "checkpoints", step, keep=5)
        for place in (path, *path.iterdir()):
            os.utime(place, (day * 86_400.0, day * 86_400.0))
    assert newest_valid_checkpoint(tmp_path / "checkpoints")[0] == tmp_path / "checkpoints/step-000003"


def clock_readings(source: str) -> list[str]:
    """Return the calls in a source that read the wall clock, or the times of files, for something else than a stamp."""
    tree = ast.parse(source)
    stamps = {
        id(node.func.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "isoformat"
    }
    names = ("time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "date.today", "time.localtime")
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and id(node) not in stamps]
    read = [ast.unparse(node.func) for node in calls if ast.unparse(node.func).endswith(names)]
    return sorted(read) + [
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("st_mtime")
    ]


def test_nothing_but_a_stamp_is_read_from_the_wall_clock():
    sources = {path.name: path.read_text() for path in sorted(SOURCE.rglob("*.py"))}
    words = (".time", ".now", ".utcnow", ".today", ".localtime", ".st_mtime")  # The search itself takes long.
    found = {name: clock_readings(text) for name, text in sources.items() if any(word in text for word in words)}
    # A tracker wants the time of each number that it is sent, and a program in WebAssembly may ask for the time.
    assert {name for name, calls in found.items() if calls} <= {"sinks.py", "wasi.py"}


def test_a_reading_of_the_wall_clock_is_found():
    text = "import time\nfrom datetime import UTC, datetime\nlate = time.time() > 5\nat = datetime.now(UTC).isoformat()\n"
    assert clock_readings(text + "due = datetime.now(UTC)\n") == ["datetime.now", "time.time"]
