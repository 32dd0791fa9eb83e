"""How often the guard is wrong, and what it finds: its detectors over simulated runs, honest and hacked, without a model.

    python benchmarks/guard_sim.py [--runs 1000] [--scenarios "flat" "hack 10 %"]

A run has 380 steps of 8 prompts x 8 rollouts, and 20 evaluations of two held-out parts with 200 questions each. The detectors
are those of the package, with their defaults. The result goes to benchmarks/results/guard_sim.json after each scenario;
scenarios that stand there, of as many runs and the same commit, are not made again. It ends with an error if the acceptance
is not met: in every honest scenario the union of all detectors that stop or roll back has a 95 % upper bound of at most 2 % a
run, and exploit_mass finds a hack of 10 % in at least 95 % of the runs.

The package `guard_sim_runs`, beside this file, has the parts: the scenarios and runs, and the detectors over them.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # One process a core.

import argparse
import json
import shlex
import time
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from guard_sim_runs.alarms import Alarms, first_alarms
from guard_sim_runs.runs import GROUP_SIZE, NUM_HELD_OUT, NUM_LOOKS, NUM_PROMPTS, NUM_STEPS, ONSET, SCENARIOS, simulated_run
from step_time.processes import describe_commit

from covey.guard.table import DETECTORS
from covey.monitor.environment import describe_machine, describe_versions
from covey.monitor.run_directory import write_text_atomic
from covey.sampling import stream_key

RESULT = Path(__file__).parent / "results" / "guard_sim.json"
ENDING = [name for name, detector in DETECTORS.items() if detector.action in ("stop", "roll_back")]
MAX_UNION, MIN_POWER = 0.02, 0.95


def examined_run(index: int, *, scenario: str, seed: int) -> dict[str, Alarms]:
    """Return when the detectors speak in one run."""
    generator = np.random.default_rng(stream_key(seed, "guard_sim", scenario, index))
    return first_alarms(simulated_run(SCENARIOS[scenario], generator))


def share(hits: list[bool]) -> dict[str, float]:
    """Return the share of hits with its 95 % Clopper-Pearson interval, both ends at 2.5 %."""
    interval = scipy.stats.binomtest(sum(hits), len(hits)).proportion_ci(0.95, method="exact")
    return {"rate": round(sum(hits) / len(hits), 4), "low": round(interval.low, 4), "high": round(interval.high, 4)}


def summary(found: list[dict[str, Alarms]], *, is_honest: bool) -> dict[str, Any]:
    """Return the rates of a scenario: of any word above a note by detector, and of all that ends a run together."""
    spoke = {name: share([bool({"warn", "critical"} & set(alarms[name])) for alarms in found]) for name in DETECTORS}
    ended = [any("critical" in alarms[name] for name in ENDING) for alarms in found]
    entry: dict[str, Any] = {"is_honest": is_honest, "detectors": spoke, "stop_or_roll_back": share(ended)}
    if not is_honest:
        entry["steps_after_onset"] = {
            name: spread([alarms[name]["critical"] - ONSET for alarms in found if "critical" in alarms[name]])
            for name in ENDING
        }
    return entry


def spread(delays: list[int]) -> dict[str, float] | None:
    """Return median and the middle 90 %; None without any."""
    if not delays:
        return None
    low, middle, high = np.percentile(delays, [5, 50, 95]).round(1).tolist()
    return {"p5": low, "median": middle, "p95": high}


def unmet(scenarios: dict[str, dict[str, Any]]) -> list[str]:
    """Return what the acceptance asks for and the scenarios do not show."""
    failed = [
        f"{name}: stops or rolls back in up to {entry['stop_or_roll_back']['high']:.2%}"
        for name, entry in scenarios.items()
        if entry["is_honest"] and entry["stop_or_roll_back"]["high"] > MAX_UNION
    ]
    hacked = scenarios.get("hack 10 %")
    if hacked and hacked["detectors"]["exploit_mass"]["rate"] < MIN_POWER:
        failed.append(f"hack 10 %: exploit_mass finds {hacked['detectors']['exploit_mass']['rate']:.1%}")
    return failed


def kept_scenarios(path: Path, head: dict[str, Any]) -> dict[str, Any]:
    """Return what an earlier call of the same commit, number of runs and seed has written."""
    if not path.is_file():
        return {}
    before = json.loads(path.read_text())
    same = all(before.get(key) == head[key] for key in ("commit", "runs", "seed", "detectors"))
    return before["scenarios"] if same else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="of each scenario")
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS), choices=list(SCENARIOS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="keep nothing of an earlier result")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    head = {
        "command": shlex.join(["python", "benchmarks/guard_sim.py", "--runs", str(arguments.runs)]),
        "commit": describe_commit(),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "runs": arguments.runs,
        "seed": arguments.seed,
        "steps": NUM_STEPS,
        "rollouts_per_step": NUM_PROMPTS * GROUP_SIZE,
        "looks": NUM_LOOKS,
        "questions_per_part": NUM_HELD_OUT,
        "detectors": {name: detector.action for name, detector in DETECTORS.items()},
    }
    scenarios = {} if arguments.fresh else kept_scenarios(arguments.output, head)
    with Pool(arguments.processes) as pool:
        for name in arguments.scenarios:
            if name not in scenarios:
                started = time.perf_counter()
                job = partial(examined_run, scenario=name, seed=arguments.seed)
                found = pool.map(job, range(arguments.runs), chunksize=max(1, arguments.runs // 40))
                entry = summary(found, is_honest=SCENARIOS[name].is_honest)
                scenarios[name] = entry | {"seconds": round(time.perf_counter() - started, 1)}
            ordered = {key: scenarios[key] for key in SCENARIOS if key in scenarios}
            result = head | {"unmet": unmet(ordered), "scenarios": ordered}
            write_text_atomic(arguments.output, json.dumps(result, indent=1) + "\n")
            print_scenario(name, scenarios[name])
    if failed := unmet(scenarios):
        raise SystemExit("\n".join(["The acceptance is not met.", *failed]))


def print_scenario(name: str, entry: dict[str, Any]) -> None:
    rates = ", ".join(f"{detector} {found['rate']:.1%}" for detector, found in entry["detectors"].items() if found["rate"])
    union = entry["stop_or_roll_back"]
    print(f"{name}: ends {union['rate']:.1%} ({union['low']:.1%} to {union['high']:.1%}); {rates or 'silence'}", flush=True)


if __name__ == "__main__":
    main()
