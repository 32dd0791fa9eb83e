"""The steps of training by the kernels of models/kernels/training.cpp and attention.cpp, in bfloat16."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from covey.models.families import Architecture
from covey.models.kernels.build import ACTIVATION_CODES, FLOAT, INT, LONG, POINTER, Library, find_library, function
from covey.models.packed.attention import AttentionShape
from covey.models.packed.layout import Span
from covey.models.packed.steps import Steps, TokenScores, TorchSteps


def choose_steps(architecture: Architecture, dtype: torch.dtype, *, residual_dtype: torch.dtype) -> Steps:
    """Return the fastest steps that this machine and model allow: kernels for bfloat16 beside a float32 residual stream."""
    sizes = (architecture.hidden_size % 16, architecture.intermediate_size % 16, architecture.head_dim % 32)
    is_fit = (dtype, residual_dtype) == (torch.bfloat16, torch.float32) and not any(sizes)
    library = find_library() if is_fit else "they do not fit"
    return TorchSteps(dtype) if isinstance(library, str) else KernelSteps(library)


class AttentionArguments(ctypes.Structure):
    """`AttentionArguments` of attention.cpp, field by field."""

    _fields_ = (
        *((name, POINTER) for name in ("heads", "out", "log_sums", "grad", "grad_heads", "offsets")),
        *((name, LONG) for name in ("num_heads", "num_kv_heads", "head_dim", "window")),
        ("scale", FLOAT),
    )


class KernelSteps:
    """`Steps` for bfloat16 with a float32 residual stream. See `steps.Steps`."""

    def __init__(self, library: Library):
        self._add_norm = function(library, "covey_train_add_norm", *[POINTER] * 5, LONG, LONG, FLOAT)
        self._add_norm_backward = function(library, "covey_train_add_norm_backward", *[POINTER] * 7, LONG, LONG, FLOAT)
        self._gated = function(library, "covey_gated", POINTER, POINTER, LONG, LONG, INT)
        self._gated_backward = function(library, "covey_train_gated_backward", *[POINTER] * 3, LONG, LONG, INT)
        self._rotate = function(library, "covey_train_rotate", *[POINTER] * 4, *[LONG] * 4)
        self._score = function(library, "covey_train_score", POINTER, POINTER, FLOAT, *[POINTER] * 3, LONG, LONG)
        self._score_backward = function(library, "covey_train_score_backward", *[POINTER] * 6, FLOAT, LONG, LONG)
        self._attend = function(library, "covey_train_attend", ctypes.POINTER(AttentionArguments))
        self._attend_backward = function(library, "covey_train_attend_backward", ctypes.POINTER(AttentionArguments))

    def add_norm(
        self, x: Float[Tensor, "T D"], branch: Float[Tensor, "T D"] | None, gain: Float[Tensor, "D"], eps: float
    ) -> tuple[Float[Tensor, "T D"], Float[Tensor, "T D"]]:
        total = x if branch is None else torch.empty_like(x)
        normed = torch.empty(x.shape, dtype=torch.bfloat16)
        self._add_norm(*_pointers(x, branch, gain, total, normed), *x.shape, eps)
        return total, normed

    def add_norm_backward(
        self,
        grad_sum: Float[Tensor, "T D"] | None,
        grad_normed: Float[Tensor, "T D"],
        total: Float[Tensor, "T D"],
        gain: Float[Tensor, "D"],
        eps: float,
    ) -> tuple[Float[Tensor, "T D"], Float[Tensor, "T D"], Float[Tensor, "D"]]:
        grad, rounded = torch.empty_like(total), torch.empty(total.shape, dtype=torch.bfloat16)
        gains = torch.zeros(torch.get_num_threads(), len(gain))
        given = (grad_sum, grad_normed.contiguous(), total, gain)
        self._add_norm_backward(*_pointers(*given, grad, rounded, gains), *total.shape, eps)
        return grad, rounded, gains.sum(dim=0)

    def gated(self, gate_up: Float[Tensor, "T both"], activation: str) -> Float[Tensor, "T I"]:
        out = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
        self._gated(*_pointers(gate_up, out), *out.shape, ACTIVATION_CODES[activation])
        return out

    def gated_backward(
        self, grad: Float[Tensor, "T I"], gate_up: Float[Tensor, "T both"], activation: str
    ) -> Float[Tensor, "T both"]:
        out = torch.empty_like(gate_up)
        self._gated_backward(*_pointers(grad.contiguous(), gate_up, out), *grad.shape, ACTIVATION_CODES[activation])
        return out

    def rotate(
        self,
        heads: Float[Tensor, "T all E"],
        num_rotated: int,
        cos: Float[Tensor, "T half"],
        sin: Float[Tensor, "T half"],
    ) -> Float[Tensor, "T all E"]:
        out = torch.empty_like(heads)
        num_tokens, num_heads, head_dim = heads.shape
        self._rotate(*_pointers(heads, cos, sin, out), num_tokens, num_heads, num_rotated, head_dim)
        return out

    def attend(
        self, heads: Float[Tensor, "T all E"], spans: Sequence[Span], offsets: Int[Tensor, "_"], shape: AttentionShape
    ) -> tuple[Float[Tensor, "T H E"], Float[Tensor, "T H"]]:
        out = heads.new_empty(len(heads), shape.num_heads, shape.head_dim)
        log_sums = torch.empty(len(heads), shape.num_heads)
        self._attend(ctypes.byref(_arguments(shape, heads=heads, out=out, log_sums=log_sums, offsets=offsets)))
        return out, log_sums

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
        found = torch.empty_like(heads)
        tensors = {"grad": grad, "heads": heads, "out": out, "log_sums": log_sums, "grad_heads": found, "offsets": offsets}
        self._attend_backward(ctypes.byref(_arguments(shape, **tensors)))
        return found

    def score(self, logits: Float[Tensor, "L V"], targets: Int[Tensor, "L"], temperature: float) -> TokenScores:
        scores = torch.empty(3, len(logits)).unbind()
        self._score(*_pointers(logits, targets), 1.0 / temperature, *_pointers(*scores), *logits.shape)
        logprobs, entropy, log_sums = scores
        return TokenScores(logprobs=logprobs, entropy=entropy, log_sums=log_sums)

    def score_backward(
        self,
        grad_logprobs: Float[Tensor, "L"],
        grad_entropy: Float[Tensor, "L"] | None,
        logits: Float[Tensor, "L V"],
        targets: Int[Tensor, "L"],
        scores: TokenScores,
        temperature: float,
    ) -> Float[Tensor, "L V"]:
        given = (grad_logprobs.contiguous(), None if grad_entropy is None else grad_entropy.contiguous())
        pointers = _pointers(logits, targets, *given, scores.entropy, scores.log_sums)
        self._score_backward(*pointers, 1.0 / temperature, *logits.shape)
        return logits


def _pointers(*tensors: Tensor | None) -> list[int | None]:
    assert all(tensor is None or tensor.is_contiguous() for tensor in tensors)
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _arguments(shape: AttentionShape, **tensors: Tensor) -> AttentionArguments:
    return AttentionArguments(
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        window=shape.window,
        scale=shape.scale,
        **dict(zip(tensors, _pointers(*tensors.values()), strict=True)),
    )
