"""The host of WebAssembly modules with a hole in it, for tests of what finds it."""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from wasmtime import Store

from covey.rewards.sandbox import wasm_host
from covey.rewards.sandbox.wasi import Files, Wasi

_DIRECTORY = 3
_NO_SUCH_FILE, _BAD_FILE = 44, 8


def with_directory() -> dict[str, Callable[..., int]]:
    """Return the calls with the directory for temporary files open as file 3, to be written to."""
    name = os.path.realpath(tempfile.gettempdir()).encode()

    def put(caller: Any, at: int, data: bytes) -> int:
        caller["memory"].write(caller, data, at & 0xFFFFFFFF)
        return 0

    def path_of(caller: Any, at: int, length: int) -> bytes:
        return name + b"/" + bytes(caller["memory"].read(caller, at, at + length))

    def path_open(caller: Any, file: int, flags: int, at: int, length: int, *rest: int) -> int:
        try:
            return put(caller, rest[-1], struct.pack("<I", os.open(path_of(caller, at, length), os.O_CREAT | os.O_WRONLY)))
        except OSError:
            return _NO_SUCH_FILE

    def path_create_directory(caller: Any, file: int, at: int, length: int) -> int:
        os.mkdir(path_of(caller, at, length))
        return 0

    return {
        "fd_prestat_get": lambda caller, file, at: (
            put(caller, at, struct.pack("<II", 0, len(name))) if file == _DIRECTORY else _BAD_FILE
        ),
        "fd_prestat_dir_name": lambda caller, file, at, length: put(caller, at, name),
        "path_open": path_open,
        "path_create_directory": path_create_directory,
    }


class OpenWasi(Wasi):
    """With a directory."""

    @property
    def calls(self) -> dict[str, Callable[..., int]]:
        return super().calls | with_directory()


class ToldWasi(Wasi):
    """With a variable of the environment."""

    def __init__(self, files: Files, *, arguments: Sequence[bytes], environment: Sequence[bytes]) -> None:
        super().__init__(files, arguments=arguments, environment=[*environment, b"HF_TOKEN=secret"])


class EndlessStore(Store):
    """With memory without a limit."""

    def set_limits(self, **limits: int) -> None:  # ty: ignore[incompatible-method-override]
        pass


HOLES = {"files": {"Wasi": OpenWasi}, "environment": {"Wasi": ToldWasi}, "memory": {"Store": EndlessStore}}
"""By the hole: what takes the place of what in the host."""


def main(hole: str) -> None:
    """Be the host, but for the hole."""
    vars(wasm_host).update(HOLES[hole])
    wasm_host.main()
