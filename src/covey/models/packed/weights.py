"""Copies of a model's matrices in the compute dtype, made once for each state of the weights."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from covey.models.families import Architecture, linears_of, read_architecture


@dataclass(frozen=True, kw_only=True, slots=True)
class Projection:
    """One matrix product: projections of the same input, their outputs one behind the other."""

    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, "out"] | None
    weights: tuple[Tensor, ...]
    """What `weight` is a copy of."""
    biases: tuple[Tensor, ...]


class ComputeWeights:
    """The projections of one model, by name, and its architecture."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype):
        self.architecture: Architecture = read_architecture(model)
        self.dtype = dtype
        self.versions = weight_versions(model)
        with torch.no_grad():
            self.projections = {name: _projection(parts, dtype) for name, parts in linears_of(model)}


_KEPT: weakref.WeakKeyDictionary[PreTrainedModel, ComputeWeights] = weakref.WeakKeyDictionary()


def compute_weights(model: PreTrainedModel, dtype: torch.dtype) -> ComputeWeights:
    """Return copies of the model's present weights, those of the last call if no weight has changed since.

    Every write to a parameter counts, except one through `.data`, which torch keeps no count of.
    """
    kept = _KEPT.get(model)
    if kept is None or kept.dtype != dtype or kept.versions != weight_versions(model):
        _KEPT.pop(model, None)  # Freed before the new ones are made.
        del kept
        kept = _KEPT[model] = ComputeWeights(model, dtype)
    return kept


def weight_versions(model: PreTrainedModel) -> tuple[tuple[int, int], ...]:
    """Return what changes whenever a parameter is written to or replaced."""
    return tuple((parameter.data_ptr(), parameter._version) for parameter in model.parameters())


def _projection(parts: Sequence[nn.Linear], dtype: torch.dtype) -> Projection:
    weights = tuple(part.weight for part in parts)
    biases = tuple(part.bias for part in parts if part.bias is not None)
    copies = [weight.detach().to(dtype) for weight in weights]
    return Projection(
        weight=copies[0] if len(copies) == 1 else torch.cat(copies),
        bias=torch.cat([bias.detach() for bias in biases]).to(dtype) if biases else None,
        weights=weights,
        biases=biases,
    )
