"""The served weights: one copy in the compute dtype, packed for matrix products, and the proof that it is current.

oneDNN multiplies by weights that were laid out for it beforehand two to four times as fast at the batch sizes of
decoding. Norm gains are not folded into the weights behind them: the trainer rounds the bare weights to bfloat16, and so
does the engine, which keeps the two closer together than any folding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from covey.models.families import embedding_of, linears_of, norms_of, read_architecture
from covey.models.lora import merged_weight

_NUM_PROBED_COLUMNS = 8
_NUM_PROBED_ROWS = 64
# The batch size that oneDNN lays weights out for; it serves other sizes as well.
_PACKED_FOR_ROWS = 64


def can_pack(dtype: torch.dtype) -> bool:
    """Return whether oneDNN packs weights of this dtype here."""
    operators: Any = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not hasattr(operators, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or bool(operators._is_mkldnn_bf16_supported())


class PackedLinear:
    """y = x W^T + b for one or several projections of the same input, their outputs one behind the other."""

    def __init__(self, dtype: torch.dtype, *, is_packed: bool):
        self._dtype = dtype
        self._is_packed = is_packed
        self.in_features = 0
        self.bias: Float[Tensor, "out"] | None = None
        self._weight: Tensor = torch.empty(0)
        operators: Any = torch.ops.mkldnn
        self._multiply = operators._linear_pointwise.default if is_packed else None

    def load(self, parts: Sequence[nn.Linear]) -> None:
        weights = [merged_weight(part).to(self._dtype) for part in parts]
        weight = weights[0].contiguous() if len(weights) == 1 else torch.cat(weights)
        self.in_features = weight.shape[1]
        self.bias = joined_bias(parts, self._dtype)
        if self._is_packed:
            operators: Any = torch.ops.mkldnn
            self._weight = operators._reorder_linear_weight(weight, _PACKED_FOR_ROWS)
        else:
            # A float32 weight is the trainer's own tensor up to here.
            self._weight = weight.clone() if weight.data_ptr() == parts[0].weight.data_ptr() else weight

    def __call__(self, x: Float[Tensor, "N in"]) -> Float[Tensor, "N out"]:
        return self._times(x, self.bias)

    def _times(self, x: Float[Tensor, "N in"], bias: Float[Tensor, "out"] | None) -> Float[Tensor, "N out"]:
        if self._multiply is not None:
            return self._multiply(x, self._weight, bias, "none", [], "")
        return F.linear(x, self._weight, bias)

    def columns(self, indices: Int[Tensor, "C"]) -> Float[Tensor, "C out"]:
        """Return columns of the weights, read through the very product that serves them.

        A one-hot row selects a column exactly: every other product is 0.
        """
        one_hot = torch.zeros(len(indices), self.in_features, dtype=self._dtype)
        one_hot[torch.arange(len(indices)), indices] = 1
        return self._times(one_hot, None)


def joined_bias(parts: Sequence[nn.Linear], dtype: torch.dtype) -> Float[Tensor, "out"] | None:
    """Return the biases one behind the other, zeros for a projection that has none; None if no projection has one."""
    if all(part.bias is None for part in parts):
        return None
    biases = [part.weight.new_zeros(part.out_features) if part.bias is None else part.bias.detach() for part in parts]
    return torch.cat(biases).to(dtype)


@dataclass(kw_only=True, slots=True)
class LayerWeights:
    """What one layer computes with. `None` = the family has no such norm."""

    qkv: PackedLinear
    attention_out: PackedLinear
    gate_up: PackedLinear
    mlp_out: PackedLinear
    attention_norm: Float[Tensor, "D"]
    mlp_norm: Float[Tensor, "D"]
    attention_branch_norm: Float[Tensor, "D"] | None = None
    mlp_branch_norm: Float[Tensor, "D"] | None = None
    query_norm: Float[Tensor, "head_dim"] | None = None
    key_norm: Float[Tensor, "head_dim"] | None = None


class ServedWeights:
    """The engine's own copy of a policy's weights."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype):
        self.dtype = dtype
        self.architecture = read_architecture(model)
        self.is_packed = can_pack(dtype)
        self._linears = {name: PackedLinear(dtype, is_packed=self.is_packed) for name, _ in linears_of(model)}
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
