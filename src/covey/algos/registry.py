"""The table of algorithms. A new one is its pure functions, one row here, a docs page and a golden test."""

from __future__ import annotations

from covey.algos import advantages as group
from covey.algos import batch_advantages as batch
from covey.algos import selection, surrogates
from covey.algos.critic import ppo_credit
from covey.algos.preference import dpo_loss, ipo_loss
from covey.algos.ratios import sequence_log_ratio
from covey.algos.spec import PairSpec, PolicySpec

DEFAULT_ALGORITHM = "grpo"


_CLIP = "l_t = -min(w_t A, clip(w_t, 1 - {epsilon_low}, 1 + {epsilon_high}) A)"
_CENTRED = "A_i = r_i - mean r"
_STANDARDISED = "A_i = (r_i - mean r) / (std r + {eps}), std with divisor G - {ddof}"
_SELECTED = "completions with a reward of at least {threshold} of its range are trained on, the others left out"
_PAIR = (
    "m = log pi/pi_0 (chosen) - log pi/pi_0 (rejected): the best and the worst completion of a group, log-probs summed over "
    "tokens, pi_0 the initial policy"
)
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
    "ppo": PolicySpec(
        title="PPO",
        paper="arXiv 1707.06347",
        advantage_formula=(
            "A_t = sum_l ({gamma} {lam})^l delta_(t+l), delta_t = r_t + {gamma} V_(t+1) - V_t, r_t = 0 but the reward at the "
            "end;  then normalised over all tokens of the step"
        ),
        loss_formula=_CLIP,
        advantage=group.raw_rewards,
        signal=group.any_scored,
        critic_credit=ppo_credit,
        aggregation="token-mean",
        kl="k1_reward",
        whitens_tokens=True,
        defaults={"critic": "separate", "critic_learning_rate": 1e-5, "value_epsilon": 0.2},
    ),
    "raft": PolicySpec(
        title="RAFT (rejection sampling)",
        paper="arXiv 2304.06767",
        advantage_formula=_SELECTED,
        loss_formula="l_t = -log pi(o_t)",
        advantage=selection.successes,
        surrogate=surrogates.reinforce_surrogate,
        aggregation="token-mean",
        selects=True,
        compares_group=False,
    ),
    "sft": PolicySpec(
        title="SFT on verified or given completions",
        paper="arXiv 2308.01825",
        advantage_formula=_SELECTED,
        loss_formula="l_t = -log pi(o_t), o sampled from the initial policy, or given",
        advantage=selection.successes,
        surrogate=surrogates.reinforce_surrogate,
        aggregation="token-mean",
        samples_from="reference",
        selects=True,
        compares_group=False,
    ),
    "dpo": PolicySpec(
        title="DPO",
        paper="arXiv 2305.18290",
        advantage_formula=_PAIR,
        loss_formula="l = -log sigmoid({pair_beta} m), pairs sampled from the initial policy, or given",
        advantage=selection.best_and_worst,
        surrogate=surrogates.reinforce_surrogate,
        aggregation="seq-mean-token-sum",
        samples_from="reference",
        selects=True,
        pair_loss=dpo_loss,
    ),
    "ipo": PolicySpec(
        title="IPO",
        paper="arXiv 2310.12036",
        advantage_formula=_PAIR,
        loss_formula="l = (m - 1/(2 {pair_beta}))^2, pairs sampled from the initial policy, or given",
        advantage=selection.best_and_worst,
        surrogate=surrogates.reinforce_surrogate,
        aggregation="seq-mean-token-sum",
        samples_from="reference",
        selects=True,
        pair_loss=ipo_loss,
    ),
    "online_dpo": PolicySpec(
        title="online DPO",
        paper="arXiv 2402.04792",
        advantage_formula=_PAIR,
        loss_formula="l = -log sigmoid({pair_beta} m), pairs sampled from the policy",
        advantage=selection.best_and_worst,
        surrogate=surrogates.reinforce_surrogate,
        aggregation="seq-mean-token-sum",
        selects=True,
        pair_loss=dpo_loss,
    ),
}

OPTIONS: tuple[str, ...] = tuple(sorted({name for spec in ALGORITHMS.values() for name in spec.options}))
"""Every option that some row has."""


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
