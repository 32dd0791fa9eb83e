"""Compiles the kernels of this folder on first use.

A machine without a compiler, or with one that fails, loses speed and nothing else: `load_library` says why there is none.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from covey.models.bundled import covey_home

_FOLDER = Path(__file__).parent
_SOURCES = ("attention.cpp", "decoding.cpp", "linear.cpp", "training.cpp")
_HEADERS = ("vectors.h", "products.h")
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
ACTIVATION_CODES = {"silu": 0, "gelu_pytorch_tanh": 1}
"""As covey_gated and its derivative know them."""
_NEEDED_FEATURES = ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq", "avx512_bf16")
_COMPILERS = ("c++", "g++", "clang++")
_DEADLINE_S = 120
_OPENMP_RUNTIMES = ("libgomp", "libiomp5", "libomp")
POINTER, LONG, INT, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


class KernelsUnavailableError(Exception):
    """Why there are no kernels here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Library:
    """The compiled functions of all kernels."""

    functions: ctypes.CDLL
    compiler: str
    """Its first line about itself."""


def function(library: Library, name: str, *types: Any) -> Any:
    """Return a function that takes arguments of these C types and returns nothing."""
    found = library.functions[name]
    found.argtypes = types
    found.restype = None
    return found


def find_library() -> Library | str:
    """Return the compiled functions, or why there are none here, or why they are not to be used."""
    is_forbidden = os.environ.get("COVEY_NO_KERNELS", "0") not in ("", "0")
    return "COVEY_NO_KERNELS is set" if is_forbidden else load_library()


@functools.cache
def load_library() -> Library | str:
    """Return the kernels, compiled before or now, or why there are none."""
    try:
        return _loaded_library()
    except KernelsUnavailableError as error:
        return str(error)


def _loaded_library() -> Library:
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
        return Library(functions=ctypes.CDLL(str(_compiled(compiler, version))), compiler=version)
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
    texts = b"".join((_FOLDER / name).read_bytes() for name in (*_HEADERS, *_SOURCES))
    name = hashlib.sha256("\0".join([version, *_FLAGS]).encode() + texts).hexdigest()[:16]
    path = covey_home() / "kernels" / f"native-{name}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Built aside and renamed: another process sees the whole library or none.
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            codes = [str(Path(directory, source).with_suffix(".o")) for source in _SOURCES]
            for source, code in zip(_SOURCES, codes, strict=True):
                _output([compiler, *_FLAGS, "-c", str(_FOLDER / source), "-o", code])
            library = Path(directory, "kernels.so")
            _output([compiler, "-shared", *codes, "-o", str(library)])  # without -fopenmp: see the runtime above
            library.replace(path)
    return path


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_DEADLINE_S).stdout


def _first_line(error: BaseException) -> str:
    """Return what went wrong, as the compiler put it if it said anything."""
    said = (error.stderr or "") if isinstance(error, subprocess.CalledProcessError) else str(error)
    lines = [line for line in str(said).splitlines() if "error" in line] or str(said).splitlines() or [str(error)]
    return lines[0].strip()
