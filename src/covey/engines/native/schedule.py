"""Which completions are decoded together: rows leave when they are finished, and waiting ones take their places.

A row is one completion. Row b of a decoding step lies at place b of the cache, so a row that leaves is replaced by the
last one. A prompt lies in a slot of the cache from the step in which its first row enters until its last row leaves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from covey.engines.native.attention import CacheSize, Rows
from covey.types import CoveyError


@dataclass(kw_only=True, slots=True)
class Row:
    """A completion in the making."""

    prompt: int
    """Index of its prompt."""
    key: int
    """Of the stream its random numbers come from."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    has_stopped: bool = False


def plan_cache(
    prompt_lengths: Sequence[int],
    *,
    group_size: int,
    max_new_tokens: int,
    max_rows: int,
    max_cache_bytes: int,
    num_bytes: Callable[[CacheSize], int],
) -> CacheSize:
    """Return the largest cache, of at most `max_rows` rows, that stays within `max_cache_bytes`.

    There are twice as many slots for prompts as full groups would need: towards its end a group holds its slot for a
    few long rows only.

    Raises:
        CoveyError: not even one row fits.
    """
    for num_rows in range(min(max_rows, len(prompt_lengths) * group_size), 0, -1):
        size = CacheSize(
            num_prompts=min(len(prompt_lengths), 2 * -(-num_rows // group_size)) if num_rows > 1 else 1,
            prompt_tokens=max(prompt_lengths),
            num_rows=num_rows,
            row_tokens=max(1, max_new_tokens - 1),  # Nothing attends to the last token.
        )
        if num_bytes(size) <= max_cache_bytes:
            return size
    raise CoveyError(
        f"keys and values of one completion ({max(prompt_lengths)} prompt tokens and up to {max_new_tokens} new ones) take "
        f"{num_bytes(size) / 2**20:.0f} MiB, and the engine may use {max_cache_bytes / 2**20:.0f} MiB: allow it more memory, "
        "or ask for shorter completions"
    )


class Schedule:
    """The rows of one call: waiting, active, finished."""

    def __init__(self, prompt_lengths: Sequence[int], keys: Sequence[Sequence[int]], size: CacheSize):
        self.rows = [Row(prompt=prompt, key=key) for prompt, group in enumerate(keys) for key in group]
        """All of them, in the order of the results."""
        self.active: list[Row] = []
        """By place."""
        self._waiting = deque(self.rows)
        self._prompt_lengths = prompt_lengths
        self._max_rows = size.num_rows
        self._free_slots = list(range(size.num_prompts))[::-1]
        self._slots: dict[int, int] = {}
        self._num_unfinished = [len(group) for group in keys]

    @property
    def is_done(self) -> bool:
        return not self.active and not self._waiting

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def admit(self) -> tuple[list[Row], list[tuple[int, int]]]:
        """Let waiting rows enter behind the active ones; return them, and (prompt, slot) of what has to be computed."""
        entered: list[Row] = []
        prompts: list[tuple[int, int]] = []
        while self._waiting and len(self.active) < self._max_rows:
            prompt = self._waiting[0].prompt
            if prompt not in self._slots:
                if not self._free_slots:
                    break
                self._slots[prompt] = self._free_slots.pop()
                prompts.append((prompt, self._slots[prompt]))
            entered.append(self._waiting.popleft())
            self.active.append(entered[-1])
        return entered, prompts

    def where(self) -> Rows:
        """Return where the active rows are, before the token they drew last is written."""
        return Rows(
            prompt_slots=torch.tensor([self._slots[row.prompt] for row in self.active]),
            prompt_lengths=torch.tensor([self._prompt_lengths[row.prompt] for row in self.active]),
            ages=torch.tensor([len(row.token_ids) - 1 for row in self.active]),
        )

    def retire(self, is_finished: Sequence[bool]) -> tuple[list[int], list[int]]:
        """Take out finished rows; return the places from which, and to which, others move to close the gaps."""
        for row, finished in zip(self.active, is_finished, strict=True):
            if finished:
                self._num_unfinished[row.prompt] -= 1
                if self._num_unfinished[row.prompt] == 0:
                    self._free_slots.append(self._slots.pop(row.prompt))
        num_left = is_finished.count(False)
        targets = [place for place in range(num_left) if is_finished[place]]
        sources = [place for place in range(num_left, len(self.active)) if not is_finished[place]]
        for source, target in zip(sources, targets, strict=True):
            self.active[target] = self.active[source]
        del self.active[num_left:]
        return sources, targets
