"""A zygote at the other end of one stream of bytes: orders and data come on file 0, reports and data go to file 1.

It does for its executions what the judge's own process does where files can be handed over: it holds the other ends of their
channels, and passes on what goes in and out. Needs nothing of the system that is not POSIX.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from dataclasses import dataclass, field
from typing import Any, NoReturn

from . import pieces, zygote
from .landlock import interface
from .libraries import libraries

_PIECE_BYTES = 1 << 15
_DEATH_WAIT_S = 1.0
"""How long may pass until an execution is looked for that has died unnoticed."""


@dataclass
class Flow:
    """A file of an execution, as this end has it."""

    kind: int
    run: int
    pending: bytearray = field(default_factory=bytearray)
    """What the execution has not taken yet."""
    is_read: bool = True
    """Whether what comes out of it is passed on."""
    ends: bool = False
    """Whether it is closed once nothing is pending."""


@dataclass(frozen=True)
class Forked:
    """What an execution knows of itself when it has been forked."""

    order: dict[str, Any]
    files: list[int]
    """Its channel, and then its standard input and output if it has them."""


class Server:
    """Orders in, executions out; several at a time."""

    def __init__(self) -> None:
        self._orders = pieces.Unpacker()
        self._flows: dict[int, Flow] = {}  # By file number.
        self._running: dict[int, int] = {}  # Executions by the number of their process.
        self._null = os.open(os.devnull, os.O_RDWR)  # Before files are confined.
        self._alarm, self._alarm_in = os.pipe()
        os.set_blocking(self._alarm, False)
        os.set_blocking(self._alarm_in, False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, whose end then closes.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._alarm_in, warn_on_full_buffer=False)

    def serve(self, facts: dict[str, Any]) -> Forked:
        """Say the facts, then take orders until the stream ends, which ends the process. Returns in each execution."""
        self._say(pieces.pack_control({"ready": True, **facts}))
        while True:
            for number, event in self._poll():
                if number == self._alarm:
                    os.read(self._alarm, 512)
                elif number == 0:
                    if (forked := self._obey()) is not None:
                        return forked
                elif number in self._flows:
                    self._move(number, event)
            self._bury()

    def _poll(self) -> list[tuple[int, int]]:
        poller = select.poll()
        poller.register(0, select.POLLIN)
        poller.register(self._alarm, select.POLLIN)
        for number, flow in self._flows.items():
            poller.register(number, (select.POLLIN if flow.is_read else 0) | (select.POLLOUT if flow.pending else 0))
        return poller.poll(1000 * _DEATH_WAIT_S if self._running else None)

    def _obey(self) -> Forked | None:
        data = os.read(0, _PIECE_BYTES)
        if not data:
            self._leave()
        for kind, run, content in self._orders.feed(data):
            if kind == pieces.CONTROL:
                order = json.loads(content)
                if "kill" in order:
                    self._kill(order["kill"])
                elif (forked := self._fork(order)) is not None:
                    return forked
            else:
                self._give(kind, run, content)
        return None

    def _fork(self, order: dict[str, Any]) -> Forked | None:
        """Fork an execution. Return what it is to do, in the execution alone."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        files, flows = [theirs.detach()], {ours.detach(): Flow(kind=pieces.CHANNEL, run=order["run"])}
        if order["streams"]:
            (their_input, giving), (reading, their_output) = os.pipe(), os.pipe()
            files += [their_input, their_output]
            flows[giving] = Flow(kind=pieces.STANDARD, run=order["run"], is_read=False)
            flows[reading] = Flow(kind=pieces.STANDARD, run=order["run"])
        process_id = os.fork()
        if process_id == 0:
            return self._child(Forked(order=order, files=files), list(flows))
        for number in files:
            os.close(number)
        for number in flows:
            os.set_blocking(number, False)
        self._flows |= flows
        self._running[process_id] = order["run"]
        return None

    def _child(self, forked: Forked, others: list[int]) -> Forked:
        """Give up all that is the zygote's: the stream above all, in whose name no candidate may speak."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in (*self._flows, *others, self._alarm, self._alarm_in):
            os.close(number)
        for number in range(3):
            os.dup2(self._null, number)
        os.close(self._null)
        return forked

    def _kill(self, run: int) -> None:
        for process_id, number in self._running.items():
            if number == run:
                os.kill(process_id, signal.SIGKILL)

    def _give(self, kind: int, run: int, content: bytes) -> None:
        for number, flow in list(self._flows.items()):
            is_meant = flow.kind == kind and flow.run == run and (kind == pieces.CHANNEL or not flow.is_read)
            if is_meant:
                flow.pending += content
                flow.ends |= not content
                self._move(number, 0)

    def _move(self, number: int, event: int) -> None:
        """Write what is pending and pass on what there is."""
        flow = self._flows[number]
        try:
            if flow.pending:
                del flow.pending[: os.write(number, flow.pending)]
        except BlockingIOError:
            pass
        except OSError:
            flow.pending.clear()  # It reads no further.
        if flow.ends and not flow.pending:
            self._close(number)
        elif flow.is_read and event & ~select.POLLOUT:
            self._pass_on(number)
        elif event & (select.POLLERR | select.POLLHUP):
            self._close(number)

    def _pass_on(self, number: int) -> bool:
        """Pass on one piece of what comes out of a file. Return whether there may be more."""
        flow = self._flows[number]
        try:
            data = os.read(number, _PIECE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        self._say(pieces.pack(flow.kind, flow.run, data))
        if not data:
            self._close(number)
        return bool(data)

    def _bury(self) -> None:
        """Report executions that have ended, after all that they have written."""
        for process_id, run in list(self._running.items()):
            ended, status, usage = os.wait4(process_id, os.WNOHANG)
            if not ended:
                continue
            for number in [number for number, flow in self._flows.items() if flow.run == run]:
                while self._flows[number].is_read and self._pass_on(number):
                    pass
                if number in self._flows:
                    self._close(number)
            del self._running[process_id]
            spent = usage.ru_utime + usage.ru_stime
            self._say(pieces.pack_control({"run": run, "exit": os.waitstatus_to_exitcode(status), "cpu_s": spent}))

    def _close(self, number: int) -> None:
        del self._flows[number]
        os.close(number)

    def _say(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(1, data) :]
        except OSError:
            self._leave()

    def _leave(self) -> NoReturn:
        """End, with all executions: the judge has gone."""
        for process_id in self._running:
            os.kill(process_id, signal.SIGKILL)
        os._exit(0)


def main(settings: dict[str, Any]) -> None:
    """Serve as the settings say: {has_landlock, has_filter, without}."""
    server, started = Server(), time.monotonic()
    is_confined = settings["has_landlock"] and interface() > 0
    setup = zygote.Setup(
        control=-1,
        readable=libraries() if is_confined else None,
        user=None,
        has_filter=settings["has_filter"],
        without=settings["without"],
    )
    facts = zygote.confine(setup)
    system = os.uname()
    place = {"system": f"{system.sysname} {system.release} {system.machine}", "start_s": round(time.monotonic() - started, 2)}
    forked = server.serve(facts | place)
    zygote.become(setup, forked.order, forked.files)
