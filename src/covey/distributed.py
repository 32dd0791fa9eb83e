"""Several processes that train one model: the only module that mentions ranks.

Every rank runs the same loop, takes the same branches and holds the same state. Only the work inside a step is shared
out, and its results are gathered before anything depends on them:

    ranks.gather([work(item) for item in ranks.share(items)]) == [work(item) for item in items]     (on every rank)

so whoever calls this need not know how many ranks there are. One process is the case `ALONE`, in which each call is the
identity and torch.distributed is not touched.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from covey.types import CoveyError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """This process among the `count` that train together. Apart from `share`, every rank must make the same calls."""

    index: int
    count: int
    num_local: int = 1
    """How many of them are on this machine, and so share its cores."""

    @property
    def is_main(self) -> bool:
        """Whether this rank is the one that writes files and talks to people."""
        return self.index == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Return this rank's part: contiguous, in order, all parts' sizes within 1 of each other. It may be empty."""
        first, last = (len(items) * index // self.count for index in (self.index, self.index + 1))
        return list(items[first:last])

    def gather(self, part: Sequence[T]) -> list[T]:
        """Return the parts of all ranks, concatenated in rank order: the same list on every rank.

        The items travel pickled (a prompt's answer may be any Python value, which JSON would change), and unpickling runs
        code: ranks must only be started where nobody else can reach their ports.

        Raises:
            CoveyError: another rank ended, or did not come within the timeout.
        """
        if self.count == 1:
            return list(part)
        parts: list[list[T]] = [[] for _ in range(self.count)]
        with _told_as_covey_error(self):
            dist.all_gather_object(parts, list(part))
        return [item for piece in parts for item in piece]

    @torch.no_grad()
    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor, in place, by its sum over all ranks: the same bits on every rank.

        One transfer for all tensors of a dtype and device. Every rank must give tensors of the same shapes in the same
        order; where a rank has nothing to add, it gives zeros.

        Raises:
            CoveyError: another rank ended, or did not come within the timeout.
        """
        if self.count == 1:
            return
        buckets: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in tensors:
            buckets.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        for bucket in buckets.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            with _told_as_covey_error(self):
                dist.all_reduce(flat)
            for tensor, total in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add up the gradients of all ranks, in place; on a rank that had nothing to do, a parameter's missing one is 0.

        Raises:
            CoveyError: another rank ended, or did not come within the timeout.
        """
        if self.count == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.sum([parameter.grad for parameter in trained if parameter.grad is not None])

    def any(self, flag: bool) -> bool:
        """Return whether the flag holds on any rank: for what one rank sees first, such as a signal to stop.

        Raises:
            CoveyError: another rank ended, or did not come within the timeout.
        """
        if self.count == 1:
            return flag
        raised = torch.tensor([int(flag)])
        with _told_as_covey_error(self):
            dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return bool(raised.item())

    def barrier(self) -> None:
        """Wait until every rank has come here.

        Raises:
            CoveyError: another rank ended, or did not come within the timeout.
        """
        self.any(False)


ALONE = Ranks(index=0, count=1)


def is_main_process() -> bool:
    """Return whether this process is the main rank, or alone."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def open_ranks(*, timeout_s: float = 1800.0) -> Generator[Ranks]:
    """Yield this process's place among those that torchrun started, or `ALONE` if it did not (or started only one).

    Tensors on the CPU travel by gloo, those on a GPU by NCCL. No wait of one rank for another is longer than `timeout_s`,
    which must exceed the longest time by which ranks drift apart within a step. An error that leaves the block closes this
    rank's connections, so that the others end soon, too; without one, no rank leaves before all have come to the end.

    Raises:
        CoveyError: the ranks did not meet, or lost each other; or there are fewer GPUs than ranks on this machine.
    """
    index, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    ranks = Ranks(index=index, count=count, num_local=int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    backend = _choose_gpu_and_backend()
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))  # Address and port: from torchrun.
    except (RuntimeError, ValueError) as error:
        raise CoveyError(
            f"rank {index} of {count} did not meet the others within {timeout_s:g} s: start all of them with one torchrun "
            f"command, or unset RANK and WORLD_SIZE to train with a single process. The cause: {_first_line(error)}"
        ) from error
    try:
        yield ranks
        ranks.barrier()
    finally:
        dist.destroy_process_group()


def _choose_gpu_and_backend() -> str:
    if not (torch.cuda.is_available() and dist.is_nccl_available()):
        return "gloo"
    local_index, num_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local_index >= num_gpus:
        raise CoveyError(
            f"this machine has {num_gpus} GPU(s) and more ranks than that: start torchrun with --nproc-per-node {num_gpus}, or "
            "with the environment variable CUDA_VISIBLE_DEVICES set to nothing to train on the CPU"
        )
    torch.cuda.set_device(local_index)
    return "cpu:gloo,cuda:nccl"


@contextmanager
def _told_as_covey_error(ranks: Ranks) -> Generator[None]:
    """Turn the errors of torch.distributed, all RuntimeErrors, into one that says where to look."""
    try:
        yield
    except RuntimeError as error:
        raise CoveyError(
            f"rank {ranks.index} of {ranks.count} lost the others: one of them ended or was stuck for longer than the timeout. "
            f"Look at what they printed: the first error there is the reason. Seen from here: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
