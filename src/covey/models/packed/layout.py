"""Where the tokens of a micro-batch lie: every prompt once, its completions behind it, no padding.

Dimension key: T packed tokens, L completion tokens that are scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A prompt, and the completions that see it. Row k lies at [starts[k], starts[k + 1])."""

    prompt_start: int
    starts: tuple[int, ...]
    """Of each row, and the end of the last one. The prompt ends where the first row starts."""

    @property
    def prompt_length(self) -> int:
        return self.starts[0] - self.prompt_start


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedLayout:
    """A micro-batch as the decoder sees it."""

    token_ids: Int[Tensor, "T"]
    positions: Int[Tensor, "T"]
    spans: tuple[Span, ...]
    wanted: Int[Tensor, "L"]
    """Positions whose logits predict the completions' tokens, row by row."""

    def offsets(self) -> Int[Tensor, "_"]:
        """Return the spans as one list of numbers: how many spans; of each, its rows, prompt start and row starts."""
        numbers = [len(self.spans)]
        for span in self.spans:
            numbers += [len(span.starts) - 1, span.prompt_start, *span.starts]
        return torch.tensor(numbers)


def pack_layout(groups: Sequence[tuple[Int[Tensor, "_"], Sequence[Int[Tensor, "_"]]]]) -> PackedLayout:
    """Return the layout of (prompt, completions). The last token of a completion predicts nothing and is left out."""
    pieces: list[Tensor] = []
    positions: list[Tensor] = []
    wanted: list[Tensor] = []
    spans: list[Span] = []
    end = 0
    for prompt, completions in groups:
        prompt_start, end = end, end + len(prompt)
        starts = [end]
        pieces.append(prompt)
        positions.append(torch.arange(len(prompt)))
        for completion in completions:
            num_inputs = max(len(completion) - 1, 0)
            pieces.append(completion[:num_inputs])
            positions.append(len(prompt) + torch.arange(num_inputs))
            # Token 0 is predicted by the prompt's last position, token t > 0 by completion token t - 1.
            if len(completion):
                wanted.append(torch.cat([torch.tensor([starts[0] - 1]), end + torch.arange(num_inputs)]))
            end += num_inputs
            starts.append(end)
        spans.append(Span(prompt_start=prompt_start, starts=tuple(starts)))
    return PackedLayout(
        token_ids=torch.cat(pieces),
        positions=torch.cat(positions),
        spans=tuple(spans),
        wanted=torch.cat(wanted) if wanted else torch.empty(0, dtype=torch.long),
    )
