"""The forward pass over packed tokens: hidden states, log-probs and entropies of completions.

Dimension key: T packed tokens, D hidden size, L scored tokens, E head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from covey.models.families import FAMILIES, Family, Rope, embedding_of, linears_of, plain_linear, unsupported_reason
from covey.models.packed.attention import AttentionShape
from covey.models.packed.functions import AddNorm, Attend, Embed, Gated, Head, Linear
from covey.models.packed.kernels import choose_steps
from covey.models.packed.layout import PackedLayout
from covey.models.packed.weights import Adapter, ComputeWeights, Projection, compute_weights


def packed_refusal(model: PreTrainedModel) -> str | None:
    """Return why this model takes the ordinary path; None if it can be packed."""
    if reason := unsupported_reason(model, allows_adapters=True):
        return reason
    for name, parts in linears_of(model):
        linears: list[Any] = [plain_linear(part) for part in parts]
        if len({linear.bias is None for linear in linears}) > 1:
            return f"some projections of {name} have a bias, and others have none"
    if (name := _hooked(model)) is not None:
        return f"{name or 'it'} has hooks or a forward of its own, which only the ordinary path calls"
    head: Any = model.get_output_embeddings()
    return "its output head has a bias" if head.bias is not None else None


def _hooked(model: PreTrainedModel) -> str | None:
    """Return the name of a module or weight that wants to be called on the way; None if none does."""
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or "forward" in vars(module):
            return name
    for name, weight in model.named_parameters():
        if weight._backward_hooks or weight._post_accumulate_grad_hooks:
            return name
    return None


class PackedForward:
    """One forward pass of a model over a layout, in a compute dtype."""

    def __init__(self, model: PreTrainedModel, layout: PackedLayout, dtype: torch.dtype, *, checkpoints_layers: bool = False):
        """`checkpoints_layers`: keep only each layer's input, and compute the layer again in the backward pass."""
        self.model: Any = model.get_decoder()
        self.embedding: Any = embedding_of(model)
        self.head: Any = model.get_output_embeddings()
        self.family: Family = FAMILIES[model.config.model_type]
        self.weights: ComputeWeights = compute_weights(model, dtype)
        self.layout = layout
        self.offsets = layout.offsets()
        self.checkpoints_layers = checkpoints_layers
        residual_dtype = torch.promote_types(self.embedding.weight.dtype, torch.float32)
        self.steps = choose_steps(self.weights.architecture, dtype, residual_dtype=residual_dtype)
        self.rotations = {
            kind: rotation(rope, layout.positions, residual_dtype) for kind, rope in self.weights.architecture.ropes.items()
        }

    def scores(
        self, targets: Int[Tensor, "L"], temperature: float, *, chunk_tokens: int
    ) -> tuple[Float[Tensor, "L"], Float[Tensor, "L"]]:
        """Return log-prob and entropy of each target under softmax(logits / temperature), at least float32.

        Logits are made for `chunk_tokens` targets at a time, and kept for the backward pass within a bound (`functions.Head`).
        """
        weight = self.weights.projections["head"].weight
        hidden = self.hidden()
        found: Any = Head.apply(
            hidden, weight, self.head.weight, targets, temperature, chunk_tokens, self.steps, hidden.requires_grad
        )
        return found

    def hidden(self) -> Float[Tensor, "L D"]:
        """Return the normed hidden states behind which the targets stand, in the compute dtype."""
        x: Any = Embed.apply(self.layout.token_ids, self.embedding.weight)
        if self.weights.architecture.embedding_scale != 1.0:
            x = x * self.weights.architecture.embedding_scale
        branch: Tensor | None = None
        for index in range(self.weights.architecture.num_layers):
            if self.checkpoints_layers and torch.is_grad_enabled():
                x, branch = checkpoint(self.layer, index, x, branch, use_reentrant=False)
            else:
                x, branch = self.layer(index, x, branch)
        wanted = self.layout.wanted
        _, normed = self.add_norm(x[wanted], None if branch is None else branch[wanted], self.model.norm)
        return normed

    def layer(self, index: int, x: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the residual stream, and what is to be added to it."""
        module = self.model.layers[index]
        x, normed = self.add_norm(x, branch, module.input_layernorm)
        branch = self.attention(index, module.self_attn, normed)
        norm_before_mlp = module.post_attention_layernorm
        if self.family.has_branch_norms:
            branch = self.norm(branch, module.post_attention_layernorm)
            norm_before_mlp = module.pre_feedforward_layernorm
        x, normed = self.add_norm(x, branch, norm_before_mlp)
        activated: Any = Gated.apply(self.linear(f"{index}.gate_up", normed), self.weights.architecture.activation, self.steps)
        branch = self.linear(f"{index}.mlp_out", activated)
        return x, self.norm(branch, module.post_feedforward_layernorm) if self.family.has_branch_norms else branch

    def attention(self, index: int, module: Any, normed: Tensor) -> Tensor:
        architecture = self.weights.architecture
        qkv = self.linear(f"{index}.qkv", normed)
        if self.family.has_qk_norm:
            qkv = self.normed_heads(qkv, module)
        layer = architecture.layers[index]
        shape = AttentionShape(
            num_heads=architecture.num_heads,
            num_kv_heads=architecture.num_kv_heads,
            head_dim=architecture.head_dim,
            scale=architecture.attention_scale,
            window=layer.window or 0,
        )
        cos, sin = self.rotations[layer.rope]
        out: Any = Attend.apply(qkv, cos, sin, self.layout, self.offsets, shape, self.steps)
        return self.linear(f"{index}.attention_out", out)

    def normed_heads(self, qkv: Float[Tensor, "T width"], module: Any) -> Float[Tensor, "T width"]:
        num_heads, num_kv = self.weights.architecture.num_heads, self.weights.architecture.num_kv_heads
        heads = qkv.unflatten(-1, (-1, self.weights.architecture.head_dim))
        queries, keys, values = heads.split([num_heads, num_kv, num_kv], dim=1)
        return torch.cat([self.norm(queries, module.q_norm), self.norm(keys, module.k_norm), values], dim=1).flatten(1)

    def norm(self, x: Tensor, module: Any) -> Tensor:
        """Return the norm in the compute dtype, of something that is no residual stream."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        factor = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.weights.architecture.norm_eps)
        return (x * factor * (module.weight + self.family.norm_offset)).to(self.weights.dtype)

    def add_norm(self, x: Tensor, branch: Tensor | None, module: Any) -> tuple[Tensor, Tensor]:
        """Return x + branch, and its norm in the compute dtype."""
        found: Any = AddNorm.apply(
            x, branch, module.weight, self.family.norm_offset, self.weights.architecture.norm_eps, self.steps
        )
        return found

    def linear(self, name: str, x: Tensor) -> Tensor:
        projection: Projection = self.weights.projections[name]
        masters = (*projection.weights, *projection.biases)
        found: Any = Linear.apply(x, projection.weight, projection.bias, len(projection.weights), *masters)
        adapters = projection.adapters()
        return found + self.adapted(x, projection, adapters) if any(adapters) else found

    def adapted(self, x: Tensor, projection: Projection, adapters: list[Adapter | None]) -> Tensor:
        """Return scale * B (A x) of each projection, 0 for those without an adapter."""
        linear, dtype = torch.nn.functional.linear, self.weights.dtype
        pieces = [
            x.new_zeros(len(x), len(weight))
            if adapter is None
            else linear(linear(x, adapter.down.to(dtype)), adapter.up.to(dtype)) * adapter.scale
            for weight, adapter in zip(projection.weights, adapters, strict=True)
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


def rotation(
    rope: Rope, positions: Int[Tensor, "T"], dtype: torch.dtype
) -> tuple[Float[Tensor, "T half"], Float[Tensor, "T half"]]:
    """Return cosine and sine of each position. Angles are float32, as in transformers."""
    angles = positions.float()[:, None] * rope.inv_freq
    return (angles.cos() * rope.scaling).to(dtype), (angles.sin() * rope.scaling).to(dtype)
