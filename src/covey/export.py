"""Getting the trained model out of a run directory."""

from __future__ import annotations

import os
import shutil
import tomllib
from pathlib import Path

from covey.checkpoint import newest_valid_checkpoint
from covey.models.lora import is_adapter
from covey.models.policy import load_policy, save_model_directory
from covey.monitor.run_directory import RunDirectory
from covey.types import CoveyError

# Only the run needs these; everything else in a checkpoint is the model.
_NOT_PART_OF_THE_MODEL = {"MANIFEST.json", "state.json", "optimizer.safetensors"}


def export_model(run_path: Path, directory: Path, *, adapter_only: bool = False) -> Path:
    """Write the newest valid checkpoint of a run as a plain Hugging Face model directory, with the base model's notices.

    Adapters are merged into the weights of their base model; with `adapter_only` they are written as peft's files instead.

    Raises:
        CoveyError: the run has no checkpoint, or no adapter to write, or `directory` exists already.
    """
    run = RunDirectory.open(run_path)
    if directory.exists():
        raise CoveyError(f"{directory} exists already; nothing is overwritten. Name a directory that does not exist")
    checkpoint, _ = newest_valid_checkpoint(run.checkpoints)
    if checkpoint is None:
        raise CoveyError(f"{run_path} has no checkpoint to export yet")
    if adapter_only and not is_adapter(checkpoint):
        raise CoveyError(f"{run_path} trained every weight and has no adapter; export without --adapter")
    files = {file.name: file for file in checkpoint.iterdir() if file.name not in _NOT_PART_OF_THE_MODEL}
    temporary = directory.with_name(f".{directory.name}.tmp-{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        if is_adapter(checkpoint) and not adapter_only:
            write_merged(run, checkpoint, temporary)
        else:
            for name, file in files.items():
                shutil.copyfile(file, temporary / name)
        temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def write_merged(run: RunDirectory, checkpoint: Path, directory: Path) -> None:
    """Write the run's base model with the checkpoint's adapters merged into it, in float32."""
    model = tomllib.loads(run.recipe.read_text()).get("model", {})
    policy = load_policy(
        str(checkpoint),
        revision=model.get("revision") or None,
        trust_remote_code=model.get("trust_remote_code", False),
        compute_dtype="float32",
    )
    save_model_directory(policy, directory)
    for name, data in policy.describing_files().items():
        (directory / name).write_bytes(data)
