"""A disk that is full or broken, whatever is being written: one message, an exit code of its own, and no bit lost."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest
from tests.commands import SMALL, covey
from tests.digits import at_step, bits_of, train_digits
from tests.disk_faults import FAULTS, after_failing_write, fill, go_on, num_writes, refuse_damage, small_disk

from covey.monitor.disk import SaveError, disk_failures_told
from covey.monitor.run_directory import read_jsonl

TOLD = r"[\d,]+ (bytes )?are free in .*checkpoints are untouched: make room .*--resume"


pytestmark = pytest.mark.usefixtures("no_slow_parts")


@pytest.fixture(scope="module")
def alone(directory: Path) -> dict[str, Any]:
    return bits_of(train_digits(directory, "alone").path)


@pytest.fixture(scope="module")
def count(directory: Path) -> int:
    return num_writes(directory)


@pytest.mark.parametrize("part", range(4))
def test_a_write_that_fails_is_told_and_costs_no_bit(directory: Path, alone: dict[str, Any], count: int, part: int) -> None:
    code = FAULTS[part % len(FAULTS)]
    told = after_failing_write(directory, f"part {part}", number=5 + part * (count - 10) // 3, code=code)
    assert re.search(TOLD, told), told
    assert os.strerror(code) in told
    assert bits_of(directory / f"part {part}") == alone


def test_the_writes_that_fail_are_all_kinds_of_them(count: int) -> None:
    assert count > 100


@pytest.mark.parametrize("leaving", [0, 9_000, 400_000])
def test_on_a_disk_that_is_really_full_no_bit_is_lost(
    directory: Path, tmp_path: Path, alone: dict[str, Any], leaving: int
) -> None:
    with small_disk(tmp_path / "disk", num_bytes=8_000_000) as disk:
        ballast = disk / "ballast"
        reward = at_step(disk / "run", 4, lambda: fill(disk, leaving=leaving))
        options: dict[str, Any] = {"model": str(directory / "model"), "checkpoint__every": 1}
        with pytest.raises(SaveError, match=TOLD):
            train_digits(disk, "run", reward=reward, **options)
        refuse_damage(disk / "run")
        steps = [row["step"] for row in read_jsonl(disk / "run/metrics.jsonl")]
        assert steps == list(range(1, len(steps) + 1))
        ballast.unlink()
        go_on(disk, "run")
        assert bits_of(disk / "run") == alone


def test_with_room_enough_the_same_run_ends(directory: Path, tmp_path: Path, alone: dict[str, Any]) -> None:
    """What the test above would find if nothing were full."""
    with small_disk(tmp_path / "disk", num_bytes=8_000_000) as disk:
        reward = at_step(disk / "run", 4, lambda: fill(disk, leaving=5_000_000))
        run = train_digits(disk, "run", reward=reward, model=str(directory / "model"), checkpoint__every=1)
        assert bits_of(run.path) == alone


def test_the_command_has_an_exit_code_of_its_own_and_no_traceback(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", num_bytes=300_000) as disk:
        finished = covey("train", "arithmetic", f"run.directory={disk}", *SMALL, directory=tmp_path)
    assert finished.code == 74, finished
    assert re.search(TOLD, finished.err)
    assert "Traceback" not in finished.err + finished.out


def test_what_is_needed_is_said_by_the_newest_checkpoint(tmp_path: Path) -> None:
    for step, size in ((1, 7), (2, 1234)):
        (tmp_path / f"checkpoints/step-{step:06d}").mkdir(parents=True)
        (tmp_path / f"checkpoints/step-{step:06d}/model.safetensors").write_bytes(b"x" * size)
    with (
        pytest.raises(SaveError, match=r"metrics\.jsonl could not be written: No space .*has 1,234 bytes, .* needs 1\.2 times"),
        disk_failures_told(tmp_path),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "metrics.jsonl"))


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_failures_told(tmp_path):
        (tmp_path / "nowhere").read_text()
