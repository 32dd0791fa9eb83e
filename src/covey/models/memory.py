"""How many tokens of a micro-batch the free memory holds: counted from the model's sizes."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

_MASTER_BYTES = 4
# Keys and values of the engine (its cache's usual bound), logits of a chunk, and what allocators keep for themselves.
_RESERVE_BYTES = 3 << 30
_MIN_TOKENS = 256
_CGROUP = Path("/sys/fs/cgroup")
_NO_MEMORY = ("can't allocate memory", "not enough memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def available_bytes() -> int:
    """Return the memory that can be taken without swapping: of the machine, or of the container if it is less."""
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.exists() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    free = found[0] if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(used.read_text()) + _reclaimable_bytes(_CGROUP / "memory.stat"))
    return free


def _reclaimable_bytes(path: Path) -> int:
    """Return what a container holds of files that it has read and does not use: given up when memory is asked for."""
    lines = path.read_text().splitlines() if path.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def activation_token_bytes(model: PreTrainedModel, dtype: torch.dtype, *, checkpoints_layers: bool) -> int:
    """Return what the packed backward pass needs of one token: all layers; with checkpoints what enters each, and one layer."""
    config: Any = model.config.get_text_config()
    layer = layer_token_bytes(model, dtype)
    kept = (_MASTER_BYTES + dtype.itemsize) * config.hidden_size
    return config.num_hidden_layers * kept + layer if checkpoints_layers else config.num_hidden_layers * layer


def layer_token_bytes(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """Return what the packed backward pass needs of one token in one layer.

    The residual stream twice in float32; in the compute dtype both normed inputs, projections, outputs of the heads,
    [gate | up] and their product.
    """
    config: Any = model.config.get_text_config()
    hidden, inner = config.hidden_size, getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    head_dim = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    projected = (2 * config.num_attention_heads + 2 * num_kv_heads) * head_dim
    return 2 * _MASTER_BYTES * hidden + dtype.itemsize * (2 * hidden + projected + 3 * inner)


def affordable_tokens(model: PreTrainedModel, dtype: torch.dtype, *, available: int, checkpoints_layers: bool) -> int:
    """Return how many tokens a micro-batch may have in `available` bytes, after all that training keeps besides.

    That is gradients and two moments of each trained weight, and a rounded copy for the trainer and the engine each. At
    least a few tokens: whoever has less memory sees the system say so.
    """
    num_trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    num_weights = sum(weight.numel() for weight in model.parameters())
    fixed = 3 * _MASTER_BYTES * num_trained + 2 * dtype.itemsize * num_weights + _RESERVE_BYTES
    of_token = activation_token_bytes(model, dtype, checkpoints_layers=checkpoints_layers)
    return max(_MIN_TOKENS, (available - fixed) // of_token)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether there was no memory for what was asked: on a processor torch has no class of its own for that."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def resident_bytes() -> int:
    """Return the memory that this process holds now; where that cannot be read, the most that it has held."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Return the most memory that this process has held. On Linux that of the program, whoever has started it."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    if found:
        return found[0]
    # What getrusage says on Linux begins with the size of the process that started this one.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
