"""Built-in rewards whose time nothing bounds but a deadline: their calls run in a process of their own that can be killed.

One process a set of limits, started with the first call and kept, whatever thread makes the calls. There is no alarm signal and
no thread that is given up.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from covey.rewards.base import FunctionReward, Sample, ScoresBatches
from covey.rewards.workers import RewardWorkers, WorkerSpec
from covey.types import CoveyError, Score

MAX_MEMORY_MB = 2048
"""Address space of the process: an expression can ask for more memory than there is."""
GIVE_UP_FRAC = 0.25
"""Once more than this share of a batch's completions has hung, the rest of the batch is not tried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KillableReward:
    """A Reward whose calls are made in a process that is killed at the deadline; such a call has no value, but an error."""

    reward: FunctionReward
    deadline_s: float
    """Of the call for one completion."""
    runs_inline: bool = True

    @property
    def name(self) -> str:
        return self.reward.name

    @property
    def low(self) -> float:
        return self.reward.low

    @property
    def high(self) -> float:
        return self.reward.high

    def __call__(self, sample: Sample) -> Score:
        return self.score_batch([sample])[0]

    def score_batch(self, samples: Sequence[Sample]) -> list[Score]:
        """Return the scores of all samples, each from a call of its own."""
        return _thread().submit(_scores, self, tuple(samples)).result()


def killable(reward: FunctionReward, *, deadline_s: float) -> KillableReward:
    """Return the reward with its calls made in a process of their own.

    Raises:
        CoveyError: the deadline is not positive.
    """
    if not 0 < deadline_s < 3600:
        raise CoveyError(f"deadline_s={deadline_s}: give seconds, more than 0 and less than an hour")
    return KillableReward(reward=reward, deadline_s=deadline_s)


def _scores(reward: KillableReward, samples: Sequence[Sample]) -> list[Score]:
    return list(_isolated(reward).score_batch(samples))


@functools.cache
def _thread() -> ThreadPoolExecutor:
    """Return the one thread that speaks with the processes: they die with the thread that has started them."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="covey-killable-rewards")


@functools.cache
def _workers(deadline_s: float) -> RewardWorkers:
    spec = WorkerSpec(num_workers=1, timeout_s=deadline_s, max_memory_mb=MAX_MEMORY_MB, give_up_frac=GIVE_UP_FRAC)
    return RewardWorkers(spec)


@functools.cache
def _isolated(reward: KillableReward) -> ScoresBatches:
    isolated = _workers(reward.deadline_s).isolated(reward.reward)
    assert isinstance(isolated, ScoresBatches)
    return isolated


def _forget() -> None:
    """Leave the thread and the processes to the parent: a fork has neither."""
    for cached in (_thread, _workers, _isolated):
        cached.cache_clear()


os.register_at_fork(after_in_child=_forget)
