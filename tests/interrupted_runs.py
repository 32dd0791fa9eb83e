"""Runs that get a signal at any moment, and what must hold of their logs whatever has ended them."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from pathlib import Path

from tests.digits import bits_of, digit_share, newest, resume_digits, train_digits

from covey.api import Run
from covey.monitor.run_directory import read_jsonl

LOGS = ("metrics", "timing", "eval", "guard", "events")


class SignalledReward:
    """A reward whose first call sets a clock; the signal comes when it goes off, wherever that is. Without a signal: none."""

    def __init__(self, number: signal.Signals | None = None, *, after_s: float = 0.0) -> None:
        self.number, self.after_s = number, after_s

    def __call__(self, completion: str) -> float:
        if self.number is not None:
            number, self.number = self.number, None
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), number))
            signal.setitimer(signal.ITIMER_REAL, self.after_s)
        return digit_share(completion)


def stopped_at_random_times(directory: Path, count: int) -> tuple[int, int]:
    """Stop runs at random times and go on. Return how many were stopped, and how many went wrong."""
    choose = random.Random(6)
    train_digits(directory, "first", num_steps=1)  # What is imported or compiled once is not counted.
    started = time.monotonic()
    alone = bits_of(train_digits(directory, "left alone").path)
    seconds = time.monotonic() - started
    num_stopped = num_wrong = 0
    before = signal.getsignal(signal.SIGALRM)
    try:
        for trial in range(count):
            name, number = f"stopped {trial}", (signal.SIGTERM, signal.SIGINT)[trial % 2]
            reward = SignalledReward(number, after_s=choose.uniform(0.001, 0.8 * seconds))
            run = train_digits(directory, name, reward=reward)
            signal.setitimer(signal.ITIMER_REAL, 0)
            is_stopped = len(run.metrics) < 6
            num_stopped += is_stopped
            num_wrong += is_stopped and not is_saved_where_it_stopped(run)
            resume_digits(directory, name, reward=SignalledReward())
            num_wrong += bits_of(directory / name) != alone
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return num_stopped, num_wrong


def is_saved_where_it_stopped(run: Run) -> bool:
    """Whether the newest checkpoint is that of the last step, and the events say that the run was interrupted."""
    step = run.metrics[-1]["step"] if run.metrics else 0
    kinds = [event["kind"] for event in read_jsonl(run.path / "events.jsonl")]
    return newest(run.path).name == f"step-{step:06d}" and kinds[-1] == "interrupted"


def log_problems(run: Path) -> list[str]:
    """Return what is wrong with the logs of a run that was ended at any moment: lines that are no JSON, steps out of order."""
    problems = []
    for name in LOGS:
        path = run / f"{name}.jsonl"
        steps = [record["step"] for record in read_jsonl(path)]
        if path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size:
            problems.append(f"{name} ends in the middle of a line")
        for one, other in itertools.pairwise(steps):
            may_repeat = name in ("eval", "guard", "events")  # Several of them belong to a step.
            if one > other or (one == other and not may_repeat):
                problems.append(f"{name} has step {other} after step {one}")
    for name, keys in (("eval", ("step", "part", "mode")), ("guard", ("step", "detector"))):
        rows = [tuple(record[key] for key in keys) for record in read_jsonl(run / f"{name}.jsonl")]
        if len(rows) > len(set(rows)):
            problems.append(f"{name} has the same line twice")
    return problems
