"""Ratios and losses: against the right policy, clipped on the right side, with the gradient that the name promises."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conformance.cases import (
    PLAIN,
    alone,
    batch_of,
    distance,
    gradient_of,
    groups_of,
    learner_of,
    noisy,
    rows_of,
    slow_logprobs,
    step_gradient,
)
from tests.generation import keys_of
from torch import Tensor

from covey.algos.aggregate import sequence_weights
from covey.algos.kl import KL_TERMS, k3, kl_to_go
from covey.algos.objective import Coefficients, LossInputs, Objective, policy_loss
from covey.algos.ratios import token_log_ratio
from covey.algos.registry import ALGORITHMS
from covey.algos.surrogates import clipped_surrogate
from covey.batch import make_tokens
from covey.engines.transformers import TransformersEngine
from covey.models.distribution import shape_logits
from covey.models.policy import Policy, load_policy
from covey.models.tiny import write_tiny_model
from covey.sampling import Sampling
from covey.types import Group, Rollout


def loss_inputs(logprobs: Tensor, **fields: Any) -> LossInputs:
    """Return the inputs of a loss in which everything not named is neutral."""
    mask = fields.get("mask", torch.ones(logprobs.shape, dtype=torch.bool))
    given: dict[str, Any] = {
        "old_logprobs": None,
        "ref_logprobs": None,
        "entropy": torch.zeros_like(logprobs.detach()),
        "advantages": torch.zeros_like(logprobs.detach()),
        "mask": mask,
        "weights": torch.ones(len(logprobs), dtype=logprobs.dtype),
        "num_tokens": int(mask.sum()),
    }
    return LossInputs(logprobs=logprobs, **(given | fields))


def loss_of(inputs: LossInputs, *, kl: str = "k3_loss", beta: float = 0.0, entropy: float = 0.0, name: str = "grpo") -> Tensor:
    objective = dataclasses.replace(Objective.of_row(ALGORITHMS[name]), kl=kl)
    return policy_loss(objective, inputs, Coefficients(beta=beta, entropy=entropy)).loss


# Which policies the ratio compares


def test_the_second_update_on_a_batch_has_a_ratio_and_the_first_has_none(tiny_policy: Policy):
    learner = learner_of(tiny_policy, learning_rate=1e-3)
    old = learner.score(tiny_policy.model, make_tokens(groups_of())).logprobs
    batch = batch_of(learner, groups_of(), old=old)
    first, second = learner.update(batch).metrics, learner.update(batch).metrics
    assert first["ratio/max"].value == pytest.approx(1.0, abs=1e-6)
    assert first["ratio/mean"].value == pytest.approx(1.0, abs=1e-6)
    assert second["ratio/max"].value > 1.001


@pytest.mark.parametrize("numbers", [{"num_iterations": 2}, {"num_minibatches": 3}])
def test_updates_after_the_first_have_a_ratio_against_the_policy_before_it(tiny_policy: Policy, numbers: dict[str, Any]):
    learner = learner_of(tiny_policy, learning_rate=1e-3, **numbers)
    tokens = make_tokens(groups_of())
    update = learner.train_on(learner.make_batch(tokens, learner.make_scores(tokens, None)))
    assert update.metrics["ratio/max"].value > 1.001


def test_the_ratio_is_against_the_old_policy_and_not_the_reference():
    logprobs, old, ref = torch.tensor([[-1.0]]), torch.tensor([[-1.1]]), torch.tensor([[-3.0]])
    loss = loss_of(loss_inputs(logprobs, old_logprobs=old, ref_logprobs=ref, advantages=torch.ones(1, 1)), beta=0.5)
    expected = -math.exp(0.1) + 0.5 * float(k3(logprobs, ref))
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_scoring_draws_no_random_numbers_although_dropout_is_configured(tmp_path: Path):
    directory = write_tiny_model(tmp_path)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    policy = load_policy(str(directory), compute_dtype="float32")
    learner, tokens = learner_of(policy), make_tokens(groups_of())
    first, second = (learner.score(policy.model, tokens).logprobs for _ in range(2))
    assert torch.equal(first, second)
    batch = batch_of(learner, groups_of(), old=first)
    assert learner.accumulate_gradient(batch).metrics["ratio/max"].value == 1.0


# The distribution that is scored


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.6, max_new_tokens=12),
        Sampling(max_new_tokens=12, top_k=5),
        Sampling(max_new_tokens=12, top_p=0.6),
        Sampling(max_new_tokens=12, min_p=0.2),
        Sampling(max_new_tokens=12, repetition_penalty=1.5),
    ],
    ids=["temperature", "top_k", "top_p", "min_p", "repetition_penalty"],
)
def test_completions_are_scored_under_the_distribution_they_were_sampled_from(shared_tiny_policy: Policy, sampling: Sampling):
    prompts = [list(b"17 + 4?"), list(b"x")]
    completions = TransformersEngine(shared_tiny_policy).generate(prompts, sampling, group_size=4, keys=keys_of(2, 4))
    groups = [
        Group(
            prompt=groups_of()[0].prompt,
            rollouts=tuple(
                Rollout(prompt_ids=ids, completion=item, text="", reward=groups_of()[0].rollouts[0].reward, gold=None)
                for item in items
            ),
        )
        for ids, items in zip(prompts, completions, strict=True)
    ]
    tokens = make_tokens(groups)
    assert tokens.sampling_logprobs is not None
    found = learner_of(shared_tiny_policy, sampling=sampling).score(shared_tiny_policy.model, tokens).logprobs
    ratio = (found - tokens.sampling_logprobs)[tokens.completion_mask].exp()
    assert float((ratio - 1).abs().max()) < 1e-3


def test_bfloat16_logits_are_normalised_in_float32():
    logits = (torch.randn(4, 200, generator=torch.Generator().manual_seed(0)) * 5).bfloat16()
    found = shape_logits(logits, PLAIN).log_softmax(dim=-1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (logits.double() / 0.7).log_softmax(dim=-1).float(), atol=1e-5, rtol=0)


def test_log_probs_of_a_bfloat16_forward_pass_are_float32_and_close(shared_tiny_policy: Policy):
    policy = dataclasses.replace(shared_tiny_policy, compute_dtype=torch.bfloat16)
    found = learner_of(policy).score(policy.model, make_tokens(groups_of())).logprobs
    with torch.no_grad():
        expected = slow_logprobs(policy.model, groups_of())
    assert found.dtype == torch.float32
    assert float((found - expected).abs().max()) < 0.2
    is_rounded = found == found.bfloat16().float()
    assert float(is_rounded[expected != 0].double().mean()) < 0.1


# The clip


def test_the_clip_has_the_right_value_and_gradient_in_all_four_quadrants():
    """Ratio above or below the trust region, advantage of either sign: (loss, whether a gradient is left)."""
    table = {(1.5, 1.0): (-1.2, False), (0.5, 1.0): (-0.5, True), (1.5, -1.0): (1.5, True), (0.5, -1.0): (0.8, False)}
    for (ratio, advantage), (expected, has_gradient) in table.items():
        log_ratio = torch.tensor([[math.log(ratio)]], requires_grad=True)
        mask = torch.ones(1, 1, dtype=torch.bool)
        loss = clipped_surrogate(log_ratio, log_ratio, torch.tensor([[advantage]]), mask)
        loss.sum().backward()
        assert log_ratio.grad is not None
        assert float(loss.detach()) == pytest.approx(expected, abs=1e-6)
        assert float(log_ratio.grad) == pytest.approx(-ratio * advantage if has_gradient else 0.0, abs=1e-6)


@pytest.mark.parametrize("difference", [100.0, -100.0])
def test_log_probs_that_differ_by_a_hundred_give_a_finite_loss_and_gradient(difference: float):
    logprobs = torch.tensor([[difference - 100.0]], requires_grad=True)
    old = torch.tensor([[-100.0]])
    assert math.isfinite(float(token_log_ratio(logprobs.detach(), old, torch.ones(1, 1, dtype=torch.bool)).exp()))
    for advantage in (1.0, -1.0):
        for kl in KL_TERMS:
            inputs = loss_inputs(logprobs, old_logprobs=old, ref_logprobs=old, advantages=torch.full((1, 1), advantage))
            loss = loss_of(inputs, kl=kl, beta=0.1)
            (gradient,) = torch.autograd.grad(loss, logprobs)
            assert math.isfinite(float(loss.detach()))
            assert math.isfinite(float(gradient))


# The KL term, by enumeration of a softmax over three tokens

LOGITS = torch.tensor([0.2, -0.5, 0.7], dtype=torch.float64)
REFERENCE = torch.tensor([-0.3, 0.4, 0.1], dtype=torch.float64).log_softmax(dim=0)


def divergence(logits: Tensor) -> Tensor:
    logprobs = logits.log_softmax(dim=0)
    return (logprobs.exp() * (logprobs - REFERENCE)).sum()


def forward_divergence(logits: Tensor) -> Tensor:
    return (REFERENCE.exp() * (REFERENCE - logits.log_softmax(dim=0))).sum()


def gradient_at(logits: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf), leaf)
    return gradient


def expected_kl_gradient(kl: str, logits: Tensor = LOGITS) -> Tensor:
    """Return the expectation over tokens of the gradient of the loss, its advantage 0 and beta 1."""

    def expected_loss(leaf: Tensor) -> Tensor:
        logprobs = leaf.log_softmax(dim=0)[:, None]
        weights = logprobs.detach().exp()[:, 0]
        return loss_of(loss_inputs(logprobs, ref_logprobs=REFERENCE[:, None], weights=weights), kl=kl, beta=1.0)

    return gradient_at(logits, expected_loss)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        ("k1_loss", torch.zeros(3, dtype=torch.float64)),
        ("k2_loss", gradient_at(LOGITS, divergence)),
        ("weighted_k3_loss", gradient_at(LOGITS, divergence)),
        ("k3_loss", gradient_at(LOGITS, forward_divergence)),
    ],
)
def test_each_kl_term_has_the_expected_gradient_that_its_row_names(kl: str, expected: Tensor):
    torch.testing.assert_close(expected_kl_gradient(kl), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kl", ["k2_loss", "k3_loss", "weighted_k3_loss"])
def test_a_step_on_the_kl_term_alone_brings_the_policy_closer_to_the_reference(kl: str):
    moved = LOGITS - 0.1 * expected_kl_gradient(kl)
    assert float(divergence(moved)) < float(divergence(LOGITS)) - 1e-4


def test_kl_in_the_reward_reaches_the_tokens_before_it_and_lowers_their_credit(tiny_policy64: Policy):
    token_kl = torch.tensor([[1.0, 2.0, 4.0, 9.0]])
    mask = torch.tensor([[True, True, True, False]])
    assert kl_to_go(token_kl, mask).tolist() == [[7.0, 6.0, 4.0, 0.0]]
    groups = groups_of()
    old = slow_logprobs(tiny_policy64.model, groups).detach()
    learner = learner_of(tiny_policy64, "rloo", coefficients=Coefficients(beta=0.25))
    credit = batch_of(learner, groups, old=old, ref=old - 0.5).advantages  # k1 is 0.5 everywhere
    without = batch_of(learner_of(tiny_policy64, "rloo"), groups, old=old, ref=old - 0.5).advantages
    lengths = [len(rollout.completion.token_ids) for rollout in rows_of(groups)]
    for row, length in enumerate(lengths):
        expected = [-0.25 * 0.5 * (length - t) for t in range(length)]
        assert (credit - without)[row, :length].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_kl_term_belongs_to_its_token_and_masked_positions_to_none():
    logprobs = torch.tensor([[-1.0, -2.0, -0.5], [-0.3, -7.0, -9.0]], requires_grad=True)
    ref = torch.tensor([[-1.5, -1.0, -0.6], [-0.9, 0.0, -3.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    weights = torch.tensor([0.25, 0.5])
    loss = loss_of(loss_inputs(logprobs, ref_logprobs=ref, mask=mask, weights=weights), beta=0.1)
    tokens = torch.where(mask, k3(logprobs, ref), 0.0).detach()
    assert float(loss.detach()) == pytest.approx(0.1 * float((tokens.sum(dim=1) * weights).sum()), abs=1e-7)
    dirty = loss_of(loss_inputs(logprobs, ref_logprobs=torch.where(mask, ref, 5.0), mask=mask, weights=weights), beta=0.1)
    assert float(dirty.detach()) == float(loss.detach())


# Entropy


def test_the_entropy_is_that_of_the_tempered_distribution(tiny_policy64: Policy):
    groups = groups_of()
    with torch.no_grad():
        found = learner_of(tiny_policy64).score(tiny_policy64.model, make_tokens(groups)).entropy
        tables = [alone(tiny_policy64.model, rollout) for rollout in rows_of(groups)]
    for row, table in enumerate(tables):
        expected = -(table.exp() * table).sum(dim=-1)
        torch.testing.assert_close(found[row, : len(table)], expected, atol=1e-10, rtol=0)


def test_the_entropy_bonus_is_the_same_under_every_aggregation():
    mask = torch.tensor([[True, True, True, True], [True, False, False, False]])
    entropy = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 9.0, 9.0, 9.0]])
    for mode in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"):
        weights = sequence_weights(mask, mode, group_size=2, max_length=7)
        inputs = loss_inputs(torch.zeros(2, 4), mask=mask, entropy=entropy, weights=weights)
        assert float(loss_of(inputs, entropy=0.1)) == pytest.approx(-0.1 * 3.0, abs=1e-6)


# The body's gradient


def test_recomputing_logits_in_the_backward_pass_changes_no_gradient(tiny_policy64: Policy):
    groups = groups_of()
    learner = learner_of(tiny_policy64, "reinforce", aggregation="token-mean")
    batch = batch_of(learner, groups)
    model = tiny_policy64.model

    def textbook() -> None:
        logprobs = slow_logprobs(model, groups)
        (-(logprobs * batch.advantages).sum() / batch.mask.sum()).backward()

    assert distance(step_gradient(learner, batch), gradient_of(model, textbook)) < 1e-10


def test_with_old_log_probs_and_a_reference_the_gradient_is_the_textbook_one(tiny_policy64: Policy):
    """GRPO as its paper writes it: a mean over completions of means over tokens of the clipped surrogate plus beta k3."""
    groups = groups_of()
    logprobs = slow_logprobs(tiny_policy64.model, groups)
    old, ref = noisy(logprobs, scale=0.3, seed=1), noisy(logprobs, scale=0.3, seed=2)
    learner = learner_of(tiny_policy64, coefficients=Coefficients(beta=0.1))
    batch = batch_of(learner, groups, old=old, ref=ref)
    model = tiny_policy64.model

    def textbook() -> None:
        now = slow_logprobs(model, groups)
        ratio = (now - old).exp()
        surrogate = torch.minimum(ratio * batch.advantages, ratio.clamp(0.8, 1.2) * batch.advantages)
        difference = ref - now
        tokens = torch.where(batch.mask, -surrogate + 0.1 * (difference.exp() - difference - 1), 0.0)
        (tokens.sum(dim=1) / batch.mask.sum(dim=1)).mean().backward()

    assert distance(step_gradient(learner, batch), gradient_of(model, textbook)) < 1e-10
