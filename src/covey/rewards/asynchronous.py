"""Rewards that are coroutine functions: their calls wait together, in one event loop in a thread of its own.

A thread of its own, because in a notebook the main thread has a running loop already.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from covey.rewards.base import Sample, arguments_of, name_of, score_of_result, with_plain_values
from covey.rewards.failures import failure_text
from covey.types import Score

GRACE_S = 0.5
"""How late the event loop may be with a deadline before it counts as blocked."""

TURN_S = 0.05
"""How often the loop says that it still turns."""

_given_up: set[asyncio.Task[Score]] = set()
"""Calls past their deadline that have not ended yet: the loop itself holds its tasks weakly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AsyncReward:
    """A Reward made of a coroutine function. Scores come in the order of the samples, whichever call ends first."""

    name: str
    score: Callable[[Sample], Awaitable[Score]]
    low: float = 0.0
    high: float = 1.0
    columns: tuple[str, ...] = ()
    """The columns of the data row that the function cannot do without."""
    limit: int = 32
    """How many calls may wait at the same time."""
    timeout_s: float = 10.0
    """The deadline of each call, from its beginning."""

    def __call__(self, sample: Sample) -> Score:
        return self.score_batch([sample])[0]

    def score_batch(self, samples: Sequence[Sample]) -> list[Score]:
        """Return the scores of all samples. Calls that had not begun when another blocked the loop begin in a new loop."""
        scores: dict[int, Score] = {}
        while missing := {index: sample for index, sample in enumerate(samples) if index not in scores}:
            scores |= scores_until_blocked(self, missing)
        return [scores[index] for index in range(len(samples))]


def reward_from_coroutine(
    function: Callable[..., Awaitable[Any]],
    *,
    low: float = 0.0,
    high: float = 1.0,
    limit: int = 32,
    timeout_s: float = 10.0,
) -> AsyncReward:
    """Return a Reward that awaits `function`, which asks for its arguments as an ordinary reward function does."""
    name = name_of(function)
    arguments = arguments_of(function, name)

    async def score(sample: Sample) -> Score:
        return score_of_result(await function(**arguments.of(sample)), name)

    columns = arguments.columns
    return AsyncReward(name=name, score=score, low=low, high=high, columns=columns, limit=limit, timeout_s=timeout_s)


def awaited(function: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    """Return an ordinary function of the same parameters that waits for the coroutine function's result."""

    @functools.wraps(function, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        result, error = asyncio.run_coroutine_threadsafe(_outcome(function(*args, **kwargs)), event_loop()).result()
        if error is not None:
            raise error
        return result

    call.__name__ = name_of(function)
    return call


@functools.cache
def event_loop() -> asyncio.AbstractEventLoop:
    """Return this process's loop for rewards. It is kept: a client that a function holds belongs to the loop it began in."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="covey-async-rewards", daemon=True).start()
    return loop


os.register_at_fork(after_in_child=event_loop.cache_clear)  # A fork has the loop, but not its thread.


@dataclass(slots=True)
class Progress:
    """What the calls of a batch have come to."""

    begun: set[int] = field(default_factory=set)
    scores: dict[int, Score] = field(default_factory=dict)
    turned_at: float = field(default_factory=time.monotonic)
    """When the loop last came round."""


def scores_until_blocked(reward: AsyncReward, samples: Mapping[int, Sample]) -> dict[int, Score]:
    """Return the scores of all samples, or, once a call blocks the event loop, of those whose calls had begun."""
    progress = Progress()
    future = asyncio.run_coroutine_threadsafe(_run_watched(reward, samples, progress), event_loop())
    try:
        while time.monotonic() - progress.turned_at < reward.timeout_s + GRACE_S:
            try:
                future.result(timeout=TURN_S)
                return progress.scores
            except TimeoutError:
                if future.done():
                    raise
    finally:
        future.cancel()  # A loop that is blocked must not begin more calls once it turns again.
    event_loop.cache_clear()
    finished = dict(progress.scores)
    error = (
        f"timeout: a call of {reward.name} blocked the event loop for {reward.timeout_s:g} s, and this one was under way. A "
        "coroutine must await what takes long; put what blocks into an ordinary function, which runs in worker processes"
    )
    lost = Score(value=None, error=error, elapsed_s=reward.timeout_s)
    return finished | {index: lost for index in list(progress.begun) if index not in finished}


async def run_calls(
    reward: AsyncReward,
    samples: Mapping[int, Sample],
    *,
    begin: Callable[[int], None],
    finish: Callable[[int, Score], None],
) -> None:
    """Score the samples, at most `reward.limit` at a time; `begin` and `finish` are told each one's index."""
    gate = asyncio.Semaphore(reward.limit)

    async def call(index: int, sample: Sample) -> None:
        async with gate:
            begin(index)
            finish(index, await _score_within_deadline(reward, sample))

    await asyncio.gather(*(call(index, sample) for index, sample in samples.items()))


async def _run_watched(reward: AsyncReward, samples: Mapping[int, Sample], progress: Progress) -> None:
    turning = asyncio.create_task(_keep_turning(progress))
    try:
        await run_calls(reward, samples, begin=progress.begun.add, finish=progress.scores.__setitem__)
    finally:
        turning.cancel()


async def _keep_turning(progress: Progress) -> None:
    while True:
        progress.turned_at = time.monotonic()
        await asyncio.sleep(TURN_S)


async def _score_within_deadline(reward: AsyncReward, sample: Sample) -> Score:
    """Return the score, or at the deadline where the call was waiting. A call that refuses to be cancelled is left alone."""
    started = time.monotonic()
    task = asyncio.create_task(_score_or_failure(reward, sample))
    try:
        await asyncio.wait({task}, timeout=reward.timeout_s)
    except asyncio.CancelledError:
        task.cancel()
        raise
    elapsed_s = time.monotonic() - started
    if task.done():
        return replace(task.result(), elapsed_s=elapsed_s)
    where = _where_it_waits(task)
    _given_up.add(task)
    task.add_done_callback(_given_up.discard)
    task.cancel()
    error = f"timeout: {reward.name} had not answered after {reward.timeout_s:g} s. It was waiting here:\n{where}"
    return Score(value=None, error=error, elapsed_s=elapsed_s)


async def _score_or_failure(reward: AsyncReward, sample: Sample) -> Score:
    result, error = await _outcome(reward.score(sample))
    if error is None:
        try:
            return with_plain_values(result)
        except Exception as invalid:  # What a user's objects raise when they are read is data about them.
            error = invalid
    return Score(value=None, error=failure_text(error))


async def _outcome(awaitable: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    """Return (result, None) or (None, what was raised). A KeyboardInterrupt or SystemExit out of a task would end the loop."""
    try:
        return await awaitable, None
    except BaseException as error:
        return None, error


def _where_it_waits(task: asyncio.Task[Any]) -> str:
    """Return the innermost lines of the coroutines that the task is waiting in."""
    frames = []
    waiting: Any = task.get_coro()
    while getattr(waiting, "cr_frame", None) is not None:
        frames.append((waiting.cr_frame, waiting.cr_frame.f_lineno))
        waiting = waiting.cr_await
    return "".join(traceback.StackSummary.extract(iter(frames)).format()[-3:])
