"""The native engine's decoder against transformers, for a tiny random model of every family."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from tests.builders import shake
from tests.generation import PROMPTS, generate, trainer_gap
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from covey.engines.native import linear as linear_module
from covey.engines.native.attention import CacheSize
from covey.engines.native.engine import Batch, NativeEngine
from covey.engines.native.ops import TorchOps
from covey.engines.native.schedule import Schedule
from covey.engines.native.weights import ServedWeights
from covey.models.families import FAMILIES, unsupported_reason
from covey.models.policy import Policy
from covey.types import CoveyError

SIZES: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
UNSHARED: dict[str, Any] = {**SIZES, "num_key_value_heads": 4}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama, tied, with biases": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True, mlp_bias=True)
    ),
    "llama, one key-value head for each head": lambda: LlamaForCausalLM(LlamaConfig(**UNSHARED)),
    "llama 3": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    "mistral, sliding": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=7)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen2, sliding, yarn": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=5, max_window_layers=1, rope_parameters=YARN_ROPE)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=32)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**SIZES, head_dim=32, sliding_window=6, layer_types=SLIDING, query_pre_attn_scalar=24)
    ),
}
every_model = pytest.mark.parametrize("name", MODELS)
COMMON = list(range(40, 60))
PROMPT_SETS = {
    "ragged": PROMPTS,
    "common prefix": [COMMON + tail for tail in ([1], [2, 3, 4, 5, 6, 7], [2, 9, 9])],
    "a prompt that is the common prefix": [COMMON, COMMON + [7, 7, 7], COMMON],
}


@cache
def built(name: str) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[name]().float().eval()


@pytest.fixture
def policy(name: str, shared_tiny_policy: Policy) -> Policy:
    """The model, norms and biases random as well, with the tiny tokenizer."""
    policy = dataclasses.replace(shared_tiny_policy, model=copy.deepcopy(built(name)))
    shake(policy, scale=0.1)
    return policy


@torch.inference_mode()
def largest_difference(policy: Policy, weights: ServedWeights, prompts: list[list[int]], size: CacheSize) -> float:
    """Decode given tokens, two completions of different lengths for each prompt, and compare all logits with a full pass."""
    model = policy.model
    endings = [[(11 * place + 5 * row) % 264 for place in range(6 + 3 * (row % 2))] for row in range(2 * len(prompts))]
    expected = [model(torch.tensor([prompts[row // 2] + ending])).logits[0] for row, ending in enumerate(endings)]
    schedule = Schedule([len(prompt) for prompt in prompts], [[2 * p, 2 * p + 1] for p in range(len(prompts))], size)
    batch = Batch(weights, TorchOps(weights.architecture, weights.dtype), schedule, prompts, size=size)
    largest = 0.0
    while not schedule.is_done:
        logits, _ = batch.next_logits()
        for row, found in zip(schedule.active, logits, strict=True):
            reference = expected[row.key][len(prompts[row.prompt]) - 1 + len(row.token_ids)]
            largest = max(largest, float((found - reference).abs().max()))
            row.token_ids.append(endings[row.key][len(row.token_ids)] if len(row.token_ids) < len(endings[row.key]) else -1)
        batch.move(*schedule.retire([row.token_ids[-1] == -1 for row in schedule.active]))
    return largest


@every_model
@pytest.mark.parametrize("prompts", PROMPT_SETS.values(), ids=PROMPT_SETS)
def test_logits_are_those_of_transformers_token_by_token(name: str, policy: Policy, prompts: list[list[int]]):
    size = CacheSize(num_prompts=2, prompt_tokens=max(map(len, prompts)), num_rows=3, row_tokens=12)
    assert largest_difference(policy, ServedWeights(policy.model, torch.float32), prompts, size) < 1e-4


@every_model
def test_logits_are_those_of_transformers_after_a_load(name: str, policy: Policy):
    weights = ServedWeights(policy.model, torch.float32)
    shake(policy, scale=0.2, seed=2)
    size = CacheSize(num_prompts=3, prompt_tokens=32, num_rows=6, row_tokens=12)
    assert largest_difference(policy, weights, PROMPTS, size) > 0.1
    weights.load(policy.model)
    assert largest_difference(policy, weights, PROMPTS, size) < 1e-4


@every_model
def test_sampled_logprobs_are_those_of_the_trainer(name: str, policy: Policy):
    assert trainer_gap(policy, PROMPTS, generate(NativeEngine(policy), PROMPTS)) < 1e-4


@every_model
def test_the_digest_is_the_expected_one_before_and_after_a_load(name: str, policy: Policy):
    engine = NativeEngine(policy)
    assert engine.served_digest() == engine.expected_digest(policy)
    shake(policy, scale=0.01)
    assert engine.served_digest() != engine.expected_digest(policy)
    engine.load_weights(policy, 1)
    assert engine.served_digest() == engine.expected_digest(policy)


@every_model
def test_where_weights_cannot_be_packed_they_are_served_all_the_same(
    name: str, policy: Policy, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(linear_module, "can_pack", lambda dtype: False)
    engine = NativeEngine(policy)
    before = generate(engine, PROMPTS)
    assert trainer_gap(policy, PROMPTS, before) < 1e-4
    assert engine.served_digest() == engine.expected_digest(policy)
    shake(policy, scale=0.2, seed=2)
    assert generate(engine, PROMPTS) == before  # its own copy


def test_every_family_has_a_model_here():
    assert {built(name).config.model_type for name in MODELS} == set(FAMILIES)


# --- models that cannot be served --------------------------------------------------------------------------------------


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=264, n_embd=16, n_layer=1, n_head=2))


def with_option(option: str, value: float) -> PreTrainedModel:
    model = copy.deepcopy(built("gemma3"))
    setattr(model.config, option, value)
    return model


def with_more_weights() -> PreTrainedModel:
    model: Any = copy.deepcopy(built("llama"))
    model.model.layers[1].self_attn.extra = nn.Linear(2, 2)
    return model


def with_adapter() -> PreTrainedModel:
    model: Any = copy.deepcopy(built("llama"))
    model.model.layers[0].mlp.up_proj = nn.Sequential(model.model.layers[0].mlp.up_proj, nn.Identity())
    return model


def with_rope(**rope: Any) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=rope))


UNSUPPORTED: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "another family": (gpt2, "gpt2 models have no row"),
    "another class": (lambda: type("MyLlama", (LlamaForCausalLM,), {})(LlamaConfig(**SIZES)), "MyLlama is not"),
    "soft-capped attention": (lambda: with_option("attn_logit_softcapping", 50.0), r"attn_logit_softcapping=50\.0"),
    "soft-capped logits": (lambda: with_option("final_logit_softcapping", 30.0), r"final_logit_softcapping=30\.0"),
    "activation": (lambda: LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="relu")), "activation relu"),
    "moving frequencies": (lambda: with_rope(rope_type="dynamic", rope_theta=1e4, factor=2.0), "length of the sequence"),
    "more weights": (with_more_weights, r"does not know \(model\.layers\.1\.self_attn\.extra"),
    "a wrapped projection": (with_adapter, r"0\.gate_up\) is no plain linear layer"),
    "rounded master weights": (lambda: copy.deepcopy(built("llama")).bfloat16(), "bfloat16, and master weights are float32"),
}


@pytest.mark.parametrize(("make", "reason"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_the_decoder_does_not_know_is_refused_with_the_reason(
    make: Callable[[], PreTrainedModel], reason: str, shared_tiny_policy: Policy
):
    policy = dataclasses.replace(shared_tiny_policy, model=make())
    with pytest.raises(CoveyError, match=rf"native engine cannot serve this model: .*{reason}"):
        NativeEngine(policy)


@every_model
def test_a_known_model_is_not_refused(name: str):
    assert unsupported_reason(built(name)) is None
