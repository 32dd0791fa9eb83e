"""The filter of system calls (seccomp, `linux/seccomp.h`), assembled for one process and then never to be lifted."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable

from . import syscalls
from .kernel import prctl

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_FIRST_X32 = 0x40000000
"""From here on numbers are those of the x32 interface, which the tables do not know."""

Instruction = tuple[int, int, int, int]
"""(code, jump if true, jump if false, operand); jumps count the instructions between."""


def instruction(code: int, operand: int, *, if_true: int = 0, if_false: int = 0) -> Instruction:
    """Return one instruction of the classic packet filter."""
    return code, if_true, if_false, operand


def filter_program(*, pid: int, machine: str, without: Iterable[str] = ()) -> list[Instruction]:
    """Return the filter for the process: what is not allowed fails with EPERM, another architecture's calls kill it.

    `without` names rules and calls that are allowed without conditions: for tests of what each line is there for.

    Raises:
        OSError: the filter does not know this architecture.
    """
    if machine not in syscalls.ARCHITECTURES:
        raise OSError(errno.ENOTSUP, f"the filter of system calls does not know {machine}")
    column, audit = syscalls.ARCHITECTURES[machine]
    lifted = set(without)
    program = [
        instruction(_LOAD, _ARCHITECTURE_AT),
        instruction(_JUMP_EQUAL, audit, if_true=1),
        instruction(_RETURN, _KILL),
        instruction(_LOAD, _NUMBER_AT),
        instruction(_JUMP_AT_LEAST, _FIRST_X32, if_false=1),
        instruction(_RETURN, _KILL),
    ]
    for name, numbers in syscalls.ALLOWED.items():
        if name not in lifted:
            program += _allowed_block(numbers[column])
    for name, rule_of in syscalls.RULES.items():
        rule = rule_of(pid)
        number = rule.numbers[column]
        if number is not None:
            program += _allowed_block(number) if name in lifted else _rule_block(number, rule.tests)
    for name, numbers in syscalls.ABSENT.items():
        program += _answered_block(numbers[column], _ALLOW if name in lifted else _ERRNO | errno.ENOSYS)
    return [*program, instruction(_RETURN, _ALLOW if "default" in lifted else _ERRNO | errno.EPERM)]


def _answered_block(number: int | None, answer: int) -> list[Instruction]:
    if number is None:
        return []
    return [instruction(_JUMP_EQUAL, number, if_false=1), instruction(_RETURN, answer)]


def _allowed_block(number: int | None) -> list[Instruction]:
    return _answered_block(number, _ALLOW)


def _rule_block(number: int, tests: tuple[syscalls.Test, ...]) -> list[Instruction]:
    body: list[Instruction] = []
    for test in tests:
        body += [instruction(_LOAD, _ARGUMENTS_AT + 8 * test.argument), instruction(_AND, test.mask)]
        for left in reversed(range(len(test.equals))):  # One that fits jumps over the others and over the refusal.
            body.append(instruction(_JUMP_EQUAL, test.equals[len(test.equals) - 1 - left], if_true=left + 1))
        body.append(instruction(_RETURN, _ERRNO | errno.EPERM))
    body.append(instruction(_RETURN, _ALLOW))
    return [instruction(_JUMP_EQUAL, number, if_false=len(body)), *body]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def packed(program: list[Instruction]) -> bytes:
    """Return the instructions as the kernel reads them."""
    return b"".join(struct.pack("=HBBI", *each) for each in program)


def install(program: list[Instruction]) -> None:
    """Put this process and all that it starts under the filter.

    Raises:
        OSError: the kernel refuses.
    """
    data = packed(program)
    buffer = ctypes.create_string_buffer(data, len(data))
    holder = _Program(length=len(program), instructions=ctypes.addressof(buffer))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(holder))


def restrict_this_process(*, without: Iterable[str] = ()) -> None:
    """Install the filter for the process that calls this.

    Raises:
        OSError: the kernel refuses, or the architecture is unknown.
    """
    install(filter_program(pid=os.getpid(), machine=os.uname().machine, without=without))
