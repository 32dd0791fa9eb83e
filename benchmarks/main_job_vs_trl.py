"""Covey against TRL 1.16 on the shipped recipe: seconds of its first steps, and seconds of training to 70 % accuracy.

    pip install trl==1.16.0     # here, or in an environment that --trl-python names
    python benchmarks/main_job_vs_trl.py [--trl-python PYTHON] [--max-minutes 60] [--again covey]

TRL runs in the configuration that benchmarks/step_time.py found to be its fastest, with the recipe's questions, reward and
numbers. Both sides run under the same settings of the allocator. Accuracy is that of 200 held-out questions at the training
temperature, measured every 5 steps by Covey's evaluation for both; no measurement counts as training. 70 % is reached when
two measurements in a row are there, or the last one. On both sides the learning rate stays where the warm-up has brought it,
and no number of steps is in the way. TRL's run ends at that point, or when its time is up: what is written then is a lower
bound. Covey trains with several seeds: its time is the median over all of them, and one that does not get there counts as
never. TRL's many minutes allow one seed.

Covey's steps draw again for groups without a spread (train.max_draws = 2), up to twice as many completions, where TRL draws
once; so its first steps are measured with one draw, too.

Each run is written to benchmarks/results/main_job_vs_trl.json as soon as it is finished, and not measured again. Run it on a
machine that does nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from step_time.processes import (
    ALLOCATOR,
    busy_elsewhere_s,
    describe_commit,
    installed_versions,
    measure_worker,
    worker_environment,
)
from step_time.workload import MODEL

from covey.models.bundled import ensure_bundled
from covey.monitor.environment import describe_machine, describe_versions
from covey.monitor.run_directory import read_jsonl, write_text_atomic

RESULTS = Path(__file__).parent / "results"
RESULT = RESULTS / "main_job_vs_trl.json"
STEP_TIME = RESULTS / "step_time.json"
RECIPE = "arithmetic"
TARGET = 0.7
TARGETS = (0.5, 0.6, 0.65, 0.7)
EVERY = 5
FIRST_STEPS = 5
NUM_STEPS = 60
"""Of Covey's runs: twice the recipe's, whose rate falls to 0 at about the time when 70 % comes into sight."""
TRL, ONE_DRAW = "trl", "covey, one draw"
REHEARSAL = ["model.name=tiny", "train.num_steps=10", "evaluation.num_prompts=20", "train.prompts_per_step=4"]
FEW_STEPS = ("train.max_draws=1", f"train.num_steps={FIRST_STEPS}")
NOT_TRAINING = ("evaluate_s", "checkpoint_s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", default=sys.executable, help="Python of an environment with TRL")
    parser.add_argument("--max-minutes", type=float, default=60, help="of TRL's training")
    parser.add_argument("--max-steps", type=int, default=400, help="of TRL's training")
    parser.add_argument("--covey-seeds", type=int, nargs="*", default=(0, 1, 2), help="of Covey's runs")
    parser.add_argument("--trl-seed", type=int, default=0, help="below 0: leave TRL's run out")
    parser.add_argument("--again", nargs="+", default=[], help="measure these anew, such as 'covey 0' or 'trl'")
    parser.add_argument("--rehearsal", action="store_true", help="a tiny model and ten steps, to try the script")
    parser.add_argument("--configurations", type=Path, default=STEP_TIME, help="where step_time.py has written")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if arguments.rehearsal and arguments.output == RESULT:
        parser.error("--rehearsal needs an --output of its own")
    if not arguments.configurations.exists():
        parser.error("TRL's configuration is not known yet: run benchmarks/step_time.py --only-configurations first")
    configuration = json.loads(arguments.configurations.read_text())["trl_configuration"]
    earlier = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    sides = {name: side for name, side in earlier.get("sides", {}).items() if name not in arguments.again}
    overrides = [f"evaluation.every={EVERY}", "engine.name=native", f"train.num_steps={NUM_STEPS}", "train.decay=false"]
    overrides += REHEARSAL if arguments.rehearsal else []
    wanted = {f"covey {seed}": seed for seed in arguments.covey_seeds}
    wanted |= {ONE_DRAW: 0} | ({TRL: arguments.trl_seed} if arguments.trl_seed >= 0 else {})
    for name, seed in wanted.items():
        if name in sides:
            continue
        own = [f"run.seed={seed}", *overrides, *(FEW_STEPS if name == ONE_DRAW else ())]
        side = trl_side(own, configuration, arguments) if name == TRL else covey_side(own)
        sides[name] = {"seed": seed, "commit": describe_commit()} | side
        result = {
            "command": "python benchmarks/main_job_vs_trl.py",
            "machine": describe_machine(),
            "versions": describe_versions(),
            "trl_versions": installed_versions(arguments.trl_python),
            "allocator": ALLOCATOR,
            "recipe": RECIPE,
            "overrides": overrides,
            "trl_configuration": configuration,
            "target": TARGET,
            **comparison(sides),
            "sides": sides,
        }
        arguments.output.parent.mkdir(exist_ok=True)
        write_text_atomic(arguments.output, json.dumps(result, indent=1) + "\n")
        print(json.dumps(comparison(sides), indent=1), flush=True)


def covey_side(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the steps and measurements of the recipe, run as `covey train` runs it."""
    with tempfile.TemporaryDirectory() as scratch:
        words = ["train", RECIPE, *overrides, f"run.directory={scratch}", "run.name=run"]
        command = [sys.executable, "-c", "from covey.cli import main; main()", *words]
        started, busy_before_s = time.perf_counter(), busy_elsewhere_s()
        subprocess.run(command, cwd=scratch, env=worker_environment(is_tuned=True), check=True)
        other_cores = (busy_elsewhere_s() - busy_before_s) / (time.perf_counter() - started)
        timing, evaluations = (read_jsonl(Path(scratch) / "run" / f"{name}.jsonl") for name in ("timing", "eval"))
    step_s: list[float] = []
    trained_s = {0: 0.0}
    for before, record in itertools.pairwise(timing):
        step_s.append(record["elapsed_s"] - before["elapsed_s"] - sum(record[key] for key in NOT_TRAINING))
        trained_s[record["step"]] = sum(step_s)
    measured = [record for record in evaluations if (record["part"], record["mode"]) == ("choose", "sampled")]
    return {
        "other_cores": round(other_cores, 2),
        "step_s": [round(seconds, 3) for seconds in step_s],
        "series": [[round(trained_s[record["step"]], 2), record["gold_mean"]] for record in measured],
    }


def trl_side(overrides: Sequence[str], configuration: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the steps and measurements of TRL's run."""
    model = "tiny" if arguments.rehearsal else MODEL
    job = {
        "recipe": RECIPE,
        "overrides": list(overrides),
        "directory": str(ensure_bundled(model, progress=print)),
        "configuration": configuration,
        "target": TARGET,
        "max_minutes": arguments.max_minutes,
        "max_steps": 10 if arguments.rehearsal else arguments.max_steps,
    }
    measured = measure_worker(arguments.trl_python, "trl_job_worker", job)
    records = measured.records
    steps = [record for record in records if "total_s" in record]
    return {
        "other_cores": measured.other_cores,
        "step_s": [step["total_s"] for step in steps],
        "sampling_s": [step["sampling_s"] for step in steps],
        "series": [[record["trained_s"], record["accuracy"]] for record in records if "accuracy" in record],
    }


def seconds_to(target: float, series: Sequence[Sequence[float]]) -> float | None:
    """Return the seconds of training after which accuracy is at the target and stays there at the next measurement."""
    for (seconds, accuracy), later in zip(series, [*series[1:], None], strict=True):
        if accuracy >= target and (later is None or later[1] >= target):
            return seconds
    return None


def seconds_by_target(own: Sequence[dict[str, Any]], trl: dict[str, Any]) -> dict[str, Any]:
    """Return for each accuracy when each of Covey's seeds and TRL got there; None: never in their time."""
    found: dict[str, Any] = {}
    for target in TARGETS:
        seconds = [seconds_to(target, side["series"]) for side in own]
        middle = median(second or math.inf for second in seconds)
        trl_s = seconds_to(target, trl["series"])
        found[f"{target:.0%}"] = {
            "covey_s_by_seed": seconds,
            "covey_s": middle if math.isfinite(middle) else None,
            "trl_s": trl_s,
            "trl_trained_s": trl["series"][-1][0],
            "ratio": round(trl_s / middle, 2) if trl_s and math.isfinite(middle) else None,
        }
    return found


def comparison(sides: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of the runs there are, and their ratios once both sides are there."""
    found: dict[str, Any] = {}
    own = [side for name, side in sides.items() if name not in (TRL, ONE_DRAW)]
    if own:
        times = [seconds_to(TARGET, side["series"]) or math.inf for side in own]
        found["covey_step_s"] = round(median(second for side in own for second in side["step_s"][:FIRST_STEPS]), 2)
        found["covey_s_to_70_by_seed"] = [seconds if math.isfinite(seconds) else None for seconds in times]
        found["covey_s_to_70"] = median(times) if math.isfinite(median(times)) else None
    if TRL in sides:
        series = sides[TRL]["series"]
        reached_s = seconds_to(TARGET, series)
        found["trl_step_s"] = round(median(sides[TRL]["step_s"][:FIRST_STEPS]), 2)
        found["trl_s_to_70"] = reached_s if reached_s is not None else series[-1][0]
        found["trl_reached_70"] = reached_s is not None
    if ONE_DRAW in sides:
        found["covey_one_draw_step_s"] = round(median(sides[ONE_DRAW]["step_s"]), 2)
    if ONE_DRAW in sides and TRL in sides:
        found["step_ratio_one_draw"] = round(found["trl_step_s"] / found["covey_one_draw_step_s"], 2)
    if own and TRL in sides:
        found["step_ratio"] = round(found["trl_step_s"] / found["covey_step_s"], 2)
        # If TRL has not reached the target, this is a lower bound.
        found["ratio_to_70"] = round(found["trl_s_to_70"] / found["covey_s_to_70"], 2) if found["covey_s_to_70"] else None
        found["by_target"] = seconds_by_target(own, sides[TRL])
    return found


if __name__ == "__main__":
    main()
