"""Stopping or saving at a step boundary when the user or the system asks, and saying where a run stands that does not move."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


class StopRequest:
    """Becomes requested with the first SIGINT or SIGTERM. The second is left to the handler that was there before.

    SIGUSR1 asks for a save instead, as often as it comes.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._is_save_requested = False

    @property
    def is_requested(self) -> bool:
        return self.signal_name is not None

    def request_save(self) -> None:
        self._is_save_requested = True

    def take_save(self) -> bool:
        """Return whether a save was asked for since the last call."""
        asked, self._is_save_requested = self._is_save_requested, False
        return asked


@contextmanager
def stop_on_signals() -> Generator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM within the block, and each SIGUSR1, into a request.

    Handlers only set flags. Outside the main thread nothing is caught.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    caught = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.getsignal(number) for number in (*caught, signal.SIGUSR1)}

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        request.signal_name = signal.Signals(number).name
        for caught_number in caught:
            signal.signal(caught_number, previous[caught_number])

    for number in caught:
        signal.signal(number, handle)
    signal.signal(signal.SIGUSR1, lambda number, frame: request.request_save())
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Watchdog:
    """Writes where every thread stands, once a step has taken too long, and again after each such time.

    The interpreter's own thread does it (`faulthandler`), by the monotonic clock: it needs no lock that the run may hold.
    """

    def __init__(self, path: Path, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._file = open(path, "a", opener=_private) if timeout_s else None  # noqa: SIM115 - as long as the run
        self._path = path

    def move(self) -> None:
        """Say that the run has got on."""
        if self._file is not None:
            faulthandler.dump_traceback_later(self._timeout_s, repeat=True, file=self._file)

    def close(self) -> None:
        """Watch no more. A file in which nothing was written is removed."""
        if self._file is None:
            return
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        if not self._path.stat().st_size:
            self._path.unlink()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextmanager
def watchdog(path: Path, timeout_s: float) -> Generator[Watchdog]:
    """Watch over the block; 0 seconds: not at all."""
    found = Watchdog(path, timeout_s)
    found.move()
    try:
        yield found
    finally:
        found.close()
