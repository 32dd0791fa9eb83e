"""The protocol between the loop and whatever samples completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from covey.models.policy import Policy
from covey.sampling import Sampling
from covey.types import Completion


class Engine(Protocol):
    """Samples completions from the weights it was last given."""

    note: str
    """What a user should know of how it was set up; empty = nothing."""

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, *, group_size: int, keys: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        """Return `group_size` completions for each prompt, in order.

        `keys` holds one stream key of `covey.sampling` for each completion of each prompt: token t of a completion is
        drawn with number t of its stream, by inverse CDF over the vocabulary in token order, from the distribution of
        `covey.models.distribution`, and reported with its log-prob there. Equal keys, prompt and weights give equal
        tokens as long as the batch is laid out equally.

        A completion ends with an end token, with the token that completes a stop string, or at `max_new_tokens`. It
        holds every token that was drawn, whole.
        """
        ...

    def load_weights(self, policy: Policy, version: int) -> None:
        """Serve the policy's present weights from now on, under this version number."""
        ...

    def served_digest(self) -> str:
        """Return `weights_digest` of what is served, in the dtype it is served in."""
        ...

    def expected_digest(self, policy: Policy) -> str:
        """Return what `served_digest` must be if the policy's present weights are served."""
        ...

    def close(self) -> None:
        """Free what the engine holds. It is not used afterwards."""
        ...
