"""Covey against TRL 1.16 on one training step: seconds, split into sampling and the rest, memory, and the arithmetic floor.

    pip install trl==1.16.0     # here, or in an environment that --trl-python names
    python benchmarks/step_time.py [--trl-python PYTHON] [--workloads W W-eos] [--again covey]

Workload W: SmolLM2-135M-Instruct, 8 prompts x 8 completions of exactly 64 tokens, temperature 1, one AdamW update of all
weights. W-long: 256 tokens. W-wide: 32 completions. W-eos: completions end where they end. W-kl: beta 0.04. W-lora: adapters of
rank 16 on all linear layers are trained and no other weights (TRL's environment then needs peft, too).

Each measurement is a process of one side, whose first step warms it up and is not counted; the sides take turns, and both
run under the same settings of the allocator. TRL's precision and micro-batch are the fastest of a few, chosen once, on W.
TRL as installed has its own defaults and no settings. Every process's figures are written to
benchmarks/results/step_time.json at once: run again, the benchmark goes on where it was stopped. Run it on a machine that
does nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median
from typing import Any

from step_time.processes import ALLOCATOR, Measured, WorkerError, describe_commit, installed_versions, measure_worker
from step_time.workload import MODEL, TINY_WORKLOADS, WORKLOADS, Workload

from covey.models.bundled import ensure_bundled
from covey.monitor.environment import describe_machine, describe_versions
from covey.monitor.run_directory import write_text_atomic

RESULT = Path(__file__).parent / "results" / "step_time.json"

CONFIGURATIONS = (
    {"dtype": "bf16", "rows": 8},
    {"dtype": "bf16", "rows": 16},
    {"dtype": "bf16", "rows": 64},
    {"dtype": "fp32", "rows": 8},
)
"""Candidates for TRL's best: computing in bf16 (float32 weights, autocast) or fp32, and the rows of a micro-batch."""

WARM_UP_STEPS = 1
COVEY_STEPS = 2
TRL_STEPS = {"W": (1, 1, 1)}
OTHER_TRL_STEPS = (2,)
"""Measured steps of each of TRL's processes. A process of Covey runs before, between and after them."""
SIDES = ("floor", "covey", "trl", "trl as installed")
STEP_KEYS = ("total_s", "sampling_s", "update_s")


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """The files, the environment and the model of a run of this script."""

    output: Path
    result: dict[str, Any]
    trl_python: str
    model: str
    directory: str
    workloads: Mapping[str, Workload]

    def save(self) -> None:
        self.output.parent.mkdir(exist_ok=True)
        write_text_atomic(self.output, json.dumps(self.result, indent=1) + "\n")

    def measure(self, side: str, workload: Workload, *, num_steps: int, configuration: Any = None) -> Measured:
        """Return what one process has found, its warm-up among it."""
        job = {
            "workload": dataclasses.asdict(workload),
            "model": self.model,
            "directory": self.directory,
            "num_steps": WARM_UP_STEPS + num_steps,
            "configuration": configuration,
        }
        if side in ("floor", "covey"):
            return measure_worker(sys.executable, {"floor": "floor", "covey": "covey_worker"}[side], job)
        return measure_worker(self.trl_python, "trl_worker", job, is_tuned=side == "trl")


def main() -> None:
    arguments = parse_arguments()
    model = "tiny" if arguments.rehearsal else MODEL
    benchmark = Benchmark(
        output=arguments.output,
        result=read_result(arguments),
        trl_python=arguments.trl_python,
        model=model,
        directory=str(ensure_bundled(model, progress=print)),
        workloads=TINY_WORKLOADS if arguments.rehearsal else WORKLOADS,
    )
    names = [name for name in benchmark.workloads if name in (arguments.workloads or benchmark.workloads)]
    if "trl configurations" in arguments.again:
        benchmark.result.update(trl_configurations=[], trl_configuration=None)
    choose_configuration(benchmark)
    if arguments.only_configurations:
        return
    for name in names:
        measure_workload(benchmark, name, again=arguments.again, sides=arguments.sides)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", default=sys.executable, help="Python of an environment with TRL")
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), help="only these")
    parser.add_argument(
        "--again", nargs="+", default=[], choices=[*SIDES, "trl configurations"], help="measure this anew for the workloads"
    )
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="only these; the others can follow")
    parser.add_argument("--only-configurations", action="store_true", help="choose TRL's configuration and stop")
    parser.add_argument("--rehearsal", action="store_true", help="a tiny model and a few tokens, to try the script")
    parser.add_argument("--output", type=Path, help=f"default: {RESULT.name} in benchmarks/results")
    arguments = parser.parse_args()
    if arguments.rehearsal and not arguments.output:
        parser.error("--rehearsal needs an --output of its own")
    arguments.output = arguments.output or RESULT
    return arguments


def read_result(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what there is already, described anew."""
    earlier = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    described = {
        "command": shlex.join(["python", "benchmarks/step_time.py", *command_words()]),
        "commit": describe_commit(),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "trl_versions": installed_versions(arguments.trl_python),
        "allocator": ALLOCATOR,
        "model": "tiny" if arguments.rehearsal else MODEL,
    }
    found = {"trl_configurations": [], "trl_configuration": None, "workloads": {}}
    return described | {key: earlier.get(key, value) for key, value in found.items()}


def command_words() -> Iterator[str]:
    """Yield the script's arguments without paths, which say nothing about the figures."""
    words = iter(sys.argv[1:])
    for word in words:
        if word in ("--trl-python", "--output"):
            next(words)
        else:
            yield word


def choose_configuration(benchmark: Benchmark) -> None:
    """Measure TRL's configurations on W, unless the choice has been made, and note the fastest.

    What failed is tried again as long as there is no choice: it may have been stopped for other reasons than memory.
    """
    result, workload = benchmark.result, benchmark.workloads["W"]
    if result["trl_configuration"]:
        return
    result["trl_configurations"] = [entry for entry in result["trl_configurations"] if "total_s" in entry]
    for configuration in CONFIGURATIONS:
        tried = [{key: entry[key] for key in configuration} for entry in result["trl_configurations"]]
        if configuration in tried:
            continue
        print(f"TRL on W, {configuration['dtype']}, {configuration['rows']} rows a micro-batch", flush=True)
        try:
            measured = benchmark.measure("trl", workload, num_steps=1, configuration=configuration)
        except WorkerError as failure:
            print(failure)
            entry: dict[str, Any] = configuration | {"failed": str(failure).splitlines()[0]}
        else:
            entry = (
                configuration | run_figures(measured.records) | {"other_cores": measured.other_cores, "steps": measured.records}
            )
        result["trl_configurations"].append(entry | {"at": now()})
        benchmark.save()
    fitting = [entry for entry in result["trl_configurations"] if "total_s" in entry]
    fastest = min(fitting, key=lambda entry: entry["total_s"])
    result["trl_configuration"] = {key: fastest[key] for key in CONFIGURATIONS[0]}
    benchmark.save()
    print(f"TRL's fastest configuration: {result['trl_configuration']}", flush=True)


def measure_workload(benchmark: Benchmark, name: str, *, again: Sequence[str], sides: Sequence[str]) -> None:
    """Measure what is missing of a workload, one process after the other."""
    workload = benchmark.workloads[name]
    record = benchmark.result["workloads"].setdefault(name, {"runs": []})
    record["runs"] = [run for run in record["runs"] if run["side"] not in again]
    record["workload"] = dataclasses.asdict(workload)
    for side, place, num_steps in turns(name):
        if side not in sides or any((run["side"], run["place"]) == (side, place) for run in record["runs"]):
            continue
        print(f"{name}: {side}, process {place + 1}", flush=True)
        configuration = benchmark.result["trl_configuration"] if side == "trl" else None
        measured = benchmark.measure(side, workload, num_steps=num_steps, configuration=configuration)
        run = {"side": side, "place": place, "at": now(), "commit": describe_commit(), "other_cores": measured.other_cores}
        record["runs"].append(run | {"steps": measured.records})
        runs = record["runs"]
        record = {"workload": record["workload"]} | workload_figures(workload, runs) | {"runs": runs}
        benchmark.result["workloads"][name] = record
        benchmark.save()
    print(name, json.dumps({key: value for key, value in record.items() if key not in ("runs", "workload")}, indent=1))


def turns(name: str) -> Iterator[tuple[str, int, int]]:
    """Yield (side, number of its process, steps to count) in the order in which a workload is measured."""
    yield "floor", 0, 0
    trl_steps = TRL_STEPS.get(name, OTHER_TRL_STEPS)
    for place, num_steps in enumerate(trl_steps):
        yield "covey", place, COVEY_STEPS
        yield "trl", place, num_steps
    yield "covey", len(trl_steps), COVEY_STEPS
    if name == "W":
        yield "trl as installed", 0, 1


def run_figures(steps: list[dict[str, Any]]) -> dict[str, float]:
    """Return the medians of a process's steps after the warm-up, and the most memory that it held."""
    counted = steps[WARM_UP_STEPS:]
    return {key: round(median(step[key] for step in counted), 3) for key in STEP_KEYS} | {"gb": steps[-1]["peak_gb"]}


def workload_figures(workload: Workload, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of each side, what follows from them, and the floor, as far as there are runs."""
    figures: dict[str, Any] = {}
    for side, prefix in (("covey", "covey"), ("trl", "trl"), ("trl as installed", "trl_default")):
        own = [run["steps"] for run in runs if run["side"] == side]
        counted = [step for steps in own for step in steps[WARM_UP_STEPS:]]
        if not counted:
            continue
        for key in STEP_KEYS:
            figures[f"{prefix}_{key.removeprefix('total_')}"] = round(median(step[key] for step in counted), 3)
        figures[f"{prefix}_gb"] = max(steps[-1]["peak_gb"] for steps in own)
        figures[f"{prefix}_tokens"] = round(mean(step["num_tokens"] for step in counted), 1)
        figures[f"{prefix}_num_steps"] = len(counted)
    if "covey_s" in figures:
        for prefix, name in (("trl", "ratio"), ("trl_default", "ratio_default")):
            if f"{prefix}_s" in figures:
                figures[name] = round(figures[f"{prefix}_s"] / figures["covey_s"], 2)
        if "trl_gb" in figures:
            figures["memory_frac"] = round(figures["covey_gb"] / figures["trl_gb"], 3)
        figures |= floor_figures(workload, runs, covey_s=figures["covey_s"], num_tokens=figures["covey_tokens"])
    return figures


def floor_figures(workload: Workload, runs: list[dict[str, Any]], *, covey_s: float, num_tokens: float) -> dict[str, Any]:
    """Return the arithmetic floor of Covey's steps and how far above it they are."""
    from step_time.floor import floor_parts_s  # Here, since it imports torch.

    probe = next(run["steps"][0] for run in runs if run["side"] == "floor")
    prompt_tokens = next(run["steps"][0]["prompt_tokens"] for run in runs if run["side"] == "covey")
    parts = floor_parts_s(workload, probe, prompt_tokens=prompt_tokens, num_tokens=num_tokens)
    floor_s = sum(parts.values())
    return {
        "floor_s": round(floor_s, 3),
        "floor_parts_s": {name: round(value, 3) for name, value in parts.items()},
        "covey_over_floor": round(covey_s / floor_s, 3),
    }


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    main()
