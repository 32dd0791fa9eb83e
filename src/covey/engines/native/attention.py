"""Attention in torch: heads and rotary positions, prompts among themselves, and rows over the plain cache.

Dimension key: N tokens or rows, H query heads, K key-value heads, R = H / K query heads for each, E head dimension,
P prompt slots of the cache, S positions of a prompt slot, T positions of a row's own slot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from covey.engines.native.weights import LayerWeights
from covey.models.families import Architecture, LayerShape


class Attention(Protocol):
    """Attention of one forward pass: keeps the keys and values of its tokens, and lets each token see what is before it."""

    def __call__(self, index: int, layer: LayerWeights, qkv: Float[Tensor, "N width"]) -> Float[Tensor, "N HE"]:
        """Return the heads' outputs of layer `index`, given its projections."""
        ...


class Cache(Protocol):
    """Keys and values: of each resident prompt once, and of each row's own tokens."""

    def write_prompt(self, index: int, slot: int, keys: Float[Tensor, "S K E"], values: Float[Tensor, "S K E"]) -> None: ...

    def move_rows(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Move rows to other places, all distinct."""
        ...

    def attention(self, rows: Rows) -> Attention: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheSize:
    """How much a cache has room for."""

    num_prompts: int
    prompt_tokens: int
    num_rows: int
    row_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Where the rows of a decoding step are. Row b's cache is at place b."""

    prompt_slots: Int[Tensor, "N"]
    prompt_lengths: Int[Tensor, "N"]
    ages: Int[Tensor, "N"]
    """Tokens of its own that a row has in the cache; this step's is written behind them."""

    @property
    def positions(self) -> Int[Tensor, "N"]:
        return self.prompt_lengths + self.ages


class RotaryTables:
    """Cosines and sines of every position that a batch can reach."""

    def __init__(self, architecture: Architecture, num_positions: int):
        self.cos: dict[str, Float[Tensor, "positions half"]] = {}
        self.sin: dict[str, Float[Tensor, "positions half"]] = {}
        for kind, rope in architecture.ropes.items():
            angles = torch.arange(num_positions).float()[:, None] * rope.inv_freq
            self.cos[kind] = angles.cos() * rope.scaling
            self.sin[kind] = angles.sin() * rope.scaling

    def at(self, kind: str, positions: Int[Tensor, "N"]) -> tuple[Float[Tensor, "N 1 half"], Float[Tensor, "N 1 half"]]:
        return self.cos[kind][positions][:, None], self.sin[kind][positions][:, None]


def normed(x: Float[Tensor, "*shape D"], gain: Float[Tensor, "D"], eps: float) -> Float[Tensor, "*shape D"]:
    """Return x / sqrt(mean x^2 + eps) * gain (RMSNorm, arXiv 1910.07467), in float32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * gain


def rotated(
    heads: Float[Tensor, "N any E"], cos: Float[Tensor, "N 1 half"], sin: Float[Tensor, "N 1 half"]
) -> Float[Tensor, "N any E"]:
    """Return the heads turned by their positions; a pair is (i, i + E / 2), as in every family served here."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def split_heads(
    architecture: Architecture,
    layer: LayerWeights,
    qkv: Float[Tensor, "N width"],
    cos: Float[Tensor, "N 1 half"],
    sin: Float[Tensor, "N 1 half"],
) -> tuple[Float[Tensor, "N H E"], Float[Tensor, "N K E"], Float[Tensor, "N K E"]]:
    """Return rotated queries, rotated keys and values, in float32."""
    num_heads, num_kv = architecture.num_heads, architecture.num_kv_heads
    heads = qkv.float().view(len(qkv), num_heads + 2 * num_kv, architecture.head_dim)
    queries, keys, values = heads.split([num_heads, num_kv, num_kv], dim=1)
    if layer.query_norm is not None and layer.key_norm is not None:
        queries = normed(queries, layer.query_norm, architecture.norm_eps)
        keys = normed(keys, layer.key_norm, architecture.norm_eps)
    return rotated(queries, cos, sin), rotated(keys, cos, sin), values


class PrefixAttention:
    """Prompts attend to a prefix that all of them begin with, and to themselves. They lie packed, one behind the other."""

    def __init__(
        self,
        architecture: Architecture,
        tables: RotaryTables,
        lengths: Sequence[int],
        *,
        prefix: Sequence[tuple[Float[Tensor, "S K E"], Float[Tensor, "S K E"]]] = (),
    ):
        """`lengths`: tokens of each prompt behind the prefix. `prefix`: keys and values of each layer; empty = no prefix."""
        self._architecture = architecture
        self._tables = tables
        self._lengths = list(lengths)
        self._prefix = prefix
        self._prefix_length = len(prefix[0][0]) if prefix else 0
        self._positions = torch.cat([self._prefix_length + torch.arange(length) for length in lengths])
        self._masks: dict[tuple[int, int | None], Tensor] = {}
        self.kept: list[list[tuple[Tensor, Tensor]]] = []
        """Keys and values, prefix included, by layer and prompt."""

    def __call__(self, index: int, layer: LayerWeights, qkv: Float[Tensor, "N width"]) -> Float[Tensor, "N HE"]:
        shape = self._architecture.layers[index]
        cos, sin = self._tables.at(shape.rope, self._positions)
        queries, keys, values = (part.to(qkv.dtype) for part in split_heads(self._architecture, layer, qkv, cos, sin))
        outputs: list[Tensor] = []
        self.kept.append([])
        parts = zip(*(part.split(self._lengths) for part in (queries, keys, values)), strict=True)
        for own_queries, own_keys, own_values in parts:
            if self._prefix:
                own_keys = torch.cat([self._prefix[index][0], own_keys])
                own_values = torch.cat([self._prefix[index][1], own_values])
            self.kept[-1].append((own_keys, own_values))
            outputs.append(self._attended(shape, own_queries, own_keys, own_values))
        return torch.cat(outputs)

    def _attended(
        self,
        shape: LayerShape,
        queries: Float[Tensor, "N H E"],
        keys: Float[Tensor, "S K E"],
        values: Float[Tensor, "S K E"],
    ) -> Float[Tensor, "N HE"]:
        repeats = self._architecture.heads_per_kv
        output = F.scaled_dot_product_attention(
            queries.transpose(0, 1)[None],
            keys.transpose(0, 1).repeat_interleave(repeats, dim=0)[None],
            values.transpose(0, 1).repeat_interleave(repeats, dim=0)[None],
            attn_mask=self._mask(len(queries), shape.window),
            scale=self._architecture.attention_scale,
        )
        return output[0].transpose(0, 1).reshape(len(queries), -1)

    def _mask(self, length: int, window: int | None) -> Tensor:
        """Return which of prefix and prompt each of `length` tokens sees."""
        if (length, window) not in self._masks:
            total = self._prefix_length + length
            own = torch.arange(self._prefix_length, total)[:, None]
            seen = torch.arange(total)
            is_visible = seen <= own
            if window is not None:
                is_visible &= own - seen < window
            self._masks[length, window] = is_visible
        return self._masks[length, window]


class PlainCache:
    """Keys and values in float32, in the order of their positions, for attention in torch."""

    def __init__(self, architecture: Architecture, tables: RotaryTables, size: CacheSize):
        self._architecture = architecture
        self._tables = tables
        # Zeros, not garbage: a position that is masked still enters a sum, times 0.
        num_kv, head_dim = architecture.num_kv_heads, architecture.head_dim
        prompts = (architecture.num_layers, 2, size.num_prompts, num_kv, size.prompt_tokens, head_dim)
        rows = (architecture.num_layers, 2, size.num_rows, num_kv, size.row_tokens, head_dim)
        self.prompts: Float[Tensor, "layers 2 P K S E"] = torch.zeros(prompts)
        self.rows: Float[Tensor, "layers 2 rows K T E"] = torch.zeros(rows)

    @staticmethod
    def num_bytes(architecture: Architecture, size: CacheSize) -> int:
        tokens = size.num_prompts * size.prompt_tokens + size.num_rows * size.row_tokens
        return tokens * architecture.num_layers * 2 * architecture.num_kv_heads * architecture.head_dim * 4

    def write_prompt(self, index: int, slot: int, keys: Float[Tensor, "S K E"], values: Float[Tensor, "S K E"]) -> None:
        self.prompts[index, 0, slot, :, : len(keys)] = keys.transpose(0, 1)
        self.prompts[index, 1, slot, :, : len(values)] = values.transpose(0, 1)

    def move_rows(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self.rows[:, :, targets] = self.rows[:, :, sources]

    def attention(self, rows: Rows) -> Attention:
        return _PlainRowAttention(self._architecture, self._tables, self, rows)


class _PlainRowAttention:
    """Each row attends to its prompt, which the rows of a group share, and to its own tokens."""

    def __init__(self, architecture: Architecture, tables: RotaryTables, cache: PlainCache, rows: Rows):
        self._architecture = architecture
        self._tables = tables
        self._cache = cache
        self._rows = rows
        self._num_prompts = int(rows.prompt_slots.max()) + 1
        self._num_own = int(rows.ages.max()) + 1
        # The queries of a prompt's rows lie side by side, padded to the most rows that a prompt has here.
        ranks = rank_in_group(rows.prompt_slots)
        self._num_per_prompt = int(ranks.max()) + 1
        self._places = rows.prompt_slots * self._num_per_prompt + ranks
        self._masks: dict[int | None, Tensor] = {}

    def __call__(self, index: int, layer: LayerWeights, qkv: Float[Tensor, "N width"]) -> Float[Tensor, "N HE"]:
        architecture, rows = self._architecture, self._rows
        shape = architecture.layers[index]
        cos, sin = self._tables.at(shape.rope, rows.positions)
        queries, keys, values = split_heads(architecture, layer, qkv, cos, sin)
        own = self._cache.rows[index]
        own[0, torch.arange(len(qkv)), :, rows.ages] = keys
        own[1, torch.arange(len(qkv)), :, rows.ages] = values
        own_keys, own_values = own[:, : len(qkv), :, : self._num_own]  # [N, K, T, E]
        prompt_keys, prompt_values = self._cache.prompts[index, :, : self._num_prompts]  # [P, K, S, E]
        grouped = queries.view(len(qkv), architecture.num_kv_heads, architecture.heads_per_kv, architecture.head_dim)
        scores = torch.cat(
            [
                self._per_row(self._per_prompt(grouped) @ prompt_keys.transpose(2, 3)),
                grouped @ own_keys.transpose(2, 3),
            ],
            dim=-1,
        )  # [N, K, R, S + T]
        weights = (scores * architecture.attention_scale + self._mask(shape.window)).softmax(dim=-1)
        of_prompt, of_own = weights.split([prompt_keys.shape[2], own_keys.shape[2]], dim=-1)
        output = self._per_row(self._per_prompt(of_prompt) @ prompt_values) + of_own @ own_values
        return output.reshape(len(qkv), -1).to(qkv.dtype)

    def _per_prompt(self, x: Float[Tensor, "N K R any"]) -> Float[Tensor, "P K GR any"]:
        """Return what belongs to the rows of a prompt side by side, zeros where it has fewer rows than another."""
        _, num_kv, repeats, width = x.shape
        padded = x.new_zeros(self._num_prompts * self._num_per_prompt, num_kv, repeats, width)
        padded[self._places] = x
        return (
            padded.view(self._num_prompts, self._num_per_prompt, num_kv, repeats, width)
            .transpose(1, 2)
            .reshape(self._num_prompts, num_kv, self._num_per_prompt * repeats, width)
        )

    def _per_row(self, x: Float[Tensor, "P K GR any"]) -> Float[Tensor, "N K R any"]:
        """Undo `_per_prompt`."""
        num_prompts, num_kv, _, width = x.shape
        rows = x.view(num_prompts, num_kv, self._num_per_prompt, -1, width).transpose(1, 2)
        return rows.reshape(num_prompts * self._num_per_prompt, num_kv, -1, width)[self._places]

    def _mask(self, window: int | None) -> Float[Tensor, "N 1 1 ST"]:
        """Return 0 where a row sees a position of its prompt's or its own slot, -inf elsewhere."""
        if window not in self._masks:
            rows = self._rows
            in_prompt = torch.arange(self._cache.prompts.shape[4]).expand(len(rows.ages), -1)
            in_own = torch.arange(self._num_own)
            is_visible = torch.cat([in_prompt < rows.prompt_lengths[:, None], in_own <= rows.ages[:, None]], dim=1)
            if window is not None:
                positions = torch.cat([in_prompt, rows.prompt_lengths[:, None] + in_own], dim=1)
                is_visible &= rows.positions[:, None] - positions < window
            self._masks[window] = torch.zeros(is_visible.shape).masked_fill(~is_visible, -math.inf)[:, None, None]
        return self._masks[window]


def rank_in_group(groups: Int[Tensor, "N"]) -> Int[Tensor, "N"]:
    """Return for each row how many rows before it are of the same group."""
    same = groups[:, None] == groups[None, :]
    return same.tril(diagonal=-1).sum(dim=1)
