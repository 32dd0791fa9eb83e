"""Drawing the next token of each row, and whether it ends the completion.

Dimension key: N active rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from covey.engines.native.ops import Ops, drawn_in_two_levels
from covey.engines.native.schedule import Row
from covey.engines.stopping import Decode, completes_stop
from covey.models.distribution import shape_logits
from covey.sampling import Sampling, uniform
from covey.types import CoveyError


class Sampler:
    """Draws from the distribution of `covey.models.distribution`, with the numbers of each row's stream."""

    def __init__(self, sampling: Sampling, ops: Ops, *, num_rows: int, vocab_size: int):
        self._sampling = sampling
        self._ops = ops
        # Which tokens stand in prompt and completion, by place. Read with a repetition penalty only.
        self._notes_seen = sampling.repetition_penalty != 1.0
        self._seen = torch.zeros(num_rows, vocab_size if self._notes_seen else 0, dtype=torch.bool)

    def enter(self, place: int, prompt: Sequence[int]) -> None:
        """Take note of a row that starts at this place."""
        if self._notes_seen:
            self._seen[place] = False
            self._seen[place, torch.tensor(prompt)] = True

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Follow rows to other places."""
        self._seen[targets] = self._seen[sources]

    def draw(self, logits: Float[Tensor, "N V"], rows: Sequence[Row]) -> Int[Tensor, "N"]:
        """Append a token and its log-prob to each row; return the tokens.

        Raises:
            CoveyError: the logits are not finite.
        """
        tokens, logprobs = self._drawn(logits, rows)
        if not bool(logprobs.isfinite().all()):
            raise CoveyError(
                "the policy's logits are not finite: the weights have diverged. Lower train.learning_rate, or resume "
                "from an earlier checkpoint"
            )
        if self._notes_seen:
            self._seen[torch.arange(len(rows)), tokens] = True
        for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            row.token_ids.append(token)
            row.logprobs.append(logprob)
        return tokens

    def _drawn(self, logits: Float[Tensor, "N V"], rows: Sequence[Row]) -> tuple[Int[Tensor, "N"], Float[Tensor, "N"]]:
        sampling = self._sampling
        seen = self._seen[: len(rows)] if self._notes_seen else None
        if sampling.is_greedy:
            logprobs = shape_logits(logits, sampling, seen=seen).log_softmax(dim=-1)
            tokens = logprobs.argmax(dim=-1)
            return tokens, logprobs.gather(1, tokens[:, None])[:, 0]
        numbers = torch.tensor([uniform(row.key, len(row.token_ids)) for row in rows], dtype=torch.float64)
        if sampling.is_plain:
            return self._ops.drawn(logits, numbers, sampling.temperature)
        return drawn_in_two_levels(shape_logits(logits, sampling, seen=seen), numbers)


class Stopping:
    """Marks rows that an end token or a stop string has ended."""

    def __init__(self, sampling: Sampling, *, stop_ids: frozenset[int], decode: Decode):
        self._sampling = sampling
        self._stop_ids = stop_ids
        self._decode = decode

    def finished(self, rows: Sequence[Row]) -> list[bool]:
        """Return which rows are complete after the token they drew last."""
        for row in rows:
            row.has_stopped = row.token_ids[-1] in self._stop_ids or self._completes_stop(row.token_ids)
        return [row.has_stopped or len(row.token_ids) == self._sampling.max_new_tokens for row in rows]

    def _completes_stop(self, token_ids: list[int]) -> bool:
        return bool(self._sampling.stop) and completes_stop(token_ids, self._sampling.stop, self._decode)
