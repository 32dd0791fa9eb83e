"""What a run ran on: the machine and the versions that its numbers depend on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

_PACKAGES = ("covey", "torch", "transformers", "safetensors", "tokenizers", "numpy", "scipy", "pyarrow", "peft", "vllm")
_CPUINFO = Path("/proc/cpuinfo")
_CPU_MODEL = {"cpu family": "family", "model": "model", "CPU part": "part"}
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "i8mm")


def num_usable_cores() -> int:
    """Return how many cores this process may run on, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine() -> dict[str, Any]:
    """Return what `env.json` says about the machine. `num_cores` are those that this process may use.

    `cpu` is often no more than a maker's name, on virtual machines above all: `cpu_model` and `instructions`, those that matrix
    products are made of, tell two generations apart.
    """
    facts = _cpu_facts()
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    return {
        "cpu": facts.get("model name") or platform.processor() or platform.machine(),
        "cpu_model": " ".join(f"{name} {facts[key]}" for key, name in _CPU_MODEL.items() if key in facts),
        "instructions": [name for name in _INSTRUCTIONS if name in flags],
        "num_cores": num_usable_cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "platform": _platform(),
    }


def _platform() -> str:
    """Return operating system, architecture and C library: the kernel's build says more of the host than of the numbers."""
    libc = " ".join(platform.libc_ver()).strip()
    return ", ".join(part for part in (platform.system(), platform.machine(), libc) if part)


def _cpu_facts() -> dict[str, str]:
    """Return what Linux says of the first core, by its names; nothing elsewhere."""
    first = _CPUINFO.read_text().partition("\n\n")[0].splitlines() if _CPUINFO.exists() else []
    pairs = (line.partition(":") for line in first)
    return {key.strip(): value.strip() for key, _, value in pairs}


def describe_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that numbers depend on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
