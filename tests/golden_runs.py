"""Runs in the checkpoint formats of released versions, kept as files. Each has to go on, or to be refused by its format.

python -m tests.golden_runs FORMAT      writes tests/golden/format-FORMAT; once, when a format is new
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from tests.digits import leave_out_slow_parts, train_digits

from covey.api import Run
from covey.models.tiny import write_tiny_model

GOLDEN = Path(__file__).parent / "golden"
MAX_BYTES = 50_000
"""Of a checkpoint. Besides it a run keeps what it needs to go on, and nothing else."""
_PLACE = "/place"
"""Stands in a kept recipe for the directory that the run is put into."""
_KEPT = ("recipe.toml", "env.json", "metrics.jsonl", "timing.jsonl", "eval.jsonl", "events.jsonl")
_SMALLEST: dict[str, Any] = {
    "prompts_per_step": 1,
    "group_size": 2,
    "max_new_tokens": 4,
    "evaluation__num_prompts": 2,
    "checkpoint__rollouts_every": 0,
    "num_steps": 2,
}


def golden_model(directory: Path) -> Path:
    """Return the model that the runs were started from: 3,000 numbers, the same everywhere."""
    return write_tiny_model(directory / "model", hidden_size=8, num_layers=1)


def put_golden_run(golden: Path, directory: Path) -> Path:
    """Put a kept run and its model where it can go on, and return its path."""
    golden_model(directory)
    run = shutil.copytree(golden, directory / "run")
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text().replace(_PLACE, str(directory)))
    return run


def train_golden_run(directory: Path) -> Run:
    """Train a run of the kind that is kept."""
    return train_digits(directory, "run", model=str(golden_model(directory)), **_SMALLEST)


def keep_golden_run(run: Run, golden: Path) -> None:
    """Copy what a run needs to go on."""
    golden.mkdir(parents=True)
    for name in _KEPT:
        shutil.copy(run.path / name, golden / name)
    shutil.copytree(run.path / "checkpoints", golden / "checkpoints")
    recipe = golden / "recipe.toml"
    recipe.write_text(recipe.read_text().replace(str(run.path.parent), _PLACE))


if __name__ == "__main__":
    leave_out_slow_parts(pytest.MonkeyPatch())
    with tempfile.TemporaryDirectory() as place:
        keep_golden_run(train_golden_run(Path(place)), GOLDEN / f"format-{sys.argv[1]}")
