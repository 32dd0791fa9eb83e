"""One reward worker as the trainer sees it. Nothing that it sends is trusted: frames are bounded, and JSON is checked."""

from __future__ import annotations

import json
import os
import pickle
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from covey.rewards.failures import clipped
from covey.rewards.worker_main import HEADER, MARK, MAX_ANSWER_BYTES, framed
from covey.types import Score

_BOOTSTRAP = (
    "import json, sys; given = json.loads(sys.argv.pop()); sys.path[:] = given.pop('path'); "
    "from covey.rewards.worker_main import main; main(**given)"
)

MARKER = "COVEY_REWARD_WORKER"
"""The environment variable by which everything that a worker has started is known."""

TAIL_BYTES = 8192
MAX_SHOWN_CHARACTERS = 1500
_READ_BYTES = 1 << 16


class ChannelError(Exception):
    """The worker is gone, or has written something else than answers."""


@dataclass(slots=True)
class OutputLog:
    """A file with what the functions print, up to a bound. Without a path it is dropped."""

    path: Path | None
    bytes_left: int

    def add(self, data: bytes) -> None:
        if self.path is None or self.bytes_left <= 0:
            return
        kept = data[: self.bytes_left]
        self.bytes_left -= len(kept)
        end = b"\n[what was printed after this was left out]\n" if self.bytes_left == 0 else b""
        try:
            with self.path.open("ab") as file:
                file.write(kept + end)
        except FileNotFoundError:
            self.bytes_left += len(kept)  # The run directory is not there yet; what is printed while loading is dropped.
        except OSError:
            self.bytes_left = 0  # A full disk must not stop a run for the sake of what a reward prints.


@dataclass(slots=True, eq=False)
class WorkerProcess:
    """A running worker and the trainer's ends of its pipes."""

    process: subprocess.Popen[bytes]
    requests: int
    answers: int
    output: int
    marker: str
    log: OutputLog
    loaded: set[int] = field(default_factory=set)
    """The numbers of the rewards that it holds."""
    outgoing: bytearray = field(default_factory=bytearray)
    incoming: bytearray = field(default_factory=bytearray)
    tail: bytes = b""
    """The last that it printed."""
    num_printed_bytes: int = 0

    def send(self, request: tuple[Any, ...]) -> None:
        """Put a call into the queue of what `flush` writes."""
        self.outgoing += framed(pickle.dumps(request))

    def flush(self) -> None:
        """Write as much as the pipe takes. That the worker is gone shows when its answers are read."""
        try:
            while self.outgoing:
                del self.outgoing[: os.write(self.requests, self.outgoing[: 1 << 20])]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self.outgoing.clear()

    def receive(self) -> Iterator[dict[str, Any]]:
        """Yield the answers that have come.

        Raises:
            ChannelError: there will be no more.
        """
        try:
            data = os.read(self.answers, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            raise ChannelError("its answers came to an end")
        self.incoming += data
        while len(self.incoming) >= HEADER.size:
            mark, size = HEADER.unpack_from(self.incoming)
            if mark != MARK or size > MAX_ANSWER_BYTES:
                raise ChannelError("it wrote something else than scores to the pipe that its scores come on")
            if len(self.incoming) < HEADER.size + size:
                return
            payload = bytes(self.incoming[HEADER.size : HEADER.size + size])
            del self.incoming[: HEADER.size + size]
            yield _decoded(payload)

    def read_output(self) -> bool:
        """Take what it has printed; return whether there can be more."""
        try:
            data = os.read(self.output, _READ_BYTES)
        except BlockingIOError:
            return True
        self.log.add(data)
        self.num_printed_bytes += len(data)
        self.tail = (self.tail + data)[-TAIL_BYTES:]
        return bool(data)

    def stack(self, *, patience_s: float = 0.25) -> str:
        """Return where it is, which a handler in C prints even while the function hangs in C; empty if nothing comes."""
        before = self.num_printed_bytes
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGUSR1)
        poll = select.poll()
        poll.register(self.output, select.POLLIN)
        until = time.monotonic() + patience_s
        while (left := until - time.monotonic()) > 0:
            has_begun = self.num_printed_bytes > before
            if not poll.poll(1000 * min(left, 0.05 if has_begun else left)) and has_begun:
                break
            if not self.read_output():
                break
        new = self.tail[-(self.num_printed_bytes - before) :] if self.num_printed_bytes > before else b""
        return new.decode(errors="replace").strip()[:MAX_SHOWN_CHARACTERS]

    def last_words(self) -> str:
        """Return the end of what it printed, as a sentence; empty if it printed nothing."""
        text = self.tail.decode(errors="replace").strip()
        return f"\nThe last that it printed:\n{clipped(text, max_characters=MAX_SHOWN_CHARACTERS)}" if text else ""

    def stop(self, *, patience_s: float = 0.0) -> str:
        """Kill it with all that it has started; return in words how it ended, if it did so by itself within the patience."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(patience_s)
        ended_itself = self.process.returncode is not None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        kill_marked(self.marker)
        for _ in range(TAIL_BYTES):  # More than a pipe holds.
            before = self.num_printed_bytes
            if not self.read_output() or self.num_printed_bytes == before:
                break
        for descriptor in (self.requests, self.answers):
            os.close(descriptor)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return describe_end(self.process.returncode) if ended_itself else "was stopped"


def _decoded(payload: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(payload)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise ChannelError("it wrote something else than scores to the pipe that its scores come on")
    return answer


def start_worker(*, max_memory_mb: int, log: OutputLog) -> WorkerProcess:
    """Start a worker: a fresh interpreter, as a fork would copy the trainer's locks, in a process group of its own."""
    request_read, requests = os.pipe()
    answers, answer_write = os.pipe()
    marker = secrets.token_hex(16)
    given = {
        "path": [str(place) for place in sys.path],
        "requests": request_read,
        "answers": answer_write,
        "parent": os.getpid(),
        "max_memory_mb": max_memory_mb,
    }
    # Sets iterate in the order of their hashes, and sums of floats depend on how many threads share them: both must be the
    # same in every worker.
    environment = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"} | dict(os.environ) | {MARKER: marker}
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _BOOTSTRAP, json.dumps(given)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            pass_fds=(request_read, answer_write),
            start_new_session=True,
            env=environment,
        )
    finally:
        os.close(request_read)
        os.close(answer_write)
    assert process.stdout is not None
    output = process.stdout.fileno()
    for descriptor in (requests, answers, output):
        os.set_blocking(descriptor, False)
    return WorkerProcess(process=process, requests=requests, answers=answers, output=output, marker=marker, log=log)


def describe_end(returncode: int | None) -> str:
    """Return how a process ended, in words."""
    if returncode is None:
        return "does not end"
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-returncode).name}"
    return f"was killed by signal {-returncode}"


def scores_of_rows(rows: Any, size: int) -> list[Score]:
    """Return the scores that a worker sent for a call with `size` samples.

    Raises:
        ChannelError: they are not scores.
    """
    if not isinstance(rows, list) or len(rows) != size:
        raise ChannelError("it sent another number of scores than were asked for")
    return [_score_of_row(row) for row in rows]


def _score_of_row(row: Any) -> Score:
    match row:
        case [value, dict(parts), extracted, error, float(elapsed_s)]:
            numbers = [*parts.values(), *([] if value is None else [value])]
            texts = [text for text in (extracted, error) if text is not None]
            if all(type(number) is float for number in numbers) and all(type(text) is str for text in texts):
                return Score(value=value, parts=parts, extracted=extracted, error=error, elapsed_s=elapsed_s)
    raise ChannelError("it sent something else than a score")


def kill_marked(marker: str, *, num_rounds: int = 10) -> None:
    """Kill what a worker has started and moved out of its process group: it has inherited the worker's environment."""
    for _ in range(num_rounds):
        found = marked_processes(marker)
        if not found:
            return
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


def marked_processes(marker: str) -> list[int]:
    """Return the processes that have the marker in their environment. Linux only; none elsewhere."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"{MARKER}={marker}".encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
    return found
