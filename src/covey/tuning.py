"""Settings of the C library's allocator and of OpenMP that make training faster, given to the process before it starts.

Both read their environment once, when a process begins, so the command line starts itself anew with what is missing. What
the user has set stays as it is, and COVEY_TUNE=0 leaves everything alone. Measured in docs/log.md.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping

ALLOCATOR = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_TRIM_THRESHOLD_": "10000000000",
    "MALLOC_MMAP_THRESHOLD_": "10000000000",
}
"""Huge pages, and memory that is kept for the next step instead of being given back and cleared again. One bundle."""

THREADS = {"GOMP_SPINCOUNT": "1000"}
"""How long a thread that waits for the others keeps its core: without a bound, another busy process stops all of them."""

_SWITCH = "COVEY_TUNE"


def missing_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the settings to start with. Of a bundle that the user has touched, none; on other systems than glibc's, none."""
    if environment.get(_SWITCH, "1") == "0" or platform.libc_ver()[0] != "glibc":
        return {}
    is_own = not environment.keys() & ALLOCATOR.keys()
    waits = not environment.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    return (ALLOCATOR if is_own else {}) | (THREADS if waits else {})


def start_tuned() -> None:
    """Start this very command anew with the settings that it lacks; go on if it has them. Same process, same streams.

    A process that was not started by this command line, such as a worker of somebody's, goes on as it is.
    """
    settings, words = missing_settings(os.environ), sys.argv[1:]
    if settings and words and sys.orig_argv[-len(words) :] == words:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **settings})


def settings_in_force(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what the process has of these settings, whoever set them."""
    return {name: environment[name] for name in (*ALLOCATOR, *THREADS, "OMP_WAIT_POLICY") if name in environment}
