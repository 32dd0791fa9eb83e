"""One batch of calls on its way through the workers: who makes which, until when, and what becomes of those that are lost."""

from __future__ import annotations

import math
import selectors
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from covey.rewards.worker_process import ChannelError, WorkerProcess, scores_of_rows
from covey.types import CoveyError, Score

MAX_ATTEMPTS = 3
"""How many workers may be lost before any has begun with a call."""

DEATH_PATIENCE_S = 0.5
"""How long a worker that has closed its pipe may take to end by itself, so that its exit code can be told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SentReward:
    """A reward as the workers get it, with the limits of its calls."""

    number: int
    name: str
    pickled: bytes
    deadline_s: float
    """Of a call, from its beginning."""
    start_timeout_s: float
    """Of a worker's start, the reward's imports included."""
    give_up_frac: float
    """Once more than this share of a batch's calls has hung or died, the rest is not tried."""


@dataclass(slots=True)
class Call:
    """One call of the reward: a sample, or all of them."""

    index: int
    num_samples: int
    pickled: bytes
    num_attempts: int = 0


@dataclass(slots=True)
class Assignment:
    """What a worker is to do. It begins with the calls in their order, and a call that it has begun is never made again."""

    waiting: dict[int, Call]
    heard_at: float
    """When it was given the calls, or last said something."""
    begun: dict[int, tuple[Call, float]] = field(default_factory=dict)
    """With the time of each beginning."""


class Dispatch:
    """The calls of one batch. `workers` is the pool: those that are lost leave it, new ones come into it."""

    def __init__(
        self, reward: SentReward, *, workers: list[WorkerProcess], start: Callable[[], WorkerProcess], max_workers: int
    ) -> None:
        self.reward, self.workers, self.start, self.max_workers = reward, workers, start, max_workers
        self.selector = selectors.DefaultSelector()
        self.queue: deque[list[Call]] = deque()
        self.busy: dict[WorkerProcess, Assignment] = {}
        self.scores: dict[int, list[Score]] = {}
        self.num_calls = self.num_lost = 0

    def run(self, chunks: Iterable[list[Call]]) -> dict[int, list[Score]]:
        """Return the scores of each call, by its index. An empty chunk makes a worker ready and no call.

        Raises:
            CoveyError: the reward cannot be loaded in a worker.
        """
        self.queue.extend(chunks)
        self.num_calls = sum(map(len, self.queue))
        for worker in self.workers:
            self._listen(worker)
        try:
            self._hear()  # Of workers that have died since the last batch.
            while self.queue or self.busy:
                self._assign()
                self._hear()
                self._stop_late_workers()
        finally:
            for worker in list(self.busy):  # Interrupted, or failed: what they would answer is nobody's.
                self._remove(worker).stop()
            self.selector.close()
        return self.scores

    def _assign(self) -> None:
        """Give the next chunks to the workers that are free, and start workers while there are more chunks."""
        number = self.reward.number
        while self.queue and (worker := self._free_worker()):
            calls = self.queue.popleft()
            self.busy[worker] = Assignment(waiting={call.index: call for call in calls}, heard_at=time.monotonic())
            if number not in worker.loaded:
                worker.send(("load", number, self.reward.pickled))
            if calls:
                worker.send(("score", number, [(call.index, call.pickled) for call in calls]))
            self._flush(worker)
            self._free_if_done(worker)

    def _free_worker(self) -> WorkerProcess | None:
        for worker in self.workers:
            if worker not in self.busy:
                return worker
        if len(self.workers) >= self.max_workers:
            return None
        worker = self.start()
        self.workers.append(worker)
        self._listen(worker)
        return worker

    def _hear(self) -> None:
        """Wait for whatever comes first, an answer or a deadline, and take what has come."""
        until = min((self._deadline(worker) for worker in self.busy), default=0.0)
        for key, _ in self.selector.select(max(0.0, until - time.monotonic())):
            worker, stream = key.data
            if worker not in self.workers:
                continue  # It was lost a moment ago.
            if stream == "output" and not worker.read_output():
                self.selector.unregister(key.fd)
            elif stream == "requests":
                self._flush(worker)
            elif stream == "answers":
                self._receive(worker)

    def _receive(self, worker: WorkerProcess) -> None:
        try:
            for answer in worker.receive():
                self._take(worker, answer)
        except ChannelError as error:
            self._lose(worker, f"{error}; the process {worker.stop(patience_s=DEATH_PATIENCE_S)}")

    def _take(self, worker: WorkerProcess, answer: dict[str, Any]) -> None:
        assignment = self.busy.get(worker)
        if assignment is None:
            raise ChannelError("it answered what nobody had asked")
        assignment.heard_at = time.monotonic()
        match answer:
            case {"loaded": int(number)} if number == self.reward.number:
                worker.loaded.add(number)
            case {"failed": str(text)}:
                raise CoveyError(self._cannot_load(text))
            case {"begin": int(index)} if index in assignment.waiting:
                assignment.begun[index] = (assignment.waiting.pop(index), assignment.heard_at)
            case {"index": int(index), "scores": rows} if index in assignment.begun:
                self.scores[index] = scores_of_rows(rows, assignment.begun[index][0].num_samples)
                del assignment.begun[index]
            case {"index": int(index), "error": str(error)} if index in assignment.begun:
                self._fail(*assignment.begun.pop(index), error)
            case _:
                raise ChannelError("it answered what nobody had asked")
        self._free_if_done(worker)

    def _free_if_done(self, worker: WorkerProcess) -> None:
        assignment = self.busy[worker]
        if self.reward.number in worker.loaded and not assignment.waiting and not assignment.begun:
            del self.busy[worker]

    def _deadline(self, worker: WorkerProcess) -> float:
        """Return when the worker must have said the next thing."""
        assignment = self.busy[worker]
        if self.reward.number not in worker.loaded:
            return assignment.heard_at + self.reward.start_timeout_s
        since = min((begun_at for _, begun_at in assignment.begun.values()), default=assignment.heard_at)
        return since + self.reward.deadline_s

    def _stop_late_workers(self) -> None:
        for worker in list(self.busy):
            if time.monotonic() >= self._deadline(worker):
                self._receive(worker)  # It may have answered while the trainer itself was held up.
            if worker not in self.busy or time.monotonic() < self._deadline(worker):
                continue
            where = worker.stack()
            worker.stop()
            self._lose(worker, "", where=f" It was here:\n{where}" if where else "")

    def _lose(self, worker: WorkerProcess, death: str, *, where: str = "") -> None:
        """Go on without a worker that has been stopped: because of its death, or because it was late (`death` is empty).

        The calls that it had begun have failed; the others are made by other workers.
        """
        was_ready = self.reward.number in worker.loaded
        assignment = self.busy.get(worker)
        self._remove(worker)
        if assignment is None:
            return
        name, words = self.reward.name, worker.last_words() if death else where
        if not was_ready:
            late = f"it was not ready after {self.reward.start_timeout_s:g} s (the start_timeout_s of the workers)."
            raise CoveyError(self._cannot_load((f"{death}." if death else late) + words))
        late = f"timeout: {name} had not answered after {self.reward.deadline_s:g} s; its worker process was stopped."
        error = (f"died: the worker process of {name} was lost in this call: {death}." if death else late) + words
        for call, begun_at in assignment.begun.values():
            self._fail(call, begun_at, error)
        self.num_lost += len(assignment.begun)
        rest = list(assignment.waiting.values())
        if not assignment.begun:
            rest = self._worth_another_attempt(rest, error)
        if rest:
            self.queue.appendleft(rest)
        if self.num_lost > self.reward.give_up_frac * self.num_calls:
            self._give_up()

    def _worth_another_attempt(self, calls: list[Call], error: str) -> list[Call]:
        for call in calls:
            call.num_attempts += 1
            if call.num_attempts >= MAX_ATTEMPTS:
                self._fail(call, time.monotonic(), error)
        return [call for call in calls if call.num_attempts < MAX_ATTEMPTS]

    def _give_up(self) -> None:
        error = f"skipped: {self.num_lost} of {self.num_calls} calls of {self.reward.name} had hung or died before this one"
        for call in (call for calls in self.queue for call in calls):
            self._fail(call, time.monotonic(), error)
        self.queue.clear()

    def _fail(self, call: Call, begun_at: float, error: str) -> None:
        elapsed_s = (time.monotonic() - begun_at) / call.num_samples
        self.scores[call.index] = [Score(value=None, error=error, elapsed_s=elapsed_s)] * call.num_samples

    def _listen(self, worker: WorkerProcess) -> None:
        self.selector.register(worker.answers, selectors.EVENT_READ, (worker, "answers"))
        self.selector.register(worker.output, selectors.EVENT_READ, (worker, "output"))

    def _flush(self, worker: WorkerProcess) -> None:
        """Write to the worker, and go on with it when the pipe takes more."""
        worker.flush()
        is_waiting = worker.requests in self.selector.get_map()
        if worker.outgoing and not is_waiting:
            self.selector.register(worker.requests, selectors.EVENT_WRITE, (worker, "requests"))
        elif is_waiting and not worker.outgoing:
            self.selector.unregister(worker.requests)

    def _remove(self, worker: WorkerProcess) -> WorkerProcess:
        """Take the worker out of the pool."""
        for key in list(self.selector.get_map().values()):
            if key.data[0] is worker:
                self.selector.unregister(key.fileobj)
        self.workers.remove(worker)
        self.busy.pop(worker, None)
        return worker

    def _cannot_load(self, reason: str) -> str:
        return (
            f"reward {self.reward.name!r} could not be loaded in a worker process. Put it into a module that can be imported "
            f"there, without work at import time, or score in the training process with num_workers=0. The reason:\n{reason}"
        )


def chunks_of(calls: list[Call], *, num_workers: int, max_size: int = 32) -> list[list[Call]]:
    """Return the calls in pieces: several for each worker, so that none is left with a long rest."""
    size = max(1, min(max_size, math.ceil(len(calls) / (4 * num_workers))))
    return [calls[start : start + size] for start in range(0, len(calls), size)]
