"""Which tokens of a step are trained on, and with what weight: corrections and filters, over the whole step at once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from covey.algos.filters import clip_cov_mask, kl_cov_mask, top_entropy_mask
from covey.algos.mismatch import CORRECTIONS
from covey.metrics import Mean, Metric
from covey.sampling import stream_key
from covey.tensors import Batch


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenChoice:
    """A correction of engine against trainer and a token filter, with their numbers."""

    correction: str = "none"
    correction_low: float = 0.0
    correction_high: float = 0.0
    token_filter: str = "none"
    filter_share: float = 0.0

    @property
    def is_active(self) -> bool:
        """Whether the policy's own scores are needed before the update."""
        return self.correction != "none" or self.token_filter != "none"

    def apply(self, batch: Batch, *, seed: int, step: int) -> Batch:
        """Return the batch with weights for its tokens; what the correction rejects has left its mask.

        A token that a filter takes the gradient from stays in the denominators, as in the filters' papers.
        """
        return _FILTERS[self.token_filter](self._corrected(batch), self.filter_share, stream_key(seed, "filter", step))

    def metrics(self, batch: Batch) -> dict[str, Metric]:
        """Return what share of the completions' tokens the correction rejects, and the filter chooses."""
        completion_mask = batch.tokens.completion_mask
        found: dict[str, Metric] = {}
        num_tokens = float(completion_mask.sum())
        if self.correction != "none":
            found["mismatch/rejected_frac"] = Mean(float((completion_mask & ~batch.mask).sum()), num_tokens)
        if self.token_filter != "none":
            without = torch.zeros_like(batch.mask) if batch.token_weights is None else batch.token_weights == 0
            chosen = without if batch.held_back is None else batch.held_back
            found["filter/chosen_frac"] = Mean(float((chosen & batch.mask).sum()), num_tokens)
        return found

    def _corrected(self, batch: Batch) -> Batch:
        if self.correction == "none":
            return batch
        old, sampling = batch.scores.old_logprobs, batch.tokens.sampling_logprobs
        assert old is not None
        assert sampling is not None
        row = CORRECTIONS[self.correction]
        weights = row.weights(old, sampling, batch.mask, low=self.correction_low, high=self.correction_high)
        return dataclasses.replace(batch, token_weights=weights, mask=batch.mask & (weights > 0))


def _keep_all(batch: Batch, share: float, key: int) -> Batch:
    return batch


def _keep_top_entropy(batch: Batch, share: float, key: int) -> Batch:
    assert batch.scores.entropy is not None
    return _weigh(batch, top_entropy_mask(batch.scores.entropy, batch.mask, share=share))


def _clip_cov(batch: Batch, share: float, key: int) -> Batch:
    assert batch.scores.old_logprobs is not None
    generator = torch.Generator().manual_seed(key % 2**63)
    numbers = torch.rand(batch.mask.shape, generator=generator)
    return _weigh(batch, ~clip_cov_mask(batch.scores.old_logprobs, batch.advantages, batch.mask, numbers, share=share))


def _kl_cov(batch: Batch, share: float, key: int) -> Batch:
    assert batch.scores.old_logprobs is not None
    return dataclasses.replace(
        batch, held_back=kl_cov_mask(batch.scores.old_logprobs, batch.advantages, batch.mask, share=share)
    )


def _weigh(batch: Batch, kept: Tensor) -> Batch:
    weights = kept.to(torch.float32)
    return dataclasses.replace(batch, token_weights=weights if batch.token_weights is None else batch.token_weights * weights)


_FILTERS = {"none": _keep_all, "top_entropy": _keep_top_entropy, "clip_cov": _clip_cov, "kl_cov": _kl_cov}
