"""The system calls that a candidate may make, and those it may make with some arguments only. All others fail with EPERM.

The numbers are those of x86-64 and of 64-bit ARM (Linux, `asm/unistd_64.h` and `asm-generic/unistd.h`); None: it has none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Number = int | None

ARCHITECTURES: dict[str, tuple[int, int]] = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""By the machine's name: its column below, and AUDIT_ARCH (`linux/audit.h`)."""

MEMORY: dict[str, tuple[Number, Number]] = {
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "membarrier": (324, 283),
}
FILES: dict[str, tuple[Number, Number]] = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "stat": (4, None),
    "lstat": (6, None),
    "statx": (332, 291),
    "lseek": (8, 62),
    "pread64": (17, 67),
    "readv": (19, 65),
    "writev": (20, 66),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "dup": (32, 23),
}
WAITING: dict[str, tuple[Number, Number]] = {
    "pipe": (22, None),
    "pipe2": (293, 59),
    "select": (23, None),
    "pselect6": (270, 72),
    "poll": (7, None),
    "ppoll": (271, 73),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "eventfd2": (290, 19),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "shutdown": (48, 210),
    "getpeername": (52, 205),
    "getsockname": (51, 204),
    "getsockopt": (55, 209),
}
"""An event loop waits on a pair of sockets of its own. Nothing here makes one that leads outside."""
TIME_AND_SIGNALS: dict[str, tuple[Number, Number]] = {
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigtimedwait": (128, 137),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "getitimer": (36, 102),
    "setitimer": (38, 103),
    "alarm": (37, None),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
}
PROCESS: dict[str, tuple[Number, Number]] = {
    "exit": (60, 93),
    "exit_group": (231, 94),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "uname": (63, 160),
    "getrandom": (318, 278),
    "arch_prctl": (158, None),
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "set_tid_address": (218, 96),
    "set_robust_list": (273, 99),
    "get_robust_list": (274, 100),
    "rseq": (334, 293),
}
ALLOWED: dict[str, tuple[Number, Number]] = MEMORY | FILES | WAITING | TIME_AND_SIGNALS | PROCESS


@dataclass(frozen=True)
class Test:
    """A condition on the low 32 bits of an argument; the kernel reads no more of any that is tested here."""

    argument: int
    mask: int
    equals: tuple[int, ...]
    """The argument, under the mask, must be one of these."""


@dataclass(frozen=True)
class Rule:
    """A system call that is allowed if every test holds."""

    numbers: tuple[Number, Number]
    tests: tuple[Test, ...]


_ANY = 0xFFFFFFFF
_WRITING = 0o1 | 0o2 | 0o100 | 0o1000 | 0o20000000
"""O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, and the bit of O_TMPFILE that is its own."""
_CLONE_THREAD, _CLONE_NEW = 0x10000, 0x7E020080
"""A new thread, and all the flags that make a namespace."""
_TERMINAL_QUESTIONS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."""
_FCNTL = (0, 1, 2, 3, 4, 1030)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC."""

RULES: dict[str, Callable[[int], Rule]] = {
    "open": lambda pid: Rule((2, None), (Test(1, _WRITING, (0,)),)),
    "openat": lambda pid: Rule((257, 56), (Test(2, _WRITING, (0,)),)),
    "clone": lambda pid: Rule((56, 220), (Test(0, _CLONE_THREAD | _CLONE_NEW, (_CLONE_THREAD,)),)),
    "ioctl": lambda pid: Rule((16, 29), (Test(1, _ANY, _TERMINAL_QUESTIONS),)),
    "fcntl": lambda pid: Rule((72, 25), (Test(1, _ANY, _FCNTL),)),
    "tgkill": lambda pid: Rule((234, 131), (Test(0, _ANY, (pid,)),)),
    "socketpair": lambda pid: Rule((53, 199), (Test(0, _ANY, (1,)),)),
    "prlimit64": lambda pid: Rule((302, 261), (Test(0, _ANY, (0, pid)), Test(2, _ANY, (0,)))),
}
"""By name, for the candidate's process id: files for reading alone, threads and no processes, signals to itself, sockets in
pairs (AF_UNIX), limits for reading."""

ABSENT: dict[str, tuple[Number, Number]] = {"clone3": (435, 435)}
"""Answered with ENOSYS, so that the C library falls back on a call whose flags can be seen."""
