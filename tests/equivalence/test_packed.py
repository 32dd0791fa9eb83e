"""The packed path against transformers' own forward pass, one completion at a time: scores and gradients of all families."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from tests.tiny_batches import (
    CUTS,
    TEMPERATURE,
    WHOLE,
    Cut,
    gradient_of,
    ragged_groups,
    relative_error,
    slow_entropy,
    slow_logprobs,
)
from tests.unit.test_native_families import built, every_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from covey.batch import make_tokens
from covey.models.families import FAMILIES
from covey.models.packed import attention, functions
from covey.models.packed.decoder import PackedForward, packed_refusal
from covey.models.packed.layout import pack_layout
from covey.models.scoring import CompletionScores, layers_checkpointed, plan_scoring, score_completions
from covey.sampling import Sampling
from covey.types import Group

GROUPS = ragged_groups([[0.0] * 5] * 3)
PLAIN = Sampling(temperature=TEMPERATURE)
SOME = pytest.mark.parametrize("name", ["llama, tied, with biases", "qwen2, sliding, yarn", "gemma3"])


def shaken(name: str, *, scale: float = 0.1) -> PreTrainedModel:
    """Return a model of its own, norms and biases random as well."""
    model = copy.deepcopy(built(name))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    embedding: Any = model.get_input_embeddings()
    embedding.padding_idx = None  # As `load_policy` has it: no token's gradient is dropped.
    return model


class Norm64(nn.Module):
    """The norm without the rounding to float32 inside that transformers' own have."""

    def __init__(self, norm: Any, offset: float):
        super().__init__()
        self.weight, self.offset = norm.weight, offset
        self.eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(dim=-1, keepdim=True) + self.eps).sqrt() * (self.weight + self.offset)


def in_float64(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model, in float64 throughout."""
    for name, module in list(model.double().named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            model.set_submodule(name, Norm64(module, FAMILIES[model.config.model_type].norm_offset))
    return model


def scored(
    model: PreTrainedModel,
    groups: list[Group],
    *,
    cut: Cut = WHOLE,
    backward: Callable[[CompletionScores, list[int]], object] = lambda scores, rows: None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Return log-probs and entropies [B, T] by `score_completions`; `backward` sees each micro-batch and its rows."""
    tokens = make_tokens(groups)
    logprobs = torch.zeros(tokens.completion_mask.shape, dtype=model.dtype)
    entropy = torch.zeros_like(logprobs)
    plan = plan_scoring(model, tokens, range(len(logprobs)), max_tokens=cut[0], max_shared_tokens=cut[1])
    for packs in plan:
        rows = [row for pack in packs for row in pack.rows]
        scores = score_completions(model, tokens, packs, sampling=PLAIN, compute_dtype=torch.float32, **options)
        logprobs[rows], entropy[rows] = scores.logprobs.detach(), scores.entropy.detach()
        backward(scores, rows)
    return logprobs, entropy


def weights_of(groups: list[Group], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return random weights [B, T] of log-probs and entropies, 0 outside the mask: the loss is their weighted sum."""
    generator, mask = torch.Generator().manual_seed(3), make_tokens(groups).completion_mask
    both = torch.randn(2, *mask.shape, generator=generator, dtype=torch.float64).to(dtype) * mask
    return both[0], both[1]


def gradient(model: PreTrainedModel, *, has_entropy: bool = False, **options: Any) -> Tensor:
    """Return the gradient of the weighted sum, all parameters in one vector."""
    of_logprobs, of_entropy = weights_of(GROUPS, model.dtype)

    def backward(scores: CompletionScores, rows: list[int]) -> None:
        loss = (of_logprobs[rows] * scores.logprobs).sum()
        (loss + (of_entropy[rows] * scores.entropy).sum() if has_entropy else loss).backward()

    options |= {"entropy_gradient": has_entropy, "backward": backward}
    return gradient_of(model, lambda: scored(model, GROUPS, **options))


def slow_grids(model: PreTrainedModel, groups: list[Group]) -> tuple[Tensor, Tensor]:
    """Return log-probs and entropies [B, T] from full logits, one completion at a time."""
    logprobs, rows = slow_logprobs(model, groups), slow_entropy(model, groups)
    width = logprobs.shape[1]
    return logprobs, torch.stack([nn.functional.pad(row, (0, width - len(row))) for row in rows])


def slow_gradient(model: PreTrainedModel, *, has_entropy: bool = False) -> Tensor:
    of_logprobs, of_entropy = weights_of(GROUPS, model.dtype)
    logprobs, entropy = slow_grids(model, GROUPS)
    loss = (of_logprobs * logprobs).sum() + (of_entropy * entropy).sum() * has_entropy
    return gradient_of(model, loss.backward)


def assert_same_gradient(model: nn.Module, found: Tensor, expected: Tensor, *, bound: float = 2e-5) -> None:
    """Compare the gradient of every parameter that is trained.

    In float32 these models, which are sharper than real ones, are up to 1.5e-5 from float64 on either path.
    """
    sizes = [weight.numel() for weight in model.parameters()]
    for (name, weight), part, exact in zip(model.named_parameters(), found.split(sizes), expected.split(sizes), strict=True):
        if weight.requires_grad:
            assert float(exact.norm()) > 0, name
            assert relative_error(part, exact) < bound, name


@cache
def model_of(name: str) -> PreTrainedModel:
    """Shared by the tests that leave the weights alone."""
    return shaken(name)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_TILE", 4)


# --- Every family ----------------------------------------------------------------------------------------------------


@every_model
@torch.no_grad()
def test_log_probs_and_entropies_are_those_of_transformers(name: str, small_tiles: None):
    expected = slow_grids(model_of(name), GROUPS)
    assert packed_refusal(model_of(name)) is None
    for found, exact in zip(scored(model_of(name), GROUPS), expected, strict=True):
        torch.testing.assert_close(found, exact, atol=5e-5, rtol=0)


@every_model
@pytest.mark.parametrize("has_entropy", [False, True], ids=["log-probs", "and entropies"])
def test_the_gradient_of_every_parameter_is_that_of_transformers(name: str, has_entropy: bool, small_tiles: None):
    model = in_float64(shaken(name))
    found, exact = gradient(model, has_entropy=has_entropy), slow_gradient(model, has_entropy=has_entropy)
    assert_same_gradient(model, found, exact, bound=1e-10)


@every_model
def test_in_float32_the_gradient_is_that_of_transformers_to_float32_precision(name: str):
    model = model_of(name)
    assert_same_gradient(model, gradient(model, has_entropy=True), slow_gradient(model, has_entropy=True))


@pytest.mark.parametrize("name", ["llama", "mistral, sliding"])
def test_sequences_longer_than_a_tile_are_scored_right(name: str):
    lengths = ((131, 1, 260, 40), (3, 128, 129, 2))
    groups = ragged_groups([[0.0] * 4] * 2, prompt_lengths=(140, 5), completion_lengths=lengths)
    assert max(map(max, lengths)) > 2 * attention._TILE
    model = model_of(name)
    expected = slow_grids(model, groups)
    of_logprobs, _ = weights_of(groups, torch.float32)
    exact = gradient_of(model, (of_logprobs * expected[0]).sum().backward)

    def backward(scores: CompletionScores, rows: list[int]) -> None:
        (of_logprobs[rows] * scores.logprobs).sum().backward()

    grids: list[tuple[Tensor, Tensor]] = []
    found = gradient_of(model, lambda: grids.append(scored(model, groups, backward=backward)))
    for grid, slow in zip(grids[0], expected, strict=True):
        torch.testing.assert_close(grid, slow.detach(), atol=5e-5, rtol=0)
    # Sums over 700 positions in float32: their order is the processor's (2.1e-5 with AVX2, less with AVX-512).
    assert_same_gradient(model, found, exact, bound=4e-5)


@pytest.mark.parametrize("make", [lambda: model_of("llama"), lambda: gpt2_of_two_layers()], ids=["packed", "ordinary"])
def test_entropies_have_a_gradient_only_where_it_was_asked_for(make: Callable[[], PreTrainedModel]):
    seen: list[tuple[bool, bool]] = []

    def note(scores: CompletionScores, rows: list[int]) -> None:
        seen.append((scores.logprobs.requires_grad, scores.entropy.requires_grad))

    for entropy_gradient in (False, True):
        scored(make(), GROUPS, backward=note, entropy_gradient=entropy_gradient)
    assert seen == [(True, False), (True, True)]


# --- However it is cut -----------------------------------------------------------------------------------------------


@cache
def whole_gradient64(name: str) -> Tensor:
    return gradient(shaken(name).double(), has_entropy=True)


@SOME
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_the_gradient_does_not_depend_on_packs_and_micro_batches(name: str, cut: Cut, small_tiles: None):
    found = gradient(shaken(name).double(), has_entropy=True, cut=cut)
    assert relative_error(found, whole_gradient64(name)) < 1e-10


@SOME
@pytest.mark.parametrize("chunk_tokens", [1, 7])
def test_the_gradient_does_not_depend_on_the_chunks_of_the_head(name: str, chunk_tokens: int):
    found = gradient(shaken(name).double(), has_entropy=True, chunk_tokens=chunk_tokens)
    assert relative_error(found, whole_gradient64(name)) < 1e-10


# --- Logits that are kept, and logits that are made again ------------------------------------------------------------

CHUNK_TOKENS = 16
CHUNK_BYTES = CHUNK_TOKENS * 264 * 4


@pytest.mark.parametrize("room", [0, CHUNK_BYTES, 3 * CHUNK_BYTES - 1], ids=["none", "one", "two"])
def test_logits_made_again_give_the_same_bits_as_kept_ones(room: int, monkeypatch: pytest.MonkeyPatch):
    kept = gradient(model_of("llama"), has_entropy=True, chunk_tokens=CHUNK_TOKENS)
    monkeypatch.setattr(functions, "_KEPT_LOGIT_BYTES", room)
    assert torch.equal(gradient(model_of("llama"), has_entropy=True, chunk_tokens=CHUNK_TOKENS), kept)


def kept_chunks(model: PreTrainedModel) -> list[bool]:
    layout = pack_layout([(torch.arange(9), [torch.arange(5 * CHUNK_TOKENS - 3)])])
    forward = PackedForward(model, layout, torch.float32)
    logprobs: Any = forward.scores(torch.arange(5 * CHUNK_TOKENS - 3), TEMPERATURE, chunk_tokens=CHUNK_TOKENS)[0]
    return [logits is not None for logits in logprobs.grad_fn.logits]


@pytest.mark.parametrize(
    ("room", "expected"), [(CHUNK_BYTES - 1, [False] * 5), (2 * CHUNK_BYTES, [True] * 2 + [False] * 3), (1 << 30, [True] * 5)]
)
def test_no_more_logits_are_kept_than_there_is_room_for(room: int, expected: list[bool], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(functions, "_KEPT_LOGIT_BYTES", room)
    assert kept_chunks(model_of("llama")) == expected


@SOME
def test_a_second_backward_pass_adds_the_same_gradient_again(name: str):
    """The first one writes over the logits that were kept."""
    of_logprobs, _ = weights_of(GROUPS, torch.float32)

    def twice(scores: CompletionScores, rows: list[int]) -> None:
        loss = (of_logprobs[rows] * scores.logprobs).sum()
        loss.backward(retain_graph=True)
        loss.backward()

    found = gradient_of(model_of(name), lambda: scored(model_of(name), GROUPS, backward=twice))
    assert relative_error(found, 2 * gradient(model_of(name))) < 1e-6


@pytest.mark.parametrize("trained", ["o_proj", "norm", "embed_tokens", "lm_head", "layers.1.", "k_proj", "up_proj"])
def test_frozen_weights_get_no_gradient_and_the_others_theirs(trained: str):
    expected, model = gradient(model_of("qwen2")), shaken("qwen2")
    for name, weight in model.named_parameters():
        weight.requires_grad_(trained in name)
    found = gradient(model)
    sizes = [weight.numel() for weight in model.parameters()]
    for weight, part, exact in zip(model.parameters(), found.split(sizes), expected.split(sizes), strict=True):
        assert torch.equal(part, exact if weight.requires_grad else torch.zeros_like(exact))


# --- Layers that are computed again ----------------------------------------------------------------------------------


@every_model
def test_checkpointed_layers_give_the_same_bits(name: str):
    kept = gradient(model_of(name), has_entropy=True)
    assert torch.equal(gradient(model_of(name), has_entropy=True, checkpoints_layers=True), kept)


def num_kept(model: PreTrainedModel, *, checkpoints_layers: bool) -> int:
    """Return how many numbers autograd keeps for the backward pass, besides what checkpoints hold."""
    kept: list[int] = []

    def note(saved: Tensor) -> Tensor:
        kept.append(saved.numel())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        scored(model, GROUPS, checkpoints_layers=checkpoints_layers)
    return sum(kept)


@pytest.mark.parametrize("make", [lambda: model_of("llama"), lambda: gpt2_of_two_layers()], ids=["packed", "ordinary"])
def test_checkpointed_layers_keep_less(make: Callable[[], PreTrainedModel]):
    assert num_kept(make(), checkpoints_layers=True) < 0.5 * num_kept(make(), checkpoints_layers=False)


def gpt2_of_two_layers() -> Any:
    config = GPT2Config(vocab_size=264, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(config).double().eval()


@pytest.mark.parametrize("cut", [(64, 64), WHOLE, (4096, 0)], ids=str)
def test_the_ordinary_path_gives_the_same_bits_with_checkpointed_layers(cut: Cut):
    model = gpt2_of_two_layers()
    assert packed_refusal(model) is not None
    kept = gradient(model, has_entropy=True, cut=cut)
    assert torch.equal(gradient(model, has_entropy=True, cut=cut, checkpoints_layers=True), kept)


def test_only_layers_believe_that_they_are_in_training_and_only_for_the_forward_pass():
    model = gpt2_of_two_layers()
    with layers_checkpointed(model):
        assert {name for name, module in model.named_modules() if module.training} == {"transformer.h.0", "transformer.h.1"}
    assert not any(module.training for module in model.modules())
    assert not any(module.gradient_checkpointing for module in model.transformer.h)


# --- Models that are refused -----------------------------------------------------------------------------------------


def add_bias(layer: nn.Linear) -> None:
    layer.bias = nn.Parameter(torch.randn(layer.out_features, generator=torch.Generator().manual_seed(0)))


def with_one_bias() -> PreTrainedModel:
    model: Any = shaken("llama")
    add_bias(model.model.layers[1].self_attn.k_proj)
    return model


def with_head_bias() -> PreTrainedModel:
    model: Any = shaken("llama")
    add_bias(model.lm_head)
    return model


@pytest.mark.parametrize("make", [gpt2_of_two_layers, with_one_bias, with_head_bias])
@torch.no_grad()
def test_a_model_that_is_refused_takes_the_ordinary_path_and_is_scored_right(make: Callable[[], PreTrainedModel]):
    model = make()
    assert packed_refusal(model) is not None
    for found, exact in zip(scored(model, GROUPS), slow_grids(model, GROUPS), strict=True):
        torch.testing.assert_close(found, exact, atol=5e-5, rtol=0)
