"""What happens between the matrix products of a forward pass, in torch: for every dtype and every processor.

Dimension key: N tokens or rows, D hidden size, I intermediate size, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from covey.engines.native.attention import Cache, CacheSize, PlainCache, RotaryTables, normed
from covey.engines.native.linear import Linear, packed_linear
from covey.models.families import Architecture

_BLOCK_SIZE = 256
_CACHED_LOGITS = 400_000


class Ops(Protocol):
    """The steps between matrix products, the products themselves, and the cache that attention reads."""

    def new_linear(self, dtype: torch.dtype) -> Linear:
        """Return a product whose weights are to be loaded."""
        ...

    def add_norm(
        self, residual: Float[Tensor, "N D"], branch: Float[Tensor, "N D"] | None, gain: Float[Tensor, "D"]
    ) -> Float[Tensor, "N D"]:
        """Add the branch, if there is one, to the float32 residual in place; return its norm in the compute dtype."""
        ...

    def norm(self, x: Float[Tensor, "N D"], gain: Float[Tensor, "D"]) -> Float[Tensor, "N D"]:
        """Return the norm in the dtype of x."""
        ...

    def gated(self, gate_up: Float[Tensor, "N both"]) -> Float[Tensor, "N I"]:
        """Return activation(first half) * second half."""
        ...

    def drawn(
        self, logits: Float[Tensor, "N V"], numbers: Float[Tensor, "N"], temperature: float
    ) -> tuple[Int[Tensor, "N"], Float[Tensor, "N"]]:
        """Return tokens drawn from softmax(logits / temperature) by inverse CDF, and their log-probs in float32."""
        ...

    def new_cache(self, tables: RotaryTables, size: CacheSize) -> Cache: ...

    def cache_bytes(self, size: CacheSize) -> int:
        """Return how many bytes `new_cache` allocates."""
        ...


class TorchOps:
    """`Ops` without kernels of our own."""

    def __init__(self, architecture: Architecture, dtype: torch.dtype):
        self._architecture = architecture
        self._dtype = dtype

    def new_linear(self, dtype: torch.dtype) -> Linear:
        return packed_linear(dtype)

    def add_norm(
        self, residual: Float[Tensor, "N D"], branch: Float[Tensor, "N D"] | None, gain: Float[Tensor, "D"]
    ) -> Float[Tensor, "N D"]:
        if branch is not None:
            residual += branch
        return normed(residual, gain, self._architecture.norm_eps).to(self._dtype)

    def norm(self, x: Float[Tensor, "N D"], gain: Float[Tensor, "D"]) -> Float[Tensor, "N D"]:
        return normed(x, gain, self._architecture.norm_eps).to(x.dtype)

    def gated(self, gate_up: Float[Tensor, "N both"]) -> Float[Tensor, "N I"]:
        gate, up = gate_up.chunk(2, dim=-1)
        if self._architecture.activation == "gelu_pytorch_tanh":
            return F.gelu(gate, approximate="tanh") * up
        return F.silu(gate) * up

    def drawn(
        self, logits: Float[Tensor, "N V"], numbers: Float[Tensor, "N"], temperature: float
    ) -> tuple[Int[Tensor, "N"], Float[Tensor, "N"]]:
        logits = logits.float()
        return drawn_in_two_levels(logits if temperature == 1.0 else logits / temperature, numbers)

    def new_cache(self, tables: RotaryTables, size: CacheSize) -> Cache:
        return PlainCache(self._architecture, tables, size)

    def cache_bytes(self, size: CacheSize) -> int:
        return PlainCache.num_bytes(self._architecture, size)


def drawn_in_two_levels(
    logits: Float[Tensor, "N V"], numbers: Float[Tensor, "N"]
) -> tuple[Int[Tensor, "N"], Float[Tensor, "N"]]:
    """Return tokens drawn from softmax(logits) by inverse CDF in token order, and their log-probs.

    The token is the first whose cumulative probability exceeds the uniform number: first the block of tokens is found in
    the cumulative sums of blocks, then the token in its block. Sums run in float64, exponentials in float32.
    """
    # Some rows at a time: what is made of them stays in the processor's cache, which is several times as fast.
    rows = max(1, _CACHED_LOGITS // logits.shape[1])
    parts = [_drawn_part(*part) for part in zip(logits.split(rows), numbers.split(rows), strict=True)]
    return torch.cat([tokens for tokens, _ in parts]), torch.cat([logprobs for _, logprobs in parts])


def _drawn_part(logits: Float[Tensor, "N V"], numbers: Float[Tensor, "N"]) -> tuple[Int[Tensor, "N"], Float[Tensor, "N"]]:
    top = logits.amax(dim=1, keepdim=True)
    masses = F.pad((logits - top).exp_(), (0, -logits.shape[1] % _BLOCK_SIZE)).view(len(logits), -1, _BLOCK_SIZE)
    block_ends = masses.double().sum(dim=-1).cumsum(dim=1)  # [N, blocks]
    total = block_ends[:, -1:]
    target = numbers[:, None] * total
    # Only a row of NaN is found behind the end. Its log-prob tells, so it must not fail here.
    block = torch.searchsorted(block_ends, target, right=True).clamp(max=block_ends.shape[1] - 1)
    before = torch.where(block > 0, block_ends.gather(1, (block - 1).clamp(min=0)), 0.0)
    ends = masses.gather(1, block[:, :, None].expand(-1, -1, _BLOCK_SIZE))[:, 0].double().cumsum(dim=1)
    # Summed in another order, the block may end a rounding below the target: its last token that has any mass is meant.
    inside = torch.minimum(target - before, ends[:, -1:] * (1 - 2.0**-53))
    place = torch.searchsorted(ends, inside, right=True).clamp(max=_BLOCK_SIZE - 1)
    tokens = (block * _BLOCK_SIZE + place).clamp(max=logits.shape[1] - 1)
    return tokens[:, 0], ((logits.gather(1, tokens) - top).double() - total.log())[:, 0].float()
