"""The steps and the matrix products as autograd functions.

Each keeps what its backward pass reads, and nothing else. Dimension key: T packed tokens, D hidden size, L scored tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from covey.models.packed.attention import AttentionShape
from covey.models.packed.layout import PackedLayout
from covey.models.packed.steps import Steps, TokenScores


class AddNorm(torch.autograd.Function):
    """(x, branch, weight) -> x + branch, and its norm with gain weight + offset, in the compute dtype."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, branch: Tensor | None, weight: Tensor, offset: float, eps: float, steps: Steps
    ) -> tuple[Tensor, Tensor]:
        gain = weight + offset if offset else weight
        total, normed = steps.add_norm(x, branch, gain, eps)
        ctx.save_for_backward(total, gain)
        ctx.eps, ctx.steps, ctx.has_branch = eps, steps, branch is not None
        ctx.set_materialize_grads(False)
        return total, normed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        total, gain = ctx.saved_tensors
        grad_sum, grad_normed = grads
        assert grad_normed is not None
        grad, rounded, grad_gain = ctx.steps.add_norm_backward(grad_sum, grad_normed, total, gain, ctx.eps)
        return grad, rounded if ctx.has_branch else None, grad_gain, None, None, None


class Linear(torch.autograd.Function):
    """y = x W^T + b in the compute dtype, for projections that lie one behind the other; gradients go to each of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, num_weights: int, *masters: Tensor) -> Tensor:
        """`masters`: the weights whose copy `weight` is, then the biases whose copy `bias` is."""
        ctx.save_for_backward(x, weight)
        ctx.sizes = [master.shape[0] for master in masters]
        ctx.dtypes = [master.dtype for master in masters]
        ctx.num_weights = num_weights
        return torch.nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        [grad] = grads
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[4:]
        num, sizes = ctx.num_weights, ctx.sizes
        found: list[Tensor | None] = [None] * len(sizes)
        if any(wanted[:num]):
            found[:num] = torch.mm(grad.T, x).split(sizes[:num])
        if any(wanted[num:]):
            found[num:] = grad.sum(dim=0, dtype=torch.promote_types(grad.dtype, torch.float32)).split(sizes[num:])
        masters = [
            part.to(dtype) if part is not None and needed else None
            for part, dtype, needed in zip(found, ctx.dtypes, wanted, strict=True)
        ]
        return torch.mm(grad, weight) if ctx.needs_input_grad[0] else None, None, None, None, *masters


class Gated(torch.autograd.Function):
    """[gate | up] -> activation(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, activation: str, steps: Steps) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.activation, ctx.steps = activation, steps
        return steps.gated(gate_up, activation)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.steps.gated_backward(grads[0], *ctx.saved_tensors, ctx.activation), None, None


class Attend(torch.autograd.Function):
    """Projections [T, (H + 2 K) E] -> outputs [T, H E]: queries and keys rotated, then attention."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        layout: PackedLayout,
        offsets: Tensor,
        shape: AttentionShape,
        steps: Steps,
    ) -> Tensor:
        ctx.num_rotated = shape.num_heads + shape.num_kv_heads
        heads = steps.rotate(qkv.view(len(qkv), -1, shape.head_dim), ctx.num_rotated, cos, sin)
        out, log_sums = steps.attend(heads, layout.spans, offsets, shape)
        ctx.save_for_backward(heads, out, log_sums, cos, sin, offsets)
        ctx.spans, ctx.shape, ctx.steps = layout.spans, shape, steps
        return out.view(len(qkv), -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        heads, out, log_sums, cos, sin, offsets = ctx.saved_tensors
        grad = grads[0].contiguous().view(out.shape)
        found = ctx.steps.attend_backward(grad, heads, out, log_sums, ctx.spans, offsets, ctx.shape)
        found = ctx.steps.rotate(found, ctx.num_rotated, cos, -sin)
        return found.view(len(found), -1), None, None, None, None, None, None


class Head(torch.autograd.Function):
    """Hidden states -> log-probs and entropies of the targets, some tokens at a time: logits are made, and made again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        master: Tensor,
        targets: Tensor,
        temperature: float,
        chunk_tokens: int,
        steps: Steps,
    ) -> tuple[Tensor, Tensor]:
        pieces = [
            steps.score(torch.mm(part, weight.T), ids, temperature)
            for part, ids in zip(hidden.split(chunk_tokens), targets.split(chunk_tokens), strict=True)
        ]
        logprobs = torch.cat([piece.logprobs for piece in pieces])
        entropy = torch.cat([piece.entropy for piece in pieces])
        log_sums = torch.cat([piece.log_sums for piece in pieces])
        ctx.save_for_backward(hidden, weight, targets, logprobs, entropy, log_sums)
        ctx.temperature, ctx.chunk_tokens, ctx.steps, ctx.dtype = temperature, chunk_tokens, steps, master.dtype
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        hidden, weight, targets, *scores = ctx.saved_tensors
        grad_logprobs, grad_entropy = grads
        if grad_logprobs is None:
            grad_logprobs = torch.zeros_like(scores[0])
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(weight.shape, dtype=ctx.dtype) if ctx.needs_input_grad[2] else None
        for start in range(0, len(hidden), ctx.chunk_tokens):
            part = slice(start, start + ctx.chunk_tokens)
            logprobs, entropy, log_sums = (score[part] for score in scores)
            slopes = ctx.steps.score_backward(
                grad_logprobs[part],
                None if grad_entropy is None else grad_entropy[part],
                torch.mm(hidden[part], weight.T),
                targets[part],
                TokenScores(logprobs=logprobs, entropy=entropy, log_sums=log_sums),
                ctx.temperature,
            )
            torch.mm(slopes, weight, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight += torch.mm(slopes.T, hidden[part])
        return grad_hidden, None, grad_weight, None, None, None, None
