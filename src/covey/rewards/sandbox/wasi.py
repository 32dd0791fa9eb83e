"""The system that a WebAssembly module gets to see: three files that lead to the judge, clocks, random bytes, and nothing else.

WASI snapshot preview 1, written out here in full and not taken from the runtime: what is not in `Wasi.calls` does not exist, so
there is no file, directory or socket that could be left open by mistake. Numbers are those of the standard.
https://github.com/WebAssembly/WASI/blob/main/legacy/preview1/docs.md
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

_BAD_FILE, _NO_SUCH_CALL, _NO_PIPE, _NOT_SEEKABLE, _TOO_LONG = 8, 52, 64, 70, 61
_MAX_PIECE_BYTES = 1 << 16
"""Passed on at once. A module that wants to write more is told that this much has been written."""
_MAX_VECTORS = 64
_CLOCK_EVENT, _IS_ABSOLUTE = 0, 1
_RIGHTS_OF_PIPES = 0x2 | 0x40
"""Reading and writing."""
_SUBSCRIPTION, _EVENT_SIZE = struct.Struct("<QB7xI4xQQH6x"), 32
_NANO = 1e-9


class Files(Protocol):
    """Where the three files lead."""

    def read(self, count: int) -> bytes:
        """Of the standard input; empty: its end."""
        ...

    def write(self, number: int, data: bytes) -> int:
        """To the standard output (1) or the errors (2)."""
        ...

    def close(self, number: int) -> None: ...

    def receive(self, count: int) -> bytes:
        """Of the channel to the judge."""
        ...

    def send(self, data: bytes) -> int:
        """To the judge."""
        ...


class Wasi:
    """The calls of one module. Each returns an error number, 0 if there is none."""

    def __init__(self, files: Files, *, arguments: Sequence[bytes], environment: Sequence[bytes]) -> None:
        self._files = files
        self._texts = {"args": arguments, "environ": environment}

    @property
    def calls(self) -> dict[str, Callable[..., int]]:
        """By their names in the standard: all that there are."""
        return {
            "args_get": lambda caller, at, data: self._get("args", caller, at, data),
            "args_sizes_get": lambda caller, count, size: self._sizes("args", caller, count, size),
            "environ_get": lambda caller, at, data: self._get("environ", caller, at, data),
            "environ_sizes_get": lambda caller, count, size: self._sizes("environ", caller, count, size),
            "clock_res_get": lambda caller, clock, at: self._put(caller, at, struct.pack("<Q", 1)),
            "clock_time_get": lambda caller, clock, precision, at: self._put(caller, at, struct.pack("<Q", now_ns(clock))),
            "random_get": lambda caller, at, count: self._put(caller, at, os.urandom(min(_unsigned(count), _MAX_PIECE_BYTES))),
            "fd_read": lambda caller, file, at, count, size: self._read(caller, file, at, count, size, self._files.read),
            "fd_write": self._write,
            "fd_pread": lambda caller, file, at, count, place, size: self._read(
                caller, file, at, count, size, self._files.receive
            ),
            "fd_pwrite": self._send,
            "fd_fdstat_get": self._describe,
            "fd_seek": lambda caller, *rest: _NOT_SEEKABLE,
            "fd_tell": lambda caller, *rest: _NOT_SEEKABLE,
            "fd_prestat_get": lambda caller, *rest: _BAD_FILE,
            "fd_close": self._close,
            "poll_oneoff": self._poll,
            "sched_yield": lambda caller: 0,
            "proc_exit": lambda caller, code: os._exit(code & 0x7F),
        }

    def _put(self, caller: Any, at: int, data: bytes) -> int:
        caller["memory"].write(caller, data, _unsigned(at))
        return 0

    def _take(self, caller: Any, at: int, count: int) -> bytes:
        start = _unsigned(at)
        return bytes(caller["memory"].read(caller, start, start + count))

    def _get(self, which: str, caller: Any, at: int, data: int) -> int:
        place = _unsigned(data)
        for number, text in enumerate(self._texts[which]):
            self._put(caller, _unsigned(at) + 4 * number, struct.pack("<I", place))
            self._put(caller, place, text + b"\0")
            place += len(text) + 1
        return 0

    def _sizes(self, which: str, caller: Any, count: int, size: int) -> int:
        texts = self._texts[which]
        self._put(caller, count, struct.pack("<I", len(texts)))
        return self._put(caller, size, struct.pack("<I", sum(len(text) + 1 for text in texts)))

    def _vectors(self, caller: Any, at: int, count: int) -> list[tuple[int, int]]:
        """Return (place, length) of the parts of memory that are to be read or written, up to what is passed on at once."""
        data = self._take(caller, at, 8 * min(_unsigned(count), _MAX_VECTORS))
        found, left = [], _MAX_PIECE_BYTES
        for place, length in struct.iter_unpack("<II", data):
            found.append((place, min(length, left)))
            left -= found[-1][1]
        return found

    def _read(self, caller: Any, file: int, at: int, count: int, size: int, source: Callable[[int], bytes]) -> int:
        if file != 0:
            return _BAD_FILE
        vectors = self._vectors(caller, at, count)
        data = source(sum(length for _, length in vectors))
        self._put(caller, size, struct.pack("<I", len(data)))
        for place, length in vectors:
            part, data = data[:length], data[length:]
            if part:
                self._put(caller, place, part)
        return 0

    def _write(self, caller: Any, file: int, at: int, count: int, size: int) -> int:
        if file not in (1, 2):
            return _BAD_FILE
        return self._hand_on(caller, at, count, size, lambda data: self._files.write(file, data))

    def _send(self, caller: Any, file: int, at: int, count: int, place: int, size: int) -> int:
        return self._hand_on(caller, at, count, size, self._files.send) if file == 1 else _BAD_FILE

    def _hand_on(self, caller: Any, at: int, count: int, size: int, target: Callable[[bytes], int]) -> int:
        data = b"".join(self._take(caller, place, length) for place, length in self._vectors(caller, at, count))
        try:
            return self._put(caller, size, struct.pack("<I", target(data) if data else 0))
        except OSError:
            return _NO_PIPE

    def _describe(self, caller: Any, file: int, at: int) -> int:
        if file not in (0, 1, 2):
            return _BAD_FILE
        return self._put(caller, at, struct.pack("<BxH4xQQ", 0, 0, _RIGHTS_OF_PIPES, 0))

    def _close(self, caller: Any, file: int) -> int:
        if file not in (0, 1, 2):
            return _BAD_FILE
        self._files.close(file)
        return 0

    def _poll(self, caller: Any, given: int, found: int, count: int, size: int) -> int:
        """Wait for the first clock; files are always said to be ready, and then it is their reading that waits."""
        number = _unsigned(count)
        if number > _MAX_VECTORS:
            return _TOO_LONG
        waits = list(_SUBSCRIPTION.iter_unpack(self._take(caller, given, _SUBSCRIPTION.size * number)))
        until = [_seconds_left(clock, timeout, flags) for _, tag, clock, timeout, _, flags in waits if tag == _CLOCK_EVENT]
        is_file = any(tag != _CLOCK_EVENT for _, tag, *_ in waits)
        if until and not is_file:
            time.sleep(max(0.0, min(until)))
        ready = [(user, tag) for user, tag, *_ in waits if (tag != _CLOCK_EVENT) == is_file]
        for index, (user, tag) in enumerate(ready):
            self._put(caller, _unsigned(found) + _EVENT_SIZE * index, struct.pack("<QHB5xQH6x", user, 0, tag, 1, 0))
        return self._put(caller, size, struct.pack("<I", len(ready)))


def unknown(*arguments: Any) -> int:
    """Return the error of a call that there is not."""
    return _NO_SUCH_CALL


def now_ns(clock: int) -> int:
    """Return the time of a clock: 0 is the world's, all others run since some moment."""
    return time.time_ns() if clock == 0 else time.monotonic_ns()


def _seconds_left(clock: int, timeout: int, flags: int) -> float:
    return _NANO * (timeout - now_ns(clock) if flags & _IS_ABSOLUTE else timeout)


def _unsigned(value: int) -> int:
    return value & 0xFFFFFFFF
