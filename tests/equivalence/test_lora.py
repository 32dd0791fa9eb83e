"""Training adapters is what peft and the textbook say it is, and nothing but the adapters is trained."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.adapters import SPEC, adapted, change_adapters, peft_model
from tests.slow_objective import Step, slow_loss
from tests.tiny_batches import (
    ON_POLICY,
    STATS,
    WHOLE,
    Cut,
    gradient_of,
    make_learner,
    objective_of,
    ragged_groups,
    relative_error,
    shifted_scores,
    slow_logprobs,
)
from torch import Tensor

from covey.algos.objective import Coefficients
from covey.batch import make_tokens
from covey.config import make_recipe
from covey.models.lora import adapter_state, frozen_copy
from covey.models.policy import Policy, with_adapters
from covey.session import adapted_reference
from covey.tensors import Scores

GROUPS = ragged_groups()
TOKENS = make_tokens(GROUPS, (), STATS)


def fresh(policy: Policy) -> Policy:
    """Return a copy with adapters that do nothing yet."""
    return with_adapters(dataclasses.replace(policy, model=copy.deepcopy(policy.model)), SPEC, start="", seed=0)


def trained_gradient(model: Any, backward: Callable[[], object]) -> Tensor:
    """Return the gradient of what is trained, in one vector."""
    whole, places = gradient_of(model, backward), [weight.requires_grad for weight in model.parameters()]
    pieces = whole.split([weight.numel() for weight in model.parameters()])
    assert not any(bool(piece.any()) for piece, is_trained in zip(pieces, places, strict=True) if not is_trained)
    return torch.cat([piece for piece, is_trained in zip(pieces, places, strict=True) if is_trained])


# --- Gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [(1, 0), (64, 64), WHOLE], ids=str)
@pytest.mark.parametrize("is_fresh", [False, True])
def test_the_gradient_is_the_textbook_one_of_a_model_that_peft_made(shared_tiny_policy64: Policy, cut: Cut, is_fresh: bool):
    policy = fresh(shared_tiny_policy64) if is_fresh else adapted(shared_tiny_policy64)
    theirs, objective = peft_model(shared_tiny_policy64, policy), objective_of("grpo")
    logprobs = slow_logprobs(theirs, GROUPS)
    frozen = shifted_scores(logprobs, GROUPS)
    step = Step(groups=GROUPS, logprobs=logprobs, old=frozen.old_logprobs, ref=frozen.ref_logprobs, beta=0.3)
    step = dataclasses.replace(step, options=objective.options, kl=objective.kl, mean=objective.aggregation)
    expected = trained_gradient(theirs, lambda: slow_loss("grpo", step).backward())
    learner = make_learner(policy, objective, cut=cut, coefficients=Coefficients(beta=0.3))
    batch = learner.make_batch(TOKENS, frozen)
    found = trained_gradient(policy.model, lambda: learner.accumulate_gradient(batch))
    assert float(expected.norm()) > 1e-3
    assert relative_error(found, expected) < 1e-10


def test_the_output_of_fresh_adapters_is_exactly_the_models_own(shared_tiny_policy: Policy):
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(fresh(shared_tiny_policy).model(ids).logits, shared_tiny_policy.model(ids).logits)


# --- What is trained -------------------------------------------------------------------------------------------------


def test_only_adapters_have_gradients_and_optimizer_state(tiny_policy: Policy):
    policy = fresh(tiny_policy)
    learner = make_learner(policy, objective_of("grpo"))
    learner.update(learner.make_batch(TOKENS, ON_POLICY))
    # Each layer of the tiny model: 64 -> 64, 64 -> 32 twice, 64 -> 64, 64 -> 128 twice, 128 -> 64; both thin matrices.
    num_expected = SPEC.rank * 2 * (128 + 96 + 96 + 128 + 192 + 192 + 192)
    trained = learner.optimizer.param_groups[0]["params"]
    assert sum(weight.numel() for weight in trained) == num_expected
    assert {id(weight) for weight in learner.optimizer.state} == {id(weight) for weight in adapter_state(policy.model).values()}
    learner.accumulate_gradient(learner.make_batch(TOKENS, ON_POLICY))
    with_gradient = [weight.numel() for weight in policy.model.parameters() if weight.grad is not None]
    assert sum(with_gradient) == num_expected


def test_the_base_weights_keep_their_bits_and_the_adapters_do_not(tiny_policy: Policy):
    policy = fresh(tiny_policy)
    before = {name: weight.detach().clone() for name, weight in policy.model.named_parameters()}
    learner = make_learner(policy, objective_of("grpo"))
    for _ in range(3):
        learner.update(learner.make_batch(TOKENS, ON_POLICY))
    for name, weight in policy.model.named_parameters():
        assert torch.equal(weight, before[name]) != ("lora_" in name), name


def test_updates_make_rewarded_completions_likelier(tiny_policy: Policy):
    policy = fresh(tiny_policy)
    learner = make_learner(policy, objective_of("grpo"))
    batch = learner.make_batch(TOKENS, ON_POLICY)

    def gain() -> float:
        """Return the mean log-prob of a token, each weighted with its credit: what the loss is the negative of."""
        return float((learner.score(policy.model, TOKENS).logprobs * batch.advantages)[batch.mask].mean())

    before = gain()
    for _ in range(5):
        learner.update(batch)
    assert gain() > before + 0.01


# --- The reference ---------------------------------------------------------------------------------------------------


def recipe_of(**lora: Any) -> Any:
    return make_recipe({"algorithm": {"beta": 0.1}, "lora": {"rank": SPEC.rank} | lora})


def test_the_reference_shares_every_frozen_weight_with_the_policy(tiny_policy: Policy):
    policy = fresh(tiny_policy)
    reference = adapted_reference(recipe_of(), policy)
    assert reference is not None
    own = {weight.data_ptr() for weight in policy.model.parameters()}
    copied = [weight.numel() for weight in reference.parameters() if weight.data_ptr() not in own]
    assert sum(copied) == sum(weight.numel() for weight in adapter_state(policy.model).values())
    assert not any(weight.requires_grad for weight in reference.parameters())
    assert all(weight.requires_grad for weight in adapter_state(policy.model).values())


def test_a_run_without_kl_has_no_reference(tiny_policy: Policy):
    assert adapted_reference(make_recipe({"lora": {"rank": SPEC.rank}}), fresh(tiny_policy)) is None


def test_kl_to_the_reference_is_exactly_0_before_training_and_not_after(tiny_policy: Policy):
    policy = fresh(tiny_policy)
    reference = adapted_reference(recipe_of(), policy)
    assert reference is not None
    learner = make_learner(policy, objective_of("grpo"))
    start = learner.score(policy.model, TOKENS).logprobs
    assert torch.equal(learner.score(reference, TOKENS).logprobs, start)
    learner.update(learner.make_batch(TOKENS, ON_POLICY))
    assert torch.equal(learner.score(reference, TOKENS).logprobs, start)
    assert not torch.equal(learner.score(policy.model, TOKENS).logprobs, start)


@pytest.mark.parametrize(("reference", "is_start"), [("start", True), ("base", False)])
def test_of_a_run_that_starts_from_an_adapter_the_reference_is_the_start_or_the_base(
    shared_tiny_policy: Policy, reference: str, is_start: bool
):
    policy = adapted(shared_tiny_policy)
    held = adapted_reference(recipe_of(adapter="somewhere", reference=reference), policy)
    assert held is not None
    learner = make_learner(policy, objective_of("grpo"))
    expected = learner.score(policy.model if is_start else shared_tiny_policy.model, TOKENS).logprobs
    other = learner.score(shared_tiny_policy.model if is_start else policy.model, TOKENS).logprobs
    change_adapters(policy, b_std=0.1)
    found = learner.score(held, TOKENS).logprobs
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(found, other, atol=1e-2)


def test_the_gradient_of_a_kl_term_goes_into_the_adapters_of_the_policy_alone(shared_tiny_policy64: Policy):
    policy = adapted(shared_tiny_policy64)
    reference = frozen_copy(policy.model, adapters_on=False)
    learner = make_learner(policy, objective_of("grpo"), coefficients=Coefficients(beta=0.3))
    scores = learner.make_scores(TOKENS, reference)
    learner.accumulate_gradient(learner.make_batch(TOKENS, scores))
    assert all(weight.grad is None for weight in reference.parameters())
    assert all(weight.grad is not None for weight in adapter_state(policy.model).values())
    assert isinstance(scores, Scores)
