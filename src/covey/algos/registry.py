"""The table of algorithms. A new one is its pure functions, one row here, a docs page and a golden test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from covey.algos.advantages import dr_grpo_advantages, grpo_advantages
from covey.algos.aggregate import Aggregation
from covey.algos.kl import k3
from covey.algos.ratios import token_log_ratio
from covey.algos.surrogates import Clip, clipped_surrogate


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicySpec:
    """How one algorithm turns rewards into a loss."""

    title: str
    paper: str
    formula: str
    """What the row computes, in plain text, with the names of the options in it."""
    advantage: Callable[..., Tensor]
    """(GroupStats, *, min_group_std, reward_range) -> [P, G]"""
    log_ratio: Callable[[Tensor, Tensor], Tensor] = token_log_ratio
    """(logprobs, old_logprobs) -> [B, T]"""
    surrogate: Callable[[Tensor, Tensor, Tensor, Clip], Tensor] = clipped_surrogate
    """(logprobs, log_ratio, advantages, clip) -> [B, T]"""
    kl: Callable[[Tensor, Tensor], Tensor] = k3
    """(logprobs, ref_logprobs) -> [B, T]; enters the loss with weight beta"""
    aggregation: Aggregation


ALGORITHMS: dict[str, PolicySpec] = {
    "grpo": PolicySpec(
        title="GRPO",
        paper="arXiv 2402.03300",
        formula=(
            "A_i = (r_i - mean r) / (std r + 1e-4), std with divisor G - 1;  w_t = pi(o_t) / pi_old(o_t);  "
            "L = 1/N sum_i 1/T_i sum_t [ -min(w_t A_i, clip(w_t, 1 - epsilon_low, 1 + epsilon_high) A_i) + beta k3_t ]"
        ),
        advantage=grpo_advantages,
        aggregation="seq-mean-token-mean",
    ),
    "dr_grpo": PolicySpec(
        title="Dr. GRPO",
        paper="arXiv 2503.20783",
        formula=(
            "A_i = r_i - mean r;  w_t = pi(o_t) / pi_old(o_t);  "
            "L = 1/(N max_new_tokens) sum_i sum_t "
            "[ -min(w_t A_i, clip(w_t, 1 - epsilon_low, 1 + epsilon_high) A_i) + beta k3_t ]"
        ),
        advantage=dr_grpo_advantages,
        aggregation="seq-mean-token-sum-norm",
    ),
}
