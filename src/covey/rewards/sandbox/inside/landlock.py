"""Landlock (`linux/landlock.h`): from here on this process may read below some directories, and nothing else of the files.

https://docs.kernel.org/userspace-api/landlock.html. Nothing may be written but to /dev/null, nothing run or made anywhere; from
interface 4 on no TCP port may be bound or connected to, from 6 on no signal and no abstract socket leads out.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable

from .kernel import prctl, syscall
from .seccomp import PR_SET_NO_NEW_PRIVS

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH, _VERSION_QUESTION = 1, 1
_WRITE_FILE, _READ_FILE, _READ_DIRECTORY = 1 << 1, 1 << 2, 1 << 3
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
"""By the interface that brought them: the rights over files that are taken away."""
_NETWORK_FROM, _NETWORK_RIGHTS = 4, 0b11
_SCOPES_FROM, _SCOPES = 6, 0b11


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("directory", ctypes.c_int32))


def interface() -> int:
    """Return the version of Landlock that the kernel has, 0 if none."""
    try:
        return syscall(_CREATE_RULESET, 0, 0, _VERSION_QUESTION)
    except OSError:
        return 0


def restrict_files(readable: Iterable[str]) -> int:
    """Leave this process and its children the reading of these files and directories. Return the interface's version.

    Raises:
        OSError: the kernel has no Landlock, or refuses.
    """
    version = interface()
    rights = sum(bits for since, bits in _FILE_RIGHTS.items() if since <= version)
    ruleset = _Ruleset(
        files=rights,
        network=_NETWORK_RIGHTS if version >= _NETWORK_FROM else 0,
        scoped=_SCOPES if version >= _SCOPES_FROM else 0,
    )
    # An older kernel refuses a longer structure than it knows.
    size = 24 if version >= _SCOPES_FROM else 16 if version >= _NETWORK_FROM else 8
    handle = syscall(_CREATE_RULESET, ctypes.addressof(ruleset), size, 0)
    try:
        for path in readable:
            _allow(handle, path)
        _allow(handle, os.devnull, _READ_FILE | _WRITE_FILE)  # Executions open it for themselves.
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        syscall(_RESTRICT_SELF, handle, 0)
    finally:
        os.close(handle)
    return version


def _allow(handle: int, path: str, rights: int = _READ_FILE) -> None:
    """Leave these rights over a file, or over what is below a directory."""
    opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        is_directory = stat.S_ISDIR(os.fstat(opened).st_mode)
        rule = _PathBeneath(allowed=rights | (_READ_DIRECTORY if is_directory else 0), directory=opened)
        syscall(_ADD_RULE, handle, _RULE_PATH_BENEATH, ctypes.addressof(rule), 0)
    finally:
        os.close(opened)
