"""The code of a reward worker: a child process that reads calls from one pipe and writes scores to another.

Both pipes carry frames: four bytes that mark one, four bytes of length, then the payload. Calls come pickled, from the
trainer. What goes back is JSON and nothing else, so that nothing a reward does can make the trainer run code.

    ("load", number, pickled reward)               -> {"loaded": number} or {"failed": text}
    ("score", number, [(index, pickled samples)])  -> {"begin": index}, then {"index": index, "scores": rows} or
                                                      {"index": index, "error": text}, for each index

A process imports this and the reward; it must stay free of torch and transformers, to start in a fraction of a second.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import json
import os
import pickle
import resource
import signal
import struct
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn, TextIO

from covey.rewards.asynchronous import AsyncReward, event_loop, run_calls
from covey.rewards.base import Reward, Sample, score_all
from covey.rewards.failures import clipped, failure_text
from covey.types import Score

MARK = b"CVY1"
HEADER = struct.Struct(">4sI")
MAX_ANSWER_BYTES = 64 << 20
MAX_EXTRACTED_CHARACTERS = 20_000

_PR_SET_PDEATHSIG = 1


def framed(payload: bytes) -> bytes:
    """Return the payload as a frame."""
    return HEADER.pack(MARK, len(payload)) + payload


@dataclass(frozen=True, kw_only=True, slots=True)
class Channel:
    """The worker's ends of the two pipes."""

    requests: int
    answers: int
    pid: int
    """The process that they belong to: a fork has them, too, and must not use them."""

    def receive(self) -> Any:
        """Return the next call.

        Raises:
            EOFError: the trainer is gone, or something has taken a part of the call away.
        """
        mark, size = HEADER.unpack(self._read(HEADER.size))
        if mark != MARK:
            raise EOFError
        return pickle.loads(self._read(size))

    def send(self, *answers: dict[str, Any]) -> None:
        """Write the answers, in one piece."""
        if os.getpid() != self.pid:
            os._exit(1)  # The function forked, and its child has come back from it, too.
        data = b"".join(framed(_encoded(answer)) for answer in answers)
        while data:
            data = data[os.write(self.answers, data) :]

    def close(self) -> None:
        os.close(self.requests)
        os.close(self.answers)

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = os.read(self.requests, min(size - len(data), 1 << 20))
            if not chunk:
                raise EOFError
            data += chunk
        return bytes(data)


def _encoded(answer: dict[str, Any]) -> bytes:
    payload = json.dumps(answer).encode()
    if len(payload) > MAX_ANSWER_BYTES:
        error = f"invalid: the scores of this call take {len(payload)} bytes, more than {MAX_ANSWER_BYTES}"
        return json.dumps({"index": answer.get("index"), "error": error}).encode()
    return payload


@dataclass(slots=True)
class Surroundings:
    """What a function may leave changed behind it: the next call must not depend on which worker made the one before."""

    directory: int
    environ: dict[str, str]
    output: int
    stdout: TextIO
    stderr: TextIO

    @classmethod
    def now(cls) -> Surroundings:
        return cls(
            directory=os.open(".", os.O_RDONLY),
            environ=dict(os.environ),
            output=os.dup(1),
            stdout=_stream(1),
            stderr=_stream(2),
        )

    def put_back(self) -> None:
        """Put working directory, environment and standard streams back to what they were."""
        os.fchdir(self.directory)
        os.set_blocking(self.output, True)
        if dict(os.environ) != self.environ:
            os.environ.clear()
            os.environ.update(self.environ)
        for descriptor in (1, 2):
            os.dup2(self.output, descriptor)
        self.stdout = _stream(1) if self.stdout.closed else self.stdout
        self.stderr = _stream(2) if self.stderr.closed else self.stderr
        sys.stdout, sys.stderr = self.stdout, self.stderr


def _stream(descriptor: int) -> TextIO:
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def serve(channel: Channel) -> NoReturn:
    """Answer calls for as long as there are any.

    Raises:
        EOFError: there are no more.
    """
    rewards: dict[int, Reward] = {}
    surroundings = Surroundings.now()
    surroundings.put_back()
    while True:
        verb, number, content = channel.receive()
        if verb == "load":
            try:
                rewards[number] = pickle.loads(content)
            except BaseException as error:
                channel.send({"failed": failure_text(error)})
                continue
            surroundings.environ = dict(os.environ)  # A module that is imported may set something for good.
            channel.send({"loaded": number})
        elif isinstance(reward := rewards[number], AsyncReward):
            score_concurrently(reward, content, channel)
            surroundings.put_back()
        else:
            score_in_turn(reward, content, channel, surroundings)


def score_in_turn(reward: Reward, calls: Sequence[tuple[int, bytes]], channel: Channel, surroundings: Surroundings) -> None:
    """Answer one call after the other."""
    channel.send({"begin": calls[0][0]})
    for (index, pickled), following in zip(calls, [*calls[1:], None], strict=True):
        answer = answer_of(reward, index, pickled)
        surroundings.put_back()
        channel.send(answer, *([] if following is None else [{"begin": following[0]}]))


def answer_of(reward: Reward, index: int, pickled: bytes) -> dict[str, Any]:
    """Return the scores of a call. The samples are unpickled for it alone: none sees what another call did to its prompt."""
    try:
        return {"index": index, "scores": [row_of(score) for score in score_all(reward, pickle.loads(pickled))]}
    except BaseException as error:  # Nobody but the function can have raised a KeyboardInterrupt here.
        return {"index": index, "error": failure_text(error)}


def score_concurrently(reward: AsyncReward, calls: Sequence[tuple[int, bytes]], channel: Channel) -> None:
    """Answer all calls in the event loop, each when it is done."""
    samples: dict[int, Sample] = {}
    for index, pickled in calls:
        try:
            samples[index] = pickle.loads(pickled)[0]
        except BaseException as error:
            channel.send({"begin": index}, {"index": index, "error": failure_text(error)})
    running = run_calls(
        reward,
        samples,
        begin=lambda index: channel.send({"begin": index}),
        finish=lambda index, score: channel.send({"index": index, "scores": [row_of(score)]}),
    )
    asyncio.run_coroutine_threadsafe(running, event_loop()).result()


def row_of(score: Score) -> list[Any]:
    """Return a Score as JSON holds it."""
    extracted = None if score.extracted is None else clipped(score.extracted, max_characters=MAX_EXTRACTED_CHARACTERS)
    error = None if score.error is None else clipped(score.error)
    return [score.value, dict(score.parts), extracted, error, float(score.elapsed_s)]


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the trainer dies, whatever the reward is doing then. Linux only.

    Elsewhere the worker ends at its next answer, when it finds the pipe closed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def main(*, requests: int, answers: int, parent: int, max_memory_mb: int) -> None:
    """Run a worker. It ends without waiting for threads that a function has left behind."""
    die_with_parent(parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if max_memory_mb:
        resource.setrlimit(resource.RLIMIT_AS, (max_memory_mb << 20, max_memory_mb << 20))
    for descriptor in (requests, answers):
        os.set_inheritable(descriptor, False)
    output = os.dup(1)
    faulthandler.enable(output)
    faulthandler.register(signal.SIGUSR1, output)  # The trainer asks in this way where a call hangs, also one in C.
    channel = Channel(requests=requests, answers=answers, pid=os.getpid())
    os.register_at_fork(after_in_child=channel.close)
    try:
        serve(channel)
    except (EOFError, BrokenPipeError):
        os._exit(0)
    except BaseException:
        with suppress(Exception):  # The streams may be gone: a function can close whatever it finds.
            traceback.print_exc()
        os._exit(1)
