"""Which row and options compute what TRL's GRPO computes with its `loss_type` and the options around it."""

from __future__ import annotations

from dataclasses import dataclass

from covey.convert.draft import Draft


@dataclass(frozen=True, kw_only=True, slots=True)
class LossType:
    """A value of TRL's `loss_type`."""

    row: str
    aggregation: str
    note: str = ""

    @property
    def clips(self) -> bool:
        """Whether it is the clipped surrogate, which has a row for every scaling of rewards and for both ratios."""
        return self.row in ("grpo", "dapo")


LOSS_TYPES: dict[str, LossType] = {
    "grpo": LossType(row="grpo", aggregation="seq-mean-token-mean"),
    "dapo": LossType(row="dapo", aggregation="token-mean"),
    "dr_grpo": LossType(row="grpo", aggregation="seq-mean-token-sum-norm"),
    "bnpo": LossType(
        row="grpo",
        aggregation="token-mean",
        note="TRL's bnpo is a token mean over each micro-batch, this one over the whole update; Covey's bnpo is the paper's",
    ),
    "luspo": LossType(row="grpo", aggregation="seq-mean-token-sum"),
    "cispo": LossType(row="cispo", aggregation="token-mean"),
    "sapo": LossType(row="sapo", aggregation="seq-mean-token-mean"),
}

CORRECTIONS = {
    "token_truncate": "tis_token",
    "token_mask": "mask_token",
    "sequence_truncate": "tis_sequence",
    "sequence_mask": "mask_sequence",
}
"""Values of TRL's `vllm_importance_sampling_mode`."""

ROWS_WITH_FLOOR = ("grpo", "dapo", "gspo", "cispo", "sapo")
"""The rows that divide by a group's deviation, and so have `min_group_std`."""


def convert_algorithm(draft: Draft, updates_per_step: int) -> None:
    """Set the section [algorithm]."""
    name = draft.get("loss_type")
    if name not in LOSS_TYPES:
        draft.lose("loss_type", "Covey has no such loss; the recipe has Covey's default algorithm. Choose a row yourself")
        return
    loss = LOSS_TYPES[name]
    row = _convert_row(draft, loss)
    aggregation = loss.aggregation
    if row == "gspo" and not aggregation.startswith("seq-mean"):
        told = "with a ratio for each sequence, a mean over tokens weighs it by length; here it is a mean over sequences"
        draft.lose("loss_type", told)
        aggregation = "seq-mean-token-mean"
    draft.put("algorithm.aggregation", aggregation, of=["loss_type"], note=loss.note)
    if row in ROWS_WITH_FLOOR:
        draft.put("algorithm.min_group_std", 0.0, note="TRL scales up groups however alike their rewards are")
    _convert_clip(draft, row)
    _convert_kl(draft, updates_per_step)
    _convert_entropy(draft)
    if draft.get("use_vllm") and draft.get("vllm_importance_sampling_correction"):
        _convert_correction(draft)


def _convert_row(draft: Draft, loss: LossType) -> str:
    """Set the row and return its name."""
    is_per_sequence = draft.get("importance_sampling_level") == "sequence"
    scale = {True: "group", False: "none"}.get(draft.get("scale_rewards"), draft.get("scale_rewards"))
    is_per_part = draft.get("multi_objective_aggregation") == "normalize_then_sum"
    row, keys = loss.row, ["loss_type"]
    if loss.clips and is_per_sequence:
        row, keys = "gspo", ["loss_type", "importance_sampling_level"]
    elif loss.clips and is_per_part:
        row, keys = "gdpo", ["loss_type", "multi_objective_aggregation"]
    elif loss.clips and scale != "group":
        row, keys = {"none": "dr_grpo", "batch": "batch_std"}[scale], ["loss_type", "scale_rewards"]
    draft.put("algorithm.name", row, of=keys)
    if is_per_sequence and row != "gspo":
        draft.lose("importance_sampling_level", f"the row {row!r} has a ratio for each token")
    if is_per_part and row != "gdpo":
        draft.lose("multi_objective_aggregation", f"the row {row!r} takes the rewards as one sum; gdpo would normalise each")
    if scale != "group" and row not in ("gdpo", "dr_grpo", "batch_std"):
        draft.lose("scale_rewards", f"the row {row!r} divides by the deviation of the group")
    return row


def _convert_clip(draft: Draft, row: str) -> None:
    low = draft.get("epsilon")
    high = draft.get("epsilon_high") if draft.get("epsilon_high") is not None else low
    high_key = "epsilon_high" if draft.get("epsilon_high") is not None else "epsilon"
    if row == "sapo":
        draft.put("algorithm.tau_positive", draft.get("sapo_temperature_pos"), of=["sapo_temperature_pos"])
        draft.put("algorithm.tau_negative", draft.get("sapo_temperature_neg"), of=["sapo_temperature_neg"])
        return
    if row == "cispo":
        if high > 1:
            draft.put("algorithm.epsilon_high", high - 1, of=[high_key], note="TRL's is the cap itself, Covey's cap is 1 + it")
        else:
            draft.lose(high_key, f"in TRL's cispo it is the cap on the ratio, and {high} is no more than 1: set epsilon_high")
        draft.put("algorithm.epsilon_low", 1.0, of=["loss_type"], note="no lower bound")
        return
    draft.put("algorithm.epsilon_low", min(1.0, low), of=["epsilon"])
    draft.put("algorithm.epsilon_high", high, of=[high_key])
    if (delta := draft.get("delta")) is None:
        return
    if delta > 1 + high:
        draft.put("algorithm.delta", delta, of=["delta"])
    else:
        draft.lose("delta", f"it acts above 1 + epsilon_high = {1 + high} only")


def _convert_kl(draft: Draft, updates_per_step: int) -> None:
    beta = draft.get("beta")
    draft.put("algorithm.beta", beta, of=["beta"])
    if not beta:
        return
    is_weighted = draft.get("use_bias_correction_kl")
    draft.put("algorithm.kl", "weighted_k3_loss" if is_weighted else "k3_loss", of=["use_bias_correction_kl"])
    if is_weighted and draft.get("importance_sampling_level") == "sequence":
        draft.lose("use_bias_correction_kl", "the KL term is weighted by the ratio of each token, not of the sequence")
    if draft.get("sync_ref_model"):
        every = max(1, round(draft.get("ref_model_sync_steps") / updates_per_step))
        draft.put("algorithm.reference_every", every, of=["ref_model_sync_steps"], note="in steps, not updates")
        draft.put("algorithm.reference_mix", draft.get("ref_model_mixup_alpha"), of=["sync_ref_model", "ref_model_mixup_alpha"])


def _convert_entropy(draft: Draft) -> None:
    share = draft.get("top_entropy_quantile")
    if 0 < share < 1:
        draft.put("algorithm.token_filter", "top_entropy", of=["top_entropy_quantile"])
        draft.put("algorithm.filter_share", share, of=["top_entropy_quantile"])
    elif share == 0:
        draft.lose("top_entropy_quantile", "0 keeps a single token; give a share above 0 as algorithm.filter_share")
    if draft.get("entropy_coef") or draft.get("use_adaptive_entropy"):
        draft.put("algorithm.entropy_coefficient", draft.get("entropy_coef"), of=["entropy_coef"])
    if draft.get("use_adaptive_entropy"):
        draft.put("algorithm.entropy_target", draft.get("entropy_target"), of=["use_adaptive_entropy", "entropy_target"])
        draft.lose(
            "use_adaptive_entropy", "TRL leaves the bonus out while entropy is above the target; Covey lets it fall to 0"
        )


def _convert_correction(draft: Draft) -> None:
    mode = draft.get("vllm_importance_sampling_mode")
    low, high = draft.get("vllm_importance_sampling_clip_min"), draft.get("vllm_importance_sampling_clip_max")
    high_key = "vllm_importance_sampling_clip_max"
    if draft.get("vllm_importance_sampling_cap") is not None:
        high, high_key = draft.get("vllm_importance_sampling_cap"), "vllm_importance_sampling_cap"
    if mode not in CORRECTIONS or high is None:
        key = high_key if mode in CORRECTIONS else "vllm_importance_sampling_mode"
        draft.lose(key, "Covey corrects with an upper bound, by one of its rows; set algorithm.correction and correction_high")
        return
    draft.put("algorithm.correction", CORRECTIONS[mode], of=["vllm_importance_sampling_mode"])
    draft.put("algorithm.correction_high", high, of=[high_key])
    if mode.endswith("_truncate"):
        if low:
            draft.lose("vllm_importance_sampling_clip_min", "Covey truncates from above only")
    else:
        draft.put("algorithm.correction_low", low or 0.0, of=["vllm_importance_sampling_clip_min"])
