"""The table of algorithms. A new one is its pure functions, one row here, a docs page and a golden test."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from covey.algos import advantages as group
from covey.algos import batch_advantages as batch
from covey.algos import surrogates
from covey.algos.aggregate import Aggregation
from covey.algos.ratios import sequence_log_ratio, token_log_ratio

DEFAULT_ALGORITHM = "grpo"


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicySpec:
    """How one algorithm turns rewards into a loss."""

    title: str
    paper: str
    advantage_formula: str
    """Plain text; options stand in it as {option}."""
    loss_formula: str
    """The loss of one token, l_t, likewise."""
    advantage: Callable[..., Tensor]
    """(GroupStats, *, options) -> [P, G]"""
    signal: Callable[..., Tensor] | None = None
    """(GroupStats) -> [P, 1]: which groups teach something. None = those with an advantage that is not 0; a row whose
    statistics span the batch has to say it, because there one group alone has no advantages."""
    log_ratio: Callable[[Tensor, Tensor, Tensor], Tensor] = token_log_ratio
    """(logprobs, old_logprobs, mask) -> [B, T]"""
    surrogate: Callable[..., Tensor] = surrogates.clipped_surrogate
    """(logprobs, log_ratio, advantages, mask, *, options) -> [B, T]"""
    aggregation: Aggregation
    kl: str = "k3_loss"
    """A row of KL_TERMS; it acts with weight beta."""
    whitens_tokens: bool = False
    """Whether the credit of all the step's tokens is normalised together."""
    needs_baseline: bool = False
    """Whether each group's prompt is answered greedily, too."""
    counts_successes: bool = False
    """Whether rewards are read as shares of success, so that a penalty must not be mixed into them."""
    reads_parts: bool = False
    """Whether it combines the parts of the reward itself."""
    clips_log_ratio: bool = False
    """Whether the epsilons bound log w and not w."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Where the row's options differ from its functions' own defaults."""

    @property
    def options(self) -> dict[str, Any]:
        """The row's options in the recipe with their defaults: what its advantage and surrogate take by keyword."""
        return _keywords(self.advantage) | _keywords(self.surrogate) | dict(self.defaults)

    @property
    def min_group_size(self) -> int:
        """How many completions a prompt needs before any of them can have an advantage."""
        return 1 if self.needs_baseline or self.signal is group.any_scored else 2

    def clip_range(self, options: Mapping[str, Any]) -> tuple[float, float]:
        """Return the ratios between which nothing is clipped."""
        low, high = options.get("epsilon_low", 1.0), options.get("epsilon_high", math.inf)
        return (math.exp(-low), math.exp(high)) if self.clips_log_ratio else (1 - low, 1 + high)

    @property
    def has_ratio(self) -> bool:
        """Whether it corrects for data that an older policy has sampled."""
        return self.surrogate is not surrogates.reinforce_surrogate

    @property
    def is_per_sequence(self) -> bool:
        """Whether the loss is one number for a completion, repeated over its tokens."""
        return self.log_ratio is sequence_log_ratio or self.surrogate is surrogates.gmpo_surrogate


def _keywords(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def keyword_arguments(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the options that the function takes."""
    return {name: options[name] for name in _keywords(function)}


_CLIP = "l_t = -min(w_t A, clip(w_t, 1 - {epsilon_low}, 1 + {epsilon_high}) A)"
_CENTRED = "A_i = r_i - mean r"
_STANDARDISED = "A_i = (r_i - mean r) / (std r + {eps}), std with divisor G - {ddof}"
_FLOOR = {"min_group_std": 0.01}

ALGORITHMS: dict[str, PolicySpec] = {
    "grpo": PolicySpec(
        title="GRPO",
        paper="arXiv 2402.03300",
        advantage_formula=_STANDARDISED,
        loss_formula=_CLIP,
        advantage=group.grpo_advantages,
        aggregation="seq-mean-token-mean",
        defaults=_FLOOR,
    ),
    "dr_grpo": PolicySpec(
        title="Dr. GRPO",
        paper="arXiv 2503.20783",
        advantage_formula=_CENTRED,
        loss_formula=_CLIP,
        advantage=group.dr_grpo_advantages,
        aggregation="seq-mean-token-sum-norm",
    ),
    "dapo": PolicySpec(
        title="DAPO",
        paper="arXiv 2503.14476",
        advantage_formula=_STANDARDISED,
        loss_formula=_CLIP,
        advantage=group.grpo_advantages,
        aggregation="token-mean",
        defaults=_FLOOR | {"epsilon_high": 0.28},
    ),
    "rloo": PolicySpec(
        title="RLOO",
        paper="arXiv 2402.14740",
        advantage_formula="A_i = r_i - mean of the other rewards = G/(G - 1) (r_i - mean r)",
        loss_formula=_CLIP,
        advantage=group.rloo_advantages,
        aggregation="seq-mean-token-sum",
        kl="k1_reward",
    ),
    "reinforce": PolicySpec(
        title="REINFORCE",
        paper="Williams 1992",
        advantage_formula="A_i = r_i",
        loss_formula="l_t = -A log pi(o_t)",
        advantage=group.raw_rewards,
        signal=group.any_scored,
        surrogate=surrogates.reinforce_surrogate,
        aggregation="seq-mean-token-sum",
        kl="k1_reward",
    ),
    "reinforce_pp": PolicySpec(
        title="REINFORCE++",
        paper="arXiv 2501.03262",
        advantage_formula="A_t = (R_t - mean R) / std R over all tokens of the step, R_t = r_i less what KL costs from t on",
        loss_formula=_CLIP,
        advantage=group.raw_rewards,
        signal=group.any_scored,
        aggregation="token-mean",
        kl="k1_reward",
        whitens_tokens=True,
    ),
    "reinforce_pp_baseline": PolicySpec(
        title="REINFORCE++-baseline",
        paper="arXiv 2501.03262",
        advantage_formula=(
            "a_i = r_i - mean r;  A_i = (a_i - mean a) / (std a + {eps}) over the step's {whiten_over}, divisor n - {ddof}"
        ),
        loss_formula=_CLIP,
        advantage=batch.reinforce_pp_baseline_advantages,
        signal=group.rewards_differ,
        aggregation="token-mean",
        kl="k2_loss",
    ),
    "remax": PolicySpec(
        title="ReMax",
        paper="arXiv 2310.10505",
        advantage_formula="A_i = r_i - r(greedy completion)",
        loss_formula="l_t = -A log pi(o_t)",
        advantage=group.remax_advantages,
        surrogate=surrogates.reinforce_surrogate,
        aggregation="seq-mean-token-sum",
        kl="k1_reward",
        needs_baseline=True,
    ),
    "opo": PolicySpec(
        title="OPO",
        paper="arXiv 2505.23585",
        advantage_formula="A_i = r_i - sum_j T_j r_j / sum_j T_j",
        loss_formula="l_t = -A log pi(o_t)",
        advantage=group.opo_advantages,
        surrogate=surrogates.reinforce_surrogate,
        aggregation="seq-mean-token-sum",
    ),
    "maxrl": PolicySpec(
        title="MaxRL",
        paper="arXiv 2602.02710",
        advantage_formula=(
            "A_i = (p_i - mean p) / mean p, p the reward moved to [0, 1];  all-fail groups get -1: {all_fail_correction}"
        ),
        loss_formula=_CLIP,
        advantage=group.maxrl_advantages,
        counts_successes=True,
        aggregation="seq-mean-token-sum-norm",
    ),
    "passk": PolicySpec(
        title="pass@k training",
        paper="arXiv 2508.10751",
        advantage_formula=(
            "rho = 1 - C(n-c, {k})/C(n, {k}), sigma = sqrt(rho (1 - rho));  A = (1 - rho)/sigma for a right answer, "
            "(1 - rho - C(n-c-1, {k}-1)/C(n-1, {k}-1))/sigma for a wrong one"
        ),
        loss_formula=_CLIP,
        advantage=group.passk_advantages,
        counts_successes=True,
        aggregation="seq-mean-token-mean",
    ),
    "passk_max": PolicySpec(
        title="best-of-group training",
        paper="arXiv 2503.19595",
        advantage_formula="A = (best - second best) / (std r + {eps}) for the best rollout, 0 for the others",
        loss_formula=_CLIP,
        advantage=group.passk_max_advantages,
        aggregation="seq-mean-token-mean",
    ),
    "batch_std": PolicySpec(
        title="group mean, batch deviation (Lite PPO)",
        paper="arXiv 2508.08221",
        advantage_formula="A_i = (r_i - mean r of the group) / (std of the step's rewards + {eps}), divisor n - {ddof}",
        loss_formula=_CLIP,
        advantage=batch.batch_std_advantages,
        signal=group.rewards_differ,
        aggregation="token-mean",
    ),
    "bnpo": PolicySpec(
        title="BNPO",
        paper="arXiv 2506.02864",
        advantage_formula=(
            "A_i = (p_i - x) / max(Beta(x; alpha, beta), {min_density}), x = mean p of the group, the Beta matched to all x"
        ),
        loss_formula=_CLIP,
        advantage=batch.bnpo_advantages,
        counts_successes=True,
        signal=group.rewards_differ,
        aggregation="seq-mean-token-mean",
    ),
    "gdpo": PolicySpec(
        title="GDPO",
        paper="arXiv 2601.05242",
        advantage_formula=(
            "z_k = (r_k - mean r_k) / (std r_k + {eps}) for each part k;  s = sum_k weight_k z_k;  "
            "A = (s - mean s) / (std s + {eps}) over the step, divisors n - {ddof}"
        ),
        loss_formula=_CLIP,
        advantage=batch.gdpo_advantages,
        reads_parts=True,
        signal=group.parts_differ,
        aggregation="seq-mean-token-mean",
    ),
    "gspo": PolicySpec(
        title="GSPO",
        paper="arXiv 2507.18071",
        advantage_formula=_STANDARDISED,
        loss_formula=_CLIP,
        advantage=group.grpo_advantages,
        log_ratio=sequence_log_ratio,
        aggregation="seq-mean-token-mean",
        defaults=_FLOOR | {"epsilon_low": 3e-4, "epsilon_high": 4e-4},
    ),
    "cispo": PolicySpec(
        title="CISPO",
        paper="arXiv 2506.13585",
        advantage_formula=_STANDARDISED,
        loss_formula="l_t = -stop_gradient[clip(w_t, 1 - {epsilon_low}, 1 + {epsilon_high})] A log pi(o_t)",
        advantage=group.grpo_advantages,
        surrogate=surrogates.cispo_surrogate,
        aggregation="token-mean",
        defaults=_FLOOR,
    ),
    "sapo": PolicySpec(
        title="SAPO",
        paper="arXiv 2511.20347",
        advantage_formula=_STANDARDISED,
        loss_formula="l_t = -(4/tau) sigmoid(tau (w_t - 1)) A, tau = {tau_positive} where A > 0, else {tau_negative}",
        advantage=group.grpo_advantages,
        surrogate=surrogates.sapo_surrogate,
        aggregation="seq-mean-token-mean",
        defaults=_FLOOR,
    ),
    "gmpo": PolicySpec(
        title="GMPO",
        paper="arXiv 2507.20673",
        advantage_formula=_STANDARDISED,
        loss_formula=(
            "l = -A exp(mean_t of log w_t clipped to [-{epsilon_low}, {epsilon_high}], from above where A > 0, from below "
            "where A < 0)"
        ),
        advantage=group.grpo_advantages,
        surrogate=surrogates.gmpo_surrogate,
        clips_log_ratio=True,
        aggregation="seq-mean-token-mean",
        defaults=_FLOOR,
    ),
}

OPTIONS: tuple[str, ...] = tuple(sorted({name for spec in ALGORITHMS.values() for name in spec.options}))
"""Every option that some row has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairSpec:
    """A row that learns from given data: it samples nothing, so that it has no reward, no groups and no guard."""

    title: str
    paper: str
    loss_formula: str
    """Plain text: the loss of one pair."""
    data: str
    """What it learns from, in words."""
    trains: Literal["reward model"]
    """What comes out, and with it which loop runs."""


PAIR_ALGORITHMS: dict[str, PairSpec] = {
    "bt": PairSpec(
        title="Bradley-Terry reward model",
        paper="Bradley and Terry 1952",
        loss_formula="l = -log sigmoid(s(x, chosen) - s(x, rejected) - margin), s(x, y) the score of completion y to prompt x",
        data="preference pairs",
        trains="reward model",
    ),
}
"""Rows with recipes of another schema: `covey.pairs_recipe`."""
