"""Rewards in worker processes that can be killed: a deadline for each call, and no failure that reaches the trainer."""

from __future__ import annotations

import os
import pickle
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cloudpickle

from covey.rewards.asynchronous import GRACE_S, AsyncReward
from covey.rewards.base import Reward, Sample, ScoresBatches
from covey.rewards.code import CodeReward, SandboxSpec
from covey.rewards.combine import CombinedReward
from covey.rewards.control import ControlReward
from covey.rewards.dispatch import Call, Dispatch, SentReward, chunks_of
from covey.rewards.length import OverlongPenalised
from covey.rewards.worker_process import OutputLog, WorkerProcess, start_worker
from covey.types import CoveyError, Score

NOT_COPIED = (pickle.PicklingError, TypeError, AttributeError, ValueError, RuntimeError)
"""What pickling raises for objects that cannot be copied, each kind of object its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSpec:
    """How rewards run in worker processes."""

    num_workers: int = 2
    """0: in the training process, without a deadline, but for coroutine functions."""
    timeout_s: float = 10.0
    """Deadline of a call for one completion."""
    batch_timeout_s: float = 60.0
    """Deadline of a call for a whole batch, of a reward that takes batches."""
    start_timeout_s: float = 60.0
    """Deadline of a worker's start, with all that the reward imports."""
    max_memory_mb: int = 0
    """Address space that a worker may have; 0 = as much as there is."""
    give_up_frac: float = 0.5
    """Once more than this share of a batch's calls has hung or died, the rest of the batch is not tried."""
    max_log_bytes: int = 1 << 20
    """How much of what the functions print is kept."""
    sandbox: SandboxSpec = field(default_factory=SandboxSpec)
    """Where the candidates of rewards that run code run."""


class RewardWorkers:
    """A pool of worker processes for the reward or the verifier of a run.

        with RewardWorkers(WorkerSpec(timeout_s=5.0)) as workers:
            reward = workers.isolated(as_reward(function))

    They start with the first call, or with `start`, and stay. What they know of the trainer is what its calls hold.
    """

    def __init__(self, spec: WorkerSpec | None = None, *, log: Path | None = None) -> None:
        self.spec = spec or WorkerSpec()
        self._log = OutputLog(path=log, bytes_left=self.spec.max_log_bytes)
        self._rewards: list[SentReward] = []
        self._workers: list[WorkerProcess] = []
        self._lock = threading.Lock()
        self._stop = weakref.finalize(self, stop_all, self._workers, os.getpid())

    def __enter__(self) -> RewardWorkers:
        return self

    def __exit__(self, *failure: Any) -> None:
        self.close()

    @property
    def process_ids(self) -> list[int]:
        """Of the workers that there are now."""
        return [worker.process.pid for worker in self._workers]

    def isolated(self, reward: Reward) -> Reward:
        """Return the reward with its calls made in the workers; of one that is made of others, the calls of each of these.

        A reward that says `runs_inline` stays in the training process. Name, range, columns and parts are the same.

        Raises:
            CoveyError: it cannot be sent to another process, or needs a sandbox and none holds here.
        """
        if isinstance(reward, CombinedReward):
            return replace(reward, parts=tuple(replace(part, reward=self.isolated(part.reward)) for part in reward.parts))
        if isinstance(reward, OverlongPenalised | ControlReward):
            return replace(reward, reward=self.isolated(reward.reward))
        if isinstance(reward, CodeReward):
            sandboxed = replace(reward, sandbox=self.spec.sandbox)
            sandboxed.prepare()
            return sandboxed
        if isinstance(reward, AsyncReward):
            reward = replace(reward, timeout_s=self.spec.timeout_s)
        if self.spec.num_workers == 0 or getattr(reward, "runs_inline", False):
            return reward
        sent = SentReward(
            number=len(self._rewards),
            name=reward.name,
            pickled=pickled_reward(reward),
            deadline_s=self._deadline_s(reward),
            start_timeout_s=self.spec.start_timeout_s,
            give_up_frac=self.spec.give_up_frac,
        )
        self._rewards.append(sent)
        return IsolatedReward(reward=reward, workers=self, number=sent.number)

    def start(self) -> None:
        """Start the workers and load the rewards, so that a reward that cannot be loaded shows before the training.

        Raises:
            CoveyError: it cannot.
        """
        for sent in self._rewards:
            self._run(sent, [[] for _ in range(self.spec.num_workers)])

    def scores(self, number: int, samples: Sequence[Sample], *, mode: str) -> list[Score]:
        """Return the scores of the samples from one of the rewards, in their order, whichever worker is first.

        Raises:
            CoveyError: the reward cannot be loaded in a worker, or a sample cannot be sent to one.
        """
        if mode == "batch":
            calls = [Call(index=0, num_samples=len(samples), pickled=pickled_samples(samples))]
        else:
            # One by one, also where samples share a prompt: what a function does to it is seen by none of the others.
            calls = [
                Call(index=index, num_samples=1, pickled=pickled_samples([sample])) for index, sample in enumerate(samples)
            ]
        # The calls of a coroutine function wait in one event loop, where its limit holds for all of them.
        chunks = [calls] if mode == "async" else chunks_of(calls, num_workers=self.spec.num_workers)
        found = self._run(self._rewards[number], chunks)
        return [score for index in sorted(found) for score in found[index]]

    def close(self) -> None:
        """Stop the workers and all that they have started. A later call would start new ones."""
        stop_all(self._workers, os.getpid())

    def _deadline_s(self, reward: Reward) -> float:
        if isinstance(reward, AsyncReward):
            return self.spec.timeout_s + GRACE_S  # The event loop has the deadline itself; this is for a call that blocks it.
        return self.spec.batch_timeout_s if isinstance(reward, ScoresBatches) else self.spec.timeout_s

    def _run(self, sent: SentReward, chunks: list[list[Call]]) -> dict[int, list[Score]]:
        with self._lock:
            return Dispatch(sent, workers=self._workers, start=self._new_worker, max_workers=self.spec.num_workers).run(chunks)

    def _new_worker(self) -> WorkerProcess:
        return start_worker(max_memory_mb=self.spec.max_memory_mb, log=self._log)


@dataclass(frozen=True, kw_only=True, slots=True)
class IsolatedReward:
    """A Reward whose calls are made in worker processes."""

    reward: Reward
    """The same in the training process; only its name, its range and its columns are read here."""
    workers: RewardWorkers
    number: int

    @property
    def name(self) -> str:
        return self.reward.name

    @property
    def low(self) -> float:
        return self.reward.low

    @property
    def high(self) -> float:
        return self.reward.high

    def __getattr__(self, name: str) -> Any:
        if name in ("columns", "part_names", "part_weights"):  # Those that the reward has, and no others.
            return getattr(self.reward, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __call__(self, sample: Sample) -> Score:
        return self.score_batch([sample])[0]

    def score_batch(self, samples: Sequence[Sample]) -> list[Score]:
        """Return the scores of all samples. A call that fails costs its own sample, or the batch that it was for."""
        if isinstance(self.reward, AsyncReward):
            return self.workers.scores(self.number, samples, mode="async")
        return self.workers.scores(self.number, samples, mode="batch" if isinstance(self.reward, ScoresBatches) else "each")


def pickled_reward(reward: Reward) -> bytes:
    """Return the reward for another process, with the code of functions that no module holds.

    Raises:
        CoveyError: something that it holds cannot be copied.
    """
    try:
        return cloudpickle.dumps(reward)
    except NOT_COPIED as error:
        raise CoveyError(
            f"reward {reward.name!r} cannot be sent to a worker process ({type(error).__name__}: {error}). It holds something "
            "that cannot be copied, such as an open file, a lock, a connection or a model: make that inside the function when "
            "it is first needed, or score in the training process with num_workers=0"
        ) from error


def pickled_samples(samples: Sequence[Sample]) -> bytes:
    """Return samples for another process.

    Raises:
        CoveyError: an answer or a column cannot be copied.
    """
    try:
        return cloudpickle.dumps(list(samples))
    except NOT_COPIED as error:
        raise CoveyError(
            f"prompt {samples[0].prompt.prompt_id!r} cannot be sent to a worker process ({type(error).__name__}: {error}); "
            "give answers and columns that can be copied, such as texts, numbers and lists, or score with num_workers=0"
        ) from error


def stop_all(workers: list[WorkerProcess], owner: int) -> None:
    """Stop the workers, if this is the process that started them and no fork of it."""
    while workers and os.getpid() == owner:
        workers.pop().stop()
