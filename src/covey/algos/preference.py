"""Losses on pairs of completions, from the log-probs of whole completions [N] under policy and reference."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def preference_margin(
    chosen: Float[Tensor, "N"],
    rejected: Float[Tensor, "N"],
    ref_chosen: Float[Tensor, "N"],
    ref_rejected: Float[Tensor, "N"],
) -> Float[Tensor, "N"]:
    """Return (log pi - log pi_ref)(chosen) - (log pi - log pi_ref)(rejected)."""
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def dpo_loss(margin: Float[Tensor, "N"], *, pair_beta: float = 0.1) -> Float[Tensor, "N"]:
    """Return -log sigmoid(pair_beta margin): DPO (arXiv 2305.18290, eq. 7). Log-probs are summed over the completion."""
    return -torch.nn.functional.logsigmoid(pair_beta * margin)


def ipo_loss(margin: Float[Tensor, "N"], *, pair_beta: float = 0.1) -> Float[Tensor, "N"]:
    """Return (margin - 1/(2 pair_beta))^2: IPO (arXiv 2310.12036, eq. 17).

    The paper sums log-probs over the completion. Giving this function means over tokens is the variant of other
    libraries; both exist, and differ.
    """
    return (margin - 1 / (2 * pair_beta)) ** 2


def pair_slope(pair_loss: Callable[[Float[Tensor, "N"]], Float[Tensor, "N"]], margin: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    """Return -dl/dm: what raising the margin by one nat is worth.

    With it as the advantage of the chosen completion, and less it as that of the rejected one, the gradient of
    -A log pi is the gradient of the pair's loss, at the policy that the margin was measured with.
    """
    with torch.enable_grad():
        at = margin.detach().requires_grad_()
        (slope,) = torch.autograd.grad(pair_loss(at).sum(), at)
    return -slope
