"""An engine that asks for less at once where memory runs out, whatever samples behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from covey.engines.base import Engine
from covey.models.memory import is_out_of_memory
from covey.models.policy import Policy
from covey.sampling import Sampling
from covey.types import Completion


class RowLimit(Protocol):
    """Where it is kept how many completions are sampled at once: for the rest of a run, and for those that go on with it."""

    max_sampled_rows: int
    """At most; 0 = memory has never run out, and the engine is given everything."""
    num_sampling_halvings: int


@dataclass(kw_only=True, slots=True)
class OwnRowLimit:
    """A limit that lasts as long as its engine."""

    max_sampled_rows: int = 0
    num_sampling_halvings: int = 0


class EngineWithinMemory:
    """Gives another engine half as many prompts after memory has run out, in the end a part of one prompt's completions.

    Random numbers belong to keys, so that no completion gets others; its tokens can differ in the last bits of the matrix
    products alone. See `covey.engines.base.Engine`.
    """

    def __init__(self, engine: Engine, limit: RowLimit | None = None):
        """`limit`: shared by engines in one memory; None = its own."""
        self.note = engine.note
        self._engine = engine
        self._limit: RowLimit = OwnRowLimit() if limit is None else limit

    def load_weights(self, policy: Policy, version: int) -> None:
        self._engine.load_weights(policy, version)

    def served_digest(self) -> str:
        return self._engine.served_digest()

    def expected_digest(self, policy: Policy) -> str:
        return self._engine.expected_digest(policy)

    def close(self) -> None:
        self._engine.close()

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, *, group_size: int, keys: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        rows: list[Completion] = []
        while len(rows) < len(prompts) * group_size:
            prompt, done = divmod(len(rows), group_size)
            rows += self._next_rows(prompts[prompt:], sampling, [keys[prompt][done:], *keys[prompt + 1 :]])
        return [rows[start : start + group_size] for start in range(0, len(rows), group_size)]

    def _next_rows(
        self, prompts: Sequence[list[int]], sampling: Sampling, keys: Sequence[Sequence[int]]
    ) -> Sequence[Completion]:
        """Return the first completions, as many as there is memory for: of whole prompts, or a part of the first one's.

        Raises:
            RuntimeError or MemoryError: of the engine, if there is no memory for a single completion.
        """
        while True:
            chosen = first_keys(keys, self._limit.max_sampled_rows)
            num_rows, group_size = sum(map(len, chosen)), len(chosen[0])
            try:
                groups = self._engine.generate(prompts[: len(chosen)], sampling, group_size=group_size, keys=chosen)
                return [completion for group in groups for completion in group]
            except (RuntimeError, MemoryError) as error:
                if num_rows == 1 or not is_out_of_memory(error):
                    raise
            # Here the error is gone, and with its traceback all that the engine held.
            self._limit.max_sampled_rows = num_rows // 2
            self._limit.num_sampling_halvings += 1


def first_keys(keys: Sequence[Sequence[int]], max_rows: int) -> Sequence[Sequence[int]]:
    """Return the keys of the first prompts with at most `max_rows` completions (0 = all), or a part of the first prompt's.

    All prompts have as many completions in it: a first one of which a part is done already comes alone.
    """
    size = len(keys[0])
    max_rows = max_rows or sum(map(len, keys))
    if max_rows < size:
        return [keys[0][:max_rows]]
    num_equal = next((index for index, group in enumerate(keys) if len(group) != size), len(keys))
    return keys[: min(num_equal, max_rows // size)]
