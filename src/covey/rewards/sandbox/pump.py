"""The trainer's end of a stream to a zygote elsewhere: one thread that moves bytes between it and the files of executions."""

from __future__ import annotations

import json
import os
import select
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from covey.rewards.sandbox.inside import pieces
from covey.rewards.sandbox.zygotes import SandboxError

_PIECE_BYTES = 1 << 15
_MAX_WAITING_BYTES = 1 << 22
"""Of one file of an execution, that nobody here has taken yet. An execution that sends more is ended: two messages fit."""
_MAX_OUTGOING_BYTES = 1 << 20
"""Once so much waits to be sent, no more is read from executions' files here."""
_MAX_REPORTS = 100
"""That nobody has asked for yet. There are two executions at a time."""

Report = dict[str, Any]


@dataclass(kw_only=True)
class Flow:
    """One file of an execution, as this end has it: its channel, or what the judge reads or writes."""

    kind: int
    run: int
    is_read: bool
    """Whether what is read from it is sent to the execution."""
    waiting: bytearray = field(default_factory=bytearray)
    """What has come for it and is not written yet."""
    ends: bool = False
    """Whether it is closed once nothing is waiting."""


class Pump:
    """Moves bytes until its stream ends or it is closed. All but `_work` is called by the judge's threads."""

    def __init__(self, reading: int, writing: int) -> None:
        """Take over the two files of the stream, which are closed with it."""
        self._reading, self._writing = reading, writing
        os.set_blocking(writing, False)
        self._unpacker = pieces.Unpacker()
        self._outgoing = bytearray()
        self._flows: dict[int, Flow] = {}
        self._reports: list[Report] = []
        self._failure = ""
        self._is_closing = False
        self._bell, self._ring = os.pipe()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="sandbox", daemon=True)
        self._thread.start()

    def send(self, data: bytes, flows: dict[int, Flow] | None = None) -> None:
        """Send bytes, after having taken over the files that they are about.

        Raises:
            SandboxError: the stream has ended.
        """
        with self._changed:
            if self._failure:
                for number in flows or ():
                    os.close(number)
                raise SandboxError(self._failure)
            self._flows |= flows or {}
            self._outgoing += data
            os.write(self._ring, b"x")

    def report(self, deadline: float) -> Report | None:
        """Return what the other end says next, None if nothing until then.

        Raises:
            SandboxError: the stream has ended, and all that it said is known.
        """
        with self._changed:
            while not self._reports:
                if self._failure:
                    raise SandboxError(self._failure)
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    return None
            return self._reports.pop(0)

    def close(self) -> None:
        """Stop, and close all files."""
        with self._changed:
            if self._is_closing:
                return
            self._is_closing = True
            os.write(self._ring, b"x")
        self._thread.join()
        for number in (self._reading, self._writing, self._bell, self._ring):
            os.close(number)

    def _work(self) -> None:
        failure = "it was closed"
        try:
            while not self._is_closing:
                for number, event in self._ready():
                    self._serve(number, event)
        except (OSError, EOFError, ValueError) as error:  # The stream has ended, or what came over it is none.
            failure = f"the connection to the sandbox has ended: {error}" if str(error) else "the sandbox's process has ended"
        with self._changed:
            self._failure = failure
            for number in list(self._flows):
                self._drop(number)
            self._changed.notify_all()

    def _ready(self) -> list[tuple[int, int]]:
        poller = select.poll()
        poller.register(self._bell, select.POLLIN)
        poller.register(self._reading, select.POLLIN)
        with self._changed:
            if self._outgoing:
                poller.register(self._writing, select.POLLOUT)
            takes_more = len(self._outgoing) < _MAX_OUTGOING_BYTES
            for number, flow in self._flows.items():
                wanted = (select.POLLIN if flow.is_read and takes_more else 0) | (select.POLLOUT if flow.waiting else 0)
                if wanted:
                    poller.register(number, wanted)
        return poller.poll()

    def _serve(self, number: int, event: int) -> None:
        if number == self._bell:
            os.read(self._bell, 512)
        elif number == self._reading:
            self._take()
        elif number == self._writing:
            with self._changed:
                del self._outgoing[: os.write(number, self._outgoing)]
        else:
            with self._changed:
                self._move(number, event)

    def _take(self) -> None:
        data = os.read(self._reading, _PIECE_BYTES)
        if not data:
            raise EOFError
        for kind, run, content in self._unpacker.feed(data):
            with self._changed:
                if kind == pieces.CONTROL:
                    if len(self._reports) >= _MAX_REPORTS:
                        raise ValueError("more reports than there are executions")
                    self._reports.append(report_of(content))
                    self._changed.notify_all()
                else:
                    self._deliver(kind, run, content)

    def _deliver(self, kind: int, run: int, content: bytes) -> None:
        for number, flow in list(self._flows.items()):
            if flow.kind != kind or flow.run != run or (kind == pieces.STANDARD and flow.is_read):
                continue
            flow.waiting += content
            flow.ends |= not content
            if len(flow.waiting) > _MAX_WAITING_BYTES:
                self._outgoing += pieces.pack_control({"kill": run})
                self._drop(number)
            else:
                self._move(number, select.POLLOUT)

    def _move(self, number: int, event: int) -> None:
        """Write what is waiting for a file, and send what can be read from it."""
        flow = self._flows.get(number)
        if flow is None:
            return
        try:
            if flow.waiting:
                del flow.waiting[: os.write(number, flow.waiting)]
        except BlockingIOError:
            pass
        except OSError:
            flow.waiting.clear()  # The judge reads no further.
        if flow.ends and not flow.waiting:
            self._drop(number)
        elif flow.is_read and event & ~select.POLLOUT:
            self._send_on(number, flow)

    def _send_on(self, number: int, flow: Flow) -> None:
        try:
            data = os.read(number, _PIECE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._outgoing += pieces.pack(flow.kind, flow.run, data)
        if not data:
            self._drop(number)

    def _drop(self, number: int) -> None:
        del self._flows[number]
        os.close(number)


def report_of(content: bytes) -> Report:
    """Return a report of the other end.

    Raises:
        ValueError: it is none.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        is_ending = all(type(found.get(key)) in (int, float) for key in ("run", "exit", "cpu_s"))
        if is_ending or found.get("ready") is True:
            return found
    raise ValueError(f"no report: {content[:80]!r}")
