"""Logs of a run that is killed at any moment: every line is whole, steps rise, and nothing is there twice after a resume."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
from tests import processes
from tests.digits import train_digits, train_killed
from tests.interrupted_runs import log_problems

from covey.monitor.run_directory import read_jsonl

NUM_KILLS = 6


pytestmark = pytest.mark.usefixtures("no_slow_parts")


def test_logs_are_whole_after_every_kill_and_every_resume(directory: Path) -> None:
    choose = random.Random(18)
    num_kills = finished = 0
    while num_kills < NUM_KILLS:
        events, name = choose.randrange(20, 200), f"run {finished}"
        done = processes.call(
            train_killed, directory, name, events, {"checkpoint__every": 1}, directory=directory / "processes"
        )
        assert done.code in (0, -signal.SIGKILL), done.err
        assert log_problems(directory / name) == []
        num_kills += done.code != 0
        finished += done.code == 0
    steps = [row["step"] for row in read_jsonl(directory / "run 0/metrics.jsonl")]
    assert steps == list(range(1, 7)) or not finished


BROKEN = {
    "a line of garbage": ("metrics", b"\0\0\n", "not JSON"),
    "a torn line": ("metrics", b'{"step":7,"rew', "ends in the middle of a line"),
    "a step twice": ("metrics", b'{"step":2}\n', "metrics has step 2 after step 2"),
    "an earlier step": ("timing", b'{"step":1}\n', "timing has step 1 after step 2"),
    "an evaluation twice": ("eval", b"", "eval has the same line twice"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_log_that_is_broken_is_found(directory: Path, case: str) -> None:
    """The positive control: what the test above looks for is seen where it is."""
    log, line, message = BROKEN[case]
    path = train_digits(directory, case, num_steps=2).path / f"{log}.jsonl"
    assert log_problems(path.parent) == []
    path.write_bytes(path.read_bytes() + (line or path.read_bytes()))
    try:
        found = log_problems(path.parent)
    except Exception as error:  # The reader refuses it by itself.
        found = [str(error)]
    assert any(message in problem for problem in found), found


def test_a_torn_line_is_passed_over_by_readers_and_replaced_by_the_run(directory: Path) -> None:
    path = train_digits(directory, "torn", num_steps=2).path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step":3,"rew')
    assert [row["step"] for row in read_jsonl(path)] == [1, 2]
