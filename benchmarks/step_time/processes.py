"""One measurement is one process of one side. It gives its records to the benchmark as lines on stdout."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parent.parent
NUM_THREADS = 2

ALLOCATOR = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_TRIM_THRESHOLD_": "10000000000",
    "MALLOC_MMAP_THRESHOLD_": "10000000000",
    "OMP_NUM_THREADS": str(NUM_THREADS),
}
"""Huge pages, and memory that is kept instead of being given back: what both sides get unless said."""

_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
_MARK = "RECORD "
_NUM_SHOWN_CHARACTERS = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What one process has found."""

    records: list[dict[str, Any]]
    other_cores: float
    """How many cores other processes kept busy meanwhile; a figure is worth little unless this is about 0."""


class WorkerError(Exception):
    """A process ended with an error; the message has the end of what it wrote."""


def emit(record: Mapping[str, Any]) -> None:
    """Give a record to the benchmark. Other lines on stdout, such as TRL's, are passed over."""
    print(_MARK + json.dumps(record), flush=True)


def peak_gb() -> float:
    """Return the most memory that this process has held so far, in GB (10^9 bytes)."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3)


def step_record(*, total_s: float, sampling_s: float, num_tokens: int) -> dict[str, Any]:
    """Return what a worker reports of a step. What is not sampling is the update: rewards, scoring, weights, logs."""
    return {
        "total_s": round(total_s, 3),
        "sampling_s": round(sampling_s, 3),
        "update_s": round(total_s - sampling_s, 3),
        "peak_gb": peak_gb(),
        "num_tokens": num_tokens,
    }


def measure_worker(
    python: str, module: str, job: Mapping[str, Any], *, is_tuned: bool = True, settings: Mapping[str, str] | None = None
) -> Measured:
    """Return what `python -m step_time.<module>` has found; it gets its job as JSON.

    With `is_tuned` it runs under the settings of `ALLOCATOR`, else under none of them; `settings` are added. Its working
    directory is an empty one, where no directory can be taken for a package.

    Raises:
        WorkerError: the process ended with an error.
    """
    with tempfile.TemporaryDirectory() as scratch, open(Path(scratch) / "stderr", "w+") as errors:
        command = [python, "-m", f"step_time.{module}", json.dumps(job)]
        directory = Path(scratch) / "empty"
        directory.mkdir()
        records = []
        environment = worker_environment(is_tuned=is_tuned) | dict(settings or {})
        started, busy_before_s = time.perf_counter(), busy_elsewhere_s()
        with subprocess.Popen(
            command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    if line.startswith(_MARK):
                        print(f"  {module}: {line.removeprefix(_MARK)}", end="", flush=True)
                        records.append(json.loads(line.removeprefix(_MARK)))
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            errors.seek(0)
            raise WorkerError(f"{module} ended with code {process.returncode}:\n{errors.read()[-_NUM_SHOWN_CHARACTERS:]}")
    other_cores = (busy_elsewhere_s() - busy_before_s) / (time.perf_counter() - started)
    print(f"  other processes kept {other_cores:.2f} cores busy", flush=True)
    return Measured(records=records, other_cores=round(other_cores, 2))


def run_worker(python: str, module: str, job: Mapping[str, Any], *, is_tuned: bool = True) -> list[dict[str, Any]]:
    """Return the records of `measure_worker` alone."""
    return measure_worker(python, module, job, is_tuned=is_tuned).records


def busy_elsewhere_s() -> float:
    """Return the seconds of processor time that neither this process nor its finished children have used, since the start.

    From Linux's /proc/stat: user, nice, system, interrupts, but not idle and waiting.
    """
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]]
    busy_s = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return busy_s - sum(usage.ru_utime + usage.ru_stime for usage in own)


def worker_environment(*, is_tuned: bool) -> dict[str, str]:
    """Return the environment of a worker: this process's, without its own settings of allocator and threads."""
    kept = {
        name: value for name, value in os.environ.items() if name not in ALLOCATOR and not name.startswith(("OMP_", "GOMP_"))
    }
    return kept | _OFFLINE | {"PYTHONPATH": str(BENCHMARKS)} | (ALLOCATOR if is_tuned else {})


def installed_versions(python: str) -> dict[str, str]:
    """Return the versions in TRL's environment."""
    code = "import json; from importlib.metadata import version as v; print(json.dumps({n: v(n) for n in %r}))"
    names = ["trl", "transformers", "torch", "accelerate"]
    command = [python, "-c", code % (names,)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def git(*words: str) -> str:
    """Return what git says, without the newline."""
    return subprocess.run(["git", *words], cwd=BENCHMARKS, capture_output=True, text=True, check=True).stdout.strip()


def describe_commit() -> str:
    """Return the commit, and whether the source differs from it."""
    is_changed = bool(git("status", "--porcelain", "../src", "../recipes"))
    return git("rev-parse", "--short", "HEAD") + (" (with uncommitted changes)" if is_changed else "")
