"""What a run ran on: the machine and the versions that its numbers depend on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

_PACKAGES = ("covey", "torch", "transformers", "safetensors", "tokenizers", "numpy", "scipy", "pyarrow", "peft", "vllm")


def num_usable_cores() -> int:
    """Return how many cores this process may run on, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine() -> dict[str, Any]:
    """Return what `env.json` says about the machine. `num_cores` are those that this process may use."""
    memory_gb = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    return {"cpu": _cpu_name(), "num_cores": num_usable_cores(), "memory_gb": memory_gb, "platform": _platform()}


def _platform() -> str:
    """Return operating system, architecture and C library: the kernel's build says more of the host than of the numbers."""
    libc = " ".join(platform.libc_ver()).strip()
    return ", ".join(part for part in (platform.system(), platform.machine(), libc) if part)


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that numbers depend on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
