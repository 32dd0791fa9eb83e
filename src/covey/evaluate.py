"""Held-out accuracy: fixed prompts, fixed random numbers, intervals clustered by prompt, gains paired with step 0."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from covey.distributed import ALONE, Ranks
from covey.engines.base import Engine
from covey.metrics import mean_of
from covey.models.policy import Policy
from covey.rewards.base import Rewarder
from covey.rollout import sample_groups
from covey.sampling import Sampling, rollout_keys
from covey.stats import Interval, mean_interval, pass_at_k
from covey.types import Prompt

Mode = Literal["greedy", "sampled"]
MODES: tuple[Mode, ...] = ("greedy", "sampled")

PASSES = 0.5
"""A gold score from here on is a right answer."""

Row = dict[str, Any]
"""One completion, with the columns of `evals/*.parquet`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSpec:
    """How held-out prompts are sampled."""

    sampling: Sampling
    samples_per_prompt: int
    seed: int


def evaluate(
    prompts: Sequence[Prompt],
    spec: EvaluationSpec,
    *,
    mode: Mode,
    policy: Policy,
    engine: Engine,
    rewarder: Rewarder,
    ranks: Ranks = ALONE,
) -> list[Row]:
    """Return one scored row for each completion of the held-out prompts.

    The random numbers do not depend on the step: two evaluations differ by the policy alone, which makes their paired
    difference sharper.
    """
    is_greedy = mode == "greedy"
    sampling = replace(spec.sampling, temperature=0.0) if is_greedy else spec.sampling
    num_samples = 1 if is_greedy else spec.samples_per_prompt
    keys = [
        rollout_keys(spec.seed, "evaluate", step=0, draw=0, prompt_id=prompt.prompt_id, group_size=num_samples)
        for prompt in prompts
    ]
    groups, _, _ = sample_groups(
        prompts, policy=policy, engine=engine, rewarder=rewarder, sampling=sampling, keys=keys, ranks=ranks
    )
    return [
        {
            "prompt_id": group.prompt.prompt_id,
            "question": group.prompt.text,
            "answer": str(group.prompt.answer),
            "sample": sample,
            "completion": rollout.text,
            "extracted": (rollout.gold or rollout.reward).extracted,
            "gold": rollout.gold.value if rollout.gold else None,
            "proxy": rollout.reward.value,
            "num_tokens": len(rollout.completion.token_ids),
            "finish_reason": rollout.completion.finish_reason,
            "error": rollout.reward.error or (rollout.gold.error if rollout.gold else None),
        }
        for group in groups
        for sample, rollout in enumerate(group.rollouts)
    ]


def summarise(rows: Sequence[Row], first_rows: Sequence[Row] | None) -> dict[str, Any]:
    """Return the accuracies of one evaluation with intervals, and its gains over `first_rows` (None: it is the first)."""
    summary: dict[str, Any] = {
        "num_prompts": len({row["prompt_id"] for row in rows}),
        "samples_per_prompt": 1 + max(row["sample"] for row in rows),
        "length_mean": mean_of(row["num_tokens"] for row in rows).value,
        "truncated_frac": mean_of(float(row["finish_reason"] == "length") for row in rows).value,
        "error_frac": mean_of(float(row["error"] is not None) for row in rows).value,
    }
    for verifier in ("gold", "proxy"):
        means = prompt_means(rows, verifier)
        before = prompt_means(first_rows, verifier) if first_rows is not None else {}
        gains = [means[prompt_id] - before[prompt_id] for prompt_id in means if prompt_id in before]
        summary |= _fields(f"{verifier}_mean", verifier, mean_interval(list(means.values())))
        summary |= _fields(f"{verifier}_gain", f"{verifier}_gain", mean_interval(gains))
    summary["pass_at"] = {str(k): _pass_fields(rows, first_rows, k) for k in numbers_of_tries(summary["samples_per_prompt"])}
    return summary


def numbers_of_tries(samples_per_prompt: int) -> list[int]:
    """Return the k of pass@k: powers of 2 up to the number of samples, and that number; none for one sample."""
    powers = [2**power for power in range(1, samples_per_prompt.bit_length())]
    return sorted({*powers, samples_per_prompt}) if samples_per_prompt > 1 else []


def _pass_fields(rows: Sequence[Row], first_rows: Sequence[Row] | None, k: int) -> dict[str, float | None]:
    """Return pass@k by gold, a mean over prompts, and its gain over `first_rows` on the same prompts, with intervals."""
    now, before = pass_rates(rows, k), pass_rates(first_rows, k) if first_rows is not None else {}
    gains = [now[prompt_id] - before[prompt_id] for prompt_id in now if prompt_id in before]
    return {
        **{key.removeprefix("_"): value for key, value in _fields("mean", "", mean_interval(list(now.values()))).items()},
        **_fields("gain", "gain", mean_interval(gains)),
    }


def pass_rates(rows: Sequence[Row], k: int) -> Mapping[str, float]:
    """Return each prompt's unbiased chance that one of k samples is right, of prompts with at least k scored samples.

    Right is a gold score of .5 or more.
    """
    passed: dict[str, list[bool]] = {}
    for row in rows:
        if row["gold"] is not None:
            passed.setdefault(row["prompt_id"], []).append(row["gold"] >= PASSES)
    return {prompt_id: pass_at_k(len(each), sum(each), k) for prompt_id, each in passed.items() if len(each) >= k}


def prompt_means(rows: Sequence[Row], verifier: str) -> Mapping[str, float]:
    """Return each prompt's mean score over its scorable samples, in order of appearance."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        if row[verifier] is not None:
            scores.setdefault(row["prompt_id"], []).append(row[verifier])
    return {prompt_id: math.fsum(values) / len(values) for prompt_id, values in scores.items()}


def _fields(mean_key: str, prefix: str, interval: Interval) -> dict[str, float | None]:
    values = {mean_key: interval.mean, f"{prefix}_low": interval.low, f"{prefix}_high": interval.high}
    return {key: value if math.isfinite(value) else None for key, value in values.items()}
