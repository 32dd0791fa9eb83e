"""The cases in which TRL and Covey differ by design, each with an adjustment after which they agree."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from covey.algos.objective import Coefficients
from covey.token_choice import TokenChoice
from parity.agreeing import DAPO, GRPO, QUANTILE, SAMPLER_NOISE, TOKEN_MEAN, TOP_ENTROPY
from parity.case import Case, Ours, Theirs
from parity.fixture import (
    CRUMBS,
    FLAT,
    FLAT_EXACT,
    NUM_TOKENS,
    NUM_WHOLE,
    ONE_TOKEN,
    REWARDS,
    SHIFTED,
    STANDARD,
    UNSCORED,
    B,
    sampler_noise,
    with_rewards,
)
from parity.report import QUANTITIES

KEPT = (0.8, 1.25)  # The engine's ratios that are not rejected.


def differing_cases() -> Iterator[Case]:
    yield from micro_batch_cases()
    yield from span_cases()
    yield from left_out_cases()
    yield from meaning_cases()
    yield from number_cases()
    yield from sequence_cases()


def by_design(name: str, **fields: Any) -> Case:
    return Case(table="by design", name=name, **fields)


def micro_batch_cases() -> Iterator[Case]:
    """Yield cases that differ by whether a micro-batch or a step is divided by or chosen from."""
    bnpo, entropy = {"loss_type": "bnpo"}, GRPO | {"entropy_coef": 0.05}
    yield by_design(
        "bnpo in 4 micro-batches",
        theirs=Theirs(options=bnpo, num_micro_batches=4),
        ours=Ours(fields=TOKEN_MEAN),
        why="TRL divides each micro-batch by its own tokens; Covey every one by the step's",
        adjustment="TRL with one micro-batch",
        adjusted={"theirs": Theirs(options=bnpo)},
    )
    yield by_design(
        "entropy_coef in 4 micro-batches",
        theirs=Theirs(options=entropy, num_micro_batches=4),
        ours=Ours(coefficients=Coefficients(entropy=0.05)),
        why="TRL's bonus is a mean of each micro-batch's token mean; Covey's is the step's token mean",
        adjustment="TRL with one micro-batch",
        adjusted={"theirs": Theirs(options=entropy)},
    )
    yield by_design(
        "top_entropy_quantile in 4 micro-batches",
        theirs=Theirs(options=QUANTILE, num_micro_batches=4),
        ours=Ours(choice=TOP_ENTROPY),
        is_on_policy=True,
        why="TRL takes the quantile over each micro-batch; Covey over the step",
        adjustment="TRL with one micro-batch",
        adjusted={"theirs": Theirs(options=QUANTILE)},
    )


def span_cases() -> Iterator[Case]:
    """Yield cases that differ by which policy's tokens are chosen from, or which step's are divided by."""
    yield by_design(
        "top_entropy_quantile after an update",
        theirs=Theirs(options=QUANTILE),
        ours=Ours(choice=TOP_ENTROPY),
        why="TRL takes the entropy of the policy that is updated; Covey of the policy that sampled, once for all updates",
        adjustment="before the first update, where the two are one",
        adjusted={"is_on_policy": True},
    )
    finer = TokenChoice(token_filter="top_entropy", filter_share=0.35)
    yield by_design(
        "top_entropy_quantile 0.35",
        theirs=Theirs(options=GRPO | {"top_entropy_quantile": 0.35}),
        ours=Ours(choice=finer),
        is_on_policy=True,
        why=f"35% of {NUM_TOKENS} tokens are {0.35 * NUM_TOKENS:.1f}: TRL's interpolated quantile keeps 44, Covey rounds up",
        adjustment="Covey's filter_share 0.349",
        adjusted={"ours": Ours(choice=dataclasses.replace(finer, filter_share=0.349))},
    )
    first = sum(len(ids) for ids in STANDARD.completions[: B // 2])
    halves = Theirs(options=DAPO, steps_per_generation=2)
    yield by_design(
        "dapo, 2 optimizer steps a generation",
        theirs=halves,
        ours=Ours(fields=TOKEN_MEAN, num_groups=2),
        why=f"TRL divides by the mean tokens of a step, {NUM_TOKENS / 2:g}; Covey by the step's own, {first}",
        adjustment=f"TRL's loss times {NUM_TOKENS / 2:g}/{first}",
        adjusted={"theirs": dataclasses.replace(halves, scale=NUM_TOKENS / 2 / first)},
    )


def kept_after_correction(rho_of: Any) -> int:
    """Return how many of the engine's ratios, one for each item that `rho_of` yields, are within KEPT."""
    noise = sampler_noise(STANDARD, SAMPLER_NOISE)
    return sum(KEPT[0] <= math.exp(-value) <= KEPT[1] for row in noise for value in rho_of(row))


def left_out_cases() -> Iterator[Case]:
    """Yield cases that differ by whether what is left out is counted."""
    yield by_design(
        "mask_truncated_completions",
        theirs=Theirs(options=GRPO | {"mask_truncated_completions": True}),
        ours=Ours(masks_truncated=True),
        differs=QUANTITIES,
        why="TRL counts the rewards of masked completions in their group, and the completions in N; Covey leaves them out",
        adjustment=f"their rewards None in TRL, too, and its loss times N = {B}/{NUM_WHOLE}",
        adjusted={
            "data": with_rewards(tuple(None if STANDARD.is_truncated(row) else REWARDS[row] for row in range(B))),
            "theirs": Theirs(options=GRPO | {"mask_truncated_completions": True}, scale=B / NUM_WHOLE),
        },
    )
    yield by_design(
        "a reward that could not be computed",
        theirs=Theirs(options=GRPO),
        ours=Ours(),
        data=UNSCORED,
        why="the completion has no advantage in either; TRL counts it in N, Covey does not",
        adjustment=f"TRL's loss times N = {B}/{B - 1}",
        adjusted={"theirs": Theirs(options=GRPO, scale=B / (B - 1))},
    )
    tokens = kept_after_correction(lambda row: row)
    sequences = kept_after_correction(lambda row: [sum(row)])
    for mode, correction, theirs, fields, kept, total in (
        ("token_mask", "mask_token", DAPO, TOKEN_MEAN, tokens, NUM_TOKENS),
        ("sequence_mask", "mask_sequence", GRPO, {}, sequences, B),
    ):
        options = theirs | {
            "vllm_importance_sampling_mode": mode,
            "vllm_importance_sampling_clip_min": KEPT[0],
            "vllm_importance_sampling_clip_max": KEPT[1],
        }
        corrected = Theirs(options=options, sampler_noise=SAMPLER_NOISE)
        yield by_design(
            f"vllm_importance_sampling_mode {mode}",
            theirs=corrected,
            ours=Ours(
                fields=fields, choice=TokenChoice(correction=correction, correction_low=KEPT[0], correction_high=KEPT[1])
            ),
            why="what the correction rejects stays in TRL's denominator and leaves Covey's",
            adjustment=f"TRL's loss times {total}/{kept}",
            adjusted={"theirs": dataclasses.replace(corrected, scale=total / kept)},
        )


def meaning_cases() -> Iterator[Case]:
    """Yield cases that differ by what an option or its absence means."""
    yield by_design(
        "cispo, epsilon_high 1.28 in both",
        theirs=Theirs(options={"loss_type": "cispo", "epsilon_high": 1.28}),
        ours=Ours(row="cispo", options={"epsilon_high": 1.28}),
        why="TRL's epsilon_high is the cap itself; Covey's cap is 1 + epsilon_high, as in the paper",
        adjustment="Covey's epsilon_high 0.28",
        adjusted={"ours": Ours(row="cispo", options={"epsilon_high": 0.28})},
    )
    yield by_design(
        "beta 0.1 and no word on the term",
        theirs=Theirs(options=GRPO | {"beta": 0.1}),
        ours=Ours(coefficients=Coefficients(beta=0.1)),
        why="by default TRL weighs the KL term by the ratio (use_bias_correction_kl); Covey's row grpo does not",
        adjustment='Covey\'s kl = "weighted_k3_loss"',
        adjusted={"ours": Ours(coefficients=Coefficients(beta=0.1), fields={"kl": "weighted_k3_loss"})},
    )
    yield by_design(
        "bnpo by name",
        theirs=Theirs(options={"loss_type": "bnpo"}),
        ours=Ours(row="bnpo"),
        differs=QUANTITIES,
        why="TRL's bnpo is an aggregation, the token mean; Covey's row is the paper's, with Beta-normalised advantages",
        adjustment='Covey\'s row grpo with aggregation "token-mean"',
        adjusted={"ours": Ours(fields=TOKEN_MEAN)},
    )


def number_cases() -> Iterator[Case]:
    """Yield cases that differ by how numbers are guarded."""
    yield by_design(
        "a group with rewards 0.498 to 0.502",
        theirs=Theirs(options=GRPO),
        ours=Ours(options={"min_group_std": 0.01}),
        data=CRUMBS,
        differs=QUANTITIES,
        why="Covey's default min_group_std = 0.01 keeps crumbs of reward from being scaled to full size",
        adjustment="min_group_std = 0",
        adjusted={"ours": Ours()},
    )
    yield by_design(
        "a group of 8 equal rewards, 0.9",
        theirs=Theirs(options=GRPO),
        ours=Ours(),
        data=FLAT,
        differs=QUANTITIES,
        why="the mean of 8 times 0.9 is not 0.9 in float32, and TRL divides the rest by 1e-4; Covey gives exactly 0",
        adjustment="8 equal rewards of 0.5, whose mean is exact",
        adjusted={"data": FLAT_EXACT},
    )
    yield by_design(
        "an old log-prob 25 too low",
        theirs=Theirs(options=GRPO),
        ours=Ours(),
        data=SHIFTED,
        why="Covey clamps the log-ratio to [-20, 20] before the exponential; TRL does not",
        adjustment="delta = 4 in both, which bounds the ratio before it matters",
        adjusted={"theirs": Theirs(options=GRPO | {"delta": 4.0}), "ours": Ours(options={"delta": 4.0})},
    )


def sequence_cases() -> Iterator[Case]:
    """Yield cases that differ by whether a token or its completion carries a ratio or a penalty."""
    corrected = GRPO | {"importance_sampling_level": "sequence", "beta": 0.1, "use_bias_correction_kl": True}
    yield by_design(
        "sequence ratio, weighted KL",
        theirs=Theirs(options=corrected),
        ours=Ours(is_sequence_ratio=True, fields={"kl": "weighted_k3_loss"}, coefficients=Coefficients(beta=0.1)),
        why="TRL weighs the KL of a token by the completion's ratio; Covey by the token's own",
        adjustment="completions of one token, where the two ratios are one",
        adjusted={"data": ONE_TOKEN},
    )
    one_token = "completions of one token, where the two are one"
    yield by_design(
        "RLOO after an update",
        theirs=Theirs(trainer="rloo", options={"beta": 0.0}),
        ours=Ours(row="rloo"),
        why="TRL's ratio and clip are of the whole completion (the product over its tokens); Covey's of each token",
        adjustment=one_token,
        adjusted={"data": ONE_TOKEN},
    )
    yield by_design(
        "RLOO before the first update",
        theirs=Theirs(trainer="rloo", options={"beta": 0.0}),
        ours=Ours(row="rloo"),
        is_on_policy=True,
        differs=("loss",),
        why="the gradient is the same; the value is not: sum over t of A in Covey, A once in TRL",
        adjustment=one_token,
        adjusted={"data": ONE_TOKEN},
    )
    penalty = {"beta": 0.05}
    yield by_design(
        "RLOO, KL in the reward",
        theirs=Theirs(trainer="rloo", options=penalty),
        ours=Ours(row="rloo", coefficients=Coefficients(**penalty)),
        data=ONE_TOKEN,
        differs=QUANTITIES,
        why="TRL takes the completion's whole KL from its reward, so that the others' KL is in the baseline; Covey takes from "
        "each token the KL from it to the end, without a baseline",
        adjustment="Covey with the completion's KL taken from its reward by hand",
        adjusted={"ours": Ours(row="rloo", kl_in_rewards=0.05)},
    )
