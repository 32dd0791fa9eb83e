"""What a loss of power leaves of a directory, computed from the calls that changed it.

A file system promises what was synced, and nothing else. Two disks are played, both worse than real ones: `forgetful` keeps
of a file what its last fsync saw, and of a directory the names that its last fsync saw; `hasty` has every name at once, and of
a file still only what was synced. After each call the power may be lost on either.
"""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

Names = dict[str, int]
"""Of a directory: what its entries are, by their number on the disk."""
_CHANGES = ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync")
_MACHINERY = ("counting", "note")


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One call, and the directory as it was just before: all names, and what was synced by it."""

    site: str
    """Of an fsync: where in the source it was called. Empty: another call."""
    tree: dict[int, Names]
    """The names of every directory just before the call."""
    synced: dict[int, bytes | Names]
    """What an fsync put on the disk; empty for any other call."""
    num_finished: int
    """Saves that had returned by then."""


@dataclass(kw_only=True, slots=True)
class Recording:
    """Replaces the calls by which files change, and notes those below `root`."""

    root: Path
    calls: list[Call] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    """Open files: as long as they are, no number is given to another file."""
    num_finished: int = 0

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in _CHANGES:
            patch.setattr(os, name, self._counting(name, getattr(os, name)))

    def _counting(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **kwargs: Any) -> Any:
            self.note(args[0] if name == "fsync" else None)
            return call(*args, **kwargs)

        return counting

    def note(self, descriptor: int | None = None) -> None:
        """Note a call, or (without a descriptor) that there is another moment to lose power at."""
        synced: dict[int, bytes | Names] = {}
        site = ""
        if descriptor is not None:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if path.is_relative_to(self.root.parent):
                synced[os.stat(path).st_ino] = self._names(path) if path.is_dir() else path.read_bytes()
                self.held.append(os.dup(descriptor))
                site = _site()
        tree = {os.stat(place).st_ino: self._names(place) for place in (self.root.parent, *self._directories())}
        self.calls.append(Call(site=site, tree=tree, synced=synced, num_finished=self.num_finished))

    def _directories(self) -> Iterator[Path]:
        return (Path(place) for place, _, _ in os.walk(self.root)) if self.root.exists() else iter(())

    def _names(self, path: Path) -> Names:
        return {entry.name: entry.inode() for entry in os.scandir(path)}

    def close(self) -> None:
        for descriptor in self.held:
            os.close(descriptor)

    @property
    def sites(self) -> list[str]:
        """Where fsync was called, each place once."""
        return list(dict.fromkeys(call.site for call in self.calls if call.site))


def _site() -> str:
    """Return the functions of Covey's that called fsync, innermost first."""
    frames = [frame for frame in reversed(traceback.extract_stack()) if "/covey/" in frame.filename][:3]
    shown = [f"{Path(frame.filename).stem}.{frame.name}:{frame.line}" for frame in frames if frame.name not in _MACHINERY]
    return " < ".join(shown)


Check = Callable[[Path, int], str]
"""(what is left, how many saves had returned) -> what is lost that must not be; empty = nothing."""


def losses(
    recording: Recording, check: Check, scratch: Path, *, known: dict[tuple[str, int], str], without: str = ""
) -> Iterator[str]:
    """Lose power before each call, on either disk. Yield what `check` finds wrong with what is left.

    `without`: calls of fsync at this place do nothing. `known`: what was found before, which is not looked at again.
    """
    top = next(iter(recording.calls[0].tree))
    durable: dict[int, bytes | Names] = {top: {}}
    for number, call in enumerate(recording.calls):
        for disk, names in (("forgetful", durable), ("hasty", {**durable, **call.tree})):
            left = contents(names, top)
            key = (repr(sorted((path, hash(data)) for path, data in left.items())), call.num_finished)
            if key not in known:
                known[key] = check(written(left, scratch), call.num_finished)
            if known[key]:
                yield f"call {number}, {disk}: {known[key]}"
        if not (without and call.site == without):
            durable |= call.synced


def contents(disk: Mapping[int, bytes | Names], number: int, prefix: str = "") -> dict[str, bytes]:
    """Return the files below a directory by their path; one that was never synced is empty."""
    entries = disk.get(number, {})
    found: dict[str, bytes] = {}
    assert isinstance(entries, dict)
    for name, entry in entries.items():
        path, data = f"{prefix}{name}", disk.get(entry, b"")
        if isinstance(data, dict):
            found |= {f"{path}/": b""} | contents(disk, entry, f"{path}/")
        else:
            found[path] = data
    return found


def written(left: Mapping[str, bytes], scratch: Path) -> Path:
    """Write what is left into an empty directory, and return it."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for path, data in left.items():
        if path.endswith("/"):
            (scratch / path).mkdir(parents=True, exist_ok=True)
        else:
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            (scratch / path).write_bytes(data)
    return scratch
