"""A reward that hangs, however it does, costs its deadline and at most a second more, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests import bad_rewards, hanging_rewards
from tests.bad_rewards import BAD, FINE, batched, coroutine, ordinary, samples_of
from tests.digits import leave_out_slow_parts, train_digits

from covey.rewards.asynchronous import AsyncReward
from covey.rewards.base import Reward, as_reward, score_all
from covey.rewards.failures import error_kind
from covey.rewards.workers import RewardWorkers, WorkerSpec

DEADLINE_S = 1.0
KINDS: dict[str, Callable[[], Reward]] = {
    "in Python": lambda: as_reward(ordinary(bad_rewards.hang_in_python)),
    "in C": lambda: as_reward(ordinary(bad_rewards.hang_in_c)),
    "deaf to signals": lambda: as_reward(ordinary(bad_rewards.hang_deaf)),
    "asleep": lambda: as_reward(ordinary(hanging_rewards.sleep_for_ever)),
    "in a batch": lambda: as_reward(batched(hanging_rewards.sleep_for_ever)),
    "as a coroutine": lambda: hanging_coroutine(),
    "with children": lambda: as_reward(ordinary(hanging_rewards.leave_child_and_hang)),
}


def hanging_coroutine() -> Reward:
    reward = as_reward(coroutine(bad_rewards.hang_in_python))
    assert isinstance(reward, AsyncReward)
    return replace(reward, limit=1)


@pytest.fixture(scope="module")
def workers() -> Iterator[RewardWorkers]:
    spec = WorkerSpec(num_workers=1, timeout_s=DEADLINE_S, batch_timeout_s=DEADLINE_S, give_up_frac=1.0)
    with RewardWorkers(spec) as found:
        found.start()
        yield found


def descendants(process_id: int) -> set[int]:
    """Return the processes that come from one, those that wait to be collected left out."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            parents[int(stat.parent.name)] = int(parent)
    found: set[int] = set()
    while new := {child for child, parent in parents.items() if parent in found | {process_id}} - found:
        found |= new
    return found


def is_soon(condition: Callable[[], Any], *, within_s: float = 10.0) -> bool:
    until = time.monotonic() + within_s
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return bool(condition())


@pytest.mark.parametrize("kind", KINDS)
def test_a_hang_costs_its_deadline_and_leaves_no_process(kind: str, workers: RewardWorkers) -> None:
    others = descendants(os.getpid()) - set(workers.process_ids)
    reward = workers.isolated(KINDS[kind]())
    workers.start()
    started = time.monotonic()
    [score] = score_all(reward, samples_of([BAD]))
    seconds = time.monotonic() - started
    assert (score.value, error_kind(score)) == (None, "timeout")
    assert DEADLINE_S <= seconds < DEADLINE_S + 1.0
    assert is_soon(lambda: descendants(os.getpid()) - set(workers.process_ids) <= others)


def test_a_function_that_answers_is_not_taken_for_one_that_hangs(workers: RewardWorkers) -> None:
    """The positive control of the times: what does not hang takes no deadline."""
    reward = workers.isolated(as_reward(ordinary(bad_rewards.hang_in_python)))
    started = time.monotonic()
    assert [score.value for score in score_all(reward, samples_of(["fine"] * 4))] == [FINE] * 4
    assert time.monotonic() - started < DEADLINE_S + 1.0


def test_a_process_that_stays_is_seen() -> None:
    """The positive control of the count: a process that was started is found until it ends."""
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    assert child in descendants(os.getpid())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert child not in descendants(os.getpid())


def test_a_worker_that_is_frozen_costs_its_deadline(workers: RewardWorkers) -> None:
    reward = workers.isolated(as_reward(hanging_rewards.take_a_while))
    workers.start()
    [frozen] = workers.process_ids
    threading.Timer(0.1, os.kill, (frozen, signal.SIGSTOP)).start()
    started = time.monotonic()
    scores = score_all(reward, samples_of([BAD, "fine"]))
    assert time.monotonic() - started < 2 * (DEADLINE_S + 1.0)
    assert (scores[0].value, error_kind(scores[0]), scores[1].value) == (None, "timeout", FINE)


def test_a_run_with_a_reward_that_hangs_once_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_slow_parts(monkeypatch)
    monkeypatch.setenv(hanging_rewards.MARKER, str(tmp_path / "has-hung"))
    before = descendants(os.getpid())
    options = {"reward__num_workers": 1, "reward__timeout_s": DEADLINE_S, "reward__max_error_frac": 0.9}
    run = train_digits(
        tmp_path, "run", num_steps=2, evaluation__before=False, reward=hanging_rewards.hang_once, gold=None, **options
    )
    assert [row["step"] for row in run.metrics] == [1, 2]
    assert (tmp_path / "has-hung").exists()
    assert is_soon(lambda: descendants(os.getpid()) <= before)
