"""What the native engine does beyond the contract: refill, a bounded cache, each prompt once, a proof of its packed weights."""

from __future__ import annotations

import dataclasses
import gc
from typing import Any

import pytest
import torch
from tests.builders import shake
from tests.generation import PROMPTS, SAMPLING, STOP_IDS, as_groups, generate, tokens_of
from tests.processors import SHAPES
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from covey.algos.mismatch import mismatch_metrics
from covey.batch import make_tokens
from covey.engines.native import engine as native
from covey.engines.native.engine import NativeEngine
from covey.engines.native.linear import PackedLinear
from covey.engines.native.schedule import plan_cache
from covey.metrics import metric_values
from covey.models.policy import Policy
from covey.models.scoring import plan_packs, score_completions
from covey.sampling import Sampling
from covey.self_checks import disagreement
from covey.types import Completion, CoveyError

SYSTEM = list(b"You add numbers. ")
SHARING = [SYSTEM + prompt for prompt in PROMPTS]


def same(first: list[list[Completion]], second: list[list[Completion]]) -> bool:
    """Whether tokens are equal and log-probs are so up to rounding."""
    pairs = zip((c for g in first for c in g), (c for g in second for c in g), strict=True)
    return tokens_of(first) == tokens_of(second) and all(a.logprobs == pytest.approx(b.logprobs, abs=1e-5) for a, b in pairs)


# --- rows leave and others enter ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_rows", [1, 2, 3, 7])
@pytest.mark.parametrize("sampling", [SAMPLING, SHAPES["all"]], ids=["plain", "shaped"])
def test_refilling_a_small_batch_gives_the_tokens_of_a_large_one(shared_policy: Policy, max_rows: int, sampling: Sampling):
    whole = generate(NativeEngine(shared_policy), PROMPTS * 2, sampling=dataclasses.replace(sampling, max_new_tokens=12))
    refilled = generate(
        NativeEngine(shared_policy, max_rows=max_rows),
        PROMPTS * 2,
        sampling=dataclasses.replace(sampling, max_new_tokens=12),
    )
    assert same(refilled, whole)


def test_waiting_rows_enter_as_soon_as_others_leave(shared_policy: Policy):
    """The widths of the decoding steps: as many rows as are allowed, until none wait."""
    engine = NativeEngine(shared_policy, max_rows=5)
    widths = spied_widths(engine, "head")
    completions = [completion for group in generate(engine, PROMPTS) for completion in group]
    assert len({len(completion.token_ids) for completion in completions}) > 3
    num_tokens = sum(len(completion.token_ids) for completion in completions)
    assert sum(widths) == num_tokens
    assert widths == sorted(widths, reverse=True)
    assert widths[: num_tokens // 12] == [5] * (num_tokens // 12)


def spied_widths(engine: NativeEngine, name: str) -> list[int]:
    """Return a list that fills with the number of rows of each product with these weights."""
    widths: list[int] = []

    class Spied(PackedLinear):
        def __call__(self, x: Tensor) -> Tensor:
            widths.append(len(x))
            return super().__call__(x)

    engine._weights._linears[name].__class__ = Spied
    return widths


# --- prompts -----------------------------------------------------------------------------------------------------------


def test_each_prompt_is_computed_once_for_its_group(shared_policy: Policy):
    engine = NativeEngine(shared_policy)
    widths = spied_widths(engine, "0.qkv")
    completions = generate(engine, PROMPTS)
    num_decoded = sum(len(completion.token_ids) - 1 for group in completions for completion in group)
    assert sum(widths) == sum(map(len, PROMPTS)) + num_decoded
    assert widths[0] == sum(map(len, PROMPTS))


def test_what_all_prompts_begin_with_is_computed_once(shared_policy: Policy):
    engine = NativeEngine(shared_policy)
    widths = spied_widths(engine, "0.qkv")
    generate(engine, SHARING)
    assert widths[:2] == [len(SYSTEM), sum(map(len, PROMPTS))]


def test_a_common_prefix_changes_no_token(shared_policy: Policy, monkeypatch: pytest.MonkeyPatch):
    shared = generate(NativeEngine(shared_policy), SHARING)
    monkeypatch.setattr(native, "_MIN_SAVED_TOKENS", 1 << 30)
    assert same(shared, generate(NativeEngine(shared_policy), SHARING))


@pytest.mark.parametrize("max_tokens", [1, 9])
def test_prompts_computed_some_at_a_time_change_no_token(
    shared_policy: Policy, monkeypatch: pytest.MonkeyPatch, max_tokens: int
):
    whole = generate(NativeEngine(shared_policy), SHARING)
    monkeypatch.setattr(native, "_MAX_PREFILL_TOKENS", max_tokens)
    assert same(generate(NativeEngine(shared_policy), SHARING), whole)


# --- memory ------------------------------------------------------------------------------------------------------------

KIB_PER_TOKEN = 2 * 2 * 2 * 16 * 4 / 1024
"""Of the tiny model: layers, keys and values, key-value heads, dimensions, bytes of float32."""


@pytest.mark.parametrize("budget", [2 * 37, 4 * 37, 9 * 37])
def test_keys_and_values_stay_within_the_budget(shared_policy: Policy, monkeypatch: pytest.MonkeyPatch, budget: int):
    max_cache_bytes = int(budget * KIB_PER_TOKEN * 1024)
    engine = NativeEngine(shared_policy, max_cache_bytes=max_cache_bytes)
    allocated: list[int] = []
    new_cache = engine._ops.new_cache

    def spied(*arguments: Any) -> Any:
        cache: Any = new_cache(*arguments)
        allocated.append(cache.prompts.nbytes + cache.rows.nbytes)
        return cache

    monkeypatch.setattr(engine._ops, "new_cache", spied)
    bounded = generate(engine, PROMPTS)
    assert 0 < allocated[0] <= max_cache_bytes
    assert same(bounded, generate(NativeEngine(shared_policy), PROMPTS))


def test_the_budget_is_used(shared_policy: Policy):
    """One row more, or its prompt, would not fit."""
    engine = NativeEngine(shared_policy)
    for budget in range(40, 500, 7):
        max_cache_bytes = int(budget * KIB_PER_TOKEN * 1024)
        arguments: dict[str, Any] = {"group_size": 4, "max_new_tokens": 12, "num_bytes": engine._ops.cache_bytes}
        lengths = [len(prompt) for prompt in PROMPTS]
        size = plan_cache(lengths, max_rows=12, max_cache_bytes=max_cache_bytes, **arguments)
        assert engine._ops.cache_bytes(size) <= max_cache_bytes
        if size.num_rows < 12:
            larger = plan_cache(lengths, max_rows=size.num_rows + 1, max_cache_bytes=1 << 30, **arguments)
            assert engine._ops.cache_bytes(larger) > max_cache_bytes


def test_a_budget_too_small_for_one_completion_is_refused_with_what_it_takes(shared_policy: Policy):
    with pytest.raises(CoveyError, match=r"27 prompt tokens and up to 12 new ones\) take 0 MiB.*more memory"):
        generate(NativeEngine(shared_policy, max_cache_bytes=1000), PROMPTS)


def test_a_closed_engine_holds_no_weights(shared_policy: Policy):
    def num_products() -> int:
        gc.collect()
        return sum(type(item) is PackedLinear for item in gc.get_objects())

    before = num_products()
    engine = NativeEngine(shared_policy)
    assert num_products() > before
    engine.close()
    assert num_products() == before


# --- progress ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_rows", [2, 128])
def test_progress_rises_to_a_known_total(shared_policy: Policy, max_rows: int):
    seen: list[tuple[int, int]] = []
    generate(NativeEngine(shared_policy, max_rows=max_rows, progress=lambda done, total: seen.append((done, total))), PROMPTS)
    done = [item for item, _ in seen]
    assert {total for _, total in seen} == {len(PROMPTS) * 4 * SAMPLING.max_new_tokens}
    assert done == sorted(set(done))
    assert seen[-1][0] == seen[-1][1]


# --- the proof that packed weights are current -------------------------------------------------------------------------

PRODUCTS = [f"{layer}.{name}" for layer in range(2) for name in ("qkv", "attention_out", "gate_up", "mlp_out")] + ["head"]


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_stale_packed_weight_shows_in_the_digest(policy: Policy, name: str, dtype: torch.dtype):
    engine = NativeEngine(dataclasses.replace(policy, compute_dtype=dtype))
    linear = engine._weights._linears[name]
    stale = linear._weight
    shake(policy, scale=0.01)
    engine.load_weights(policy, 1)
    assert engine.served_digest() == engine.expected_digest(policy)
    linear._weight = stale
    assert engine.served_digest() != engine.expected_digest(policy)


@pytest.mark.parametrize("name", ["0.attention_norm", "1.mlp_norm", "final_norm"])
def test_one_stale_norm_shows_in_the_digest(policy: Policy, name: str):
    engine = NativeEngine(policy)
    stale = engine._weights._norms[name].clone()
    shake(policy, scale=0.01)
    engine.load_weights(policy, 1)
    engine._weights._norms[name].copy_(stale)
    assert engine.served_digest() != engine.expected_digest(policy)


def test_a_stale_embedding_shows_in_the_digest(policy: Policy):
    engine = NativeEngine(policy)
    stale = engine._weights.embedding.clone()
    shake(policy, scale=0.01)
    engine.load_weights(policy, 1)
    engine._weights.embedding.copy_(stale)
    assert engine.served_digest() != engine.expected_digest(policy)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_diverged_weights_are_served_as_they_are(policy: Policy, value: float):
    """So that the run ends with the message that the weights have diverged, and not with one about stale weights."""
    model: Any = policy.model
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = value
    engine = NativeEngine(policy)
    assert engine.served_digest() == engine.expected_digest(policy)
    with pytest.raises(CoveyError, match="not finite"):
        generate(engine, PROMPTS)


# --- agreement with the trainer in bfloat16 ----------------------------------------------------------------------------

SMOLLM2: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 3,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "initializer_range": 0.08,
}
SMALL: dict[str, Any] = {**SMOLLM2, "hidden_size": 192, "intermediate_size": 320, "num_attention_heads": 6, "head_dim": 64}
MODELS = {
    "smollm2": lambda: LlamaForCausalLM(LlamaConfig(**SMOLLM2, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**SMALL, sliding_window=8, layer_types=["sliding_attention", "full_attention", "sliding_attention"])
    ),
}


def bfloat16_policy(policy: Policy, name: str) -> Policy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = MODELS[name]().float().eval()
    return dataclasses.replace(policy, model=model, compute_dtype=torch.bfloat16, stop_ids=STOP_IDS)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kernels", ["kernels, where they fit", "torch"])
def test_engine_and_trainer_agree_in_bfloat16(shared_policy: Policy, monkeypatch: pytest.MonkeyPatch, name: str, kernels: str):
    monkeypatch.setenv("COVEY_NO_KERNELS", str(int(kernels == "torch")))
    policy = bfloat16_policy(shared_policy, name)
    sampling = dataclasses.replace(SAMPLING, max_new_tokens=40)
    completions = generate(NativeEngine(policy, max_rows=40), PROMPTS, sampling=sampling, group_size=16)
    tokens = make_tokens(as_groups(PROMPTS, completions))
    assert tokens.sampling_logprobs is not None
    packs = plan_packs(tokens, range(len(tokens.completion_ids)), max_shared_tokens=0)
    with torch.no_grad():
        scores = score_completions(policy.model, tokens, packs, sampling=sampling, compute_dtype=torch.bfloat16)
    found = metric_values(mismatch_metrics(scores.logprobs, tokens.sampling_logprobs, tokens.completion_mask))
    assert disagreement(found, torch.bfloat16) is None
    # Of at most 5.6: not so flat that any two models would agree, nor so sharp that nothing is sampled.
    assert 1.0 < float(scores.entropy[tokens.completion_mask].mean()) < 5.1


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_engines_with_refill_and_without_draw_alike_for_the_first_tokens(shared_policy: Policy, name: str):
    """Products of other shapes round otherwise, so that a token may differ in the end: not in the first ones, as a rule."""
    policy = bfloat16_policy(shared_policy, name)
    whole = generate(NativeEngine(policy), PROMPTS, group_size=16)
    refilled = generate(NativeEngine(policy, max_rows=5), PROMPTS, group_size=16)
    pairs = [(a, b) for one, other in zip(whole, refilled, strict=True) for a, b in zip(one, other, strict=True)]
    assert sum(a.token_ids[:4] == b.token_ids[:4] for a, b in pairs) > 0.8 * len(pairs)
