"""Adapters on the packed path: what peft's own modules compute, and nothing for the frozen weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tests.adapters import SPEC, adapted
from tests.equivalence.test_packed import (
    GROUPS,
    assert_same_gradient,
    gradient,
    model_of,
    scored,
    shaken,
    slow_gradient,
    slow_grids,
)
from tests.tiny_batches import slow_logprobs
from transformers import PreTrainedModel

from covey.models.lora import adapted_layers, adapter_state, frozen_copy
from covey.models.packed.decoder import packed_refusal
from covey.models.policy import Policy, with_adapters
from covey.models.scoring import CompletionScores

ADAPTED = pytest.mark.parametrize("name", ["llama, tied, with biases", "qwen3", "gemma3"])
SOME_LAYERS = dataclasses.replace(SPEC, targets=("k_proj", "gate_proj", "down_proj"))


def adapted_of(name: str, policy: Policy, *, spec: Any = SPEC) -> PreTrainedModel:
    return adapted(dataclasses.replace(policy, model=model_of(name)), spec=spec).model


@ADAPTED
@pytest.mark.parametrize("spec", [SPEC, SOME_LAYERS], ids=["all layers", "some layers"])
def test_with_adapters_scores_and_gradients_are_those_of_pefts_own_modules(name: str, spec: Any, shared_tiny_policy: Policy):
    model = adapted_of(name, shared_tiny_policy, spec=spec)
    assert packed_refusal(model) is None
    with torch.no_grad():
        for found, exact in zip(scored(model, GROUPS), slow_grids(model, GROUPS), strict=True):
            torch.testing.assert_close(found, exact, atol=5e-5, rtol=0)
    assert_same_gradient(model, gradient(model), slow_gradient(model))


@ADAPTED
@pytest.mark.parametrize("checkpoints_layers", [False, True])
def test_only_adapters_get_a_gradient(name: str, checkpoints_layers: bool, shared_tiny_policy: Policy):
    model = adapted_of(name, shared_tiny_policy)
    scores: list[CompletionScores] = []
    scored(model, GROUPS, backward=lambda found, rows: scores.append(found), checkpoints_layers=checkpoints_layers)
    scores[0].logprobs.square().sum().backward()
    with_gradient = {id(weight) for weight in model.parameters() if weight.grad is not None}
    assert with_gradient == {id(weight) for weight in adapter_state(model).values()}


@ADAPTED
@torch.no_grad()
def test_without_its_adapters_a_model_is_scored_as_the_base(name: str, shared_tiny_policy: Policy):
    base = frozen_copy(adapted_of(name, shared_tiny_policy), adapters_on=False)
    for found, exact in zip(scored(base, GROUPS), scored(model_of(name), GROUPS), strict=True):
        assert torch.equal(found, exact)


@torch.no_grad()
def test_adapters_that_are_switched_off_and_on_are_seen_at_once(shared_tiny_policy: Policy):
    model = adapted_of("qwen3", shared_tiny_policy)
    on, _ = scored(model, GROUPS)
    off, _ = scored(model_of("qwen3"), GROUPS)
    assert float((on - off).abs().max()) > 0.1
    for expected, state in ((off, False), (on, True)):
        for layer in adapted_layers(model).values():
            layer.enable_adapters(state)
        assert torch.equal(scored(model, GROUPS)[0], expected)


@torch.no_grad()
def test_adapters_that_change_are_seen_at_once(shared_tiny_policy: Policy):
    model = adapted_of("qwen3", shared_tiny_policy)
    scored(model, GROUPS)
    for weight in adapter_state(model).values():
        weight.data.mul_(1.5)
    torch.testing.assert_close(scored(model, GROUPS)[0], slow_logprobs(model, GROUPS), atol=5e-5, rtol=0)


@torch.no_grad()
def test_adapters_that_are_attached_to_a_model_that_was_scored_are_seen(shared_tiny_policy: Policy):
    policy = dataclasses.replace(shared_tiny_policy, model=shaken("qwen3"))
    scored(policy.model, GROUPS)
    model = with_adapters(policy, SPEC, start="", seed=0).model
    for weight in adapter_state(model).values():
        weight.add_(0.1)
    torch.testing.assert_close(scored(model, GROUPS)[0], slow_logprobs(model, GROUPS), atol=5e-5, rtol=0)
