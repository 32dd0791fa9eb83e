"""Ranks on this machine: one function in several processes that meet on the loopback interface."""

from __future__ import annotations

import pickle
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.processes import Finished, Running, start

from covey.distributed import open_ranks

DEADLINE_S = 120.0


def on_ranks(count: int, function: Callable[..., Any], *arguments: Any, directory: Path) -> list[Any]:
    """Return function(ranks, *arguments) of each rank, in rank order; fail with the tracebacks if a rank fails.

    The function belongs to a module; each rank works in `directory`/rank-INDEX.
    """
    ends = ends_of_ranks(count, function, *arguments, directory=directory)
    failed = [f"rank {index} ended with code {end.code}:\n{end.err}" for index, end in enumerate(ends) if end.code != 0]
    assert not failed, "\n".join(failed)
    return [pickle.loads((_folder(directory, index) / "result.pickle").read_bytes()) for index in range(count)]


def ends_of_ranks(
    count: int, function: Callable[..., Any], *arguments: Any, directory: Path, timeout_s: float = DEADLINE_S
) -> list[Finished]:
    """Return how the process of each rank ended. `timeout_s` is how long the ranks wait for each other.

    Nothing here ends a rank because another one failed, as torchrun would: they must find out themselves.
    """
    port = free_port()
    processes = [
        start(
            _rank,
            function,
            arguments,
            timeout_s,
            directory=_folder(directory, index),
            environment={
                "RANK": str(index),
                "LOCAL_RANK": str(index),
                "WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
                "CUDA_VISIBLE_DEVICES": "",
            },
        )
        for index in range(count)
    ]
    _wait(processes)
    return [process.finish() for process in processes]


def free_port() -> int:
    """Return a port of the loopback interface that nobody listened on a moment ago."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def _wait(processes: list[Running]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    for process in processes:
        process.process.join(max(0.0, deadline - time.monotonic()))
    late = [index for index, process in enumerate(processes) if process.is_alive]
    for index in late:
        processes[index].process.kill()
        processes[index].process.join()
    if late:
        ends = "\n".join(f"rank {index}:\n{process.finish().err}" for index, process in enumerate(processes))
        raise AssertionError(f"ranks {late} had not ended after {DEADLINE_S:g} s\n{ends}")


def _rank(function: Callable[..., Any], arguments: tuple[Any, ...], timeout_s: float) -> None:
    torch.set_num_threads(1)
    with open_ranks(timeout_s=timeout_s) as ranks:
        result = function(ranks, *arguments)
    Path("result.pickle").write_bytes(pickle.dumps(result))


def _folder(directory: Path, index: int) -> Path:
    return directory / f"rank-{index}"
