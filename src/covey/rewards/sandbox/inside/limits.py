"""What one execution may use, held by the kernel (setrlimit(2))."""

from __future__ import annotations

import resource
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Of one execution. Time is that of the processor: a busy machine makes nobody fail."""

    cpu_s: int = 3
    memory_mb: int = 512
    """Of address space, the interpreter's own included."""
    num_files: int = 64
    stack_mb: int = 8
    patience: float = 5.0
    """How many times its processor time may pass, and two seconds more, before the judge gives up waiting."""
    num_threads: int = 64
    """Counts for all processes of the user; root is exempt, and then memory bounds it."""

    @property
    def wall_s(self) -> float:
        """When the judge gives up waiting: for an execution that sleeps, or on a machine that is stuck."""
        return self.patience * self.cpu_s + 2.0

    def rows(self) -> dict[str, tuple[int, int]]:
        """Return what is limited, by the limit's name, to what."""
        mega = 1 << 20
        return {
            "RLIMIT_CPU": (self.cpu_s, self.cpu_s),
            "RLIMIT_AS": (self.memory_mb * mega, self.memory_mb * mega),
            "RLIMIT_NOFILE": (self.num_files, self.num_files),
            "RLIMIT_STACK": (self.stack_mb * mega, self.stack_mb * mega),
            "RLIMIT_NPROC": (self.num_threads, self.num_threads),
            "RLIMIT_FSIZE": (0, 0),
            "RLIMIT_CORE": (0, 0),
            "RLIMIT_MSGQUEUE": (0, 0),
            "RLIMIT_MEMLOCK": (0, 0),
        }

    def set(self, *, without: tuple[str, ...] = ()) -> None:
        """Put this process under the limits, but those named in `without`, which is for tests."""
        for name, values in self.rows().items():
            if name not in without:
                resource.setrlimit(getattr(resource, name), values)
