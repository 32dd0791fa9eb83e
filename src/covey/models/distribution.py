"""The distribution completions are sampled from, made from the model's logits: the engine draws from it, scoring scores it.

Dimension key: L positions, V vocabulary, R rows of T completion positions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from covey.sampling import Sampling

_NUM_CANDIDATES = 1024
"""How many of the likeliest tokens top-p looks at before it sorts a whole vocabulary: sorting costs several times more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """The tokens in front of L positions. Kept as the rows themselves: as [L, V] they would be as large as the logits."""

    prompts: Sequence[Int[Tensor, "_"]]
    """One per row."""
    completions: Int[Tensor, "R T"]
    places: Int[Tensor, "L 2"]
    """(row, position in the completion) of each position."""

    def split(self, size: int) -> list[History]:
        """Return the histories of `size` positions at a time."""
        return [dataclasses.replace(self, places=places) for places in self.places.split(size)]

    def seen(self, vocab_size: int) -> Bool[Tensor, "L V"]:
        """Return which tokens stand in the prompt, or in the completion before each position."""
        rows, positions = self.places.unbind(dim=1)
        seen = torch.zeros(len(rows), vocab_size, dtype=torch.bool, device=rows.device)
        # A completion's token t is seen from position t + 1 on, the prompt's tokens from position 0 on.
        starts = torch.arange(1, self.completions.shape[1] + 1, device=rows.device)
        for row in rows.unique().tolist():
            seen_from = torch.full((vocab_size,), self.completions.shape[1] + 1, device=rows.device)
            seen_from.scatter_reduce_(0, self.completions[row].to(rows.device), starts, "amin")
            seen_from[self.prompts[row].to(rows.device)] = 0
            inside = rows == row
            seen[inside] = seen_from <= positions[inside, None]
        return seen


def shape_logits(
    logits: Float[Tensor, "L V"],
    sampling: Sampling,
    *,
    seen: Bool[Tensor, "L V"] | None = None,
    keep: Int[Tensor, "L"] | None = None,
) -> Float[Tensor, "L V"]:
    """Return logits, at least float32, whose softmax is the sampling distribution; tokens outside have -inf.

    In the order of transformers' `generate`: repetition penalty (arXiv 1909.05858, section 4.1), temperature, top-k,
    top-p (arXiv 1904.09751), min-p (arXiv 2407.01082). Greedy decoding, at temperature 0, takes the penalty alone: its
    distribution is the one at temperature 1.

    `seen`: the tokens so far, prompt included; needed, and read, only with a repetition penalty.
    `keep`: a token of each position that no filter removes. Scoring gives the token that was sampled: rounding, or an
    update of the weights, may have put it just outside, where its log-prob would be -inf.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if sampling.repetition_penalty != 1.0:
        assert seen is not None, "a repetition penalty needs the tokens seen so far"
        logits = torch.where(seen, penalised(logits, sampling.repetition_penalty), logits)
    if sampling.is_greedy:
        return logits
    logits = logits / sampling.temperature
    if not sampling.is_filtered:
        return logits
    with torch.no_grad():
        removed = logits < smallest_kept(logits, sampling)
        if keep is not None:
            removed.scatter_(1, keep[:, None], False)
    return logits.masked_fill(removed, -math.inf)


def entropy_of(logprobs: Float[Tensor, "L V"]) -> Float[Tensor, "L"]:
    """Return -sum p log p, with 0 log 0 = 0 and finite gradients for tokens outside the distribution."""
    return -(logprobs.exp() * logprobs.masked_fill(logprobs.isneginf(), 0.0)).sum(dim=-1)


def penalised(logits: Float[Tensor, "L V"], penalty: float) -> Float[Tensor, "L V"]:
    """Return negative logits times the penalty, the others divided by it."""
    return torch.where(logits < 0, logits * penalty, logits / penalty)


def smallest_kept(logits: Float[Tensor, "L V"], sampling: Sampling) -> Float[Tensor, "L 1"]:
    """Return the smallest logit that passes top-k, then top-p, then min-p.

    All three keep the likeliest tokens, so one number per position says which. Tokens equal to it are all kept: the kept
    set depends on the logits alone, not on the order in which equal ones were sorted.
    """
    smallest = logits.new_full((len(logits), 1), -math.inf)
    if sampling.top_k > 0:
        smallest = logits.topk(min(sampling.top_k, logits.shape[1])).values[:, -1:]
    if sampling.top_p < 1.0:
        smallest = smallest_in_top_p(logits.masked_fill(logits < smallest, -math.inf), sampling.top_p)
    if sampling.min_p > 0.0:
        smallest = torch.maximum(smallest, logits.amax(dim=1, keepdim=True) + math.log(sampling.min_p))
    return smallest


def smallest_in_top_p(
    logits: Float[Tensor, "L V"], top_p: float, *, num_candidates: int = _NUM_CANDIDATES
) -> Float[Tensor, "L 1"]:
    """Return the smallest logit of the nucleus: a token is in it if those before it, by probability, sum to less than top_p."""
    num_candidates = min(num_candidates, logits.shape[1])
    ordered = logits.topk(num_candidates).values
    probabilities = (ordered - logits.logsumexp(dim=1, keepdim=True)).double().exp()
    sum_before = probabilities.cumsum(dim=1) - probabilities
    num_kept = (sum_before < top_p).sum(dim=1, keepdim=True)
    smallest = ordered.gather(1, (num_kept - 1).clamp(min=0))
    if num_candidates < logits.shape[1]:
        # Nothing was left out of these rows: the nucleus may go on behind the candidates.
        is_open = (num_kept == num_candidates)[:, 0]
        if bool(is_open.any()):
            smallest[is_open] = smallest_in_top_p(logits[is_open], top_p, num_candidates=logits.shape[1])
    return smallest
