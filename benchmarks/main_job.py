"""A shipped recipe with several seeds, the main job exactly as `make train` runs it: one process a seed.

    .venv/bin/python benchmarks/main_job.py

Writes benchmarks/results/main_job.json, of another --recipe NAME_job.json. Finished seeds are kept there, so that the
benchmark goes on where it was stopped; `--fresh` starts anew. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from covey.monitor.environment import describe_machine, describe_versions
from covey.monitor.run_directory import read_jsonl, write_text_atomic

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MAIN = "arithmetic"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipe", default=MAIN)
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--keep", type=Path, help="directory to keep the run directories in")
    arguments = parser.parse_args()
    is_changed = bool(git("status", "--porcelain", "src", "recipes"))
    commit = git("rev-parse", "--short", "HEAD") + (" (with uncommitted changes)" if is_changed else "")
    results: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/main_job.py", *sys.argv[1:]]),
        "commit": commit,
        "machine": describe_machine() | {"versions": describe_versions()},
        "recipe": arguments.recipe,
        "runs": [],
    }
    path = RESULTS / ("main_job.json" if arguments.recipe == MAIN else f"{arguments.recipe}_job.json")
    if path.exists() and not arguments.fresh:
        earlier = json.loads(path.read_text())
        if (earlier["commit"], earlier["recipe"]) == (commit, arguments.recipe):
            results["runs"] = earlier["runs"]
    for seed in arguments.seeds:
        if any(run["seed"] == seed for run in results["runs"]):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            directory = (arguments.keep or Path(scratch)) / git("rev-parse", "--short", "HEAD")
            results["runs"].append(run_seed(arguments.recipe, seed, directory))
        RESULTS.mkdir(exist_ok=True)
        write_text_atomic(path, json.dumps(results, indent=1) + "\n")
        print(json.dumps(results["runs"][-1]))


def run_seed(recipe: str, seed: int, directory: Path) -> dict[str, Any]:
    """Return the figures of one training run, read from its run directory; an unfinished one is resumed."""
    name = f"{recipe}-seed-{seed}"
    path = directory / name
    overrides = [recipe, f"run.seed={seed}", f"run.directory={directory}", f"run.name={name}"]
    arguments = ["--resume", str(path)] if (path / "recipe.toml").exists() else overrides
    if not is_finished(path):
        subprocess.run([sys.executable, "-c", "from covey.cli import main; main()", "train", *arguments], check=True)
    evaluations = read_jsonl(path / "eval.jsonl")
    timing = read_jsonl(path / "timing.jsonl")

    def final(part: str, mode: str) -> tuple[dict[str, Any], dict[str, Any]]:
        matching = [record for record in evaluations if (record["part"], record["mode"]) == (part, mode)]
        return matching[0], matching[-1]

    before, after = final("test", "greedy")
    sampled_before, sampled_after = final("test", "sampled")
    elapsed_s = timing[-1]["elapsed_s"]
    return {
        "seed": seed,
        "minutes": round(elapsed_s / 60, 2),
        "minutes_with_first_evaluation": round((elapsed_s + timing[0]["evaluate_s"]) / 60, 2),
        "num_steps": timing[-1]["step"],
        "num_prompts": after["num_prompts"],
        "greedy_before": before["gold_mean"],
        "greedy_after": after["gold_mean"],
        "gain": after["gold_gain"],
        "gain_low": after["gold_gain_low"],
        "gain_high": after["gold_gain_high"],
        "sampled_before": sampled_before["gold_mean"],
        "sampled_after": sampled_after["gold_mean"],
        "sampled_gain": sampled_after["gold_gain"],
        "sampled_gain_low": sampled_after["gold_gain_low"],
        "sampled_gain_high": sampled_after["gold_gain_high"],
        "proxy_greedy_before": before["proxy_mean"],
        "proxy_greedy_after": after["proxy_mean"],
        "length_before": before["length_mean"],
        "length_after": after["length_mean"],
        "median_step_s": median_step_s(timing),
    }


def is_finished(path: Path) -> bool:
    """Return whether the run has measured the test part after training, which is the last thing it does."""
    return any(record["part"] == "test" and record["step"] > 0 for record in read_jsonl(path / "eval.jsonl"))


def median_step_s(timing: list[dict[str, Any]]) -> float:
    """Return the median seconds of a step without its evaluation and checkpoint."""
    seconds = sorted(
        sum(record[key] for key in ("rollout_s", "reward_s", "scoring_s", "update_s", "load_weights_s"))
        for record in timing
        if record["step"] > 0
    )
    return round(seconds[len(seconds) // 2], 2)


def git(*words: str) -> str:
    """Return what git says, without the newline."""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
