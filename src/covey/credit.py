"""From a step's rewards and scores to the credit of each token: the only place that knows in which order its parts act."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from covey.algos.credit import outcome_credit, whitened
from covey.algos.kl import k1, kl_to_go
from covey.algos.objective import Objective
from covey.algos.spec import keyword_arguments
from covey.metrics import Mean, Metric
from covey.tensors import Batch, Scores, Tokens


def selected_rows(objective: Objective, tokens: Tokens) -> list[int] | None:
    """Return the completions that the row learns from; None = all of them, as far as they are scored."""
    if not objective.spec.selects:
        return None
    chosen = _advantages(objective, tokens).reshape(-1) != 0
    return (tokens.completion_mask.any(dim=1) & chosen).nonzero()[:, 0].tolist()


def assign_credit(objective: Objective, tokens: Tokens, scores: Scores, *, kl_weight: float = 0.0) -> Batch:
    """Return the batch with its credit for each token.

    `kl_weight`: of the KL to the reference that is taken from the reward, token by token.
    """
    spec, mask = objective.spec, tokens.completion_mask
    advantages, margins = _advantages(objective, tokens), None
    if spec.selects:
        mask = mask & (advantages != 0).reshape(-1, 1)
    if spec.pair_loss is not None:
        marks, all_margins = advantages, pair_margins(advantages, scores, tokens)
        advantages = objective.pair_advantages(marks, all_margins)
        margins = all_margins[(marks != 0).any(dim=1)]
    penalty = None
    if kl_weight:
        assert scores.old_logprobs is not None
        assert scores.ref_logprobs is not None
        penalty = k1(scores.old_logprobs, scores.ref_logprobs)
    returns = None
    if spec.critic_credit is not None:
        assert scores.values is not None
        credit, returns = spec.critic_credit(
            advantages.reshape(-1).to(scores.values.dtype),
            None if penalty is None else kl_weight * penalty,
            scores.values,
            mask,
            tokens.is_truncated,
            **keyword_arguments(spec.critic_credit, objective.options),
        )
    else:
        credit = outcome_credit(advantages, mask)
        if penalty is not None:
            credit = credit - kl_weight * kl_to_go(penalty, tokens.completion_mask).to(credit.dtype)
    if spec.whitens_tokens:
        credit = whitened(credit, mask)
    return Batch(tokens=tokens, scores=scores, advantages=credit, mask=mask, returns=returns, margins=margins)


def pair_margins(marks: Float64[Tensor, "P G"], scores: Scores, tokens: Tokens) -> Float64[Tensor, "P"]:
    """Return (log pi - log pi_ref)(chosen) - (log pi - log pi_ref)(rejected), summed over tokens; 0 in groups without a pair.

    `marks`: 1 for the chosen completion of a group, -1 for the rejected one, 0 for others.
    """
    assert scores.old_logprobs is not None
    assert scores.ref_logprobs is not None
    gains = torch.where(tokens.completion_mask, scores.old_logprobs.double() - scores.ref_logprobs.double(), 0.0)
    return (marks * gains.sum(dim=1).reshape(marks.shape)).sum(dim=1)


def pair_metrics(objective: Objective, margins: Float[Tensor, "N"]) -> dict[str, Metric]:
    """Return the pairs' loss, their margin in nats, and how often the chosen completion has gained more than the rejected one.

    A margin of 0 counts as half, so that the initial policy is at 1/2.
    """
    losses, count = objective.pair_losses(margins), len(margins)
    right = (margins > 0).double() + 0.5 * (margins == 0)
    return {
        "pair/loss": Mean(float(losses.sum()), count),
        "pair/margin": Mean(float(margins.sum()), count),
        "pair/accuracy": Mean(float(right.sum()), count),
    }


def held_out_metrics(objective: Objective, batch: Batch) -> dict[str, Metric]:
    """Return how well completions are learnt that are not trained on: as pairs, or by their tokens' negative log-likelihood."""
    if batch.margins is not None:
        return pair_metrics(objective, batch.margins)
    assert batch.scores.old_logprobs is not None
    found = batch.scores.old_logprobs[batch.mask].double()
    return {"nll": Mean(-float(found.sum()), found.numel())}


def _advantages(objective: Objective, tokens: Tokens) -> Float64[Tensor, "P G"]:
    return objective.advantages(tokens.stats)[: tokens.num_groups]
