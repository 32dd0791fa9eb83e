"""What Covey's settings of allocator and threads are worth: a training step without them and with them, alone and in company.

    python benchmarks/settings.py [--repeats 2]

Workload W of benchmarks/step_time.py. The settings are those that `covey train` starts with (src/covey/tuning.py): `allocator`
(huge pages, memory that is kept), `threads` (how long a waiting thread keeps its core), both, or none. In company: one other
process keeps one of the cores busy all the time. Each figure is a process whose first step warms it up and whose second one
counts; the settings take turns. Every process's figure is written to benchmarks/results/settings.json at once: run again, the
benchmark goes on where it was stopped. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from statistics import median
from typing import Any

from step_time.processes import describe_commit, measure_worker
from step_time.workload import MODEL, TINY_WORKLOADS, WORKLOADS

from covey.monitor.environment import describe_machine, describe_versions
from covey.monitor.run_directory import write_text_atomic
from covey.tuning import ALLOCATOR, THREADS

RESULT = Path(__file__).parent / "results" / "settings.json"
SETTINGS: dict[str, dict[str, str]] = {"none": {}, "allocator": ALLOCATOR, "threads": THREADS, "both": ALLOCATOR | THREADS}
COMPANY = {"alone": 0, "beside a busy process": 1}
NUM_STEPS = 2
"""One that warms up, one that counts."""


@contextlib.contextmanager
def busy_processes(count: int) -> Generator[None]:
    """Keep `count` cores busy meanwhile."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def medians(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the median seconds of a step, by company and settings."""
    return {
        company: {
            settings: median(own)
            for settings in SETTINGS
            if (own := [run["step_s"] for run in runs if (run["company"], run["settings"]) == (company, settings)])
        }
        for company in COMPANY
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rehearsal", action="store_true", help="the tiny model and a few tokens, to try the script")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if arguments.rehearsal and arguments.output == RESULT:
        parser.error("--rehearsal needs an --output of its own")
    workload, model = (TINY_WORKLOADS["W"], "tiny") if arguments.rehearsal else (WORKLOADS["W"], MODEL)
    job = {"workload": dataclasses.asdict(workload), "model": model, "num_steps": NUM_STEPS}
    runs = json.loads(arguments.output.read_text())["runs"] if arguments.output.exists() else []
    for place, company, settings in itertools.product(range(arguments.repeats), COMPANY, SETTINGS):
        key = {"company": company, "settings": settings, "place": place}
        if any(key.items() <= run.items() for run in runs):
            continue
        print(f"{settings}, {company}", flush=True)
        with busy_processes(COMPANY[company]):
            measured = measure_worker(sys.executable, "covey_worker", job, is_tuned=False, settings=SETTINGS[settings])
        step = measured.records[-1]
        others = {"other_cores": measured.other_cores, "commit": describe_commit()}
        runs.append(key | {"step_s": step["total_s"], "sampling_s": step["sampling_s"], "gb": step["peak_gb"]} | others)
        result = {
            "command": "python benchmarks/settings.py",
            "machine": describe_machine(),
            "versions": describe_versions(),
            "settings": SETTINGS,
            "step_s": medians(runs),
            "runs": runs,
        }
        write_text_atomic(arguments.output, json.dumps(result, indent=1) + "\n")
    print(json.dumps(medians(runs), indent=1))


if __name__ == "__main__":
    main()
