"""What every tool's process does: load once, then answer one line of stdin at a time. Only the standard library is needed."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

WARM_UP_TOKENS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What is to be sampled: for each prompt, a group of completions that all have `num_new_tokens`."""

    prompts: list[list[int]]
    group_size: int
    num_new_tokens: int

    @property
    def num_rows(self) -> int:
        return len(self.prompts) * self.group_size

    @property
    def num_tokens(self) -> int:
        return self.num_rows * self.num_new_tokens


class Tool(Protocol):
    """A model that is loaded and ready to sample."""

    notes: dict[str, Any]
    """What a reader must know of the tool: its version, and how it was asked to decode."""

    def prepare(self, batch: Batch) -> None:
        """Do what is not timed, such as making room for the batch and forgetting the one before."""
        ...

    def decode(self, batch: Batch) -> int:
        """Sample the batch, prompts included, and return how many tokens came out. This is timed."""
        ...


def serve(load: Callable[[str], Tool]) -> None:
    """Load the model named by the first argument, say so, and measure what stdin asks for until it ends.

    A request is a `Batch` and whether it is the first of its size, before which a few tokens are sampled untimed. An
    answer is {"notes": ...}, {"num_tokens": ..., "elapsed_s": ...} or {"error": ...}.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # What a library prints must not be taken for an answer.
    try:
        tool = load(sys.argv[1])
        print(json.dumps({"notes": tool.notes}), file=answers)
        for line in sys.stdin:
            request = json.loads(line)
            print(json.dumps(_measured(tool, Batch(**request["batch"]), is_first=request["is_first"])), file=answers)
    except Exception as error:  # Whatever a tool raises is what is to be said of it.
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers)
        raise


def _measured(tool: Tool, batch: Batch, *, is_first: bool) -> dict[str, Any]:
    if is_first:
        few = Batch(prompts=batch.prompts, group_size=batch.group_size, num_new_tokens=WARM_UP_TOKENS)
        tool.prepare(few)
        tool.decode(few)
    tool.prepare(batch)
    start = time.perf_counter()
    num_tokens = tool.decode(batch)
    elapsed_s = time.perf_counter() - start
    assert num_tokens == batch.num_tokens, f"{num_tokens} tokens came out, not {batch.num_tokens}"
    return {"num_tokens": num_tokens, "elapsed_s": elapsed_s}
