"""The trainer's end of a zygote: orders out, frames in and out, every wait with a deadline."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from covey.rewards.sandbox.inside import wire
from covey.rewards.sandbox.inside.limits import Limits
from covey.rewards.sandbox.interpreters import is_open_to_all, readable_paths, zygote_command

if TYPE_CHECKING:
    from covey.rewards.sandbox.tiers import Tier

FIRST_USER = 60_000
"""As root, zygote number i of the tier without namespaces becomes the user with this number plus i."""
START_TIMEOUT_S = 20.0
END_TIMEOUT_S = 5.0
"""How long a zygote may take to say that an execution has ended, once it has been told to end it."""
CLOSED_PATIENCE_S = 0.5
"""How long a process that has closed its channel may take to end by itself, so that its exit code can be told."""
_MAX_REPORT_BYTES = 65_536
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
"""All of it. With a random hash seed the order of sets, and with it a reward, would differ from run to run."""


class SandboxError(Exception):
    """The sandbox itself has failed: no statement about the candidate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How an execution ended."""

    exit_code: int
    """Of the process; negative: the signal that killed it."""
    cpu_s: float
    has_stalled: bool = False
    """Whether it was ended because it answered nothing for as long as it may wait, on whatever it waited."""

    def is_over_time(self, limits: Limits) -> bool:
        """Whether it used up its processor time."""
        return self.exit_code < 0 and self.cpu_s >= limits.cpu_s - 0.2


class AnyZygote(Protocol):
    """What forks executions, here or elsewhere."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What it says of itself."""
        ...

    @property
    def process_id(self) -> int:
        """Of what was started on this machine."""
        ...

    def close(self) -> None: ...

    def begin(self, mode: str, limits: Limits, streams: tuple[int, ...] = ()) -> Execution: ...

    def end(self, number: int) -> Ending: ...

    def ending(self, number: int, timeout_s: float) -> Ending | None: ...


class EndedError(Exception):
    """The execution ended where an answer was expected."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(f"it ended with {ending.exit_code}")
        self.ending = ending


class HasFile(Protocol):
    """What has a file number: sockets, pipes."""

    def fileno(self) -> int: ...


def ready_files(reading: Sequence[HasFile], writing: Sequence[HasFile], timeout_s: float) -> list[HasFile]:
    """Return which of the files can be read from or written to, or have ended; none after the time.

    By poll(2): select(2) knows no file number above 1,023, and a trainer may have more files open.
    """
    by_number = {file.fileno(): file for file in (*reading, *writing)}
    poller = select.poll()
    for file in reading:
        poller.register(file, select.POLLIN)
    for file in writing:
        poller.register(file, select.POLLOUT)
    return [by_number[number] for number, _ in poller.poll(max(0.0, 1000 * timeout_s))]


def started(command: list[str], control: int) -> subprocess.Popen[bytes]:
    """Start a zygote, which gets the file of this number and none besides.

    Raises:
        SandboxError: the program cannot be run.
    """
    try:
        return subprocess.Popen(
            command,
            env=_ENVIRONMENT,
            cwd="/",
            pass_fds=[control],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxError(f"{command[0]} cannot be run: {error.strerror}") from error


def user_of_zygote(tier: Tier, number: int) -> int | None:
    """Return the user that zygote number `number` becomes; None: it stays who it is, which root does without capabilities."""
    if not tier.changes_user or os.getuid() != 0 or not all(map(is_open_to_all, readable_paths())):
        return None
    return FIRST_USER + number


class Zygote:
    """A confined process that forks executions. For one thread at a time."""

    def __init__(self, tier: Tier, *, number: int = 0, without: tuple[str, ...] = ()) -> None:
        self.tier = tier
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._endings: dict[int, Ending] = {}
        self._num_runs = 0
        setup = {
            "control": theirs.fileno(),
            "readable": readable_paths() if tier.has_landlock else None,
            "user": user_of_zygote(tier, number),
            "has_filter": tier.has_filter,
            "without": list(without),
            "preloads": tier.keeps_zygote,
        }
        with theirs:
            self._process = started([*tier.wrapper(), *zygote_command(), json.dumps(setup)], theirs.fileno())
        try:
            self.facts = self._started()
        except SandboxError:
            self.close()
            raise

    @property
    def process_id(self) -> int:
        """Of what was started: the zygote, or what holds it."""
        return self._process.pid

    def close(self) -> None:
        """End it and all that it has forked."""
        self._control.close()
        self._process.kill()
        self._process.wait()
        if self._process.stderr:
            self._process.stderr.close()

    def begin(self, mode: str, limits: Limits, streams: tuple[int, ...] = ()) -> Execution:
        """Fork an execution.

        Raises:
            SandboxError: the zygote is gone.
        """
        self._num_runs += 1
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        order = json.dumps({"run": self._num_runs, "mode": mode, "limits": asdict(limits)}).encode()
        with theirs:
            try:
                socket.send_fds(self._control, [order], [theirs.fileno(), *streams])
            except OSError as error:
                ours.close()
                raise SandboxError(f"the sandbox's process has gone: {error}") from error
        return Execution(self, self._num_runs, ours, limits)

    def end(self, number: int) -> Ending:
        """Kill an execution if it still runs, and return how it ended.

        Raises:
            SandboxError: the zygote says nothing.
        """
        if number not in self._endings:
            try:
                self._control.send(json.dumps({"kill": number}).encode())
            except OSError as error:
                raise SandboxError(f"the sandbox's process has gone: {error}") from error
        ending = self.ending(number, END_TIMEOUT_S)
        if ending is None:
            raise SandboxError(self._last_words("did not answer in time"))
        return ending

    def ending(self, number: int, timeout_s: float) -> Ending | None:
        """Return how an execution ended, None if it has not after this time.

        Raises:
            SandboxError: the zygote is gone.
        """
        deadline = time.monotonic() + timeout_s
        while number not in self._endings:
            report = self._report(deadline)
            if report is None:
                return None
            self._endings[report["run"]] = Ending(exit_code=report["exit"], cpu_s=report["cpu_s"])
        return self._endings.pop(number)

    def _started(self) -> dict[str, Any]:
        report = self._report(time.monotonic() + START_TIMEOUT_S)
        if report is None:
            raise SandboxError(self._last_words("did not start in time"))
        return report

    def _report(self, deadline: float) -> dict[str, Any] | None:
        """Return what the zygote says next, None if nothing until then."""
        if not ready_files([self._control], [], deadline - time.monotonic()):
            return None
        try:
            data = self._control.recv(_MAX_REPORT_BYTES)
        except OSError:
            data = b""
        if not data:
            raise SandboxError(self._last_words("has ended"))
        return json.loads(data)

    def _last_words(self, what: str) -> str:
        self._process.kill()
        _, errors = self._process.communicate()
        return f"the sandbox's process {what}: {errors.decode(errors='replace')[-500:].strip() or 'it said nothing'}"


class Execution:
    """One candidate, or one data set's tests, at work."""

    def __init__(self, zygote: AnyZygote, number: int, connection: socket.socket, limits: Limits) -> None:
        self.limits = limits
        self._zygote, self._number, self._connection = zygote, number, connection
        self._deadline = time.monotonic() + limits.wall_s
        self._ending: Ending | None = None

    @property
    def deadline(self) -> float:
        """On the monotonic clock."""
        return self._deadline

    @property
    def has_ended(self) -> bool:
        """Whether there is nobody to be asked any more."""
        return self._ending is not None

    def send(self, message: dict[str, Any]) -> None:
        """Send a message.

        Raises:
            EndedError: it has ended, or takes nothing until its deadline.
            WireError: the message is too long.
        """
        data = memoryview(wire.frame(message))
        while data:
            self._wait(writing=True)
            try:
                data = data[self._connection.send(data, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                continue
            except OSError:
                raise EndedError(self.end()) from None

    def receive(self) -> dict[str, Any]:
        """Return the next message.

        Raises:
            EndedError: it has ended, or says nothing until its deadline.
            WireError: it sent what is no message.
        """
        (length,) = wire.HEADER.unpack(self._exactly(wire.HEADER.size))
        if length > wire.MAX_FRAME_BYTES:
            raise wire.WireError(f"it announced a message of {length} bytes")
        return wire.message_of(self._exactly(length))

    def end(self, *, has_stalled: bool = False) -> Ending:
        """Kill it if it still runs, and return how it ended.

        Raises:
            SandboxError: the zygote says nothing.
        """
        if self._ending is None:
            self._connection.close()
            self._ending = replace(self._zygote.end(self._number), has_stalled=has_stalled)
        return self._ending

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            self._wait()
            try:
                piece = self._connection.recv(count - len(data), socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except OSError:
                piece = b""
            if not piece:
                raise EndedError(self._ended_by_itself())
            data += piece
        return bytes(data)

    def _ended_by_itself(self) -> Ending:
        """Return its end once its channel is closed; whoever closes the channel and stays is killed."""
        self._connection.close()
        self._ending = self._zygote.ending(self._number, CLOSED_PATIENCE_S)
        return self._ending or self.end()

    def _wait(self, *, writing: bool = False) -> None:
        reading, writable = ([], [self._connection]) if writing else ([self._connection], [])
        if not ready_files(reading, writable, self._deadline - time.monotonic()):
            raise EndedError(self.end(has_stalled=True))


@contextmanager
def execution(zygote: AnyZygote, mode: str, limits: Limits, streams: tuple[int, ...] = ()) -> Generator[Execution]:
    """Fork an execution that has ended when the block is left."""
    running = zygote.begin(mode, limits, streams)
    try:
        yield running
    finally:
        running.end()
