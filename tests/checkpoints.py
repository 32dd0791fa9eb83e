"""Checkpoints with contents that only their step decides, so that a loaded one can be compared to the last bit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from covey.checkpoint import load_checkpoint, save_checkpoint

FILES = ["MANIFEST.json", "config.json", "model.safetensors", "optimizer.safetensors", "state.json"]


def contents(step: int) -> dict[str, dict[str, Tensor]]:
    weights = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3) + step
    return {"model.safetensors": {"w": weights}, "optimizer.safetensors": {"w.m": torch.full((5,), step / 3)}}


def save(directory: Path, step: int, **changes: Any) -> Path:
    arguments: dict[str, Any] = {
        "tensors": contents(step),
        "texts": {"config.json": '{"model_type": "tiny"}'},
        "state": {"step": step, "lr": 0.1 + 0.2, "config_hash": "c0ffee"},
        "log_sizes": {"metrics": 100 * step},
    }
    return save_checkpoint(directory, step, **(arguments | changes))


def holds_step(path: Path, step: int) -> bool:
    """Whether everything in the checkpoint is, bit for bit, what `save` wrote for this step."""
    loaded = load_checkpoint(path)
    saved = contents(step)
    same = [torch.equal(loaded.tensors(file)[name], saved[file][name]) for file in saved for name in saved[file]]
    return all(same) and loaded.state["step"] == loaded.step == step and loaded.log_sizes == {"metrics": 100 * step}


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))
