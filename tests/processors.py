"""The sampling distribution written a second time, by transformers' own logits processors, one position at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from covey.sampling import Sampling

SHAPES: dict[str, Sampling] = {
    "top_k": Sampling(top_k=5),
    "top_p": Sampling(top_p=0.6),
    "min_p": Sampling(min_p=0.2),
    "repetition_penalty": Sampling(repetition_penalty=1.3),
    "all": Sampling(temperature=0.7, top_k=20, top_p=0.9, min_p=0.05, repetition_penalty=1.2),
}
"""Each way to shape the distribution by itself, and all together so that each of them still removes something."""


def processors_of(sampling: Sampling) -> LogitsProcessorList:
    """Return what `generate` would process logits with."""
    found = LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        found.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    found.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k > 0:
        found.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        found.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0.0:
        found.append(MinPLogitsWarper(sampling.min_p))
    return found


def processed(logits: Tensor, token_ids: list[int], sampling: Sampling) -> Tensor:
    """Return one position's logits [V] as the processors leave them; `token_ids` are the tokens so far."""
    # Each token once: the penalty's gradient in transformers counts a token as often as it stands there.
    distinct: Any = torch.tensor([sorted(set(token_ids))])
    scores: Any = logits[None]
    return processors_of(sampling)(distinct, scores)[0]


def slow_distributions(model: PreTrainedModel, prompt: list[int], completion: list[int], sampling: Sampling) -> Tensor:
    """Return the log-probs [T, V] at each position of a completion. The token that is there never falls out."""
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    rows: list[Tensor] = []
    for position, token in enumerate(completion):
        seen = prompt + completion[:position]
        shaped = processed(logits[position], seen, sampling)
        unfiltered = processed(
            logits[position], seen, Sampling(temperature=sampling.temperature, repetition_penalty=sampling.repetition_penalty)
        )
        is_kept = ~shaped.isneginf()
        is_kept[token] = True
        rows.append(unfiltered.masked_fill(~is_kept, float("-inf")).log_softmax(dim=-1))
    return torch.stack(rows)
