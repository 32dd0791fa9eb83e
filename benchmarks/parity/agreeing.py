"""The cases in which TRL and Covey agree as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from covey.algos.objective import Coefficients
from covey.token_choice import TokenChoice
from parity.case import Case, Ours, Theirs
from parity.fixture import ONE_TOKEN, TWO_PARTS

GRPO = {"loss_type": "grpo"}
DAPO = {"loss_type": "dapo"}
TOKEN_MEAN = {"aggregation": "token-mean"}
QUANTILE = GRPO | {"top_entropy_quantile": 0.2}
TOP_ENTROPY = TokenChoice(token_filter="top_entropy", filter_share=0.2)
SAMPLER_NOISE = 0.2


def agreeing_cases() -> Iterator[Case]:
    yield from loss_type_cases()
    yield from option_cases()


def loss_type_cases() -> Iterator[Case]:
    """Yield every loss of TRL that Covey has, with both importance ratios, without and with both of TRL's KL terms."""
    rows = {
        "grpo": Ours(row="grpo"),
        "dr_grpo": Ours(row="dr_grpo"),
        "dapo": Ours(row="dapo"),
        "bnpo": Ours(row="grpo", fields={"aggregation": "token-mean"}),
        "cispo": Ours(row="cispo"),
        "sapo": Ours(row="sapo"),
        "luspo": Ours(row="grpo", fields={"aggregation": "seq-mean-token-sum"}),
    }
    extra = {"dr_grpo": {"scale_rewards": "none"}, "dapo": {"epsilon_high": 0.28}, "cispo": {"epsilon_high": 1.28}}
    variants: list[tuple[str, bool, dict[str, Any], str]] = [
        ("token ratio", False, {}, "k3_loss"),
        ("token ratio, KL", False, {"beta": 0.1, "use_bias_correction_kl": False}, "k3_loss"),
        ("token ratio, weighted KL", False, {"beta": 0.1, "use_bias_correction_kl": True}, "weighted_k3_loss"),
        ("sequence ratio", True, {}, "k3_loss"),
        ("sequence ratio, KL", True, {"beta": 0.1, "use_bias_correction_kl": False}, "k3_loss"),
    ]
    # A completion's ratio is nearer to 1 than a token's, so its clip range is narrower, to clip some.
    narrow = {"cispo": {"epsilon_high": 1.05}, "sapo": {}}
    our_narrow = {"cispo": {"epsilon_high": 0.05}, "sapo": {}}
    for loss_type, ours in rows.items():
        for name, is_sequence, options, kl in variants:
            level: dict[str, Any] = {"importance_sampling_level": "sequence" if is_sequence else "token"}
            if is_sequence:
                level |= narrow.get(loss_type, {"epsilon": 0.05, "epsilon_high": 0.05})
            yield Case(
                table="loss types",
                name=f"{loss_type}: {name}",
                theirs=Theirs(options={"loss_type": loss_type} | extra.get(loss_type, {}) | level | options),
                ours=dataclasses.replace(
                    ours,
                    is_sequence_ratio=is_sequence,
                    options=our_narrow.get(loss_type, {"epsilon_low": 0.05, "epsilon_high": 0.05}) if is_sequence else {},
                    fields=dict(ours.fields) | {"kl": kl},
                    coefficients=Coefficients(beta=options.get("beta", 0.0)),
                ),
            )
    for name, beta in (("gmpo (trl.experimental)", 0.0), ("gmpo (trl.experimental): KL", 0.1)):
        yield Case(
            table="loss types",
            name=name,
            theirs=Theirs(trainer="gmpo", options={"beta": beta}),
            ours=Ours(row="gmpo", coefficients=Coefficients(beta=beta)),
        )


def option_cases() -> Iterator[Case]:
    """Yield TRL's other options that Covey has."""
    sequence, batch_scale = {"importance_sampling_level": "sequence"}, {"scale_rewards": "batch"}
    plain_kl = {"beta": 0.1, "use_bias_correction_kl": False}
    decoupled = {"multi_objective_aggregation": "normalize_then_sum"}
    seq_mean = {"aggregation": "seq-mean-token-mean"}
    both_sides = Ours(options={"epsilon_low": 0.1, "epsilon_high": 0.3})
    sapo = {"loss_type": "sapo", "sapo_temperature_pos": 0.8, "sapo_temperature_neg": 1.4}
    entropy_and_kl = Ours(choice=TOP_ENTROPY, coefficients=Coefficients(beta=0.1))
    cases: list[tuple[str, dict[str, Any], Ours, dict[str, Any]]] = [
        ("one update a batch (the ratio is 1)", GRPO, Ours(), {"is_on_policy": True}),
        ("epsilon 0.1, epsilon_high 0.3", GRPO | {"epsilon": 0.1, "epsilon_high": 0.3}, both_sides, {}),
        ("GSPO's epsilon 3e-4, 4e-4", GRPO | sequence | {"epsilon": 3e-4, "epsilon_high": 4e-4}, Ours(row="gspo"), {}),
        ("delta 1.5", GRPO | {"delta": 1.5}, Ours(options={"delta": 1.5}), {}),
        ("sapo_temperature 0.8, 1.4", sapo, Ours(row="sapo", options={"tau_positive": 0.8, "tau_negative": 1.4}), {}),
        ("scale_rewards batch", DAPO | batch_scale, Ours(row="batch_std"), {}),
        ("scale_rewards none", GRPO | {"scale_rewards": "none"}, Ours(row="dr_grpo", fields=seq_mean), {}),
        ("two rewards, sum_then_normalize", GRPO, Ours(), {"data": TWO_PARTS}),
        ("two rewards, normalize_then_sum (GDPO)", GRPO | decoupled, Ours(row="gdpo"), {"data": TWO_PARTS}),
        ("temperature 0.7", GRPO | {"temperature": 0.7}, Ours(temperature=0.7), {}),
        ("top_entropy_quantile 0.2, KL", QUANTILE | plain_kl, entropy_and_kl, {"is_on_policy": True}),
        ("entropy_coef 0.05", GRPO | {"entropy_coef": 0.05}, Ours(coefficients=Coefficients(entropy=0.05)), {}),
    ]
    for name, options, ours, fields in cases:
        yield Case(table="options", name=name, theirs=Theirs(options=options), ours=ours, **fields)
    for loss_type in ("grpo", "dr_grpo", "dapo"):
        row = Ours(row=loss_type, options={"epsilon_high": 0.2})
        scaling = {"scale_rewards": "none" if loss_type == "dr_grpo" else "group"}
        theirs = Theirs(options={"loss_type": loss_type} | scaling, num_micro_batches=4)
        yield Case(table="options", name=f"{loss_type} in 4 micro-batches", theirs=theirs, ours=row)
    for mode, correction in (("token_truncate", "tis_token"), ("sequence_truncate", "tis_sequence")):
        options = DAPO | {"vllm_importance_sampling_mode": mode, "vllm_importance_sampling_clip_max": 1.2}
        yield Case(
            table="options",
            name=f"vllm_importance_sampling_mode {mode}",
            theirs=Theirs(options=options, sampler_noise=SAMPLER_NOISE),
            ours=Ours(fields=TOKEN_MEAN, choice=TokenChoice(correction=correction, correction_high=1.2)),
        )
    # TRL standardises r_i minus the mean of the others, which is G/(G - 1) (r_i - mean r); Covey r_i - mean r.
    yield Case(
        table="options",
        name="RLOO, normalize_advantages, completions of one token",
        theirs=Theirs(trainer="rloo", options={"normalize_advantages": True, "beta": 0.0}),
        ours=Ours(row="reinforce_pp_baseline", options={"eps": 1e-4 * 3 / 4}),
        data=ONE_TOKEN,
    )
