"""How far the policy is from the engine and from the reference, before its first update on a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from covey.algos.kl import k1, k3
from covey.algos.mismatch import mismatch_metrics
from covey.algos.objective import kl_metrics
from covey.metrics import Metric
from covey.tensors import Batch, Tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class RowDistance:
    """One completion's distance from the reference."""

    kl: float
    """Sum of k1 over its tokens, in nats."""
    kl_max: float
    """k3 of its token that is farthest away."""
    kl_max_token: str
    """That token's text."""


def distance_metrics(batch: Batch, logprobs: Tensor, mask: Tensor) -> dict[str, Metric]:
    """Return the metrics of both distances over the tokens under the mask."""
    metrics: dict[str, Metric] = {}
    if batch.tokens.sampling_logprobs is not None:
        metrics |= mismatch_metrics(logprobs, batch.tokens.sampling_logprobs, mask)
    if batch.scores.ref_logprobs is not None:
        metrics |= kl_metrics(logprobs, batch.scores.ref_logprobs, mask)
    return metrics


def row_distances(
    tokens: Tokens, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, token_text: Callable[[int], str]
) -> list[RowDistance | None]:
    """Return the distance of each row [B] from the reference; None for a row without a token under the mask."""
    per_token = k3(logprobs, ref_logprobs).masked_fill(~mask, -torch.inf)
    per_row = torch.where(mask, k1(logprobs, ref_logprobs).double(), 0.0).sum(dim=1)
    found: list[RowDistance | None] = []
    for row, has_token in enumerate(mask.any(dim=1).tolist()):
        if not has_token:
            found.append(None)
            continue
        worst = int(per_token[row].argmax())
        text = token_text(int(tokens.completion_ids[row, worst]))
        found.append(RowDistance(kl=float(per_row[row]), kl_max=float(per_token[row, worst]), kl_max_token=text))
    return found
