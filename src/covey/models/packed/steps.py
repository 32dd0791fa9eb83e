"""What happens between the matrix products of training, forward and backward: in torch, for every dtype.

Dimension key: T packed tokens, D hidden size, I intermediate size, H heads that are rotated, E head dimension,
L scored tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from covey.models.packed.attention import AttentionShape, attend, attend_backward
from covey.models.packed.layout import Span


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenScores:
    """Of the distribution softmax(logits / temperature), at least in float32."""

    logprobs: Float[Tensor, "L"]
    entropy: Float[Tensor, "L"]
    log_sums: Float[Tensor, "L"]
    """log sum exp(logits / temperature)"""


class Steps(Protocol):
    """The steps, with their derivatives. What they return is new, unless they say otherwise."""

    def add_norm(
        self, x: Float[Tensor, "T D"], branch: Float[Tensor, "T D"] | None, gain: Float[Tensor, "D"], eps: float
    ) -> tuple[Float[Tensor, "T D"], Float[Tensor, "T D"]]:
        """Return s = x + branch (x itself without a branch) and its norm, s / sqrt(mean s^2 + eps) * gain."""
        ...

    def add_norm_backward(
        self,
        grad_sum: Float[Tensor, "T D"] | None,
        grad_normed: Float[Tensor, "T D"],
        total: Float[Tensor, "T D"],
        gain: Float[Tensor, "D"],
        eps: float,
    ) -> tuple[Float[Tensor, "T D"], Float[Tensor, "T D"], Float[Tensor, "D"]]:
        """Return the gradient of the sum, the same in the compute dtype, and the gradient of the gain."""
        ...

    def gated(self, gate_up: Float[Tensor, "T both"], activation: str) -> Float[Tensor, "T I"]:
        """Return activation(first half) * second half."""
        ...

    def gated_backward(
        self, grad: Float[Tensor, "T I"], gate_up: Float[Tensor, "T both"], activation: str
    ) -> Float[Tensor, "T both"]: ...

    def rotate(
        self,
        heads: Float[Tensor, "T all E"],
        num_rotated: int,
        cos: Float[Tensor, "T half"],
        sin: Float[Tensor, "T half"],
    ) -> Float[Tensor, "T all E"]:
        """Return the heads with the first `num_rotated` of them turned. Minus the sine turns them back."""
        ...

    def attend(
        self, heads: Float[Tensor, "T all E"], spans: Sequence[Span], offsets: Int[Tensor, "_"], shape: AttentionShape
    ) -> tuple[Float[Tensor, "T H E"], Float[Tensor, "T H"]]:
        """See `attention.attend`."""
        ...

    def attend_backward(
        self,
        grad: Float[Tensor, "T H E"],
        heads: Float[Tensor, "T all E"],
        out: Float[Tensor, "T H E"],
        log_sums: Float[Tensor, "T H"],
        spans: Sequence[Span],
        offsets: Int[Tensor, "_"],
        shape: AttentionShape,
    ) -> Float[Tensor, "T all E"]:
        """See `attention.attend_backward`."""
        ...

    def score(self, logits: Float[Tensor, "L V"], targets: Int[Tensor, "L"], temperature: float) -> TokenScores: ...

    def score_backward(
        self,
        grad_logprobs: Float[Tensor, "L"],
        grad_entropy: Float[Tensor, "L"] | None,
        logits: Float[Tensor, "L V"],
        targets: Int[Tensor, "L"],
        scores: TokenScores,
        temperature: float,
    ) -> Float[Tensor, "L V"]:
        """Return the gradient of the logits, which it may write over them."""
        ...


class TorchSteps:
    """`Steps` for any dtype and processor."""

    def __init__(self, dtype: torch.dtype):
        """`dtype`: of what goes into matrix products."""
        self._dtype = dtype

    def add_norm(
        self, x: Float[Tensor, "T D"], branch: Float[Tensor, "T D"] | None, gain: Float[Tensor, "D"], eps: float
    ) -> tuple[Float[Tensor, "T D"], Float[Tensor, "T D"]]:
        total = x if branch is None else x + branch
        return total, (total * _inverse_rms(total, eps)).mul_(gain).to(self._dtype)

    def add_norm_backward(
        self,
        grad_sum: Float[Tensor, "T D"] | None,
        grad_normed: Float[Tensor, "T D"],
        total: Float[Tensor, "T D"],
        gain: Float[Tensor, "D"],
        eps: float,
    ) -> tuple[Float[Tensor, "T D"], Float[Tensor, "T D"], Float[Tensor, "D"]]:
        factor = _inverse_rms(total, eps)
        unit = total * factor
        grad = grad_normed.to(total.dtype)
        grad_gain = (grad * unit).sum(dim=0)
        grad = grad * gain
        grad = (grad - unit * (grad * unit).mean(dim=-1, keepdim=True)) * factor
        if grad_sum is not None:
            grad = grad + grad_sum
        return grad, grad.to(self._dtype), grad_gain

    def gated(self, gate_up: Float[Tensor, "T both"], activation: str) -> Float[Tensor, "T I"]:
        gate, up = gate_up.chunk(2, dim=-1)
        return (_activated(gate, activation) * up).contiguous()

    def gated_backward(
        self, grad: Float[Tensor, "T I"], gate_up: Float[Tensor, "T both"], activation: str
    ) -> Float[Tensor, "T both"]:
        with torch.enable_grad():
            leaf = gate_up.detach().to(_wide(gate_up)).requires_grad_()
            gate, up = leaf.chunk(2, dim=-1)
            (found,) = torch.autograd.grad(_activated(gate, activation) * up, leaf, grad.to(leaf.dtype))
        return found.to(gate_up.dtype)

    def rotate(
        self,
        heads: Float[Tensor, "T all E"],
        num_rotated: int,
        cos: Float[Tensor, "T half"],
        sin: Float[Tensor, "T half"],
    ) -> Float[Tensor, "T all E"]:
        first, second = heads[:, :num_rotated].to(torch.promote_types(heads.dtype, cos.dtype)).chunk(2, dim=-1)
        cos, sin = cos[:, None], sin[:, None]
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        return torch.cat([turned.to(heads.dtype), heads[:, num_rotated:]], dim=1)

    def attend(
        self, heads: Float[Tensor, "T all E"], spans: Sequence[Span], offsets: Int[Tensor, "_"], shape: AttentionShape
    ) -> tuple[Float[Tensor, "T H E"], Float[Tensor, "T H"]]:
        return attend(heads, spans, shape)

    def attend_backward(
        self,
        grad: Float[Tensor, "T H E"],
        heads: Float[Tensor, "T all E"],
        out: Float[Tensor, "T H E"],
        log_sums: Float[Tensor, "T H"],
        spans: Sequence[Span],
        offsets: Int[Tensor, "_"],
        shape: AttentionShape,
    ) -> Float[Tensor, "T all E"]:
        return attend_backward(grad, heads, out, log_sums, spans, shape)

    def score(self, logits: Float[Tensor, "L V"], targets: Int[Tensor, "L"], temperature: float) -> TokenScores:
        scaled = logits.to(_wide(logits)) / temperature
        log_sums = scaled.logsumexp(dim=1)
        chosen = scaled.gather(1, targets[:, None])[:, 0]
        # H = log Z - sum p z
        entropy = log_sums - ((scaled - log_sums[:, None]).exp_() * scaled).sum(dim=1)
        return TokenScores(logprobs=chosen - log_sums, entropy=entropy, log_sums=log_sums)

    def score_backward(
        self,
        grad_logprobs: Float[Tensor, "L"],
        grad_entropy: Float[Tensor, "L"] | None,
        logits: Float[Tensor, "L V"],
        targets: Int[Tensor, "L"],
        scores: TokenScores,
        temperature: float,
    ) -> Float[Tensor, "L V"]:
        # d log p_y / dz = (1[y] - p) / temperature, d H / dz = -p (log p + H) / temperature
        logprobs = logits.to(_wide(logits)) / temperature - scores.log_sums[:, None]
        slopes = -grad_logprobs[:, None]
        if grad_entropy is not None:
            slopes = slopes - grad_entropy[:, None] * (logprobs + scores.entropy[:, None])
        grad = logprobs.exp_().mul_(slopes) if grad_entropy is None else logprobs.exp() * slopes
        grad.scatter_add_(1, targets[:, None], grad_logprobs[:, None].to(grad.dtype))
        return (grad / temperature).to(logits.dtype)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _inverse_rms(x: Float[Tensor, "T D"], eps: float) -> Float[Tensor, "T 1"]:
    return torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)


def _activated(gate: Float[Tensor, "T I"], activation: str) -> Float[Tensor, "T I"]:
    return F.gelu(gate, approximate="tanh") if activation == "gelu_pytorch_tanh" else F.silu(gate)
