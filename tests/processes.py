"""Fresh processes that start in milliseconds: a server that has already imported the libraries forks them.

Each runs one function in a directory of its own, with its own environment, standard streams, signals and exit code.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        *("covey.api", "covey.cli", "transformers.models.llama.modeling_llama"),
        *("scipy.stats", "pyarrow.parquet", "plotly.graph_objects", "plotly.io"),
    ]
)

DEADLINE_S = 60


@dataclass(frozen=True, slots=True)
class Finished:
    """How a process ended: its exit code (minus the signal's number if one killed it) and what it said."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Running:
    """A process that has been started."""

    process: ForkServerProcess
    streams: Path

    def send(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    @property
    def is_alive(self) -> bool:
        return self.process.is_alive()

    def finish(self) -> Finished:
        """Wait for the end of the process."""
        self.process.join(DEADLINE_S)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"the process had not ended after {DEADLINE_S} s:\n{self._read('out')}\n{self._read('err')}")
        return Finished(self.process.exitcode, self._read("out"), self._read("err"))

    def _read(self, stream: str) -> str:
        return (self.streams / stream).read_text()


def start(
    function: Callable[..., Any],
    *arguments: Any,
    directory: Path,
    environment: Mapping[str, str] | None = None,
    stdin: str = "",
) -> Running:
    """Call a module's function in a new process that works in `directory`, its streams kept in a hidden folder of that."""
    streams = directory / f".streams-{time.monotonic_ns()}"
    streams.mkdir(parents=True)
    (streams / "in").write_text(stdin)
    process = _SERVER.Process(target=_call, args=(function, arguments, directory, dict(environment or {}), streams))
    process.start()
    return Running(process, streams)


def call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Finished:
    """Call a module's function in a new process and wait for its end; the options are those of `start`."""
    return start(function, *arguments, **options).finish()


def wait_for(condition: Callable[[], bool], running: Running) -> None:
    """Return when the condition holds; fail if the process ends before, or after a minute."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert running.is_alive, f"the process ended too soon: {running.finish()}"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)


def _call(
    function: Callable[..., Any], arguments: tuple[Any, ...], directory: Path, environment: Mapping[str, str], streams: Path
) -> None:
    for descriptor, name, flags in (
        (0, "in", os.O_RDONLY),
        (1, "out", os.O_WRONLY | os.O_CREAT),
        (2, "err", os.O_WRONLY | os.O_CREAT),
    ):
        opened = os.open(streams / name, flags, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - it lives as long as the process
    # Under nohup, or as a background job of a script, signals are ignored, and processes inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.environ.update(environment)
    os.chdir(directory)
    sys.path.insert(0, str(directory))
    function(*arguments)
