"""Stopping at a step boundary when the user or the system asks for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Becomes requested with the first SIGINT or SIGTERM. The second is left to the handler that was there before."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    @property
    def is_requested(self) -> bool:
        return self.signal_name is not None


@contextmanager
def stop_on_signals() -> Generator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM within the block into a request. Outside the main thread nothing is caught."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    caught = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.getsignal(number) for number in caught}

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        request.signal_name = signal.Signals(number).name
        for caught_number in caught:
            signal.signal(caught_number, previous[caught_number])

    for number in caught:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        for number in caught:
            signal.signal(number, previous[number])
