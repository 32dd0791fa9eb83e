"""What an execution does that is a WebAssembly module. Its channel is what it reads and writes at a position."""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import Any

from . import programs
from .preloaded import PRELOADED


class Positioned:
    """The channel: file 0 is read, and file 1 written, at a position; without one they are the standard input and output."""

    def recv(self, count: int) -> bytes:
        return os.pread(0, count, 0)

    def sendall(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.pwrite(1, left, 0) :]


class Nowhere(io.RawIOBase):
    """A file that forgets what is written."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)


def main(settings: dict[str, Any]) -> None:
    """Import what executions may want, wait to be forked, and do what the order says."""
    for name in PRELOADED:
        importlib.import_module(name)
    sys.stderr = sys.__stderr__ = io.TextIOWrapper(io.BufferedWriter(Nowhere()), encoding="utf-8")
    connection = Positioned()
    order = programs.Channel(connection).receive()
    programs.run(order["mode"], connection)
