"""Attention over packed tokens: a prompt sees itself, a completion its prompt and itself. In torch, for every dtype.

Scores are never kept: the backward pass makes them again from the log of each query's sum. So memory grows with the
number of tokens, not with its square. Dimension key: T packed tokens, H query heads, K key-value heads, R = H / K,
E head dimension, Q queries of a tile, S keys that the tile sees.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from covey.models.packed.layout import Span

# Queries of one tile: its scores stay in the processor's cache, and keys behind its last query are skipped.
_TILE = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionShape:
    """What the layers of a model may differ in."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int
    """How many positions a token sees, itself included; 0 = all before it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """Some queries of one sequence, and the keys before and among them."""

    queries: slice
    """Of the packed tokens."""
    keys: tuple[slice, slice]
    """Of the packed tokens: in the prompt (empty for a prompt's own queries), and in the sequence itself."""
    offset: int
    """Position of the first query minus that of the first key."""

    def visible(self, window: int) -> Bool[Tensor, "Q S"]:
        num_queries = self.queries.stop - self.queries.start
        num_keys = sum(part.stop - part.start for part in self.keys)
        distance = self.offset + torch.arange(num_queries)[:, None] - torch.arange(num_keys)
        return (distance >= 0) & (distance < window) if window else distance >= 0


def tiles(spans: Sequence[Span]) -> Iterator[Tile]:
    """Yield tiles that cover all queries."""
    for span in spans:
        prompt = slice(span.prompt_start, span.starts[0])
        sequences = [(prompt.start, prompt.stop, slice(0, 0))]
        sequences += [(start, end, prompt) for start, end in zip(span.starts, span.starts[1:], strict=False)]
        for start, end, before in sequences:
            for first in range(start, end, _TILE):
                last = min(first + _TILE, end)
                offset = before.stop - before.start + first - start
                yield Tile(queries=slice(first, last), keys=(before, slice(start, last)), offset=offset)


def attend(
    heads: Float[Tensor, "T all E"], spans: Sequence[Span], shape: AttentionShape
) -> tuple[Float[Tensor, "T H E"], Float[Tensor, "T H"]]:
    """Return softmax(q k^T scale) v of each query head, and the log of each softmax's sum.

    `heads`: query heads, then key heads, then value heads, rotated already. Query head h reads key head h // R.
    """
    out = heads.new_empty(len(heads), shape.num_heads, shape.head_dim)
    log_sums = heads.new_empty(len(heads), shape.num_heads, dtype=_wide(heads))
    for tile in tiles(spans):
        queries, keys, values = _tile_heads(heads, tile, shape)
        scores = _scores(queries, keys, tile, shape)
        log_sum = scores.logsumexp(dim=-1, keepdim=True)
        weights = (scores - log_sum).exp().to(heads.dtype)
        out[tile.queries] = _by_token(weights @ values)
        log_sums[tile.queries] = log_sum.flatten(0, 1)[:, :, 0].T
    return out, log_sums


def attend_backward(
    grad: Float[Tensor, "T H E"],
    heads: Float[Tensor, "T all E"],
    out: Float[Tensor, "T H E"],
    log_sums: Float[Tensor, "T H"],
    spans: Sequence[Span],
    shape: AttentionShape,
) -> Float[Tensor, "T all E"]:
    """Return the gradient of `heads`.

    With P = softmax: dV = P^T dO, dP = dO V^T, dS = P (dP - sum_e dO O) scale, dQ = dS K, dK = dS^T Q
    (FlashAttention, arXiv 2205.14135, section B.4).
    """
    num_kv, per_kv = shape.num_kv_heads, shape.num_heads // shape.num_kv_heads
    wide = torch.zeros(heads.shape, dtype=_wide(heads))
    for tile in tiles(spans):
        queries, keys, values = _tile_heads(heads, tile, shape)
        tile_grad = _by_head(grad[tile.queries], num_kv)
        weights = (_scores(queries, keys, tile, shape) - _by_head(log_sums[tile.queries, :, None], num_kv)).exp()
        products = (tile_grad.to(weights.dtype) * _by_head(out[tile.queries], num_kv).to(weights.dtype)).sum(-1, keepdim=True)
        slopes = (weights * ((tile_grad @ values.mT).to(weights.dtype) - products) * shape.scale).to(heads.dtype)
        weights = weights.to(heads.dtype)
        wide[tile.queries, : shape.num_heads] += _by_token(slopes @ keys)
        # Query heads of one key-value head are summed by the product itself.
        length = queries.shape[2]
        flat = [part.reshape(num_kv, per_kv * length, -1) for part in (slopes, queries, weights, tile_grad)]
        grad_keys = (flat[0].mT @ flat[1]).transpose(0, 1)
        grad_values = (flat[2].mT @ flat[3]).transpose(0, 1)
        num_before = tile.keys[0].stop - tile.keys[0].start
        for part, place in zip(tile.keys, (slice(0, num_before), slice(num_before, None)), strict=True):
            wide[part, shape.num_heads : -num_kv] += grad_keys[place]
            wide[part, -num_kv:] += grad_values[place]
    return wide.to(heads.dtype)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _tile_heads(
    heads: Float[Tensor, "T all E"], tile: Tile, shape: AttentionShape
) -> tuple[Float[Tensor, "K R Q E"], Float[Tensor, "K 1 S E"], Float[Tensor, "K 1 S E"]]:
    queries = _by_head(heads[tile.queries, : shape.num_heads], shape.num_kv_heads)
    both = torch.cat([heads[part, shape.num_heads :] for part in tile.keys]).transpose(0, 1)[:, None]
    keys, values = both.split(shape.num_kv_heads)
    return queries, keys, values


def _scores(
    queries: Float[Tensor, "K R Q E"], keys: Float[Tensor, "K 1 S E"], tile: Tile, shape: AttentionShape
) -> Float[Tensor, "K R Q S"]:
    scores = (queries @ keys.mT).to(_wide(queries)) * shape.scale
    return scores.masked_fill(~tile.visible(shape.window), -math.inf)


def _by_head(x: Float[Tensor, "Q H any"], num_kv_heads: int) -> Float[Tensor, "K R Q any"]:
    return x.unflatten(1, (num_kv_heads, -1)).permute(1, 2, 0, 3)


def _by_token(x: Float[Tensor, "K R Q any"]) -> Float[Tensor, "Q H any"]:
    return x.permute(2, 0, 1, 3).flatten(1, 2)
