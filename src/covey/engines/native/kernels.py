"""The kernels of a decoding step, as Python calls them. See models/kernels/decoding.cpp."""

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
    """The compiled functions. Tensors are contiguous, in the dtypes that decoding.cpp names."""

    def __init__(self, library: Library):
        self.compiler = library.compiler
        self._add_norm = function(library, "covey_add_norm", *[POINTER] * 4, LONG, LONG, FLOAT)
        self._norm = function(library, "covey_norm", *[POINTER] * 3, LONG, LONG, FLOAT)
        self._gated = function(library, "covey_gated", POINTER, POINTER, LONG, LONG, INT)
        self._draw = function(library, "covey_draw", POINTER, POINTER, FLOAT, POINTER, POINTER, LONG, LONG)
        self._attend = function(library, "covey_attend", ctypes.POINTER(AttendArguments))

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


def find_kernels() -> Kernels | str:
    """Return the kernels, compiled before or now, or why there are none."""
    library = find_library()
    return library if isinstance(library, str) else Kernels(library)
