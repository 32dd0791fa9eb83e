"""The steps and the matrix products as autograd functions.

Each keeps what its backward pass reads, and nothing else. Gradients of matrices are added to `.grad` in the backward pass
itself: handed to autograd, each would be written, rounded and added once more, which costs as much as a layer. So they are
there after `backward()`, and not from `torch.autograd.grad`. Dimension key: T packed tokens, D hidden size, L scored
tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from covey.models.packed.attention import AttentionShape
from covey.models.packed.layout import PackedLayout
from covey.models.packed.steps import Steps, TokenScores

# Logits of a micro-batch that are kept for the backward pass; what is more is made again there.
_KEPT_LOGIT_BYTES = 256 << 20


def add_to_gradient(master: Tensor, piece: Tensor) -> None:
    """Add a piece of the gradient, in whatever dtype it was computed, to the gradient of a master weight."""
    if master.grad is None:
        master.grad = piece.to(master.dtype, copy=True)
    else:
        master.grad.add_(piece)


class Embed(torch.autograd.Function):
    """Token ids -> rows of the embedding."""

    @staticmethod
    def forward(ctx: Any, token_ids: Tensor, master: Tensor) -> Tensor:
        ctx.save_for_backward(token_ids)
        ctx.master = master  # Itself: what comes out of a layer that is computed again is another tensor.
        return torch.nn.functional.embedding(token_ids, master.detach())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        [token_ids], master = ctx.saved_tensors, ctx.master
        if ctx.needs_input_grad[1]:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            master.grad.index_add_(0, token_ids, grads[0])
        return None, None


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
        ctx.masters, ctx.num_weights = masters, num_weights
        return torch.nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        [grad] = grads
        x, weight = ctx.saved_tensors
        masters, wanted, num = ctx.masters, ctx.needs_input_grad[4:], ctx.num_weights
        pieces: list[Tensor | None] = [None] * len(masters)
        if any(wanted[:num]):
            pieces[:num] = torch.mm(grad.T, x).split([master.shape[0] for master in masters[:num]])
        if any(wanted[num:]):
            sums = grad.sum(dim=0, dtype=torch.promote_types(grad.dtype, torch.float32))
            pieces[num:] = sums.split([master.shape[0] for master in masters[num:]])
        for master, piece, is_wanted in zip(masters, pieces, wanted, strict=True):
            if is_wanted and piece is not None:
                add_to_gradient(master, piece)
        return torch.mm(grad, weight) if ctx.needs_input_grad[0] else None, None, None, None, *[None] * len(masters)


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
    """Hidden states -> log-probs and entropies of the targets, with logits of some tokens at a time."""

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
        has_backward: bool,
    ) -> tuple[Tensor, Tensor]:
        """`has_backward`: whether logits are worth keeping."""
        room = _KEPT_LOGIT_BYTES if has_backward else 0
        kept: list[Tensor | None] = []
        pieces: list[TokenScores] = []
        for part, ids in zip(hidden.split(chunk_tokens), targets.split(chunk_tokens), strict=True):
            logits = torch.mm(part, weight.T)
            pieces.append(steps.score(logits, ids, temperature))
            room -= logits.nbytes
            kept.append(logits if room >= 0 else None)
        logprobs = torch.cat([piece.logprobs for piece in pieces])
        entropy = torch.cat([piece.entropy for piece in pieces])
        log_sums = torch.cat([piece.log_sums for piece in pieces])
        ctx.save_for_backward(hidden, weight, targets, logprobs, entropy, log_sums)
        ctx.master, ctx.logits = master, kept
        ctx.temperature, ctx.chunk_tokens, ctx.steps = temperature, chunk_tokens, steps
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        hidden, weight, targets, *scores = ctx.saved_tensors
        grad_logprobs, grad_entropy = grads
        if grad_logprobs is None:
            grad_logprobs = torch.zeros_like(scores[0])
        grad_hidden = torch.empty_like(hidden)
        for number, start in enumerate(range(0, len(hidden), ctx.chunk_tokens)):
            part = slice(start, start + ctx.chunk_tokens)
            logprobs, entropy, log_sums = (score[part] for score in scores)
            # The gradient is written over the logits: used once, they are gone.
            logits, ctx.logits[number] = ctx.logits[number], None
            slopes = ctx.steps.score_backward(
                grad_logprobs[part],
                None if grad_entropy is None else grad_entropy[part],
                torch.mm(hidden[part], weight.T) if logits is None else logits,
                targets[part],
                TokenScores(logprobs=logprobs, entropy=entropy, log_sums=log_sums),
                ctx.temperature,
            )
            torch.mm(slopes, weight, out=grad_hidden[part])
            if ctx.needs_input_grad[2]:
                add_to_gradient(ctx.master, torch.mm(slopes.T, hidden[part]))
        return grad_hidden, *[None] * 7
