"""How a training step grows: seconds and memory against the group size, the completion's and the prompt's length.

    python benchmarks/scaling.py [--axes "group size" ...] [--again]

SmolLM2-135M-Instruct, 4 prompts; what is not varied is 8 completions of exactly 64 tokens and prompts of 40 to 60. Each point
is a process with a step that warms it up and two that count. Points are written to benchmarks/results/scaling.json at once:
run again, the benchmark goes on where it was stopped. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from step_time.processes import ALLOCATOR, describe_commit, measure_worker
from step_time.workload import MODEL, Workload

from covey.models.bundled import ensure_bundled
from covey.monitor.environment import describe_machine, describe_versions
from covey.monitor.run_directory import write_text_atomic

RESULT = Path(__file__).parent / "results" / "scaling.json"
BASE = Workload(num_prompts=4, group_size=8, num_new_tokens=64, prompt_tokens=(1, 2000))
WARM_UP_STEPS = 1
COUNTED_STEPS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One number of the workload, and the values that it takes."""

    field: str
    values: tuple[int, ...]


AXES = {
    "group size": Axis(field="group_size", values=(4, 8, 16, 32)),
    "completion tokens": Axis(field="num_new_tokens", values=(32, 64, 128, 256)),
    "prompt tokens": Axis(field="num_context_sentences", values=(0, 8, 24, 56)),
}


def point(steps: list[dict[str, Any]], workload: Workload, *, axis: str, other_cores: float) -> dict[str, Any]:
    """Return what a process has found: its median step, and where on the axis it stands."""
    counted = steps[WARM_UP_STEPS:]
    prompt_tokens = round(counted[0]["prompt_tokens"] / workload.num_prompts, 1)
    value = prompt_tokens if axis == "prompt tokens" else getattr(workload, AXES[axis].field)
    seconds = {key: round(median(step[key] for step in counted), 3) for key in ("total_s", "sampling_s", "update_s")}
    return {
        "value": value,
        **seconds,
        "gb": steps[-1]["peak_gb"],
        "prompt_tokens_mean": prompt_tokens,
        "generated_tokens": mean(step["num_tokens"] for step in counted),
        "other_cores": other_cores,
        "commit": describe_commit(),
        "steps": steps,
    }


def growth(points: list[dict[str, Any]]) -> dict[str, float]:
    """Return by how much the axis, the seconds and the memory grow from its first point to its last."""
    first, last = points[0], points[-1]
    return {f"{key}_ratio": round(last[key] / first[key], 3) for key in ("value", "total_s", "sampling_s", "update_s", "gb")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--again", action="store_true", help="measure these axes anew")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--model", default=MODEL)
    arguments = parser.parse_args()
    earlier = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    result = {
        "command": shlex.join(["python", "benchmarks/scaling.py"]),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "allocator": ALLOCATOR,
        "model": arguments.model,
        "axes": earlier.get("axes", {}),
    }
    directory = str(ensure_bundled(arguments.model, progress=print))
    for axis in arguments.axes:
        record = result["axes"].setdefault(axis, {"points": []})
        if arguments.again:
            record["points"] = []
        for value in AXES[axis].values[len(record["points"]) :]:
            workload = dataclasses.replace(BASE, **{AXES[axis].field: value})
            print(f"{axis}: {AXES[axis].field}={value}", flush=True)
            job = {
                "workload": dataclasses.asdict(workload),
                "model": arguments.model,
                "directory": directory,
                "num_steps": WARM_UP_STEPS + COUNTED_STEPS,
                "configuration": None,
            }
            measured = measure_worker(sys.executable, "covey_worker", job)
            record["points"].append(point(measured.records, workload, axis=axis, other_cores=measured.other_cores))
            record["growth"] = growth(record["points"])
            write_text_atomic(arguments.output, json.dumps(result, indent=1) + "\n")
        print(axis, json.dumps(record["growth"]))


if __name__ == "__main__":
    main()
