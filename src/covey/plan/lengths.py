"""How long completions will be: at most the token limit, and less where the model ends them earlier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledLengths:
    """What a few completions showed that were cut off after `num_tokens`."""

    num_tokens: int
    lengths: tuple[int, ...]
    """Tokens until the end, or `num_tokens`."""
    num_ended: int

    def expected(self, limit: int) -> tuple[int, ...]:
        """Return the lengths of completions of at most `limit` tokens.

        One that was cut off goes on as long as completions do that end at each token with the same chance h, the share
        of sampled tokens that were the last: (1 - (1 - h)^n) / h more tokens, n of them left to the limit.
        """
        ends_at = self.num_ended / sum(self.lengths)
        left = limit - self.num_tokens
        more = left if ends_at == 0 else round((1 - (1 - ends_at) ** left) / ends_at)
        unfinished = len(self.lengths) - self.num_ended
        ended = sorted(self.lengths)[: self.num_ended]
        return tuple(min(length, limit) for length in [*ended, *[self.num_tokens + more] * unfinished])

    def describe(self, limit: int) -> str:
        """Return in words what is known of the lengths."""
        mean = sum(self.expected(limit)) / len(self.lengths)
        seen = f"{self.num_ended} of {len(self.lengths)} sampled completions ended within {self.num_tokens} tokens"
        return f"{seen}: {mean:.0f} tokens expected, {limit} at most"


def sampled_lengths(lengths: Sequence[int | None], *, num_tokens: int) -> SampledLengths:
    """Return what was seen; None = did not end within `num_tokens`."""
    return SampledLengths(
        num_tokens=num_tokens,
        lengths=tuple(num_tokens if length is None else length for length in lengths),
        num_ended=sum(length is not None for length in lengths),
    )
