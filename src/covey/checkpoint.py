"""Saving and loading the state of a run so that no crash, full disk or flipped bit costs more than the last interval.

A checkpoint is a directory `step-NNNNNN` of safetensors and text files with a `MANIFEST.json` of their SHA-256 hashes.
It is filled under a temporary name, put on the disk file by file, and gets its real name in one rename: a directory
of that name is complete, and whatever damages it later is found by its hashes. Nothing is ever pickled.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from covey.monitor.disk import SaveError
from covey.monitor.environment import describe_versions
from covey.monitor.run_directory import fsync, write_bytes_synced
from covey.types import CoveyError

FORMAT_VERSION = 2
_MANIFEST = "MANIFEST.json"
_STATE = "state.json"
# A checkpoint that is being replaced by one of the same step keeps counting, under its hidden name, until it has been.
_CHECKPOINT = re.compile(r"(?P<replaced>\.old-)?step-(?P<step>\d{6,})(?(replaced)-\d+)")
_LEFTOVER = re.compile(r"\.(?P<kind>tmp|del|old)-.+-(?P<pid>\d+)")
_SPARE_SPACE = 1.2  # free space asked for, in sizes of the checkpoint


class OtherFormatError(CoveyError):
    """A checkpoint is whole, and of a format that this Covey does not read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A saved state; its tensors stay on the disk until they are asked for."""

    path: Path
    step: int
    state: dict[str, Any]
    log_sizes: dict[str, int]
    """Bytes of each log when the state was saved: resuming cuts the logs to these."""

    def has(self, name: str) -> bool:
        """Return whether the checkpoint holds this file."""
        return (self.path / name).is_file()

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Load one safetensors file, such as `model.safetensors`."""
        return load_file(self.path / name)


def save_checkpoint(
    directory: Path,
    step: int,
    *,
    tensors: Tensors,
    texts: Mapping[str, str | bytes],
    state: Mapping[str, Any],
    log_sizes: Mapping[str, int],
    keep: int = 2,
    kept_step: int | None = None,
) -> Path:
    """Save a checkpoint, remove all but the newest `keep` valid ones up to this step, and return its path.

    The checkpoint of `kept_step` stays besides, however old it is.

    `tensors` and `texts` map file names to contents. No two tensors of a file may share memory: drop tied ones before.
    Sync the logs first: the manifest vouches for `log_sizes` bytes of them. `state["config_hash"]` is repeated in it.
    """
    if keep < 2:
        raise ValueError(f"keep={keep}: with fewer than 2 checkpoints, one damaged file ends the run")
    texts = dict(texts) | {_STATE: json.dumps(dict(state), allow_nan=False, indent=1)}
    blobs = {name: text.encode() if isinstance(text, str) else text for name, text in texts.items()}
    packed = {file: _packed(file, named) for file, named in tensors.items()}
    num_bytes = sum(map(len, blobs.values()))
    num_bytes += sum(tensor.nbytes for named in packed.values() for tensor in named.values())
    temporary = directory / f".tmp-{step:06d}-{os.getpid()}"
    try:
        _make_directory(directory)
        _remove_leftovers(directory, kinds=("tmp", "del"))
        _check_space(directory, num_bytes)
        temporary.mkdir(mode=0o700)
        _write_files(temporary, packed, blobs)
        _write_manifest(temporary, {"step": step, "config_hash": state.get("config_hash"), "log_sizes": dict(log_sizes)})
        path = _publish(temporary, directory / f"step-{step:06d}")
        _remove_leftovers(directory, kinds=("old",))
        _prune(path, step, keep, kept_step)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise SaveError(f"saving step {step} failed: {error}. {_space(directory, num_bytes)}") from error
    return path


Tensors = Mapping[str, Mapping[str, Tensor]]
"""By the name of their file, and by their own."""
Buffers = dict[str, dict[str, Tensor]]


def copy_tensors(files: Tensors, buffers: Buffers) -> Buffers:
    """Copy the tensors into the buffers, which are made where they are missing, and return these.

    They are in the computer's own memory, laid out as they are written. Memory that has been used before takes a copy several
    times as fast as new memory.

    Raises:
        ValueError: two tensors of a file share memory.
    """
    for file, named in files.items():
        held = buffers.setdefault(file, {})
        for name, tensor in _packed(file, named).items():
            if name not in held or held[name].shape != tensor.shape or held[name].dtype != tensor.dtype:
                held[name] = torch.empty_like(tensor, device="cpu")
            held[name].copy_(tensor)
    return buffers


def _packed(file: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors in the layout they are written in, or refuse those that share memory."""
    packed = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    spans = sorted((str(t.device), t.data_ptr(), t.data_ptr() + t.nbytes, name) for name, t in packed.items() if t.nbytes)
    for (device, _, end, name), (other_device, start, _, other) in itertools.pairwise(spans):
        if device == other_device and start < end:
            raise ValueError(f"{file}: {name} and {other} share memory (tied weights?): save only one of them")
    return packed


def _make_directory(directory: Path) -> None:
    if not directory.is_dir():
        directory.mkdir(mode=0o700)
        fsync(directory.parent)


def _remove_leftovers(directory: Path, *, kinds: tuple[str, ...]) -> None:
    """Remove what saves of processes that are gone, or earlier ones of this process, did not finish."""
    for entry in directory.iterdir():
        match = _LEFTOVER.fullmatch(entry.name)
        if match and match["kind"] in kinds and not _is_other_process(int(match["pid"])):
            _remove(entry)


def _remove(entry: Path) -> None:
    """Remove a directory with all that is in it; of a link the link alone, and not what it leads to."""
    if entry.is_symlink():
        entry.unlink()
    else:
        shutil.rmtree(entry)


def _is_other_process(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError) as error:
        return isinstance(error, PermissionError)  # it is there and belongs to somebody else
    return True


def _space(directory: Path, num_bytes: int) -> str:
    existing = directory if directory.exists() else directory.parent
    free = shutil.disk_usage(existing).free
    return (
        f"It needs {num_bytes:,} bytes ({_SPARE_SPACE} times that free); {free:,} are free in {directory}. "
        "Earlier checkpoints are untouched: make room if that is the cause, then continue the run with --resume"
    )


def _check_space(directory: Path, num_bytes: int) -> None:
    if shutil.disk_usage(directory).free < _SPARE_SPACE * num_bytes:
        raise SaveError(f"too little space for a checkpoint. {_space(directory, num_bytes)}")


def _write_files(path: Path, tensors: Mapping[str, dict[str, Tensor]], blobs: Mapping[str, bytes]) -> None:
    for name, data in blobs.items():
        write_bytes_synced(path / name, data)
    for name, named in tensors.items():
        save_file(named, path / name, metadata={"format": "pt"})
        fsync(path / name)


def _write_manifest(path: Path, facts: Mapping[str, Any]) -> None:
    files = {file.name: {"size": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(path.iterdir())}
    manifest = {"format_version": FORMAT_VERSION, **facts, "files": files, "versions": describe_versions()}
    text = json.dumps({**manifest, "sha256": _seal(manifest)}, indent=1)
    write_bytes_synced(path / _MANIFEST, text.encode())
    fsync(path)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(manifest: Mapping[str, Any]) -> str:
    """Return the hash of the manifest itself, which no other file vouches for."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _publish(temporary: Path, path: Path) -> Path:
    """Give a finished checkpoint its name; one that has the name already is valid under another until then."""
    if path.exists():
        os.rename(path, path.with_name(f".old-{path.name}-{os.getpid()}"))
    os.rename(temporary, path)
    fsync(path.parent)
    return path


def _prune(saved: Path, step: int, keep: int, kept_step: int | None) -> None:
    """Remove the checkpoints before the newest `keep` valid ones. Steps after `step` are not this save's to judge."""
    num_valid = 0
    for path in _checkpoints(saved.parent):
        if path.name.startswith(".") or _step_of(path) > step:
            continue
        if _step_of(path) == kept_step and path != saved:
            continue
        if num_valid < keep:
            num_valid += path == saved or not verify_checkpoint(path)
        else:
            doomed = path.with_name(f".del-{path.name}-{os.getpid()}")
            os.rename(path, doomed)
            _remove(doomed)


def _step_of(path: Path) -> int:
    match = _CHECKPOINT.fullmatch(path.name)
    return int(match["step"]) if match else -1


def _checkpoints(directory: Path) -> list[Path]:
    """Return the complete checkpoints, newest first; of one step, the replaced one last."""
    entries = directory.iterdir() if directory.is_dir() else ()
    found = [entry for entry in entries if _CHECKPOINT.fullmatch(entry.name)]
    return sorted(found, key=lambda path: (_step_of(path), path.name), reverse=True)


def checkpoint_steps(directory: Path) -> list[int]:
    """Return the steps of the complete checkpoints, newest first. Whether they are damaged is another question."""
    return list(dict.fromkeys(map(_step_of, _checkpoints(directory))))


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
    except OSError as error:
        raise CoveyError(f"{_MANIFEST} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CoveyError(f"{_MANIFEST} is damaged ({error})") from error
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _seal(manifest):
        raise CoveyError(f"{_MANIFEST} is damaged (it does not have the hash that it states)")
    # After the hash, which every format has: a flipped bit must not look like another Covey's checkpoint.
    if (version := manifest.get("format_version")) != FORMAT_VERSION:
        writer = manifest.get("versions", {}).get("covey", "unknown")
        raise OtherFormatError(
            f"{path / _MANIFEST} has format version {version}, this Covey reads {FORMAT_VERSION}. It was written by Covey "
            f"{writer}: go on with that version, or export the model with it and start a new run"
        )
    return manifest


def _file_problem(path: Path, *, size: int, sha256: str) -> str | None:
    try:
        found_size = path.stat().st_size
        if found_size != size:
            return f"{path.name} has {found_size} bytes instead of {size}"
        return None if _sha256(path) == sha256 else f"{path.name} is damaged (its SHA-256 differs from the manifest's)"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"


def verify_checkpoint(path: Path, *, refuses_other_format: bool = False) -> list[str]:
    """Return what is wrong with a checkpoint, after hashing every file of it; empty = valid.

    Raises:
        OtherFormatError: it is of another format, if that is to be refused and not to be returned.
    """
    try:
        manifest = _read_manifest(path)
    except CoveyError as error:
        if refuses_other_format and isinstance(error, OtherFormatError):
            raise
        return [str(error)]
    problems = [_file_problem(path / name, **entry) for name, entry in manifest["files"].items()]
    return [problem for problem in problems if problem is not None]


def newest_valid_checkpoint(directory: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint that verifies, and a message for each newer one that does not.

    None if there are no checkpoints at all. If there are and none is valid, that is an error: starting from scratch
    beside them would hide the loss.

    Raises:
        OtherFormatError: the newest one that is whole is of another format; it is not passed over.
    """
    messages: list[str] = []
    for path in _checkpoints(directory):
        problems = verify_checkpoint(path, refuses_other_format=True)
        if not problems:
            return path, messages
        messages.append(f"checkpoint {path} is damaged and passed over: {'; '.join(problems)}")
    if messages:
        listed = "\n".join(messages)
        raise CoveyError(f"no valid checkpoint in {directory}: restore one, or start a run with another name\n{listed}")
    return None, messages


def load_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint that was found valid by `newest_valid_checkpoint`: its files are not hashed again."""
    try:
        manifest = _read_manifest(path)
    except CoveyError as error:
        raise CoveyError(f"{path} is not a usable checkpoint: {error}") from error
    state = json.loads((path / _STATE).read_bytes())
    return Checkpoint(path=path, step=manifest["step"], state=state, log_sizes=manifest["log_sizes"])
