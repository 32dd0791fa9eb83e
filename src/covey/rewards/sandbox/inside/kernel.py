"""Calls of the kernel that Python has no name for."""

from __future__ import annotations

import ctypes
import os

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long
_LIBC.prctl.restype = ctypes.c_int


def prctl(option: int, *arguments: int) -> int:
    """Call prctl(2).

    Raises:
        OSError: it failed.
    """
    padded = [*arguments, *[0] * (4 - len(arguments))]
    return _checked(_LIBC.prctl(option, *(ctypes.c_ulong(value) for value in padded)), f"prctl {option}")


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("process", ctypes.c_int))


_CAPABILITY_VERSION = 0x20080522
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24


def drop_capabilities() -> None:
    """Give up all capabilities for good: root without them is a user like any other, but for the files that root owns.

    Raises:
        OSError: the kernel refuses.
    """
    for number in range(64):
        try:
            if prctl(_PR_CAPBSET_READ, number):
                prctl(_PR_CAPBSET_DROP, number)
        except OSError:  # Beyond the last that the kernel knows, or not allowed, and then there are none to be given up.
            break
    header = _CapabilityHeader(version=_CAPABILITY_VERSION, process=0)
    nothing = (ctypes.c_uint32 * 6)()
    _checked(_LIBC.capset(ctypes.byref(header), ctypes.byref(nothing)), "capset")


def syscall(number: int, *arguments: int) -> int:
    """Call the kernel by number; arguments are numbers and addresses.

    Raises:
        OSError: it failed.
    """
    return _checked(_LIBC.syscall(ctypes.c_long(number), *(ctypes.c_ulong(value) for value in arguments)), f"call {number}")


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)} ({what})")
    return result
