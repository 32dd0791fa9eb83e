"""Covey's side: its learner, with micro-batches and prompts shared by their completions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from transformers import PreTrainedModel

from covey.algos.kl import k1
from covey.algos.objective import Objective
from covey.algos.ratios import sequence_log_ratio
from covey.algos.registry import ALGORITHMS
from covey.batch import StatsSpec, make_tokens, select_groups
from covey.learner import Learner, LearnerSpec, ScoringSpec
from covey.sampling import Sampling
from covey.tensors import Scores, Tokens
from covey.types import Completion, Group, Message, Prompt, Rollout, Score
from parity.case import Case, Outcome
from parity.fixture import MAX_LENGTH
from parity.models import load_model, load_tokenizer, moved_weights, sampler_logprobs, set_weights


def make_groups(case: Case, directory: Path) -> list[Group]:
    """Return the case's data as rollouts."""
    data, tokenizer = case.data, load_tokenizer(directory)
    if case.theirs.sampler_noise:
        logprobs = sampler_logprobs(case, directory)
    else:
        logprobs = [[0.0] * len(ids) for ids in data.completions]

    def rollout(row: int) -> Rollout:
        return Rollout(
            prompt_ids=tokenizer(data.prompts[row // data.group_size])["input_ids"],
            completion=Completion(
                token_ids=list(data.completions[row]),
                logprobs=logprobs[row],
                finish_reason="length" if data.is_truncated(row) else "stop",
                policy_version=0,
            ),
            text="",
            reward=Score(value=data.reward(row), parts={f"part_{k}": part or 0.0 for k, part in enumerate(data.parts[row])}),
            gold=None,
        )

    return [
        Group(
            prompt=Prompt(prompt_id=str(index), messages=(Message(role="user", content=prompt),)),
            rollouts=tuple(rollout(index * data.group_size + sample) for sample in range(data.group_size)),
        )
        for index, prompt in enumerate(data.prompts)
    ]


def make_learner(case: Case, model: PreTrainedModel) -> Learner:
    """Return Covey's learner for the case. It cuts the step into micro-batches, and lays out groups behind one prompt."""
    ours, spec = case.ours, ALGORITHMS[case.ours.row]
    if ours.is_sequence_ratio:
        spec = dataclasses.replace(spec, log_ratio=sequence_log_ratio)
    # TRL has no such floor; it has a case of its own.
    no_floor = {"min_group_std": 0.0} if "min_group_std" in spec.options else {}
    return Learner(
        model,
        dataclasses.replace(Objective.of_row(spec, **(no_floor | dict(ours.options))), **ours.fields),
        ScoringSpec(
            sampling=Sampling(temperature=ours.temperature, max_new_tokens=MAX_LENGTH),
            compute_dtype=torch.float32,
            max_tokens_per_micro_batch=128,
            max_shared_tokens=48,
        ),
        LearnerSpec(
            learning_rate=1e-3,
            warmup_steps=0,
            num_steps=1,
            decay=False,
            max_grad_norm=1.0,
            weight_decay=0.0,
            max_new_tokens=MAX_LENGTH,
        ),
        coefficients=ours.coefficients,
        choice=ours.choice,
    )


def make_scores(case: Case, learner: Learner, tokens: Tokens, directory: Path) -> Scores:
    """Return the old and the reference log-probs, under the same moved weights as on TRL's side."""
    dtype = learner.model.dtype
    reference, old = load_model(directory, dtype), load_model(directory, dtype)
    set_weights(reference, moved_weights(reference, seed=2))
    if case.is_on_policy:
        return learner.make_scores(tokens, reference)
    set_weights(old, moved_weights(old, seed=1))
    scored = learner.score(old, tokens)
    scored.logprobs[3, 0] += case.data.old_shift
    ref_logprobs = learner.score(reference, tokens).logprobs
    return Scores(old_logprobs=scored.logprobs, ref_logprobs=ref_logprobs, entropy=scored.entropy)


def our_outcome(case: Case, directory: Path, dtype: torch.dtype) -> Outcome:
    """Return what Covey makes of the case."""
    ours, data = case.ours, case.data
    model = load_model(directory, dtype)
    learner = make_learner(case, model)
    weights = {f"part_{k}": weight for k, weight in enumerate(data.part_weights)}
    spec = StatsSpec(part_weights=weights, masks_truncated=ours.masks_truncated)
    tokens = make_tokens(make_groups(case, directory), spec=spec)
    scores = make_scores(case, learner, tokens, directory)
    if ours.kl_in_rewards:
        assert scores.old_logprobs is not None
        assert scores.ref_logprobs is not None
        kl = torch.where(tokens.completion_mask, k1(scores.old_logprobs, scores.ref_logprobs), 0.0).sum(dim=1)
        rewards = tokens.stats.rewards - ours.kl_in_rewards * kl.reshape(tokens.stats.rewards.shape)
        tokens = dataclasses.replace(tokens, stats=dataclasses.replace(tokens.stats, rewards=rewards))
    batch = learner.make_batch(tokens, scores)
    if dtype == torch.float64 and not learner.acts_through_reward:
        # Credit is float32, whatever the model is. Exact advantages show whether the formulas agree beyond that.
        exact = learner.objective.advantages(tokens.stats).reshape(-1, 1)
        batch = dataclasses.replace(batch, advantages=torch.where(tokens.completion_mask, exact, 0.0))
    part = batch if ours.num_groups is None else select_groups(batch, range(ours.num_groups))
    update = learner.accumulate_gradient(part)
    assert update.logprobs is not None
    log_ratios = None
    if scores.old_logprobs is not None and ours.num_groups is None:
        log_ratios = (update.logprobs - scores.old_logprobs)[update.is_scored]
    logprobs = {"old": scores.old_logprobs, "ref": scores.ref_logprobs}
    return Outcome(
        advantages=batch.advantages.double(),
        loss=update.metrics["loss/value"].value,
        gradient={name: weight.grad.double() for name, weight in model.named_parameters() if weight.grad is not None},
        logprobs={name: values for name, values in logprobs.items() if values is not None},
        log_ratios=log_ratios,
        clipped_frac=update.metrics["clip/low_frac"].value + update.metrics["clip/high_frac"].value,
    )
