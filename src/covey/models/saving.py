"""A model as a plain Hugging Face directory, written by whichever process is asked to.

transformers' own `save_pretrained` leaves files out, silently, on every rank of a process group but the first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel


def save_model(model: PreTrainedModel, tokenizer: Any, directory: Path) -> None:
    """Write weights, config, generation config, tokenizer and chat template. Tied weights are written once."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(directory)
    save_file(_without_ties(model.state_dict()), directory / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(directory)


def _without_ties(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without those that share their memory with an earlier one: loading ties them again."""
    first_of: dict[tuple[int, int], str] = {}
    for name, tensor in state.items():
        first_of.setdefault((tensor.data_ptr(), tensor.nbytes), name)
    return {name: state[name].detach().contiguous() for name in first_of.values()}
