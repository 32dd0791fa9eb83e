"""Whole models on the packed path in bfloat16: by the kernels, by torch, and against float32."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.tiny_batches import TEMPERATURE, gradient_of, ragged_groups
from tests.unit.test_native_families import SIZES
from tests.unit.test_native_kernels import architecture
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from covey.batch import make_tokens
from covey.models.kernels.build import load_library
from covey.models.packed.decoder import PackedForward
from covey.models.packed.kernels import KernelSteps, choose_steps
from covey.models.packed.layout import pack_layout
from covey.models.packed.steps import TorchSteps
from covey.models.scoring import plan_scoring, score_completions
from covey.sampling import Sampling

BF16 = torch.bfloat16


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips where there are none, and says why: the torch path is tested everywhere."""
    monkeypatch.delenv("COVEY_NO_KERNELS", raising=False)
    library = load_library()
    if isinstance(library, str):
        pytest.skip(library)


# --- Which steps -----------------------------------------------------------------------------------------------------


def choice(**sizes: int) -> str:
    return type(choose_steps(dataclasses.replace(architecture(), **sizes), BF16, residual_dtype=torch.float32)).__name__


@pytest.mark.parametrize("value", [None, "", "0"])
def test_kernels_are_taken_where_there_are_any(kernels: None, monkeypatch: pytest.MonkeyPatch, value: str | None):
    if value is not None:
        monkeypatch.setenv("COVEY_NO_KERNELS", value)
    assert choice() == "KernelSteps"


def test_the_torch_steps_can_be_forced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COVEY_NO_KERNELS", "1")
    assert choice() == "TorchSteps"


@pytest.mark.parametrize("sizes", [{"hidden_size": 40}, {"intermediate_size": 72}, {"head_dim": 48}], ids=str)
def test_sizes_that_do_not_fit_take_the_torch_steps(kernels: None, sizes: dict[str, int]):
    assert choice(**sizes) == "TorchSteps"


def test_other_dtypes_take_the_torch_steps(kernels: None):
    assert isinstance(choose_steps(architecture(), torch.float32, residual_dtype=torch.float32), TorchSteps)


# --- Whole models ----------------------------------------------------------------------------------------------------

ALIGNED: dict[str, Any] = {**SIZES, "hidden_size": 64, "intermediate_size": 96, "head_dim": 32, "initializer_range": 0.1}
WHOLE_MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**ALIGNED, tie_word_embeddings=True)),
    "qwen2, sliding": lambda: Qwen2ForCausalLM(
        Qwen2Config(**ALIGNED, use_sliding_window=True, sliding_window=5, max_window_layers=1)
    ),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**ALIGNED, sliding_window=6, query_pre_attn_scalar=24)),
}
every_whole_model = pytest.mark.parametrize("name", WHOLE_MODELS)
GROUPS = ragged_groups([[0.0] * 5] * 3)
TOKENS = make_tokens(GROUPS)


@pytest.fixture
def model(name: str) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return copy.deepcopy(WHOLE_MODELS[name]().float().eval())


def scores_and_gradient(model: PreTrainedModel, dtype: torch.dtype, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probs, entropies and the gradient of a weighted sum of both."""
    [packs] = plan_scoring(model, TOKENS, range(15), max_tokens=4096, max_shared_tokens=4096)
    found = score_completions(
        model,
        TOKENS,
        packs,
        sampling=Sampling(temperature=TEMPERATURE),
        compute_dtype=dtype,
        entropy_gradient=True,
        **options,
    )
    weights = torch.randn(2, *found.logprobs.shape, generator=torch.Generator().manual_seed(5))
    loss = (weights[0] * found.logprobs + weights[1] * found.entropy).sum()
    gradient = gradient_of(model, loss.backward)
    return found.logprobs.detach(), found.entropy.detach(), gradient


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


@every_whole_model
def test_a_model_in_bfloat16_is_close_to_the_same_in_float32(kernels: None, model: PreTrainedModel):
    assert isinstance(PackedForward(model, pack_layout([(torch.arange(9), [torch.arange(5)])]), BF16).steps, KernelSteps)
    logprobs, entropy, gradient = scores_and_gradient(model, BF16)
    exact_logprobs, exact_entropy, exact_gradient = scores_and_gradient(model, torch.float32)
    assert logprobs.dtype == entropy.dtype == gradient.dtype == torch.float32
    torch.testing.assert_close(logprobs, exact_logprobs, atol=0.1, rtol=0)
    torch.testing.assert_close(entropy, exact_entropy, atol=0.1, rtol=0)
    assert cosine(gradient, exact_gradient) > 0.995


@every_whole_model
def test_without_kernels_a_model_gives_close_results(kernels: None, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch):
    logprobs, entropy, gradient = scores_and_gradient(model, BF16)
    monkeypatch.setenv("COVEY_NO_KERNELS", "1")
    other_logprobs, other_entropy, other_gradient = scores_and_gradient(model, BF16)
    assert not torch.equal(logprobs, other_logprobs)  # Else the choice had no effect.
    torch.testing.assert_close(logprobs, other_logprobs, atol=0.1, rtol=0)
    torch.testing.assert_close(entropy, other_entropy, atol=0.1, rtol=0)
    assert cosine(gradient, other_gradient) > 0.995


@every_whole_model
def test_checkpointed_layers_give_the_same_bits_by_the_kernels(kernels: None, model: PreTrainedModel):
    kept, again = (scores_and_gradient(model, BF16, checkpoints_layers=checkpoints) for checkpoints in (False, True))
    for found, expected in zip(again, kept, strict=True):
        assert torch.equal(found, expected)


@every_whole_model
def test_a_second_backward_pass_by_the_kernels_gives_the_same_gradient(kernels: None, model: PreTrainedModel):
    """The first one writes over the logits that were kept."""
    forward = PackedForward(model, pack_layout([(torch.arange(9), [torch.arange(30)])]), BF16)
    logprobs, entropy = forward.scores(torch.arange(30), TEMPERATURE, chunk_tokens=16)
    loss = (logprobs.square() + entropy).sum()
    first, second = (gradient_of(model, lambda: loss.backward(retain_graph=True)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["llama"])
def test_a_model_in_float64_is_scored_right_in_bfloat16(kernels: None, model: PreTrainedModel):
    exact, _, _ = scores_and_gradient(model, torch.float32)
    found, _, _ = scores_and_gradient(model.double(), BF16)
    torch.testing.assert_close(found.float(), exact, atol=0.1, rtol=0)
