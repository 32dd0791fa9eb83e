"""Copies of a model's matrices in the compute dtype, made once for each state of the weights."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from covey.models.families import Architecture, linears_of, plain_linear, read_architecture
from covey.models.lora import active_adapter


class Adapter(NamedTuple):
    """B A, times scale, beside one of the projections."""

    down: nn.Parameter
    up: nn.Parameter
    scale: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Projection:
    """One matrix product: projections of the same input, their outputs one behind the other."""

    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, "out"] | None
    weights: tuple[Tensor, ...]
    """What `weight` is a copy of."""
    biases: tuple[Tensor, ...]
    parts: tuple[nn.Module, ...]

    def adapters(self) -> list[Adapter | None]:
        """Return the adapter of each projection; None = it has none, or one that is off now."""
        found = [active_adapter(part) for part in self.parts]
        return [None if adapter is None else Adapter(*adapter) for adapter in found]


_SAMPLE_SIZE = 32


class Fingerprint:
    """What tells whether the weights of the projections have changed.

    Torch counts writes to a parameter, except those through `.data` and by its fused optimizers. An optimizer's step
    changes every number, so an even sample of each weight shows it.
    """

    def __init__(self, model: PreTrainedModel):
        parts = [part for _, projections in linears_of(model) for part in projections]
        found: list[Any] = [plain_linear(part) for part in parts]
        weights = [weight for linear in found for weight in (linear.weight, linear.bias) if weight is not None]
        self._parts = [id(part) for part in parts]  # Attached adapters make them others.
        self._writes = [(weight.data_ptr(), weight._version) for weight in weights]
        self._sample = torch.cat([_even_sample(weight.detach().reshape(-1)) for weight in weights])

    def matches(self, other: Fingerprint) -> bool:
        return self._parts == other._parts and self._writes == other._writes and torch.equal(self._sample, other._sample)


class ComputeWeights:
    """The projections of one model, by name, and its architecture."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype):
        self.architecture: Architecture = read_architecture(model)
        self.dtype = dtype
        self.made_of = Fingerprint(model)
        with torch.no_grad():
            self.projections = {name: _projection(parts, dtype) for name, parts in linears_of(model)}


_KEPT: weakref.WeakKeyDictionary[PreTrainedModel, ComputeWeights] = weakref.WeakKeyDictionary()


def compute_weights(model: PreTrainedModel, dtype: torch.dtype) -> ComputeWeights:
    """Return copies of the model's present weights, those of the last call if the weights are the same."""
    kept = _KEPT.get(model)
    if kept is None or kept.dtype != dtype or not kept.made_of.matches(Fingerprint(model)):
        _KEPT.pop(model, None)  # Freed before the new ones are made.
        del kept
        kept = _KEPT[model] = ComputeWeights(model, dtype)
    return kept


def _projection(parts: Sequence[nn.Module], dtype: torch.dtype) -> Projection:
    linears: list[Any] = [plain_linear(part) for part in parts]
    weights = tuple(linear.weight for linear in linears)
    biases = tuple(linear.bias for linear in linears if linear.bias is not None)
    copies = [weight.detach().to(dtype) for weight in weights]
    return Projection(
        weight=copies[0] if len(copies) == 1 else torch.cat(copies),
        bias=torch.cat([bias.detach() for bias in biases]).to(dtype) if biases else None,
        weights=weights,
        biases=biases,
        parts=tuple(parts),
    )


def _even_sample(numbers: Float[Tensor, "_"]) -> Float[Tensor, "_"]:
    return numbers[:: max(1, len(numbers) // _SAMPLE_SIZE)]
