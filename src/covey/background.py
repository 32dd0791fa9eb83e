"""Work that goes on beside training: one piece at a time, and no failure of it gets lost."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from types import TracebackType

NICENESS = 10
"""How far the work stands back where training wants the processor. On Linux a thread has a niceness of its own."""


class Background:
    """Carries pieces of work out in a thread, the next one after the one before has ended.

    What a piece of work raises is raised again where somebody asks: at the next `start`, `check` or `wait`, or at the end of
    the block.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Begin this piece of work, once the one before has ended."""
        self.wait()
        # A daemon: who presses Ctrl-C a second time does not wait. What is cut off then is what a kill would cut off.
        self._thread = threading.Thread(target=self._carry_out, args=(work,), name="covey-background", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what the work has failed with, if it has ended; do not wait for it."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Return when the work has ended, and raise what it has failed with."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def __enter__(self) -> Background:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        elif issubclass(kind, Exception):
            try:
                self.wait()
            except Exception as error:
                assert failure is not None
                failure.add_note(f"Besides, what went on beside it has failed: {error}")

    def _carry_out(self, work: Callable[[], object]) -> None:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            work()
        except BaseException as error:  # Raised again in the thread that asks.
            self._failure = error
