"""Checkpoints of released formats go on, and those of others are refused by their format, with what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.checkpoints import save
from tests.digits import leave_out_slow_parts, newest, resume_digits
from tests.golden_runs import GOLDEN, MAX_BYTES, keep_golden_run, put_golden_run, train_golden_run

from covey import checkpoint
from covey.api import Run
from covey.checkpoint import FORMAT_VERSION, load_checkpoint, newest_valid_checkpoint, verify_checkpoint
from covey.monitor.disk import size_of
from covey.types import CoveyError

KEPT = sorted(GOLDEN.glob("format-*"))


@pytest.fixture(autouse=True)
def _no_slow_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_slow_parts(monkeypatch)


def test_a_run_of_the_present_format_is_kept() -> None:
    assert GOLDEN / f"format-{FORMAT_VERSION}" in KEPT


@pytest.mark.parametrize("golden", KEPT, ids=lambda path: path.name)
def test_a_kept_run_is_small_and_whole(golden: Path) -> None:
    for path in golden.glob("checkpoints/*"):
        assert size_of(path) <= MAX_BYTES
        assert verify_checkpoint(path) == []


def test_a_kept_run_goes_on_from_its_last_step(tmp_path: Path) -> None:
    run = put_golden_run(GOLDEN / f"format-{FORMAT_VERSION}", tmp_path)
    before = Run(path=run).metrics
    resume_digits(tmp_path, "run", num_steps=3)
    after = Run(path=run).metrics
    assert [row["step"] for row in after] == [1, 2, 3]
    assert after[:2] == before
    assert after[2]["policy/version"] >= before[1]["policy/version"] > 0


def test_resuming_a_kept_run_at_its_end_gives_back_its_very_numbers(tmp_path: Path) -> None:
    kept = GOLDEN / f"format-{FORMAT_VERSION}"
    run = put_golden_run(kept, tmp_path)
    resume_digits(tmp_path, "run")
    for file in ("model.safetensors", "optimizer.safetensors"):
        found = load_checkpoint(newest(run)).tensors(file)
        expected = load_checkpoint(newest(kept)).tensors(file)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)


def test_what_is_kept_is_what_a_run_of_today_writes(tmp_path: Path) -> None:
    """A field that is new in the state must be looked for in old checkpoints with care; here it is seen that there is one."""
    keep_golden_run(train_golden_run(tmp_path), tmp_path / "kept")
    kept, today = (newest(path) for path in (GOLDEN / f"format-{FORMAT_VERSION}", tmp_path / "kept"))
    assert sorted(file.name for file in kept.iterdir()) == sorted(file.name for file in today.iterdir())
    old, new = (set(json.loads((path / "state.json").read_text())) for path in (kept, today))
    assert old <= new, f"{old - new} is written no more: old checkpoints still hold it"


def of_format(path: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a checkpoint as another Covey would, whole and with a hash of its own."""
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT_VERSION", version)
        patch.setattr(checkpoint, "describe_versions", lambda: {"covey": "9.9"})
        return save(path.parent, int(path.name[-1]))


@pytest.mark.parametrize("version", [FORMAT_VERSION - 1, FORMAT_VERSION + 1, 99])
def test_another_format_is_refused_with_what_to_do(checkpoints: Path, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    path = of_format(checkpoints / "step-000001", version, monkeypatch)
    told = (
        rf"format version {version}, this Covey reads {FORMAT_VERSION}\. It was written by Covey 9\.9: go on with that version"
    )
    for refused in (lambda: load_checkpoint(path), lambda: newest_valid_checkpoint(checkpoints)):
        with pytest.raises(CoveyError, match=told):
            refused()


def test_a_newer_checkpoint_of_another_format_is_not_passed_over(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To go on from the older one would throw steps away that nothing is wrong with."""
    save(checkpoints, 1)
    of_format(checkpoints / "step-000002", 3, monkeypatch)
    with pytest.raises(CoveyError, match="format version 3"):
        newest_valid_checkpoint(checkpoints)


def test_the_same_checkpoint_in_the_present_format_is_taken(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = of_format(checkpoints / "step-000001", FORMAT_VERSION, monkeypatch)
    assert newest_valid_checkpoint(checkpoints) == (path, [])


def test_a_run_with_a_foreign_checkpoint_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = put_golden_run(GOLDEN / f"format-{FORMAT_VERSION}", tmp_path)
    of_format(run / "checkpoints/step-000009", 3, monkeypatch)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(CoveyError, match="format version 3"):
        resume_digits(tmp_path, "run", num_steps=20)
    assert {path: path.read_bytes() for path in before} == before
    shutil.rmtree(run / "checkpoints/step-000009")
    resume_digits(tmp_path, "run", num_steps=3)
