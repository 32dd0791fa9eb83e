"""The run directory: making and opening it, its lock, its logs and its tables."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from covey.monitor.environment import describe_machine, describe_versions
from covey.monitor.run_directory import (
    JsonlLog,
    RunDirectory,
    free_run_name,
    read_jsonl,
    read_rows,
    write_rows,
    write_text_atomic,
)
from covey.types import CoveyError


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "runs" / "first")


@pytest.fixture
def log(tmp_path: Path) -> JsonlLog:
    return JsonlLog(tmp_path / "metrics.jsonl")


# Making and opening


def test_a_new_run_is_private(run: RunDirectory) -> None:
    assert mode_of(run.path) == 0o700


def test_creating_over_an_existing_run_is_refused_with_what_to_do(run: RunDirectory) -> None:
    run.recipe.write_text("")
    with pytest.raises(CoveyError, match=r"first is not empty: choose another name, or .* --resume"):
        RunDirectory.create(run.path)


def test_a_run_killed_before_its_first_file_can_be_created_again(run: RunDirectory) -> None:
    with run.lock():
        pass
    (run.path / ".recipe.toml.tmp-17").write_text("half a rec")
    assert RunDirectory.create(run.path) == run


def test_opening_something_that_is_no_run_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(CoveyError, match=str(tmp_path)):
        RunDirectory.open(tmp_path)


def test_opening_a_run_gives_its_paths(run: RunDirectory) -> None:
    run.recipe.write_text("")
    opened = RunDirectory.open(run.path)
    assert opened.rollouts_of(3) == run.path / "rollouts" / "step-000003.parquet"
    assert opened.evals_of(40, part="guard", mode="greedy") == run.path / "evals" / "guard-greedy-step-000040.parquet"


def test_the_logs_are_those_that_a_checkpoint_records(run: RunDirectory) -> None:
    logs = {name: log.path.name for name, log in run.logs().items()}
    assert logs == {name: f"{name}.jsonl" for name in ("metrics", "timing", "eval", "guard", "events")}


def test_a_free_name_is_the_first_unused_number(tmp_path: Path) -> None:
    assert free_run_name(tmp_path, "grpo") == "grpo"
    (tmp_path / "grpo").mkdir()
    (tmp_path / "grpo-2").mkdir()
    assert free_run_name(tmp_path, "grpo") == "grpo-3"


def test_importing_the_module_loads_neither_torch_nor_pyarrow() -> None:
    heavy = {"torch", "transformers", "pyarrow"}
    code = f"import sys, covey.monitor.run_directory; print(sorted({heavy} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "[]\n"


# The lock


def start_holder(run: RunDirectory, *, then: str = "time.sleep(60)") -> subprocess.Popen[str]:
    """Start a process that holds the lock, and return once it does."""
    code = (
        "import os, sys, time; from pathlib import Path; from covey.monitor.run_directory import RunDirectory\n"
        f"with RunDirectory(Path({str(run.path)!r})).lock():\n    print('held', flush=True)\n    {then}\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_second_writer_is_told_at_once_who_holds_the_run(run: RunDirectory) -> None:
    holder = start_holder(run)
    start = time.monotonic()
    try:
        with pytest.raises(CoveyError, match=rf"process {holder.pid} on {os.uname().nodename}"), run.lock():
            pass
    finally:
        holder.kill()
        holder.communicate()
    assert time.monotonic() - start < 1.0


def test_the_lock_vanishes_when_its_holder_is_killed(run: RunDirectory) -> None:
    holder = start_holder(run)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with run.lock():
        pass


def test_a_forked_worker_that_outlives_its_trainer_does_not_keep_the_lock(run: RunDirectory) -> None:
    forking = "os.fork() or print(os.getpid(), flush=True); time.sleep(60)"
    holder = start_holder(run, then=forking)
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    holder.kill()
    holder.wait()
    try:
        with run.lock():
            os.kill(worker, 0)  # still there
    finally:
        os.kill(worker, signal.SIGKILL)
        holder.stdout.close()


def test_the_lock_can_be_taken_again_after_it_was_left(run: RunDirectory) -> None:
    with run.lock():
        pass
    with run.lock():
        pass


# Logs


def test_records_come_back_in_order(log: JsonlLog) -> None:
    records = [{"step": 1, "loss": 0.1 + 0.2, "kl": None}, {"step": 2, "text": "naïve\n\u2028 \ud800"}]
    for record in records:
        log.append(record)
    assert read_jsonl(log.path) == records


def test_a_log_is_compact_private_and_keeps_the_order_of_keys(log: JsonlLog) -> None:
    log.append({"step": 1, "a": [1, 2]})
    assert log.path.read_bytes() == b'{"step":1,"a":[1,2]}\n'
    assert log.size == 21
    assert mode_of(log.path) == 0o600


def test_a_number_that_does_not_exist_is_refused_before_anything_is_written(log: JsonlLog) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.append({"step": 1, "loss": math.nan})
    assert log.size == 0


@pytest.mark.parametrize("torn", ['{"step":2,"a', '{"step":2}', "\0\0\0", '{"step":2,"a":"' + "x" * 10_000])
def test_a_torn_last_line_is_left_out_by_readers_and_cut_off_by_the_next_append(log: JsonlLog, torn: str) -> None:
    log.append({"step": 1})
    log.path.write_text(log.path.read_text() + torn)
    assert read_jsonl(log.path) == [{"step": 1}]
    log.append({"step": 3})
    assert read_jsonl(log.path) == [{"step": 1}, {"step": 3}]


def test_a_log_with_nothing_but_a_torn_line_starts_again(log: JsonlLog) -> None:
    log.path.write_text('{"st')
    log.append({"step": 1})
    assert read_jsonl(log.path) == [{"step": 1}]


def test_a_broken_line_before_the_last_is_refused_with_its_number(log: JsonlLog) -> None:
    log.path.write_text('{"step":1}\n{"ste\n{"step":3}\n')
    with pytest.raises(CoveyError, match=r"metrics\.jsonl:2"):
        read_jsonl(log.path)


def test_a_log_that_was_never_started_has_no_records(log: JsonlLog) -> None:
    log.truncate(0)
    log.sync()
    assert (log.size, read_jsonl(log.path)) == (0, [])


def test_truncating_drops_what_came_after_the_checkpoint(log: JsonlLog) -> None:
    log.append({"step": 1})
    size = log.size
    log.append({"step": 2})
    log.truncate(size)
    assert read_jsonl(log.path) == [{"step": 1}]


def test_a_log_shorter_than_the_checkpoint_says_is_refused(log: JsonlLog) -> None:
    log.append({"step": 1})
    with pytest.raises(CoveyError, match="lost lines"):
        log.truncate(1000)


# Files and tables


def test_an_interrupted_write_leaves_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "env.json"
    write_text_atomic(path, "old")

    def failing_fsync(descriptor: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", failing_fsync)
    with pytest.raises(OSError, match="full"):
        write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["env.json"]


def test_an_atomic_write_replaces_the_text_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "env.json"
    write_text_atomic(path, "old")
    write_text_atomic(path, "nëw")
    assert path.read_text() == "nëw"
    assert mode_of(path) == 0o600


def test_rows_come_back_as_they_were_written(run: RunDirectory) -> None:
    rows = [
        {"prompt_id": "a", "reward": 1.0, "gold": None, "error": None, "used": True, "sample": 0},
        {"prompt_id": "b", "reward": None, "gold": None, "error": None, "used": False, "sample": 1},
    ]
    path = run.rollouts_of(1)
    write_rows(path, rows)
    assert read_rows(path) == rows
    assert (mode_of(path), mode_of(path.parent)) == (0o600, 0o700)
    assert os.listdir(path.parent) == [path.name]


def test_a_documented_column_has_the_same_type_in_every_step(run: RunDirectory) -> None:
    import pyarrow.parquet as pq

    write_rows(run.rollouts_of(1), [{"gold": None, "reward": 1, "error": None}])
    write_rows(run.rollouts_of(2), [{"gold": 0.5, "reward": 0.5, "error": "timeout"}])
    assert pq.read_schema(run.rollouts_of(1)) == pq.read_schema(run.rollouts_of(2))


def test_no_rows_make_an_empty_table(run: RunDirectory) -> None:
    write_rows(run.rollouts_of(1), [])
    assert read_rows(run.rollouts_of(1)) == []


# Descriptions


def test_the_machine_is_described_in_numbers_a_reader_can_compare() -> None:
    machine = describe_machine()
    assert set(machine) == {"cpu", "cpu_model", "instructions", "num_cores", "memory_gb", "platform"}
    assert machine["cpu"]
    assert machine["num_cores"] >= 1
    assert machine["memory_gb"] > 0


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (
            "model name\t: Some CPU\ncpu family\t: 26\nmodel\t\t: 2\nflags\t\t: fpu avx2 avx512f avx512_bf16\n\nmodel\t: 9\n",
            ("Some CPU", "family 26 model 2", ["avx2", "avx512f", "avx512_bf16"]),
        ),
        ("CPU part\t: 0xd0c\nFeatures\t: fp asimd bf16\n", (None, "part 0xd0c", ["asimd", "bf16"])),
        (None, (None, "", [])),
    ],
)
def test_two_generations_of_one_maker_can_be_told_apart(
    cpuinfo: str | None, expected: tuple[str | None, str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(cpuinfo)
    monkeypatch.setattr("covey.monitor.environment._CPUINFO", path)
    machine = describe_machine()
    assert (machine["cpu_model"], machine["instructions"]) == expected[1:]
    assert machine["cpu"] == expected[0] or (expected[0] is None and machine["cpu"])


def test_versions_name_python_and_what_is_installed() -> None:
    versions = describe_versions()
    assert versions["python"].count(".") == 2
    assert {"torch", "transformers", "numpy"} <= set(versions)


def test_completions_of_later_steps_are_forgotten(tmp_path: Path):
    run = RunDirectory.create(tmp_path / "run")
    for folder in (run.rollouts, run.evals):
        folder.mkdir()
    for step in (1, 2, 10):
        run.rollouts_of(step).touch()
        run.evals_of(step, part="choose", mode="greedy").touch()
    run.forget_after(2)
    assert sorted(file.name for file in run.rollouts.iterdir()) == ["step-000001.parquet", "step-000002.parquet"]
    assert len(list(run.evals.iterdir())) == 2
