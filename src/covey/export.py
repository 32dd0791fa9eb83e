"""Getting the trained model out of a run directory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from covey.checkpoint import newest_valid_checkpoint
from covey.monitor.run_directory import RunDirectory
from covey.types import CoveyError

# Only the run needs these; everything else in a checkpoint is the model.
_NOT_PART_OF_THE_MODEL = {"MANIFEST.json", "state.json", "optimizer.safetensors"}


def export_model(run_path: Path, directory: Path) -> Path:
    """Write the newest valid checkpoint of a run as a plain Hugging Face model directory, with the base model's notices.

    Raises:
        CoveyError: the run has no checkpoint, or `directory` exists already.
    """
    run = RunDirectory.open(run_path)
    if directory.exists():
        raise CoveyError(f"{directory} exists already; nothing is overwritten. Name a directory that does not exist")
    checkpoint, _ = newest_valid_checkpoint(run.checkpoints)
    if checkpoint is None:
        raise CoveyError(f"{run_path} has no checkpoint to export yet")
    temporary = directory.with_name(f".{directory.name}.tmp-{os.getpid()}")
    temporary.mkdir(parents=True)
    for file in checkpoint.iterdir():
        if file.name not in _NOT_PART_OF_THE_MODEL:
            shutil.copyfile(file, temporary / file.name)
    temporary.rename(directory)
    return directory
