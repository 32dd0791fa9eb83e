"""What distribution completions are drawn from, and the random numbers they are drawn with.

Randomness is counter-based: the number used for a token is a pure function of (seed, purpose, step, draw, prompt_id,
sample, position). It does not depend on what else is in the batch, on the order of generation or on history, so a
resumed run, a different batch layout or another engine draws with the same numbers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

_WORD = (1 << 64) - 1
# Weyl increment and mixing constants of SplitMix64 (Steele, Lea & Flood 2014).
_WEYL, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """What completions are drawn from, and where they end. `covey.models.distribution` makes the distribution of it.

    The trainer scores completions under this very distribution, so whatever is added here must be added there.
    """

    temperature: float = 1.0
    """0 = the likeliest token, always."""
    max_new_tokens: int = 256
    top_k: int = 0
    """Keep the k likeliest tokens, and all that are as likely as the k-th; 0 = off."""
    top_p: float = 1.0
    """Keep the likeliest tokens until they hold this probability, above 0; 1 = off."""
    min_p: float = 0.0
    """Keep tokens at least this many times as likely as the likeliest, at most 1; 0 = off."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that stand in the prompt or the completion so far become less likely; 1 = off."""
    stop: tuple[str, ...] = ()
    """A completion ends with the token that completes one of these, none empty, in its text. The token stays whole."""

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def is_filtered(self) -> bool:
        """Whether tokens are removed from the distribution."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0

    @property
    def is_plain(self) -> bool:
        """Whether the distribution is softmax(logits / temperature): no filter, no penalty."""
        return not self.is_filtered and self.repetition_penalty == 1.0


def stream_key(seed: int, purpose: str, *counters: int | str) -> int:
    """Return the 64-bit key of the stream named by (seed, purpose, *counters), a BLAKE2b hash of their text."""
    name = "\x1f".join([str(seed), purpose, *(str(counter) for counter in counters)])
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def rollout_keys(seed: int, purpose: str, *, step: int, draw: int, prompt_id: str, group_size: int) -> list[int]:
    """Return the G stream keys of one group's completions."""
    return [stream_key(seed, purpose, step, draw, prompt_id, sample) for sample in range(group_size)]


def uniform(key: int, position: int) -> float:
    """Return the stream's number at `position`: SplitMix64 output `position` + 1 of state `key`, as a float in [0, 1)."""
    word = (key + (position + 1) * _WEYL) & _WORD
    word = ((word ^ (word >> 30)) * _MIX_1) & _WORD
    word = ((word ^ (word >> 27)) * _MIX_2) & _WORD
    word ^= word >> 31
    return (word >> 11) * 2.0**-53


def permutation(key: int, length: int) -> list[int]:
    """Return a permutation of range(length): the order in which the stream's numbers sort the indices."""
    return sorted(range(length), key=lambda index: (uniform(key, index), index))
