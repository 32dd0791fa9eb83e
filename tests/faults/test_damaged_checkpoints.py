"""About a hundred ways to damage the files of a real checkpoint: each is found, named, and the previous checkpoint taken."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.digits import leave_out_slow_parts, train_digits

from covey.checkpoint import newest_valid_checkpoint, verify_checkpoint

NUM_FILES = 8
"""Of a checkpoint, at least."""


def flipped(data: bytes, place: float) -> bytes:
    changed = bytearray(data)
    changed[min(len(data) - 1, int(place * len(data)))] ^= 0x01
    return bytes(changed)


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "a bit of the first byte": lambda data: flipped(data, 0.0),
    "a bit of the first third": lambda data: flipped(data, 0.33),
    "a bit of the last third": lambda data: flipped(data, 0.67),
    "a bit of the last byte": lambda data: flipped(data, 1.0),
    "one byte less": lambda data: data[:-1],
    "half of it": lambda data: data[: len(data) // 2],
    "nothing in it": lambda data: b"",
    "one byte more": lambda data: data + b"\0",
    "a page of zeros": lambda data: data[: len(data) // 2] + b"\0" * 64 + data[len(data) // 2 + 64 :],
    "nothing but zeros": lambda data: b"\0" * len(data),
    "its halves exchanged": lambda data: data[len(data) // 2 :] + data[: len(data) // 2],
    "no file": lambda data: None,
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        leave_out_slow_parts(patch)
        directory = tmp_path_factory.mktemp("damaged")
        yield train_digits(directory, "run", num_steps=2, checkpoint__every=1).path / "checkpoints"


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(checkpoint.iterdir())


def test_there_are_about_a_hundred_cases(checkpoints: Path) -> None:
    assert len(files_of(checkpoints / "step-000002")) * len(DAMAGE) >= 96
    assert len(files_of(checkpoints / "step-000002")) >= NUM_FILES


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_in_any_file_is_found_and_named(checkpoints: Path, case: str) -> None:
    for file in files_of(checkpoints / "step-000002"):
        whole = file.read_bytes()
        damaged = DAMAGE[case](whole)
        assert damaged != whole
        file.unlink()
        if damaged is not None:
            file.write_bytes(damaged)
        path, messages = newest_valid_checkpoint(checkpoints)
        file.write_bytes(whole)
        assert path == checkpoints / "step-000001"
        assert len(messages) == 1
        assert file.name in messages[0]


def test_undamaged_it_is_valid(checkpoints: Path) -> None:
    """The positive control: the files that are put back are what was there."""
    assert newest_valid_checkpoint(checkpoints) == (checkpoints / "step-000002", [])


def test_a_file_of_the_checkpoint_before_is_found(checkpoints: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(checkpoints / "step-000002", tmp_path / "step-000002")
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        shutil.copy(checkpoints / "step-000001" / name, copied / name)
        assert any(name in problem for problem in verify_checkpoint(copied)), name


def test_a_directory_in_the_place_of_a_file_is_found(checkpoints: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(checkpoints / "step-000002", tmp_path / "step-000002")
    (copied / "model.safetensors").unlink()
    (copied / "model.safetensors").mkdir()
    assert any("model.safetensors" in problem for problem in verify_checkpoint(copied))
