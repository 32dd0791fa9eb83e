"""The served weights: one copy in the compute dtype, laid out for matrix products, and the proof that it is current.

Norm gains are not folded into the weights behind them: the trainer rounds the bare weights to bfloat16, and so does the
engine, which keeps the two closer together than any folding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from covey.engines.native.linear import Linear, joined_bias, packed_linear
from covey.models.families import embedding_of, linears_of, norms_of, read_architecture
from covey.models.lora import merged_weight

_NUM_PROBED_COLUMNS = 8
_NUM_PROBED_ROWS = 64


@dataclass(kw_only=True, slots=True)
class LayerWeights:
    """What one layer computes with. `None` = the family has no such norm."""

    qkv: Linear
    attention_out: Linear
    gate_up: Linear
    mlp_out: Linear
    attention_norm: Float[Tensor, "D"]
    mlp_norm: Float[Tensor, "D"]
    attention_branch_norm: Float[Tensor, "D"] | None = None
    mlp_branch_norm: Float[Tensor, "D"] | None = None
    query_norm: Float[Tensor, "head_dim"] | None = None
    key_norm: Float[Tensor, "head_dim"] | None = None


class ServedWeights:
    """The engine's own copy of a policy's weights."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype, new_linear: Callable[[torch.dtype], Linear] = packed_linear):
        self.dtype = dtype
        self.architecture = read_architecture(model)
        self._linears = {name: new_linear(dtype) for name, _ in linears_of(model)}
        # In float32, as in the trainer; cloned, because a gain without an offset is the trainer's own tensor.
        self._norms = {name: gain.clone() for name, gain in norms_of(model)}
        self.embedding: Float[Tensor, "V D"] = torch.empty_like(embedding_of(model).weight, dtype=dtype)
        self.load(model)
        self.layers = [self._layer(index) for index in range(self.architecture.num_layers)]
        self.head = self._linears["head"]
        self.final_norm = self._norms["final_norm"]

    @torch.no_grad()
    def load(self, model: PreTrainedModel) -> None:
        """Take over the model's present weights, one matrix at a time."""
        for name, parts in linears_of(model):
            self._linears[name].load(parts)
        for name, gain in norms_of(model):
            self._norms[name].copy_(gain)
        self.embedding.copy_(embedding_of(model).weight)

    def _layer(self, index: int) -> LayerWeights:
        return LayerWeights(**self._named(self._linears, index), **self._named(self._norms, index))

    @staticmethod
    def _named(weights: dict[str, Any], index: int) -> dict[str, Any]:
        prefix = f"{index}."
        return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}

    @torch.no_grad()
    def digest(self) -> str:
        """Return a hash of a sample of what is served, read out of the packed weights."""
        return _hash(self._samples())

    def _samples(self) -> Iterator[tuple[str, Tensor]]:
        for name, linear in self._linears.items():
            yield name, linear.columns(_evenly_spread(linear.in_features, _NUM_PROBED_COLUMNS))
            if linear.bias is not None:
                yield f"{name}.bias", linear.bias
        yield from self._norms.items()
        yield "embedding", self.embedding[_evenly_spread(len(self.embedding), _NUM_PROBED_ROWS)]


@torch.no_grad()
def expected_digest(model: PreTrainedModel, dtype: torch.dtype) -> str:
    """Return what `ServedWeights.digest` must be if the model's present weights are served."""
    return _hash(_expected_samples(model, dtype))


def _expected_samples(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    for name, parts in linears_of(model):
        columns = _evenly_spread(parts[0].in_features, _NUM_PROBED_COLUMNS)
        yield name, torch.cat([_column_sample(merged_weight(part), columns) for part in parts], dim=1).to(dtype)
        bias = joined_bias(parts, dtype)
        if bias is not None:
            yield f"{name}.bias", bias
    yield from norms_of(model)
    embedding = embedding_of(model).weight
    yield "embedding", embedding[_evenly_spread(len(embedding), _NUM_PROBED_ROWS)].to(dtype)


def _column_sample(weight: Float[Tensor, "out in"], columns: Int[Tensor, "C"]) -> Float[Tensor, "C out"]:
    """Return columns as a one-hot product gives them: in a row of diverged weights every product is NaN."""
    is_finite = weight.sum(dim=1).isfinite()
    return torch.where(is_finite[:, None], weight[:, columns], torch.nan).T


def _evenly_spread(size: int, count: int) -> Int[Tensor, "_"]:
    """Return at most `count` indices below `size`, at even distances."""
    return torch.arange(0, size, max(1, size // count))[:count]


def _hash(samples: Iterable[tuple[str, Tensor]]) -> str:
    """Return one hash of names and values, blind to what a product does not keep: the sign of 0 and NaN, denormals."""
    digest = hashlib.sha256()
    smallest = torch.finfo(torch.float32).tiny
    for name, sample in samples:
        values = sample.float()
        values = torch.where(values.abs() < smallest, 0.0, values).nan_to_num(nan=float("inf"))
        digest.update(name.encode() + values.contiguous().numpy().tobytes())
    return digest.hexdigest()
