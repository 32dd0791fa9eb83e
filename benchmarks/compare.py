"""GRPO beside PPO, DPO, RLOO, rejection sampling and the untrained model, at an equal budget of generated tokens.

    python benchmarks/compare.py [--directory comparisons]

Runs `covey compare` on the shipped recipe and writes benchmarks/results/compare.json, with its figures in docs/images/compare.
About two hours on two cores. Every run's result is copied to benchmarks/results/compare/ at once and taken from there: stopped
by Ctrl-C and given again, the benchmark goes on where it was, in another checkout too, and with every run there it makes the
report in seconds (comparisons/arithmetic/report.html). Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from step_time.processes import describe_commit

from covey.monitor.run_directory import write_text_atomic

RESULTS = Path(__file__).parent / "results"
PIECES, RESULT = RESULTS / "compare", RESULTS / "compare.json"
FIGURES = RESULTS.parents[1] / "docs" / "images" / "compare"
NAME = "arithmetic"
ARGUMENTS = (
    *("arithmetic", "evaluation.num_prompts=150", "evaluation.every=5"),
    *("--arms", "best_of_n,majority,grpo,raft,rloo,dpo,online_dpo,ppo", "--primary", "grpo:raft"),
    *("--seeds", "3", "--seeds-of", "grpo=5,raft=5", "--budget", "tokens=40000", "--learning-rates", "1e-5,3e-5,1e-4"),
    *("--best-of", "8", "--samples", "2", "--harder", "hard", "--name", NAME),
)


def copy_missing(source: Path, target: Path) -> None:
    """Copy the files of a directory that another one does not have."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.json")):
        if not (target / path.name).exists():
            shutil.copy2(path, target / path.name)


def main(directory: Path) -> int:
    """Go on with the comparison, and write its result once it is finished. Return the command's exit code."""
    place = directory / NAME
    copy_missing(PIECES, place / "results")
    command = [sys.executable, "-m", "covey", "compare", *ARGUMENTS, "--directory", str(directory)]
    process = subprocess.Popen(command)
    while True:
        try:
            code = process.wait(timeout=10)
            break
        except subprocess.TimeoutExpired:
            copy_missing(place / "results", PIECES)
        except KeyboardInterrupt:
            continue  # The command has had the signal as well, and saves.
    copy_missing(place / "results", PIECES)
    if code == 0:
        summary = json.loads((place / "summary.json").read_text())
        shown = {"command": "python benchmarks/compare.py", "commit": describe_commit(), **summary}
        write_text_atomic(RESULT, json.dumps(shown, indent=1) + "\n")
        for figure in sorted((place / "figures").glob("*.svg")):
            write_text_atomic(FIGURES / figure.name, figure.read_text())
    return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("comparisons"))
    sys.exit(main(parser.parse_args().directory))
