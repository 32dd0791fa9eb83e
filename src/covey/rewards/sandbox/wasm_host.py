"""The process in which candidates are WebAssembly modules: CPython is started in it once, and it is forked for each of them.

It is a zygote at the other end of a stream (`inside/far.py`). The module runs until it waits for its first order; there the
host forks, and in the fork the same module goes on with the order of an execution. So each candidate has a memory that no
other has been in. Needs of the kernel what every Unix has: fork and setrlimit.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from wasmtime import Config, Engine, Linker, Store, Trap, WasmtimeError

from covey.rewards.sandbox.carried import GUEST_MODULES, LOADER, opening
from covey.rewards.sandbox.inside import wire
from covey.rewards.sandbox.inside.far import Server
from covey.rewards.sandbox.inside.limits import Limits
from covey.rewards.sandbox.wasi import Wasi, unknown
from covey.rewards.sandbox.wasm_runtime import WASM_SHA256, RuntimeMissingError, compiled

_MODULE = "wasi_snapshot_preview1"
_ARGUMENTS = (b"python", b"-s", b"-S", b"-P", b"-B", b"-c", LOADER.encode())
_ENVIRONMENT = (b"PYTHONHASHSEED=0", b"LC_ALL=C.UTF-8")
_STACK_BYTES = 2 << 20
"""As much as the runtime grants without further settings. It holds C frames alone: those of Python lie in the memory."""
_TRAPPED = 70
"""Exit code of an execution whose module has broken off: a stack that overflows, an instruction that must not be."""
_NOT_BY_THE_SYSTEM = ("RLIMIT_AS",)
"""A module's memory is bounded by the runtime, which sets aside more addresses than it uses."""


class Host:
    """The files of the module: before the fork the source that it starts with, and after it the judge's."""

    def __init__(self, server: Server, store: Store, *, without: tuple[str, ...]) -> None:
        self._server, self._store, self._without = server, store, without
        self._start = opening({}, GUEST_MODULES)
        self._channel: int | None = None
        self._standard: list[int] = []
        self._first = b""
        self.facts: dict[str, Any] = {}

    @property
    def is_execution(self) -> bool:
        """Whether this is a fork, with a candidate in it."""
        return self._channel is not None

    def read(self, count: int) -> bytes:
        if self._channel is None:
            part, self._start = self._start[:count], self._start[count:]
            return part
        return os.read(self._standard[0], count) if self._standard else b""

    def write(self, number: int, data: bytes) -> int:
        if self._channel is None:
            return os.write(2, data)  # For the trainer: why the module does not start.
        return os.write(self._standard[1], data) if self._standard and number == 1 else len(data)

    def close(self, number: int) -> None:
        if number == 1 and self._standard:
            os.close(self._standard[1])
            self._standard = []

    def receive(self, count: int) -> bytes:
        if self._channel is None:
            self._be_forked()
        if self._first:
            part, self._first = self._first[:count], self._first[count:]
            return part
        return os.read(self._channel or 0, count)

    def send(self, data: bytes) -> int:
        return os.write(self._channel or 0, data)

    def _be_forked(self) -> None:
        """Serve orders; what returns from that is an execution."""
        forked = self._server.serve(self.facts)
        self._channel, *self._standard = forked.files
        self._first = wire.frame({"mode": forked.order["mode"]})
        limits = Limits(**forked.order["limits"])
        limits.set(without=(*_NOT_BY_THE_SYSTEM, *self._without))
        self._store.set_limits(memory_size=limits.memory_mb << 20)


def main() -> None:
    """Start the module as the first bytes on standard input say: {cache, without}."""
    settings = _settings()
    started = time.monotonic()
    config = Config()
    config.max_wasm_stack = _STACK_BYTES
    engine = Engine(config)
    try:
        module = compiled(engine, Path(settings["cache"]))
    except RuntimeMissingError as error:
        sys.exit(str(error))
    store = Store(engine)
    host = Host(Server(), store, without=tuple(settings["without"]))
    host.facts = {"wasm_sha256": WASM_SHA256, "start_s": round(time.monotonic() - started, 2)}
    linker = _linker(engine, module, Wasi(host, arguments=_ARGUMENTS, environment=_ENVIRONMENT))
    begin: Any = linker.instantiate(store, module).exports(store)["_start"]
    try:
        begin(store)
    except (Trap, WasmtimeError) as error:
        if not host.is_execution:
            sys.exit(f"the module broke off: {str(error)[-300:]}")
    finally:
        if host.is_execution:
            os._exit(_TRAPPED)


def _settings() -> dict[str, Any]:
    length = int.from_bytes(_exactly(4), "big")
    return json.loads(_exactly(length))["settings"]


def _exactly(count: int) -> bytes:
    """Return so many bytes of standard input, none beyond: what follows is for the server."""
    data = b""
    while len(data) < count:
        piece = os.read(0, count - len(data))
        if not piece:
            sys.exit("the stream ended before it had begun")
        data += piece
    return data


def _linker(engine: Engine, module: Any, wasi: Wasi) -> Linker:
    """Return what the module is given for the calls that it asks for: those of `wasi`, and for all others an error."""
    calls = wasi.calls
    linker = Linker(engine)
    for needed in module.imports:
        if needed.module == _MODULE:
            linker.define_func(_MODULE, needed.name, needed.type, calls.get(needed.name, unknown), access_caller=True)
    return linker
