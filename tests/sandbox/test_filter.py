"""The filter of system calls, read by an interpreter of our own: what it says of each call, on both kinds of machine."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from covey.rewards.sandbox.inside import syscalls
from covey.rewards.sandbox.inside.seccomp import Instruction, filter_program, packed

ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS, 0x80000000
PID = 4321
X86, ARM = syscalls.ARCHITECTURES["x86_64"][1], syscalls.ARCHITECTURES["aarch64"][1]


def verdict(program: list[Instruction], number: int, *arguments: int, architecture: int = X86) -> int:
    """Run the program as the kernel does (`linux/filter.h`) on the data of one call (`struct seccomp_data`)."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=IIQ6Q", number, architecture, 0, *(value & (2**64 - 1) for value in padded))
    at = accumulator = 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif code == 0x54:
            accumulator &= operand
        elif code == 0x15:
            at += if_true if accumulator == operand else if_false
        elif code == 0x35:
            at += if_true if accumulator >= operand else if_false
        else:
            assert code == 0x06
            return operand


@pytest.fixture
def x86() -> list[Instruction]:
    return filter_program(pid=PID, machine="x86_64")


@pytest.mark.parametrize(
    ("number", "arguments", "expected"),
    [
        (0, (), ALLOW),  # read
        (257, (-100, 0, os.O_RDONLY | os.O_CLOEXEC), ALLOW),
        (257, (-100, 0, os.O_WRONLY), EPERM),
        (257, (-100, 0, os.O_RDWR), EPERM),
        (257, (-100, 0, os.O_RDONLY | os.O_CREAT), EPERM),
        (257, (-100, 0, os.O_RDONLY | os.O_TRUNC), EPERM),
        (257, (-100, 0, os.O_TMPFILE | os.O_DIRECTORY), EPERM),
        (257, (-100, 0, os.O_RDONLY | os.O_DIRECTORY), ALLOW),
        (2, (0, os.O_RDONLY), ALLOW),
        (2, (0, os.O_WRONLY), EPERM),
        (437, (), EPERM),  # openat2
        (56, (0x3D0F00,), ALLOW),  # a thread, as the C library makes it
        (56, (0x1200011,), EPERM),  # a process
        (56, (0x10000 | 0x10000000,), EPERM),  # a thread in a new user namespace
        (435, (), ENOSYS),
        (57, (), EPERM),  # fork
        (58, (), EPERM),  # vfork
        (59, (), EPERM),  # execve
        (322, (), EPERM),  # execveat
        (41, (), EPERM),  # socket
        (42, (), EPERM),  # connect
        (53, (1, 1, 0), ALLOW),
        (53, (2, 1, 0), EPERM),
        (53, (1 | 1 << 40, 1, 0), ALLOW),  # the kernel reads the low half alone
        (62, (PID, 9), EPERM),  # kill
        (234, (PID, PID, 6), ALLOW),
        (234, (1, 1, 9), EPERM),
        (302, (0, 7, 0), ALLOW),
        (302, (PID, 7, 0), ALLOW),
        (302, (1, 7, 0), EPERM),
        (302, (0, 7, 0x7FFF0000), EPERM),
        (16, (0, 0x5401), ALLOW),
        (16, (0, 0x5412), EPERM),
        (72, (0, 3), ALLOW),
        (72, (0, 1031), EPERM),
        (101, (), EPERM),  # ptrace
        (319, (), EPERM),  # memfd_create
        (165, (), EPERM),  # mount
        (321, (), EPERM),  # bpf
        (425, (), EPERM),  # io_uring_setup
        (157, (), EPERM),  # prctl
        (46, (), EPERM),  # sendmsg, which hands over files
        (9999, (), EPERM),
        (0x40000000 + 57, (), KILL),
        (0x40000000, (), KILL),
    ],
)  # fmt: skip
def test_what_the_filter_says_of_a_call(x86: list[Instruction], number: int, arguments: tuple[int, ...], expected: int):
    assert verdict(x86, number, *arguments) == expected


def test_calls_of_another_architecture_kill(x86: list[Instruction]):
    assert verdict(x86, 0, architecture=0x40000003) == KILL  # 32 bits, by int 0x80
    assert verdict(filter_program(pid=PID, machine="aarch64"), 63, architecture=X86) == KILL


def test_on_arm_the_numbers_are_its_own():
    arm = filter_program(pid=PID, machine="aarch64")
    said = {number: verdict(arm, number, architecture=ARM) for number in (63, 57, 221, 198, 220, 435, 59)}
    assert said == {63: ALLOW, 57: ALLOW, 221: EPERM, 198: EPERM, 220: EPERM, 435: ENOSYS, 59: ALLOW}
    assert verdict(arm, 56, -100, 0, os.O_WRONLY, architecture=ARM) == EPERM
    assert verdict(arm, 220, 0x3D0F00, architecture=ARM) == ALLOW


def test_an_unknown_machine_has_no_filter():
    with pytest.raises(OSError, match="riscv64"):
        filter_program(pid=PID, machine="riscv64")


@pytest.mark.parametrize("name", [*syscalls.RULES, *syscalls.ABSENT])
def test_a_rule_that_is_lifted_allows_its_call(name: str):
    numbers = syscalls.ABSENT[name] if name in syscalls.ABSENT else syscalls.RULES[name](PID).numbers
    assert verdict(filter_program(pid=PID, machine="x86_64", without=[name]), numbers[0] or 0, *[0xFFFF] * 6) == ALLOW


@pytest.mark.parametrize("machine", list(syscalls.ARCHITECTURES))
def test_jumps_stay_in_the_program_and_it_is_short_enough(machine: str):
    program = filter_program(pid=PID, machine=machine)
    assert len(program) < 4096
    for at, (_, if_true, if_false, _) in enumerate(program[:-1]):
        assert at + 1 + max(if_true, if_false) < len(program)
        assert max(if_true, if_false) < 256
    assert len(packed(program)) == 8 * len(program)


def test_no_call_is_listed_twice():
    for column in (0, 1):
        numbers = [found[column] for found in syscalls.ALLOWED.values() if found[column] is not None]
        numbers += [rule(PID).numbers[column] for rule in syscalls.RULES.values() if rule(PID).numbers[column] is not None]
        numbers += [found[column] for found in syscalls.ABSENT.values()]
        assert len(set(numbers)) == len(numbers)
