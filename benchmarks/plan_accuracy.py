"""How far `covey plan` is from the truth: seconds a step and memory, planned and measured.

    python benchmarks/plan_accuracy.py [--workloads W W-long W-wide] [--repeats 3]

The truth is that of benchmarks/results/step_time.json: run step_time.py first, on the same machine. Each plan is made by a
process of its own under the allocator settings of that benchmark, and knows nothing but the recipe and its probe. The result
goes to benchmarks/results/plan.json. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from step_time.processes import ALLOCATOR, describe_commit, run_worker
from step_time.workload import MODEL, TINY_WORKLOADS, WORKLOADS

from covey.monitor.environment import describe_machine, describe_versions
from covey.monitor.run_directory import write_text_atomic

RESULTS = Path(__file__).parent / "results"
NAMES = ("W", "W-long", "W-wide")


def error_frac(planned: float, measured: float) -> float:
    """Return by which share of the truth the plan is off: below 0, it is too small."""
    return round(planned / measured - 1, 4)


def compared(plans: list[dict[str, Any]], truth: dict[str, Any]) -> dict[str, Any]:
    """Return the plans of a workload beside what was measured; the errors are those of the worst plan."""
    errors_s = [error_frac(plan["step_s"], truth["covey_s"]) for plan in plans]
    errors_gb = [error_frac(plan["gb"], truth["covey_gb"]) for plan in plans]
    return {
        "measured_s": truth["covey_s"],
        "planned_s": [plan["step_s"] for plan in plans],
        "error_frac": max(errors_s, key=abs),
        "measured_gb": truth["covey_gb"],
        "planned_gb": [plan["gb"] for plan in plans],
        "memory_error_frac": max(errors_gb, key=abs),
        "probe_s": [round(plan["probe"]["seconds"], 2) for plan in plans],
        "measured_sampling_s": truth["covey_sampling_s"],
        "plans": plans,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=NAMES, choices=list(WORKLOADS))
    parser.add_argument("--repeats", type=int, default=3, help="plans of each workload, in turn")
    parser.add_argument("--truth", type=Path, default=RESULTS / "step_time.json")
    parser.add_argument("--rehearsal", action="store_true", help="the tiny model and a few tokens, to try the script")
    parser.add_argument("--output", type=Path, default=RESULTS / "plan.json")
    arguments = parser.parse_args()
    truth = json.loads(arguments.truth.read_text())
    workloads = TINY_WORKLOADS if arguments.rehearsal else WORKLOADS
    names = [name for name in arguments.workloads if name in workloads]
    if missing := [name for name in names if "covey_s" not in truth["workloads"].get(name, {})]:
        parser.error(f"{arguments.truth} has no measured step of {', '.join(missing)}: run benchmarks/step_time.py first")
    plans: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(arguments.repeats):
        for name in names:
            job = {
                "workload": dataclasses.asdict(workloads[name]),
                "model": "tiny" if arguments.rehearsal else MODEL,
            }
            plans[name] += run_worker(sys.executable, "plan_worker", job)
    found = {name: compared(plans[name], truth["workloads"][name]) for name in names}
    result = {
        "command": shlex.join(["python", "benchmarks/plan_accuracy.py"]),
        "commit": describe_commit(),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "allocator": ALLOCATOR,
        "truth_commit": truth["commit"],
        "truth_machine": truth["machine"],
        "worst_error_frac": max((entry["error_frac"] for entry in found.values()), key=abs),
        "workloads": found,
    }
    write_text_atomic(arguments.output, json.dumps(result, indent=1) + "\n")
    for name, entry in found.items():
        print(f"{name}: planned {entry['planned_s']} s, measured {entry['measured_s']} s, worst {entry['error_frac']:+.0%}")
        print(f"{name}: planned {entry['planned_gb']} GB, measured {entry['measured_gb']} GB")


if __name__ == "__main__":
    main()
