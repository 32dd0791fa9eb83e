"""One forward pass over the layers, and the prefill of prompts.

Dimension key: N tokens or rows, D hidden size, V vocabulary, P prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from covey.engines.native.attention import Attention, Cache, PrefixAttention, RotaryTables, Rows
from covey.engines.native.ops import Ops
from covey.engines.native.weights import ServedWeights

Prefix = list[tuple[Tensor, Tensor]]
"""Keys and values [S, K, E] of each layer"""


class Decoder:
    """The model: token ids in, last hidden states and logits out."""

    def __init__(self, weights: ServedWeights, ops: Ops):
        self._weights = weights
        self._ops = ops

    def logits(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        return self._weights.head(hidden)

    def step(self, token_ids: Int[Tensor, "N"], rows: Rows, cache: Cache) -> Float[Tensor, "N D"]:
        """Return the hidden states behind one more token of each row, whose keys and values the cache takes in."""
        return self._normed_output(self._layers(token_ids, cache.attention(rows)))

    def prefix(self, token_ids: Sequence[int], tables: RotaryTables) -> Prefix:
        """Return keys and values of a beginning that prompts have in common."""
        attention = PrefixAttention(self._weights.architecture, tables, [len(token_ids)])
        self._layers(torch.tensor(token_ids), attention)
        return [kept for [kept] in attention.kept]

    def prefill(
        self,
        prompts: Sequence[Sequence[int]],
        slots: Sequence[int],
        *,
        tables: RotaryTables,
        cache: Cache,
        prefix: Prefix,
    ) -> Float[Tensor, "P D"]:
        """Write whole prompts into slots of the cache; return the hidden state behind each.

        They run through the linear layers packed, without padding, and without what `prefix` holds of them already.
        """
        start = len(prefix[0][0]) if prefix else 0
        lengths = [len(prompt) - start for prompt in prompts]
        attention = PrefixAttention(self._weights.architecture, tables, lengths, prefix=prefix)
        packed = torch.tensor([token for prompt in prompts for token in prompt[start:]])
        residual = self._layers(packed, attention)
        for index, kept in enumerate(attention.kept):
            for slot, (keys, values) in zip(slots, kept, strict=True):
                cache.write_prompt(index, slot, keys, values)
        last = torch.tensor(lengths).cumsum(dim=0) - 1
        return self._normed_output(residual[last])

    def _layers(self, token_ids: Int[Tensor, "N"], attention: Attention) -> Float[Tensor, "N D"]:
        """Return the float32 residual behind the last layer."""
        ops, weights = self._ops, self._weights
        residual = weights.embedding[token_ids].float()
        if weights.architecture.embedding_scale != 1.0:
            residual *= weights.architecture.embedding_scale
        branch: Tensor | None = None
        for index, layer in enumerate(weights.layers):
            qkv = layer.qkv(ops.add_norm(residual, branch, layer.attention_norm))
            branch = layer.attention_out(attention(index, layer, qkv))
            if layer.attention_branch_norm is not None:
                branch = ops.norm(branch, layer.attention_branch_norm)
            gate_up = layer.gate_up(ops.add_norm(residual, branch, layer.mlp_norm))
            branch = layer.mlp_out(ops.gated(gate_up))
            if layer.mlp_branch_norm is not None:
                branch = ops.norm(branch, layer.mlp_branch_norm)
        assert branch is not None, "a model has layers"
        return residual.add_(branch)

    def _normed_output(self, residual: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return self._ops.add_norm(residual, None, self._weights.final_norm)
