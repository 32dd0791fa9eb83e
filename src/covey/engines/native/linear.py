"""One matrix product of the decoder, with its own copy of the weights laid out for few rows.

oneDNN multiplies by weights that were laid out for it beforehand two to four times as fast at the batch sizes of
decoding; our own kernel (`covey.engines.native.fused`), with a layout of its own, another 1.2 to 1.3 times.

Dimension key: N tokens or rows, C columns of a weight matrix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from covey.models.lora import merged_weight

# The batch size that oneDNN lays weights out for; it serves other sizes as well.
_PACKED_FOR_ROWS = 64


class Linear(ABC):
    """y = x W^T + b for one or several projections of the same input, their outputs one behind the other."""

    def __init__(self, dtype: torch.dtype):
        self._dtype = dtype
        self.in_features = 0
        self.out_features = 0
        self.bias: Float[Tensor, "out"] | None = None
        self._weight: Tensor = torch.empty(0)

    def load(self, parts: Sequence[nn.Linear]) -> None:
        """Take over the projections' present weights."""
        weights = [merged_weight(part).to(self._dtype) for part in parts]
        weight = weights[0].contiguous() if len(weights) == 1 else torch.cat(weights)
        self.out_features, self.in_features = weight.shape
        self.bias = joined_bias(parts, self._dtype)
        self._weight = self._laid_out(weight)

    def __call__(self, x: Float[Tensor, "N in"]) -> Float[Tensor, "N out"]:
        return self._times(x, self.bias)

    def columns(self, indices: Int[Tensor, "C"]) -> Float[Tensor, "C out"]:
        """Return columns of the weights, read through the very product that serves them.

        A one-hot row selects a column exactly: every other product is 0.
        """
        one_hot = torch.zeros(len(indices), self.in_features, dtype=self._dtype)
        one_hot[torch.arange(len(indices)), indices] = 1
        return self._times(one_hot, None)

    @abstractmethod
    def _laid_out(self, weight: Float[Tensor, "out in"]) -> Tensor:
        """Return the weights as the product takes them, in memory of their own."""

    @abstractmethod
    def _times(self, x: Float[Tensor, "N in"], bias: Float[Tensor, "out"] | None) -> Float[Tensor, "N out"]: ...


class PackedLinear(Linear):
    """By oneDNN with weights that it has laid out, or by torch with weights as they are."""

    def __init__(self, dtype: torch.dtype, *, is_packed: bool):
        super().__init__(dtype)
        operators: Any = torch.ops.mkldnn
        self._lay_out = operators._reorder_linear_weight if is_packed else None
        self._multiply = operators._linear_pointwise.default if is_packed else None

    def _laid_out(self, weight: Float[Tensor, "out in"]) -> Tensor:
        # A float32 weight is the trainer's own tensor up to here.
        return weight.clone() if self._lay_out is None else self._lay_out(weight, _PACKED_FOR_ROWS)

    def _times(self, x: Float[Tensor, "N in"], bias: Float[Tensor, "out"] | None) -> Float[Tensor, "N out"]:
        if self._multiply is not None:
            return self._multiply(x, self._weight, bias, "none", [], "")
        return F.linear(x, self._weight, bias)


def packed_linear(dtype: torch.dtype) -> PackedLinear:
    """Return a product for every processor: by oneDNN's layout where it has one for this dtype."""
    return PackedLinear(dtype, is_packed=can_pack(dtype))


def can_pack(dtype: torch.dtype) -> bool:
    """Return whether oneDNN packs weights of this dtype here."""
    operators: Any = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not hasattr(operators, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or bool(operators._is_mkldnn_bf16_supported())


def joined_bias(parts: Sequence[nn.Linear], dtype: torch.dtype) -> Float[Tensor, "out"] | None:
    """Return the biases one behind the other, zeros for a projection that has none; None if no projection has one."""
    if all(part.bias is None for part in parts):
        return None
    biases = [part.weight.new_zeros(part.out_features) if part.bias is None else part.bias.detach() for part in parts]
    return torch.cat(biases).to(dtype)
