"""Checkpoints: what was saved comes back, which ones are kept, and damaged ones are refused by name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.checkpoints import FILES, holds_step, names, save

from covey.checkpoint import FORMAT_VERSION, load_checkpoint, newest_valid_checkpoint, verify_checkpoint
from covey.types import CoveyError

# Saving and loading


def test_what_was_saved_comes_back(checkpoints: Path) -> None:
    path = save(checkpoints, 12)
    assert path == checkpoints / "step-000012"
    assert verify_checkpoint(path) == []
    assert newest_valid_checkpoint(checkpoints) == (path, [])
    assert holds_step(path, 12)
    assert load_checkpoint(path).state == {"step": 12, "lr": 0.1 + 0.2, "config_hash": "c0ffee"}


def test_a_checkpoint_is_private(checkpoints: Path) -> None:
    path = save(checkpoints, 1)
    assert {entry.name: oct(entry.stat().st_mode & 0o777) for entry in path.iterdir()} == dict.fromkeys(FILES, "0o600")
    assert [oct(place.stat().st_mode & 0o777) for place in (checkpoints, path)] == ["0o700", "0o700"]


def test_the_manifest_says_what_wrote_the_checkpoint(checkpoints: Path) -> None:
    manifest = json.loads((save(checkpoints, 1) / "MANIFEST.json").read_text())
    assert manifest["format_version"] == FORMAT_VERSION
    assert manifest["config_hash"] == "c0ffee"
    assert {"python", "torch", "transformers"} <= set(manifest["versions"])
    assert sorted(manifest["files"]) == [name for name in FILES if name != "MANIFEST.json"]


def test_binary_texts_and_views_are_saved_as_they_are(checkpoints: Path) -> None:
    transposed = torch.arange(6.0).reshape(2, 3).T
    path = save(checkpoints, 1, tensors={"model.safetensors": {"t": transposed}}, texts={"tokenizer.model": b"\xff\x00"})
    assert torch.equal(load_checkpoint(path).tensors("model.safetensors")["t"], transposed)
    assert (path / "tokenizer.model").read_bytes() == b"\xff\x00"


def test_tensors_that_share_memory_are_refused_by_name(checkpoints: Path) -> None:
    weight = torch.zeros(4)
    with pytest.raises(ValueError, match="embed and head share memory"):
        save(checkpoints, 1, tensors={"model.safetensors": {"embed": weight, "head": weight[1:]}})


def test_separate_parts_of_one_storage_are_not_shared(checkpoints: Path) -> None:
    storage = torch.arange(8.0)
    path = save(checkpoints, 1, tensors={"model.safetensors": {"a": storage[:4], "b": storage[4:]}})
    assert torch.equal(load_checkpoint(path).tensors("model.safetensors")["b"], storage[4:])


def test_no_checkpoints_is_no_error(checkpoints: Path) -> None:
    assert newest_valid_checkpoint(checkpoints) == (None, [])


# Retention


def test_only_the_newest_checkpoints_are_kept(checkpoints: Path) -> None:
    for step in range(1, 6):
        save(checkpoints, step, keep=3)
    assert names(checkpoints) == ["step-000003", "step-000004", "step-000005"]


def test_a_damaged_checkpoint_does_not_count_as_kept(two_checkpoints: Path) -> None:
    (two_checkpoints / "step-000002" / "state.json").unlink()
    save(two_checkpoints, 3)
    assert names(two_checkpoints) == ["step-000001", "step-000002", "step-000003"]
    save(two_checkpoints, 4)
    assert names(two_checkpoints) == ["step-000003", "step-000004"]


def test_saving_an_earlier_step_neither_removes_itself_nor_later_ones(checkpoints: Path) -> None:
    for step in (1, 8, 9):
        save(checkpoints, step)
    save(checkpoints, 3)
    assert names(checkpoints) == ["step-000003", "step-000008", "step-000009"]


def test_keeping_fewer_than_two_is_refused(checkpoints: Path) -> None:
    with pytest.raises(ValueError, match="keep=1"):
        save(checkpoints, 1, keep=1)


def test_leftovers_of_dead_processes_are_removed_and_those_of_live_ones_are_not(two_checkpoints: Path) -> None:
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    for name in (
        f".tmp-000003-{dead}",
        f".del-step-000001-{dead}",
        f".old-step-000002-{dead}",
        f".tmp-000003-{os.getppid()}",
    ):
        (two_checkpoints / name).mkdir()
    save(two_checkpoints, 3)
    assert names(two_checkpoints) == [f".tmp-000003-{os.getppid()}", "step-000002", "step-000003"]


# Damage


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("damage", [flip_bit, truncate, empty, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_previous_checkpoint_taken(
    two_checkpoints: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(two_checkpoints / "step-000002" / name)
    path, messages = newest_valid_checkpoint(two_checkpoints)
    assert path == two_checkpoints / "step-000001"
    assert len(messages) == 1
    assert "step-000002" in messages[0]
    assert name in messages[0]


def test_no_single_bit_of_the_manifest_can_change_unnoticed(checkpoints: Path) -> None:
    path = save(checkpoints, 1)
    manifest = path / "MANIFEST.json"
    data = manifest.read_bytes()
    unnoticed = []
    for bit in range(0, 8 * len(data), 29):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << (bit % 8)
        manifest.write_bytes(changed)
        if not verify_checkpoint(path):
            unnoticed.append(bit)
    assert unnoticed == []


def test_nothing_but_damaged_checkpoints_is_an_error_not_a_fresh_start(two_checkpoints: Path) -> None:
    for path in two_checkpoints.iterdir():
        flip_bit(path / "model.safetensors")
    with pytest.raises(CoveyError, match=r"(?s)no valid checkpoint.*step-000002.*model.*step-000001.*model"):
        newest_valid_checkpoint(two_checkpoints)


def test_a_damaged_format_version_is_damage_and_no_other_format(two_checkpoints: Path) -> None:
    manifest = two_checkpoints / "step-000002" / "MANIFEST.json"
    manifest.write_text(manifest.read_text().replace(f'"format_version": {FORMAT_VERSION}', '"format_version": 3'))
    assert newest_valid_checkpoint(two_checkpoints)[0] == two_checkpoints / "step-000001"
