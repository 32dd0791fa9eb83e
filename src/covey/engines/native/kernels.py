"""Compiles the kernels of kernels.cpp on first use and calls them.

A machine without a compiler, or with one that fails, loses speed and nothing else: `load_kernels` says why there are none.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from covey.models.bundled import covey_home

_SOURCE = Path(__file__).with_name("kernels.cpp")
_FLAGS = [
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-fopenmp",
    "-fno-math-errno",
    "-mfma",
    "-mavx512f",
    "-mavx512bw",
    "-mavx512vl",
    "-mavx512dq",
    "-mavx512bf16",
]
_NEEDED_FEATURES = ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq", "avx512_bf16")
_COMPILERS = ("c++", "g++", "clang++")
_DEADLINE_S = 120
_OPENMP_RUNTIMES = ("libgomp", "libiomp5", "libomp")
_ACTIVATION_CODES = {"silu": 0, "gelu_pytorch_tanh": 1}

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


class AttendArguments(ctypes.Structure):
    """`AttendArguments` of kernels.cpp, field by field."""

    _fields_ = (
        *((name, _POINTER) for name in ("qkv", "out", "query_norm", "key_norm", "cos", "sin")),
        *((name, _POINTER) for name in ("prompt_slots", "prompt_lengths", "ages")),
        *((name, _POINTER) for name in ("prompt_keys", "prompt_values", "row_keys", "row_values")),
        *((name, _LONG) for name in ("num_rows", "num_heads", "num_kv_heads", "head_dim")),
        *((name, _LONG) for name in ("prompt_blocks", "row_blocks", "window")),
        *((name, _FLOAT) for name in ("scale", "eps")),
    )


class KernelsUnavailableError(Exception):
    """Why there are no kernels here."""


class Kernels:
    """The compiled functions. Tensors are contiguous, in the dtypes that kernels.cpp names."""

    def __init__(self, library: ctypes.CDLL, compiler: str):
        self.compiler = compiler
        self._add_norm = _function(library, "covey_add_norm", *[_POINTER] * 4, _LONG, _LONG, _FLOAT)
        self._norm = _function(library, "covey_norm", *[_POINTER] * 3, _LONG, _LONG, _FLOAT)
        self._gated = _function(library, "covey_gated", _POINTER, _POINTER, _LONG, _LONG, _INT)
        self._draw = _function(library, "covey_draw", _POINTER, _POINTER, _FLOAT, _POINTER, _POINTER, _LONG, _LONG)
        self._attend = _function(library, "covey_attend", ctypes.POINTER(AttendArguments))

    def add_norm(self, residual: Tensor, branch: Tensor | None, gain: Tensor, out: Tensor, eps: float) -> None:
        branch_pointer = None if branch is None else branch.data_ptr()
        self._add_norm(residual.data_ptr(), branch_pointer, gain.data_ptr(), out.data_ptr(), *residual.shape, eps)

    def norm(self, x: Tensor, gain: Tensor, out: Tensor, eps: float) -> None:
        self._norm(x.data_ptr(), gain.data_ptr(), out.data_ptr(), *x.shape, eps)

    def gated(self, gate_up: Tensor, out: Tensor, activation: str) -> None:
        self._gated(gate_up.data_ptr(), out.data_ptr(), *out.shape, _ACTIVATION_CODES[activation])

    def draw(self, logits: Tensor, numbers: Tensor, temperature: float, tokens: Tensor, logprobs: Tensor) -> None:
        pointers = (tokens.data_ptr(), logprobs.data_ptr())
        self._draw(logits.data_ptr(), numbers.data_ptr(), 1.0 / temperature, *pointers, *logits.shape)

    def attend(self, arguments: AttendArguments) -> None:
        self._attend(ctypes.byref(arguments))


def _function(library: ctypes.CDLL, name: str, *types: Any) -> Any:
    function = library[name]
    function.argtypes = types
    function.restype = None
    return function


@functools.cache
def load_kernels() -> Kernels | str:
    """Return the kernels, compiled before or now, or why there are none."""
    try:
        return _loaded_kernels()
    except KernelsUnavailableError as error:
        return str(error)


def _loaded_kernels() -> Kernels:
    features = torch.cpu.get_capabilities()
    if missing := [name for name in _NEEDED_FEATURES if not features.get(name)]:
        raise KernelsUnavailableError(f"this processor lacks {missing[0].replace('_', '-')}")
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise KernelsUnavailableError(f"there is no C++ compiler ({', '.join(_COMPILERS)})")
    try:
        # Made global, so that the kernels find torch's OpenMP runtime and bring none of their own.
        ctypes.CDLL(str(_openmp_runtime()), mode=ctypes.RTLD_GLOBAL)
        version = _output([compiler, "--version"]).splitlines()[0]
        return Kernels(ctypes.CDLL(str(_compiled(compiler, version))), version)
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        raise KernelsUnavailableError(f"they could not be built ({_first_line(error)})") from error


def _openmp_runtime() -> Path:
    """Return the OpenMP runtime of this process: torch's.

    Raises:
        KernelsUnavailableError: there is none, or more than one.
    """
    maps = Path("/proc/self/maps")
    paths = {line.split()[-1] for line in maps.read_text().splitlines()} if maps.exists() else set()
    found = sorted(path for path in paths if Path(path).name.startswith(_OPENMP_RUNTIMES))
    if len(found) != 1:
        raise KernelsUnavailableError(f"this process has {len(found)} OpenMP runtimes, where one was expected")
    return Path(found[0])


def _compiled(compiler: str, version: str) -> Path:
    """Return the library for this source, compiler and these flags; build it if it is not in the cache."""
    source = _SOURCE.read_bytes()
    name = hashlib.sha256("\0".join([version, *_FLAGS]).encode() + source).hexdigest()[:16]
    path = covey_home() / "kernels" / f"native-{name}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Built aside and renamed: another process sees the whole library or none.
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            code, library = Path(directory, "kernels.o"), Path(directory, "kernels.so")
            _output([compiler, *_FLAGS, "-c", str(_SOURCE), "-o", str(code)])
            _output([compiler, "-shared", str(code), "-o", str(library)])  # without -fopenmp: see the runtime above
            library.replace(path)
    return path


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_DEADLINE_S).stdout


def _first_line(error: BaseException) -> str:
    """Return what went wrong, as the compiler put it if it said anything."""
    said = (error.stderr or "") if isinstance(error, subprocess.CalledProcessError) else str(error)
    lines = [line for line in str(said).splitlines() if "error" in line] or str(said).splitlines() or [str(error)]
    return lines[0].strip()
