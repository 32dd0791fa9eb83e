"""What ranks do together is what one process does alone; and no rank waits for ever for one that is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.builders import make_group
from tests.ranks import ends_of_ranks, free_port, on_ranks
from torch import Tensor

from covey.distributed import ALONE, Ranks, open_ranks
from covey.types import CoveyError

SIZES = range(8)
every_count = pytest.mark.parametrize("count", [2, 3])


def tensors_of(index: int) -> list[Tensor]:
    """What one rank adds: several dtypes in turn, an empty tensor, a scalar, and one that is not contiguous."""
    generator = torch.Generator().manual_seed(index)
    return [
        torch.randn(3, 2, generator=generator),
        torch.randint(-100, 100, (4,), generator=generator),
        torch.randn(5, generator=generator, dtype=torch.float64),
        torch.randn(0, generator=generator),
        torch.randn(4, 3, generator=generator).T,
        torch.tensor(float(index)),
    ]


# --- one process --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("size", SIZES)
def test_parts_put_together_are_the_items_in_order(size: int, count: int):
    parts = [Ranks(index=index, count=count).share(range(size)) for index in range(count)]
    assert [item for part in parts for item in part] == list(range(size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_alone_every_call_is_the_identity():
    tensor = torch.tensor([1.0, 2.0])
    ALONE.sum([tensor])
    ALONE.barrier()
    assert tensor.tolist() == [1.0, 2.0]
    assert ALONE.gather(ALONE.share("abc")) == ["a", "b", "c"]
    assert (ALONE.any(True), ALONE.any(False), ALONE.is_main) == (True, False, True)


@pytest.mark.parametrize("environment", [{}, {"RANK": "0", "WORLD_SIZE": "1"}])
def test_a_process_that_has_no_companions_is_alone(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with open_ranks() as ranks:
        assert ranks is ALONE
        assert not torch.distributed.is_initialized()


def test_ranks_that_torchrun_did_not_start_are_told_to_use_it(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(CoveyError, match=r"rank 0 of 2 did not meet the others .*torchrun.*MASTER_ADDR"), open_ranks():
        pass


@pytest.mark.parametrize("index", ["0", "1"])
def test_a_rank_that_nobody_comes_to_meet_does_not_wait_for_ever(index: str, monkeypatch: pytest.MonkeyPatch):
    places = {"RANK": index, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in (places | {"CUDA_VISIBLE_DEVICES": ""}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CoveyError, match=rf"rank {index} of 2 did not meet the others within 1 s"), open_ranks(timeout_s=1.0):
        pass
    assert not torch.distributed.is_initialized()


# --- several ------------------------------------------------------------------------------------------------------------


def place(ranks: Ranks) -> tuple[int, int, bool]:
    return ranks.index, ranks.count, ranks.is_main


@every_count
def test_each_rank_knows_its_place_and_one_is_the_main_one(count: int, tmp_path: Path):
    assert on_ranks(count, place, directory=tmp_path) == [(index, count, index == 0) for index in range(count)]


def gathered(ranks: Ranks) -> list[list[Any]]:
    return [ranks.gather([(item, str(item)) for item in ranks.share(range(size))]) for size in SIZES]


@every_count
def test_shared_work_gathered_is_the_work_of_one_process_on_every_rank(count: int, tmp_path: Path):
    alone = [[(item, str(item)) for item in range(size)] for size in SIZES]
    assert on_ranks(count, gathered, directory=tmp_path) == [alone] * count


def gathered_groups(ranks: Ranks) -> list[Any]:
    return ranks.gather([make_group([float(ranks.index), None, 0.1], prompt_id=str(ranks.index))])


def test_groups_travel_unchanged(tmp_path: Path):
    expected = [make_group([float(index), None, 0.1], prompt_id=str(index)) for index in range(2)]
    assert on_ranks(2, gathered_groups, directory=tmp_path) == [expected] * 2


def summed(ranks: Ranks) -> list[Tensor]:
    tensors = tensors_of(ranks.index)
    ranks.sum(tensors)
    return tensors


@every_count
def test_the_sum_is_the_plain_sum_with_the_same_bits_on_every_rank(count: int, tmp_path: Path):
    results = on_ranks(count, summed, directory=tmp_path)
    expected = [sum(of_ranks) for of_ranks in zip(*map(tensors_of, range(count)), strict=True)]
    for found, plain in zip(results[0], expected, strict=True):
        torch.testing.assert_close(found, plain, atol=1e-6, rtol=0)
    for other in results[1:]:
        assert all(torch.equal(found, same) for found, same in zip(other, results[0], strict=True))


def summed_gradients(ranks: Ranks) -> list[float]:
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    (weight * (ranks.index + 1)).sum().backward()
    assert weight.grad is not None
    ranks.sum([weight.grad, weight])
    return weight.grad.tolist() + weight.tolist()


def test_gradients_and_parameters_are_summed_in_place(tmp_path: Path):
    assert on_ranks(2, summed_gradients, directory=tmp_path) == [[3.0, 3.0, 2.0, 4.0]] * 2


def flags(ranks: Ranks) -> list[bool]:
    return [ranks.any(False), ranks.any(ranks.index == 1), ranks.any(True)]


@every_count
def test_a_flag_on_one_rank_is_seen_by_all(count: int, tmp_path: Path):
    assert on_ranks(count, flags, directory=tmp_path) == [[False, True, True]] * count


def times_around_a_barrier(ranks: Ranks) -> tuple[float, float]:
    time.sleep(0.3 * ranks.index)
    before = time.monotonic()  # One clock for the processes of a machine.
    ranks.barrier()
    return before, time.monotonic()


def test_no_rank_passes_a_barrier_before_the_last_one_comes(tmp_path: Path):
    times = on_ranks(3, times_around_a_barrier, directory=tmp_path)
    assert max(before for before, _ in times) <= min(after for _, after in times)


# --- failures -----------------------------------------------------------------------------------------------------------


def fail_on_rank_1(ranks: Ranks) -> list[int]:
    if ranks.index == 1:
        raise ValueError("this rank has a problem")
    return ranks.gather([ranks.index])


def die_on_rank_1(ranks: Ranks) -> list[int]:
    if ranks.index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return ranks.gather([ranks.index])


def return_at_once_on_rank_0(ranks: Ranks) -> list[int]:
    if ranks.index == 1:
        raise ValueError("this rank has a problem")
    return []


def stuck_on_rank_1(ranks: Ranks, gave_up: Path) -> list[int]:
    if ranks.index == 0:
        try:
            return ranks.gather([ranks.index])
        finally:
            gave_up.touch()
    while not gave_up.exists():
        time.sleep(0.01)
    return []


@every_count
def test_a_rank_that_fails_ends_the_others_at_once(count: int, tmp_path: Path):
    started = time.monotonic()
    ends = ends_of_ranks(count, fail_on_rank_1, directory=tmp_path)
    assert time.monotonic() - started < 60  # They would wait for each other for two minutes.
    assert [end.code for end in ends] == [1] * count
    assert "ValueError: this rank has a problem" in ends[1].err
    for index in {0, count - 1} - {1}:
        assert f"CoveyError: rank {index} of {count} lost the others" in ends[index].err


def test_a_rank_that_is_killed_ends_the_others_at_once(tmp_path: Path):
    started = time.monotonic()
    first, second = ends_of_ranks(2, die_on_rank_1, directory=tmp_path)
    assert time.monotonic() - started < 60
    assert (first.code, second.code) == (1, -signal.SIGKILL)
    assert "CoveyError: rank 0 of 2 lost the others" in first.err


def test_no_rank_succeeds_when_another_one_fails(tmp_path: Path):
    first, second = ends_of_ranks(2, return_at_once_on_rank_0, directory=tmp_path)
    assert (first.code, second.code) == (1, 1)
    assert "CoveyError: rank 0 of 2 lost the others" in first.err


def test_a_rank_that_is_stuck_is_waited_for_no_longer_than_the_timeout(tmp_path: Path):
    first, second = ends_of_ranks(2, stuck_on_rank_1, tmp_path / "gave-up", directory=tmp_path, timeout_s=5.0)
    assert (first.code, second.code) == (1, 1)
    assert "CoveyError: rank 0 of 2 lost the others: one of them ended or was stuck for longer than the timeout" in first.err


def test_the_helper_reports_the_traceback_of_the_rank_that_failed(tmp_path: Path):
    with pytest.raises(AssertionError, match=r"rank 1 ended with code 1:\n(?s:.*)ValueError: this rank has a problem"):
        on_ranks(2, fail_on_rank_1, directory=tmp_path)


# --- torchrun -----------------------------------------------------------------------------------------------------------

SCRIPT = """
from covey.distributed import open_ranks
with open_ranks(timeout_s=60) as ranks:
    total = sum(ranks.gather([item * item for item in ranks.share(range(5))]))
    if ranks.is_main:
        print(f"{ranks.count} ranks found {total}")
"""


def test_torchrun_starts_ranks_that_find_each_other(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["2 ranks found 30"]
