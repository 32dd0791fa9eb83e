"""A decoding step by our kernels: its products, what lies between them, and the cache that goes with them.

Dimension key: N tokens or rows, D hidden size, I intermediate size, V vocabulary, K key-value heads, E head dimension,
S positions of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from covey.engines.native.attention import Attention, Cache, CacheSize, RotaryTables, Rows
from covey.engines.native.kernels import AttendArguments, Kernels, find_kernels
from covey.engines.native.linear import Linear
from covey.engines.native.ops import Ops, TorchOps
from covey.engines.native.weights import LayerWeights
from covey.models.families import Architecture

_BLOCK = 16
"""Positions in a block of keys or values."""
_MAX_HEAD_DIM = 256
_MAX_HEADS_PER_KV = 8
_PANEL = 48
"""Outputs that linear.cpp lays out together."""


def choose_ops(architecture: Architecture, dtype: torch.dtype) -> tuple[Ops, str]:
    """Return the fastest steps that this machine and model allow, and a line that says which, and at what cost."""
    if dtype != torch.bfloat16:
        # Matrix products bound both. SmolLM2, 8 and 64 rows: 2.9 and 2.8 times as fast (decode_variants.json).
        note = "native engine without its own kernels, which compute in bfloat16: that samples about 3 times as fast"
        return TorchOps(architecture, dtype), note
    found = _unfit(architecture) or find_kernels()
    if isinstance(found, Kernels):
        return KernelOps(found, architecture), f"native engine with its own kernels ({found.compiler})"
    # SmolLM2: 2.2 and 1.9 times at 8 and 64 rows (decode_variants.json); an update 17.9 against 11.3 s (Zen 4).
    note = f"native engine without its own kernels, because {found}: sampling takes twice, an update 1.5 times as long"
    return TorchOps(architecture, dtype), note


def _unfit(architecture: Architecture) -> str | None:
    """Return why the kernels do not fit the model, None if they do."""
    if architecture.head_dim % 32 or architecture.head_dim > _MAX_HEAD_DIM:
        return f"its head_dim {architecture.head_dim} is no multiple of 32 up to {_MAX_HEAD_DIM}"
    if architecture.heads_per_kv > _MAX_HEADS_PER_KV:
        return f"it has {architecture.heads_per_kv} heads for each key-value head, and at most {_MAX_HEADS_PER_KV} fit"
    if architecture.hidden_size % 16 or architecture.intermediate_size % 16:
        return "its hidden or intermediate size is no multiple of 16"
    return None


class KernelLinear(Linear):
    """By our kernel, in bfloat16."""

    def __init__(self, kernels: Kernels):
        super().__init__(torch.bfloat16)
        self._kernels = kernels

    def _laid_out(self, weight: Float[Tensor, "out in"]) -> Tensor:
        laid_out = weight.new_empty(-(-len(weight) // _PANEL) * _PANEL, weight.shape[1])
        self._kernels.lay_out(weight, laid_out)
        return laid_out

    def _times(self, x: Float[Tensor, "N in"], bias: Float[Tensor, "out"] | None) -> Float[Tensor, "N out"]:
        out = x.new_empty(len(x), self.out_features)
        self._kernels.linear(x.contiguous(), self._weight, bias, out)
        return out


class KernelOps:
    """`Ops` by the kernels, in bfloat16."""

    def __init__(self, kernels: Kernels, architecture: Architecture):
        self._kernels = kernels
        self._architecture = architecture

    def new_linear(self, dtype: torch.dtype) -> Linear:
        assert dtype == torch.bfloat16, "the kernels compute in bfloat16"
        return KernelLinear(self._kernels)

    def add_norm(
        self, residual: Float[Tensor, "N D"], branch: Float[Tensor, "N D"] | None, gain: Float[Tensor, "D"]
    ) -> Float[Tensor, "N D"]:
        out = torch.empty(residual.shape, dtype=torch.bfloat16)
        self._kernels.add_norm(residual, branch, gain, out, self._architecture.norm_eps)
        return out

    def norm(self, x: Float[Tensor, "N D"], gain: Float[Tensor, "D"]) -> Float[Tensor, "N D"]:
        out = torch.empty_like(x)
        self._kernels.norm(x, gain, out, self._architecture.norm_eps)
        return out

    def gated(self, gate_up: Float[Tensor, "N both"]) -> Float[Tensor, "N I"]:
        out = gate_up.new_empty(len(gate_up), self._architecture.intermediate_size)
        self._kernels.gated(gate_up, out, self._architecture.activation)
        return out

    def drawn(
        self, logits: Float[Tensor, "N V"], numbers: Float[Tensor, "N"], temperature: float
    ) -> tuple[Int[Tensor, "N"], Float[Tensor, "N"]]:
        tokens, logprobs = torch.empty(len(logits), dtype=torch.long), torch.empty(len(logits))
        self._kernels.draw(logits, numbers, temperature, tokens, logprobs)
        return tokens, logprobs

    def new_cache(self, tables: RotaryTables, size: CacheSize) -> Cache:
        return PairedCache(self._kernels, self._architecture, tables, size)

    def cache_bytes(self, size: CacheSize) -> int:
        return PairedCache.num_bytes(self._architecture, size)


class PairedCache:
    """Keys and values in bfloat16, in the blocks that decoding.cpp describes."""

    def __init__(self, kernels: Kernels, architecture: Architecture, tables: RotaryTables, size: CacheSize):
        self._kernels = kernels
        self._architecture = architecture
        self._tables = tables
        self.prompt_blocks, self.row_blocks = -(-size.prompt_tokens // _BLOCK), -(-size.row_tokens // _BLOCK)
        self._block_size = _BLOCK * architecture.head_dim
        # Zeros, not garbage: a position that is masked still enters a sum, times 0.
        self.prompts = self._zeros(size.num_prompts, self.prompt_blocks)
        self.rows = self._zeros(size.num_rows, self.row_blocks)

    def _zeros(self, num_slots: int, num_blocks: int) -> Float[Tensor, "layers 2 slots K blocks block"]:
        shape = (self._architecture.num_layers, 2, num_slots, self._architecture.num_kv_heads, num_blocks, self._block_size)
        return torch.zeros(shape, dtype=torch.bfloat16)

    @staticmethod
    def num_bytes(architecture: Architecture, size: CacheSize) -> int:
        blocks = size.num_prompts * -(-size.prompt_tokens // _BLOCK) + size.num_rows * -(-size.row_tokens // _BLOCK)
        return blocks * _BLOCK * architecture.num_layers * 2 * architecture.num_kv_heads * architecture.head_dim * 2

    def write_prompt(self, index: int, slot: int, keys: Float[Tensor, "S K E"], values: Float[Tensor, "S K E"]) -> None:
        length, num_kv, head_dim = keys.shape
        num_blocks = -(-length // _BLOCK)
        padding = (0, 0, 0, 0, 0, num_blocks * _BLOCK - length)
        in_key_pairs = F.pad(keys, padding).view(num_blocks, _BLOCK, num_kv, head_dim // 2, 2)
        in_value_pairs = F.pad(values, padding).view(num_blocks, _BLOCK // 2, 2, num_kv, head_dim)
        key_blocks = in_key_pairs.permute(2, 0, 3, 1, 4).reshape(num_kv, num_blocks, -1)
        value_blocks = in_value_pairs.permute(3, 0, 1, 4, 2).reshape(num_kv, num_blocks, -1)
        self.prompts[index, 0, slot, :, :num_blocks] = key_blocks
        self.prompts[index, 1, slot, :, :num_blocks] = value_blocks

    def move_rows(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self.rows[:, :, targets] = self.rows[:, :, sources]

    def attention(self, rows: Rows) -> Attention:
        return _KernelRowAttention(self._kernels, self._architecture, self._tables, self, rows)


class _KernelRowAttention:
    """Each row attends to its prompt and to its own tokens, by the kernel."""

    def __init__(self, kernels: Kernels, architecture: Architecture, tables: RotaryTables, cache: PairedCache, rows: Rows):
        self._kernels = kernels
        self._architecture = architecture
        self._tables = tables
        self._cache = cache
        self._rows = rows  # held: the kernel reads its tensors through their addresses
        self._arguments = AttendArguments(
            prompt_slots=rows.prompt_slots.data_ptr(),
            prompt_lengths=rows.prompt_lengths.data_ptr(),
            ages=rows.ages.data_ptr(),
            num_rows=len(rows.ages),
            num_heads=architecture.num_heads,
            num_kv_heads=architecture.num_kv_heads,
            head_dim=architecture.head_dim,
            prompt_blocks=cache.prompt_blocks,
            row_blocks=cache.row_blocks,
            scale=architecture.attention_scale,
            eps=architecture.norm_eps,
        )

    def __call__(self, index: int, layer: LayerWeights, qkv: Float[Tensor, "N width"]) -> Float[Tensor, "N HE"]:
        shape, arguments = self._architecture.layers[index], self._arguments
        out = qkv.new_empty(len(qkv), self._architecture.num_heads * self._architecture.head_dim)
        arguments.qkv, arguments.out = qkv.data_ptr(), out.data_ptr()
        arguments.query_norm = None if layer.query_norm is None else layer.query_norm.data_ptr()
        arguments.key_norm = None if layer.key_norm is None else layer.key_norm.data_ptr()
        arguments.cos = self._tables.cos[shape.rope].data_ptr()
        arguments.sin = self._tables.sin[shape.rope].data_ptr()
        arguments.prompt_keys, arguments.prompt_values = (part.data_ptr() for part in self._cache.prompts[index])
        arguments.row_keys, arguments.row_values = (part.data_ptr() for part in self._cache.rows[index])
        arguments.window = shape.window or 0
        self._kernels.attend(arguments)
        return out
