"""One optimizer step: objective, backward, clip, step. Knows no algorithm by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from covey.algos.aggregate import StepTotals
from covey.algos.credit import outcome_credit
from covey.algos.kl import k3
from covey.algos.objective import Objective, masked_mean, policy_loss
from covey.metrics import Max, Mean, Metric, Sum, merge_metrics
from covey.models.scoring import Pack, plan_micro_batches, plan_packs, score_completions
from covey.tensors import Batch, Scores, Tokens
from covey.types import CoveyError


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringSpec:
    """How completions are scored under a model."""

    temperature: float
    compute_dtype: torch.dtype
    max_tokens_per_micro_batch: int
    max_shared_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerSpec:
    """The optimizer's numbers."""

    learning_rate: float
    warmup_steps: int
    num_steps: int
    decay: bool
    """Whether the learning rate falls linearly, to 0 after `num_steps` updates, or stays."""
    max_grad_norm: float
    weight_decay: float
    max_new_tokens: int


class Learner:
    """Holds the optimizer and turns a Batch into one update of the model."""

    def __init__(self, model: PreTrainedModel, objective: Objective, scoring: ScoringSpec, spec: LearnerSpec):
        self.model = model
        self.objective = objective
        self.scoring = scoring
        self.spec = spec
        self.optimizer = torch.optim.AdamW(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            lr=spec.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=spec.weight_decay,
            fused=True,
        )
        self.num_updates = 0

    def learning_rate(self) -> float:
        """Return the rate of the next update: linear warm-up, then constant or falling, to 0 after `num_steps` updates."""
        update = self.num_updates + 1
        warmup = min(1.0, update / max(1, self.spec.warmup_steps))
        left = (self.spec.num_steps - update + 1) / max(1, self.spec.num_steps - self.spec.warmup_steps)
        return self.spec.learning_rate * warmup * (min(1.0, max(0.0, left)) if self.spec.decay else 1.0)

    def make_batch(self, tokens: Tokens, scores: Scores) -> Batch:
        """Return the batch with its advantages: [P, G] from the group statistics, then one for each token."""
        objective = self.objective
        advantages = objective.spec.advantage(
            tokens.stats, min_group_std=objective.min_group_std, reward_range=objective.reward_range
        )
        return Batch(tokens=tokens, scores=scores, advantages=outcome_credit(advantages, tokens.completion_mask))

    def update(self, batch: Batch, *, progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Metric]:
        """Make one optimizer step on the whole batch, however it is cut, and return the step's metrics.

        A batch in which nothing can move the weights makes no step at all (momentum alone would move them) and has no
        metrics.

        Raises:
            CoveyError: the gradient is not finite; weights and optimizer are untouched.
        """
        if not rows_with_gradient(batch, has_kl=self.objective.beta != 0.0):
            return {}
        self.optimizer.zero_grad(set_to_none=True)
        metrics = self.accumulate_gradient(batch, progress=progress)
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.spec.max_grad_norm))
        if not math.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise CoveyError(
                f"the norm of the gradient is {norm}: training has diverged, and this update was not made. Resume from the "
                "last checkpoint, or start again with a lower train.learning_rate"
            )
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.num_updates += 1
        return metrics | {"grad/norm": Mean(norm, 1), "optimizer/lr": Mean(rate, 1)}

    def accumulate_gradient(
        self, batch: Batch, *, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> dict[str, Metric]:
        """Add the gradient of the step's loss to the parameters, micro-batch by micro-batch, and return merged metrics."""
        mask = batch.tokens.completion_mask
        # Counted once over the whole step: a count per micro-batch would weigh tokens by how the step was cut.
        totals = StepTotals(
            num_sequences=int(mask.any(dim=1).sum()),
            num_tokens=int(mask.sum()),
            max_length=self.spec.max_new_tokens,
        )
        micro_batches = self._plan(batch.tokens, rows_with_gradient(batch, has_kl=self.objective.beta != 0.0))
        pieces: list[dict[str, Metric]] = []
        for done, packs in enumerate(micro_batches, start=1):
            pieces.append(self._backward(batch, packs, totals))
            progress(done, len(micro_batches))
        return merge_metrics(pieces)

    def _backward(self, batch: Batch, packs: Sequence[Pack], totals: StepTotals) -> dict[str, Metric]:
        rows = torch.tensor([row for pack in packs for row in pack.rows])
        mask = batch.tokens.completion_mask[rows]
        scores = score_completions(
            self.model,
            batch.tokens,
            packs,
            temperature=self.scoring.temperature,
            compute_dtype=self.scoring.compute_dtype,
        )
        output = policy_loss(
            self.objective,
            logprobs=scores.logprobs,
            old_logprobs=_rows(batch.scores.old_logprobs, rows),
            ref_logprobs=_rows(batch.scores.ref_logprobs, rows),
            advantages=batch.advantages[rows],
            mask=mask,
            totals=totals,
        )
        output.loss.backward()
        metrics = output.metrics | {
            "entropy/mean": masked_mean(scores.entropy, mask),
            "tokens/trained": Sum(int(mask.sum())),
        }
        if batch.tokens.sampling_logprobs is not None:
            metrics |= mismatch_metrics(scores.logprobs.detach(), batch.tokens.sampling_logprobs[rows], mask)
        return metrics

    def score(self, model: PreTrainedModel, tokens: Tokens) -> Tensor:
        """Return the frozen log-probs [B, T] of all completions under `model`, laid out as in the update."""
        rows_with_tokens = tokens.completion_mask.any(dim=1).nonzero()[:, 0].tolist()
        logprobs = torch.zeros(tokens.completion_ids.shape)
        with torch.no_grad():
            for micro_batch in self._plan(tokens, rows_with_tokens):
                rows = torch.tensor([row for pack in micro_batch for row in pack.rows])
                scores = score_completions(
                    model,
                    tokens,
                    micro_batch,
                    temperature=self.scoring.temperature,
                    compute_dtype=self.scoring.compute_dtype,
                )
                logprobs[rows] = scores.logprobs.to(logprobs.dtype)
        return logprobs

    def _plan(self, tokens: Tokens, rows: Sequence[int]) -> list[list[Pack]]:
        packs = plan_packs(tokens, rows, max_shared_tokens=self.scoring.max_shared_tokens)
        return plan_micro_batches(packs, max_tokens=self.scoring.max_tokens_per_micro_batch)


def rows_with_gradient(batch: Batch, *, has_kl: bool) -> list[int]:
    """Return the rows that can move the weights: trained tokens, and an advantage that is not exactly zero or a KL term."""
    is_wanted = batch.tokens.completion_mask.any(dim=1) & (has_kl | (batch.advantages != 0).any(dim=1))
    return is_wanted.nonzero()[:, 0].tolist()


def mismatch_metrics(logprobs: Tensor, sampling_logprobs: Tensor, mask: Tensor) -> dict[str, Metric]:
    """Return how far the engine's log-probs are from the trainer's for the same tokens under the same weights."""
    difference = (logprobs - sampling_logprobs).abs()
    return {
        "mismatch/abs_mean": masked_mean(difference, mask),
        "mismatch/max": Max(float(difference[mask].max())),
        "mismatch/k3": masked_mean(k3(sampling_logprobs, logprobs), mask),
        "mismatch/ratio_mean": masked_mean((logprobs - sampling_logprobs).clamp(-20, 20).exp(), mask),
    }


def _rows(values: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if values is None else values[rows]
