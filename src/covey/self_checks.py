"""Checks that run before the first step, because what they catch would otherwise train on, silently wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from covey.algos.mismatch import mismatch_metrics
from covey.batch import make_tokens
from covey.distributed import ALONE, Ranks
from covey.engines.base import Engine
from covey.learner import Learner
from covey.metrics import metric_values
from covey.models.policy import Policy
from covey.sampling import Sampling, rollout_keys
from covey.types import CoveyError, Group, Prompt, Rollout, Score

NUM_PROMPTS, GROUP_SIZE, MAX_TOKENS = 4, 4, 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How closely engine and trainer must agree on the log-probs of the same tokens, in nats."""

    abs_mean: float
    k3: float
    ratio_error: float


AGREEMENT = {
    torch.float32: Agreement(abs_mean=1e-4, k3=1e-6, ratio_error=1e-3),
    torch.bfloat16: Agreement(abs_mean=0.06, k3=4e-3, ratio_error=0.02),
}


def check_before_training(
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    policy: Policy,
    reference: PreTrainedModel | None,
    engine: Engine,
    learner: Learner,
    ranks: Ranks = ALONE,
) -> list[str]:
    """Return what was checked, in words, with the figures found.

    Raises:
        CoveyError: engine and trainer disagree, or scoring is not repeatable, or the reference is not the initial policy.
    """
    # One rank's completions for all: they score them together.
    sampled = _sample(prompts[:NUM_PROMPTS], sampling, policy=policy, engine=engine) if ranks.is_main else []
    tokens = make_tokens(ranks.gather(sampled))
    assert tokens.sampling_logprobs is not None
    logprobs = learner.score(policy.model, tokens).logprobs
    mask = tokens.completion_mask
    found = metric_values(mismatch_metrics(logprobs, tokens.sampling_logprobs, mask))
    refuse_disagreement(found, policy.compute_dtype)
    lines = [
        f"engine agrees with trainer: log-probs of {int(mask.sum())} tokens differ by {found['mismatch/abs_mean']:.2g} nats on "
        f"average, {found['mismatch/max']:.2g} at most ({str(policy.compute_dtype).removeprefix('torch.')})"
    ]
    drift = float((learner.score(policy.model, tokens).logprobs - logprobs)[mask].abs().max())
    if drift != 0.0:
        raise CoveyError(
            f"scoring the same tokens twice gives log-probs that differ by {drift:.2g}: the model draws random numbers when "
            "it scores (dropout?) or its kernels are not deterministic, so the first importance ratio is not 1"
        )
    lines.append("log-ratio on the first update is exactly 0")
    if reference is not None:
        distance = float((learner.score(reference, tokens).logprobs - logprobs)[mask].abs().max())
        if distance != 0.0:
            raise CoveyError(
                f"the reference model's log-probs differ from the initial policy's by {distance:.2g}: KL would not start at 0"
            )
        lines.append("KL to the reference starts at exactly 0")
    return lines


def refuse_disagreement(found: dict[str, float | None], dtype: torch.dtype) -> None:
    """Raise if engine and trainer disagree by more than the dtype explains.

    Raises:
        CoveyError: naming the figures and the likely causes.
    """
    if problem := disagreement(found, dtype):
        raise CoveyError(
            f"{problem}. Training would be off policy. Likely causes: a model whose attention ignores the shared layout "
            "(set train.max_shared_tokens=0), or one that needs more precision (set model.compute_dtype='float32')"
        )


def disagreement(found: dict[str, float | None], dtype: torch.dtype) -> str | None:
    """Return in words how engine and trainer disagree by more than `AGREEMENT` allows, None if they do not."""
    bound = AGREEMENT[dtype]
    abs_mean, k3, ratio = found["mismatch/abs_mean"], found["mismatch/k3"], found["mismatch/ratio_mean"]
    if abs_mean is None or k3 is None or ratio is None:
        return "engine and trainer log-probs are not finite"
    if abs_mean <= bound.abs_mean and k3 <= bound.k3 and abs(ratio - 1) <= bound.ratio_error:
        return None
    return (
        f"engine and trainer disagree about the same tokens: mean |difference| {abs_mean:.3g} (at most {bound.abs_mean}), "
        f"k3 {k3:.3g} (at most {bound.k3}), mean ratio {ratio:.3f} (within {bound.ratio_error} of 1)"
    )


def load_and_prove_weights(engine: Engine, policy: Policy, version: int, *, ranks: Ranks = ALONE) -> None:
    """Give the engine the policy's weights and check that it serves them, and that all ranks hold the same.

    Raises:
        CoveyError: the engine serves other weights than it was given, or another rank's weights are others.
    """
    engine.load_weights(policy, version)
    digest = engine.served_digest()
    if len(set(ranks.gather([digest]))) > 1:
        raise CoveyError(
            f"the ranks hold different weights at policy version {version}: their processors or versions compute differently. "
            "Train on machines of one kind, with the same packages"
        )
    if digest != engine.expected_digest(policy):
        raise CoveyError(
            f"the engine does not serve policy version {version} after loading it: completions would come from stale weights"
        )


def _sample(prompts: Sequence[Prompt], sampling: Sampling, *, policy: Policy, engine: Engine) -> list[Group]:
    short = replace(sampling, max_new_tokens=min(MAX_TOKENS, sampling.max_new_tokens))
    prompt_ids = [policy.encode(prompt.messages) for prompt in prompts]
    keys = [
        rollout_keys(0, "self-check", step=0, draw=0, prompt_id=prompt.prompt_id, group_size=GROUP_SIZE) for prompt in prompts
    ]
    completions = engine.generate(prompt_ids, short, group_size=GROUP_SIZE, keys=keys)
    return [
        Group(
            prompt=prompt,
            rollouts=tuple(
                Rollout(prompt_ids=ids, completion=completion, text="", reward=Score(value=0.0), gold=None)
                for completion in group
            ),
        )
        for prompt, ids, group in zip(prompts, prompt_ids, completions, strict=True)
    ]
