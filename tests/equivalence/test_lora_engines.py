"""Engines serve adapters as the trainer computes them, merged or not, and a stale adapter does not pass for a fresh one."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.adapters import SPEC, adapted, change_adapters
from tests.generation import PROMPTS, STOP_IDS, generate, tokens_of, trainer_gap

from covey.engines.base import Engine
from covey.engines.native.engine import NativeEngine
from covey.engines.transformers import TransformersEngine
from covey.models.policy import Policy
from covey.self_checks import load_and_prove_weights
from covey.types import CoveyError


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """An engine and how it serves adapters."""

    make: Callable[[Policy], Engine]
    is_merged: bool


WAYS = {
    "transformers, merged": Way(make=TransformersEngine, is_merged=True),
    "transformers, unmerged": Way(make=TransformersEngine, is_merged=False),
    "native, merged": Way(make=NativeEngine, is_merged=True),
}
every_way = pytest.mark.parametrize("way", [pytest.param(way, id=name) for name, way in WAYS.items()])


def policy_of(plain: Policy, way: Way, *, dtype: torch.dtype = torch.float32) -> Policy:
    policy = adapted(plain, spec=dataclasses.replace(SPEC, is_merged=way.is_merged))
    return dataclasses.replace(policy, stop_ids=STOP_IDS, compute_dtype=dtype)


@every_way
def test_logprobs_are_those_of_the_trainer(shared_tiny_policy: Policy, way: Way):
    policy = policy_of(shared_tiny_policy, way)
    completions = generate(way.make(policy), PROMPTS)
    assert trainer_gap(policy, PROMPTS, completions) < 1e-4
    assert trainer_gap(shared_tiny_policy, PROMPTS, completions) > 0.1


@every_way
def test_new_adapters_are_served_after_a_load_and_not_before(shared_tiny_policy: Policy, way: Way):
    policy = policy_of(shared_tiny_policy, way)
    engine = way.make(policy)
    before = generate(engine, PROMPTS)
    change_adapters(policy, b_std=0.2)
    assert generate(engine, PROMPTS) == before
    engine.load_weights(policy, 1)
    after = generate(engine, PROMPTS)
    assert tokens_of(after) != tokens_of(before)
    assert trainer_gap(policy, PROMPTS, after) < 1e-4


@every_way
def test_loading_and_serving_leaves_the_trainers_bits_alone(shared_tiny_policy: Policy, way: Way):
    policy = policy_of(shared_tiny_policy, way)
    before = {name: weight.detach().clone() for name, weight in policy.model.named_parameters()}
    engine = way.make(policy)
    engine.load_weights(policy, 1)
    generate(engine, PROMPTS)
    assert engine.served_digest() == engine.expected_digest(policy)
    assert all(torch.equal(weight, before[name]) for name, weight in policy.model.named_parameters())


def keep_stale(engine: Any) -> None:
    """Make the engine load nothing from now on."""
    engine.load_weights = lambda policy, version: None


@every_way
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_engine_that_keeps_stale_adapters_is_caught(shared_tiny_policy: Policy, way: Way, dtype: torch.dtype):
    """Even if it is a single layer's adapter that is stale."""
    policy = policy_of(shared_tiny_policy, way, dtype=dtype)
    engine = way.make(policy)
    load_and_prove_weights(engine, policy, 1)
    keep_stale(engine)
    load_and_prove_weights(engine, policy, 2)
    weight: Any = policy.model.get_decoder().layers[1].mlp.down_proj.lora_B["default"].weight
    with torch.no_grad():
        weight += 0.01
    with pytest.raises(CoveyError, match="stale weights"):
        load_and_prove_weights(engine, policy, 3)


@pytest.mark.parametrize("make", [TransformersEngine, NativeEngine])
def test_merged_weights_are_rounded_once(shared_tiny_policy: Policy, make: Callable[[Policy], Engine]):
    """In bfloat16 an engine serves round(W + scale B A), which is what the plain model of those weights serves."""
    policy = policy_of(shared_tiny_policy, WAYS["native, merged"], dtype=torch.bfloat16)
    merged = dataclasses.replace(policy, adapters=None, model=_merged_by_hand(policy, shared_tiny_policy))
    assert make(policy).served_digest() == make(merged).served_digest()


def _merged_by_hand(policy: Policy, plain: Policy) -> Any:
    model = copy.deepcopy(plain.model)
    weights = dict(policy.model.named_parameters())
    scale = SPEC.alpha / SPEC.rank
    with torch.no_grad():
        for name, weight in model.named_parameters():
            layer = name.removesuffix(".weight")
            if f"{layer}.lora_A.default.weight" in weights:
                up, down = (weights[f"{layer}.{side}.default.weight"] for side in ("lora_B", "lora_A"))
                weight += scale * (up @ down)
    return model


def test_the_native_engine_refuses_to_serve_adapters_unmerged(shared_tiny_policy: Policy):
    policy = policy_of(shared_tiny_policy, WAYS["transformers, unmerged"])
    with pytest.raises(
        CoveyError,
        match=r"its adapters are not merged into the weights \(lora\.sampling='merged'\)\. Use the transformers engine",
    ):
        NativeEngine(policy)
