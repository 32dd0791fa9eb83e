"""The kernels of a decoding step, as Python calls them. See decoding.cpp and linear.cpp in models/kernels."""

from __future__ import annotations

import ctypes

from torch import Tensor

from covey.models.kernels.build import ACTIVATION_CODES, FLOAT, INT, LONG, POINTER, Library, find_library, function


class AttendArguments(ctypes.Structure):
    """`AttendArguments` of decoding.cpp, field by field."""

    _fields_ = (
        *((name, POINTER) for name in ("qkv", "out", "query_norm", "key_norm", "cos", "sin")),
        *((name, POINTER) for name in ("prompt_slots", "prompt_lengths", "ages")),
        *((name, POINTER) for name in ("prompt_keys", "prompt_values", "row_keys", "row_values")),
        *((name, LONG) for name in ("num_rows", "num_heads", "num_kv_heads", "head_dim")),
        *((name, LONG) for name in ("prompt_blocks", "row_blocks", "window")),
        *((name, FLOAT) for name in ("scale", "eps")),
    )


class Kernels:
    """The compiled functions. Tensors are contiguous, in the dtypes that the sources name."""

    def __init__(self, library: Library):
        self.compiler = library.compiler
        self._add_norm = function(library, "covey_add_norm", *[POINTER] * 4, LONG, LONG, FLOAT)
        self._norm = function(library, "covey_norm", *[POINTER] * 3, LONG, LONG, FLOAT)
        self._gated = function(library, "covey_gated", POINTER, POINTER, LONG, LONG, INT)
        self._draw = function(library, "covey_draw", POINTER, POINTER, FLOAT, POINTER, POINTER, LONG, LONG)
        self._attend = function(library, "covey_attend", ctypes.POINTER(AttendArguments))
        self._lay_out = function(library, "covey_lay_out", POINTER, POINTER, LONG, LONG)
        self._linear = function(library, "covey_linear", *[POINTER] * 4, LONG, LONG, LONG)

    def add_norm(self, residual: Tensor, branch: Tensor | None, gain: Tensor, out: Tensor, eps: float) -> None:
        branch_pointer = None if branch is None else branch.data_ptr()
        self._add_norm(residual.data_ptr(), branch_pointer, gain.data_ptr(), out.data_ptr(), *residual.shape, eps)

    def norm(self, x: Tensor, gain: Tensor, out: Tensor, eps: float) -> None:
        self._norm(x.data_ptr(), gain.data_ptr(), out.data_ptr(), *x.shape, eps)

    def gated(self, gate_up: Tensor, out: Tensor, activation: str) -> None:
        self._gated(gate_up.data_ptr(), out.data_ptr(), *out.shape, ACTIVATION_CODES[activation])

    def draw(self, logits: Tensor, numbers: Tensor, temperature: float, tokens: Tensor, logprobs: Tensor) -> None:
        pointers = (tokens.data_ptr(), logprobs.data_ptr())
        self._draw(logits.data_ptr(), numbers.data_ptr(), 1.0 / temperature, *pointers, *logits.shape)

    def attend(self, arguments: AttendArguments) -> None:
        self._attend(ctypes.byref(arguments))

    def lay_out(self, weight: Tensor, laid_out: Tensor) -> None:
        self._lay_out(weight.data_ptr(), laid_out.data_ptr(), *weight.shape)

    def linear(self, x: Tensor, laid_out: Tensor, bias: Tensor | None, out: Tensor) -> None:
        bias_pointer = None if bias is None else bias.data_ptr()
        self._linear(x.data_ptr(), laid_out.data_ptr(), bias_pointer, out.data_ptr(), *out.shape, x.shape[1])


def find_kernels() -> Kernels | str:
    """Return the kernels, compiled before or now, or why there are none."""
    library = find_library()
    return library if isinstance(library, str) else Kernels(library)
