"""One stream of bytes for all that goes between a judge and a zygote that no file can be handed to.

A piece is its kind, the number of the execution that it belongs to, the length of its data, and the data. What is read is
bounded: a stream of anything else is an error and no memory.
"""

from __future__ import annotations

import json
import struct
from typing import Any

CONTROL, CHANNEL, STANDARD = range(3)
"""Kinds: an order or a report as JSON; bytes of an execution's channel; bytes of its standard input or output. Without data,
the last two mean that there is no more."""
MAX_PIECE_BYTES = 1 << 16
HEADER = struct.Struct("!BII")

Piece = tuple[int, int, bytes]


class PieceError(ValueError):
    """Bytes that are no pieces."""


def pack(kind: int, run: int, data: bytes = b"") -> bytes:
    """Return the data as pieces of at most MAX_PIECE_BYTES; without data, the one that says so."""
    cut = [data[start : start + MAX_PIECE_BYTES] for start in range(0, len(data), MAX_PIECE_BYTES)] or [b""]
    return b"".join(HEADER.pack(kind, run, len(part)) + part for part in cut)


def pack_control(message: dict[str, Any]) -> bytes:
    """Return an order or a report as a piece."""
    return pack(CONTROL, 0, json.dumps(message).encode())


class Unpacker:
    """Bytes in as they come, whole pieces out."""

    def __init__(self) -> None:
        self._left = bytearray()

    def feed(self, data: bytes) -> list[Piece]:
        """Return the pieces that are whole by now.

        Raises:
            PieceError: the bytes are none.
        """
        self._left += data
        found: list[Piece] = []
        while len(self._left) >= HEADER.size:
            kind, run, length = HEADER.unpack_from(self._left)
            if kind > STANDARD or length > MAX_PIECE_BYTES:
                raise PieceError(f"no message: {bytes(self._left[:80])!r}")
            end = HEADER.size + length
            if len(self._left) < end:
                break
            found.append((kind, run, bytes(self._left[HEADER.size : end])))
            del self._left[:end]
        return found
