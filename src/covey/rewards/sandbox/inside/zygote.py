"""A process that has everything imported, has given up what it may, and forks once for each execution.

It is trusted, runs no candidate's line itself, and holds no tests. Started with a JSON object as its argument and a socket
as its standard input of orders; it ends when that socket does.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from dataclasses import dataclass
from typing import Any

from . import landlock, programs, seccomp
from .kernel import drop_capabilities, prctl
from .limits import Limits
from .preloaded import PRELOADED

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
MAX_ORDER_BYTES = 4096


@dataclass(frozen=True)
class Setup:
    """How the zygote confines itself and what it forks."""

    control: int
    """The file number of the socket that orders come on."""
    readable: list[str] | None
    """What Landlock leaves readable; None: no Landlock, a tier that confines files otherwise."""
    user: int | None
    """The user and group to become, if started as root."""
    has_filter: bool
    """Whether executions are put under the filter of system calls."""
    without: list[str]
    """Lines of the policy that are left out: for tests of what each is there for."""
    preloads: bool = True
    """Whether it imports what executions may want, which pays where there is more than one."""


def confine(setup: Setup) -> dict[str, Any]:
    """Import, then give up what this process does not need any more. Return what was done."""
    for name in PRELOADED if setup.preloads else ():
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    if setup.user is not None:
        os.setgroups([])
        os.setresgid(*[setup.user] * 3)
        os.setresuid(*[setup.user] * 3)
    if "capabilities" not in setup.without:
        drop_capabilities()
    version = landlock.restrict_files(setup.readable) if setup.readable is not None else 0
    prctl(seccomp.PR_SET_NO_NEW_PRIVS, 1)
    prctl(_PR_SET_DUMPABLE, 0)
    return {"landlock": version, "user": os.getuid()}


def become(setup: Setup, order: dict[str, Any], files: list[int]) -> None:
    """Become an execution: keep the channel and the standard files, and give up the rest for good."""
    # With the zygote, whose own end is that of its orders.
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # What the zygote says goes to the trainer, and no candidate may speak in its name. Opened anew for each of them: an open
    # file has flags, which the next one would find as the one before has left them.
    for number in range(3):
        opened = os.open(os.devnull, os.O_RDWR)
        os.dup2(opened, number)
        os.close(opened)
    channel, *streams = files
    for target, number in enumerate(streams):
        os.dup2(number, target)
        os.close(number)
    without = tuple(setup.without)
    Limits(**order["limits"]).set(without=without)
    if setup.has_filter:
        seccomp.restrict_this_process(without=without)
    programs.run(order["mode"], socket.socket(fileno=channel))


class Zygote:
    """Orders in, executions out; several at a time."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._control = socket.socket(fileno=setup.control)
        self._running: dict[int, tuple[int, int]] = {}  # By the file number of the process: its id and the execution's.

    def serve(self) -> None:
        """Take orders until the socket ends."""
        self._say({"ready": True, **confine(self._setup)})
        orders = self._control.fileno()
        while True:
            poller = select.poll()  # Not select, which knows no number above 1,023: the trainer chose that of the socket.
            for number in (orders, *self._running):
                poller.register(number, select.POLLIN)
            waiting = {number for number, _ in poller.poll()}
            for ended in waiting & set(self._running):
                self._bury(ended)
            if orders in waiting and not self._obey():
                return

    def _obey(self) -> bool:
        data, files, _, _ = socket.recv_fds(self._control, MAX_ORDER_BYTES, 3)
        if not data:
            return False
        order = json.loads(data)
        if "kill" in order:
            for handle, (_, number) in self._running.items():
                if number == order["kill"]:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
        else:
            self._fork(order, files)
        return True

    def _fork(self, order: dict[str, Any], files: list[int]) -> None:
        process_id = os.fork()
        if process_id == 0:
            try:
                self._execute(order, files)
            finally:
                os._exit(1)
        for number in files:
            os.close(number)
        self._running[os.pidfd_open(process_id)] = (process_id, order["run"])

    def _execute(self, order: dict[str, Any], files: list[int]) -> None:
        self._control.close()
        for handle in self._running:
            os.close(handle)
        become(self._setup, order, files)

    def _bury(self, handle: int) -> None:
        process_id, number = self._running.pop(handle)
        os.close(handle)
        _, status, usage = os.wait4(process_id, 0)
        spent = usage.ru_utime + usage.ru_stime
        self._say({"run": number, "exit": os.waitstatus_to_exitcode(status), "cpu_s": spent})

    def _say(self, message: dict[str, Any]) -> None:
        try:
            self._control.send(json.dumps(message).encode())
        except OSError:
            os._exit(0)  # Nobody listens any more.


def main() -> None:
    """Serve as the argument says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which closes the socket.
    Zygote(Setup(**json.loads(sys.argv[1]))).serve()
