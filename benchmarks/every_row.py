"""Run every row of the algorithm table for a few steps on SmolLM2, and some rows with every other control switched on.

    python benchmarks/every_row.py [--only grpo --only gspo] [--steps 2]

It shows that everything runs on a real model; nobody learns in two steps. Finished rows are kept, so it goes on where it
stopped. The result goes to benchmarks/results/every_row.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import covey
from covey.algos.registry import ALGORITHMS
from covey.monitor.environment import describe_machine, describe_versions

RESULT = Path(__file__).parent / "results" / "every_row.json"

SMALL = {"prompts_per_step": 4, "group_size": 8, "num_prompts": 4, "evaluation__every": 0, "checkpoint__every": 0}
"""What a row runs with: 4 prompts x 8 completions a step."""

CONTROLS: dict[str, dict[str, Any]] = {
    "every KL control": {
        "beta": 0.05,
        "algorithm__kl": "weighted_k3_loss",
        "kl_target": 0.5,
        "reference_every": 1,
        "reference_mix": 0.1,
        "kl_budget": 100.0,
    },
    "KL in the reward": {"beta": 0.05, "algorithm__kl": "k1_reward"},
    "several updates": {"num_iterations": 2, "num_minibatches": 2, "token_filter": "kl_cov"},
    "correction, entropy filter and bonus": {
        "correction": "mask_token",
        "token_filter": "top_entropy",
        "entropy_coefficient": 0.01,
        "entropy_target": 0.5,
    },
    "shaped sampling": {"top_k": 50, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.1, "stop": ["\n"]},
    "length and curriculum": {
        "overlong_buffer": 8,
        "overlong_penalty": 0.5,
        "truncated": "mask",
        "curriculum": "pass_rate",
        "max_draws": 2,
    },
    "parts and GDPO": {
        "algorithm__name": "gdpo",
        "reward__parts": {"last_number": 1.0, "asserted_number": 0.5},
    },
}


def run_row(options: dict[str, Any], *, num_steps: int) -> dict[str, Any]:
    """Train for a few steps and return what was logged last."""
    with tempfile.TemporaryDirectory() as directory:
        changes: dict[str, Any] = SMALL | options | {"num_steps": num_steps, "run__directory": directory, "quiet": True}
        run = covey.train("arithmetic", **changes)
        metrics = {key: value for row in run.metrics for key, value in row.items() if value is not None}
    kept = ("grad/norm", "loss/value", "ratio/max", "entropy/mean", "kl/sequence", "mismatch/abs_mean", "optimizer/num_updates")
    found = {key: metrics[key] for key in kept if key in metrics}
    assert metrics["optimizer/num_updates"] > 0, "no group had a signal: nothing was shown"
    return {"options": options} | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="a row or a control; may be given several times")
    parser.add_argument("--steps", type=int, default=2)
    args = parser.parse_args()
    cases = {name: {"algorithm__name": name} | ({"k": 2} if name == "passk" else {}) for name in ALGORITHMS} | CONTROLS
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": {}}
    result |= {
        "command": "python benchmarks/every_row.py",
        "commit": commit,
        "machine": describe_machine(),
        "versions": describe_versions(),
    }
    for name, options in cases.items():
        if (args.only and name not in args.only) or (not args.only and name in result["rows"]):
            continue
        result["rows"][name] = run_row(options, num_steps=args.steps)
        print(f"{name}: {result['rows'][name]}", flush=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
