"""The native engine's C++ kernels against torch. Inputs are bfloat16, so only the roundings inside differ."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from covey.engines.native.attention import Attention, Cache, CacheSize, PlainCache, RotaryTables, Rows
from covey.engines.native.fused import KernelLinear, KernelOps, PairedCache, choose_ops
from covey.engines.native.kernels import Kernels, find_kernels
from covey.engines.native.linear import PackedLinear
from covey.engines.native.ops import TorchOps, drawn_in_two_levels
from covey.engines.native.weights import LayerWeights
from covey.models.families import Architecture, LayerShape, Rope
from covey.models.kernels.build import Library, load_library

BF16 = torch.bfloat16
ALMOST_1 = 1 - 2.0**-53


def architecture(*, head_dim: int = 32, num_heads: int = 4, num_kv_heads: int = 2, window: int | None = None) -> Architecture:
    frequencies = 1 / 100 ** (torch.arange(0, head_dim, 2) / head_dim)
    return Architecture(
        hidden_size=48,
        intermediate_size=80,
        vocab_size=264,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        norm_eps=1e-5,
        activation="silu",
        embedding_scale=1.0,
        attention_scale=head_dim**-0.5,
        layers=(LayerShape(window=window, rope="one"), LayerShape(window=None, rope="one")),
        ropes={"one": Rope(inv_freq=frequencies, scaling=1.1)},
    )


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    """Skips where there are none: the torch path is tested everywhere."""
    found = find_kernels()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture
def ops(kernels: Kernels) -> KernelOps:
    return KernelOps(kernels, architecture())


def noise(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(BF16)


def assert_rounded(found: Tensor, exact: Tensor) -> None:
    """A bfloat16 has 8 bits: rounded correctly, it is off by at most 2^-9 of the value, or 2^-8 after a tie in float32."""
    assert found.dtype == BF16
    torch.testing.assert_close(found.double(), exact.double(), rtol=2.0**-8, atol=1e-30)


# --- row by row --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_rows", [1, 5, 200])
def test_add_norm_is_the_norm_of_the_sum_and_leaves_the_sum(ops: KernelOps, num_rows: int):
    residual, branch, gain = noise(num_rows, 48).float(), noise(num_rows, 48, seed=1), noise(48, seed=2).float()
    total = residual.double() + branch.double()
    exact = total / (total.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * gain
    assert_rounded(ops.add_norm(residual, branch, gain), exact)
    torch.testing.assert_close(residual.double(), total, atol=1e-6, rtol=0)


def test_add_norm_without_a_branch_leaves_the_residual_alone(ops: KernelOps):
    residual, gain = noise(3, 48).float(), noise(48, seed=2).float()
    before = residual.clone()
    exact = before.double() / (before.double().square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * gain
    assert_rounded(ops.add_norm(residual, None, gain), exact)
    assert torch.equal(residual, before)


def test_norm_is_the_norm_of_each_row(ops: KernelOps):
    x, gain = noise(7, 48), noise(48, seed=2).float()
    exact = x.double() / (x.double().square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * gain
    assert_rounded(ops.norm(x, gain), exact)


@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh"])
def test_the_gate_is_the_activation_times_the_other_half(kernels: Kernels, activation: str):
    gate_up = noise(9, 160, scale=4.0)
    gate_up[0, :4] = torch.tensor([0.0, -100.0, 100.0, -1e-3])
    out = torch.empty(9, 80, dtype=BF16)
    kernels.gated(gate_up, out, activation)
    gate, up = gate_up.double().chunk(2, dim=-1)
    exact = (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")) * up
    torch.testing.assert_close(out.double(), exact, rtol=2.0**-8, atol=1e-5)


# --- products ----------------------------------------------------------------------------------------------------------


def loaded(kernels: Kernels, *parts: nn.Linear) -> KernelLinear:
    linear = KernelLinear(kernels)
    linear.load(parts)
    return linear


def part_of(num_inputs: int, num_outputs: int, *, has_bias: bool = False, seed: int = 0) -> nn.Linear:
    part = nn.Linear(num_inputs, num_outputs, bias=has_bias)
    for index, parameter in enumerate(part.parameters()):
        parameter.data = noise(*parameter.shape, seed=seed + index).float()
    return part


def assert_product(found: Tensor, x: Tensor, parts: list[nn.Linear]) -> None:
    """Sums in float32 are off by a few roundings of the largest terms, and one to bfloat16."""
    exact = torch.cat([F.linear(x.double(), part.weight.double(), None) for part in parts], dim=1)
    bias = torch.cat([torch.zeros(part.out_features) if part.bias is None else part.bias.detach() for part in parts])
    torch.testing.assert_close(found.double(), exact + bias.double(), rtol=2.0**-8, atol=1e-4)


@pytest.mark.parametrize("num_outputs", [1, 15, 16, 33, 48, 50, 150])
@pytest.mark.parametrize("num_inputs", [2, 48, 130])
@torch.no_grad()
def test_a_product_is_right_for_every_number_of_outputs(kernels: Kernels, num_inputs: int, num_outputs: int):
    part, x = part_of(num_inputs, num_outputs, has_bias=num_outputs % 2 == 0), noise(11, num_inputs, seed=5)
    assert_product(loaded(kernels, part)(x), x, [part])


@pytest.mark.parametrize("num_rows", [*range(1, 18), 63, 64, 65, 200])
@torch.no_grad()
def test_a_product_is_right_for_every_number_of_rows(kernels: Kernels, num_rows: int):
    part, x = part_of(48, 100), noise(num_rows, 48, seed=5)
    assert_product(loaded(kernels, part)(x), x, [part])


@torch.no_grad()
def test_projections_of_one_input_lie_one_behind_the_other(kernels: Kernels):
    parts = [part_of(48, 20, has_bias=True), part_of(48, 40, seed=3), part_of(48, 7, seed=6)]
    x = noise(3, 48, seed=5)
    assert_product(loaded(kernels, *parts)(x), x, parts)


@torch.no_grad()
def test_a_row_of_a_product_does_not_depend_on_the_others(kernels: Kernels):
    """To the bit: what a completion draws cannot depend on the rows beside it."""
    linear, x = loaded(kernels, part_of(576, 100)), noise(77, 576, seed=5)
    together = linear(x)
    for rows in ([3], [0, 1, 2, 3, 4, 5, 6], list(range(9, 77)), [76, 4, 30]):
        assert torch.equal(linear(x[rows]), together[rows])


@torch.no_grad()
def test_rows_of_a_larger_tensor_are_read_where_they_lie(kernels: Kernels):
    linear, wide = loaded(kernels, part_of(48, 20)), noise(5, 96, seed=5)
    assert torch.equal(linear(wide[:, 48:]), linear(wide[:, 48:].contiguous()))


@torch.no_grad()
def test_columns_of_a_product_are_those_of_its_weights(kernels: Kernels):
    part = part_of(48, 50)
    part.weight[7, 3] = math.nan
    found = loaded(kernels, part).columns(torch.tensor([0, 3, 47]))
    expected = part.weight[:, [0, 3, 47]].T.to(BF16)
    expected[:, 7] = math.nan  # times 0 it is no number either
    assert torch.equal(found.nan_to_num(nan=99), expected.nan_to_num(nan=99))


@torch.no_grad()
def test_a_product_serves_what_was_loaded_last(kernels: Kernels):
    part, x = part_of(48, 50), noise(3, 48, seed=5)
    linear = loaded(kernels, part)
    before = linear(x)
    part.weight *= -2
    assert torch.equal(linear(x), before)
    linear.load([part])
    assert_product(linear(x), x, [part])


# --- attention ---------------------------------------------------------------------------------------------------------

SIZE = CacheSize(num_prompts=3, prompt_tokens=37, num_rows=5, row_tokens=20)
PROMPT_LENGTHS = (37, 16, 5)


def layer_of(shape: Architecture, *, has_norms: bool) -> LayerWeights:
    """Attention looks at the norms of queries and keys only."""
    none = PackedLinear(BF16, is_packed=False)
    gains = [1 + noise(shape.head_dim, seed=seed, scale=0.2).float() for seed in (7, 8)] if has_norms else [None, None]
    return LayerWeights(
        qkv=none,
        attention_out=none,
        gate_up=none,
        mlp_out=none,
        attention_norm=torch.ones(1),
        mlp_norm=torch.ones(1),
        query_norm=gains[0],
        key_norm=gains[1],
    )


def outputs(cache: Cache, shape: Architecture, layer: LayerWeights) -> Tensor:
    """Attend with rows that join at different times, over 20 steps."""
    width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    for slot, length in enumerate(PROMPT_LENGTHS):
        for index in range(2):
            keys, values = noise(2, length, shape.num_kv_heads, shape.head_dim, seed=slot)
            cache.write_prompt(index, slot, keys, values)
    found: list[Tensor] = []
    for step in range(20):
        slots = torch.tensor([0, 2, 0, 1, 2])
        rows = Rows(
            prompt_slots=slots,
            prompt_lengths=torch.tensor(PROMPT_LENGTHS)[slots],
            ages=torch.tensor([step, step, max(0, step - 3), step, max(0, step - 17)]),
        )
        attention: Attention = cache.attention(rows)
        found += [attention(index, layer, noise(5, width, seed=100 + 2 * step + index)) for index in range(2)]
    return torch.cat(found).float()


@pytest.mark.parametrize("has_norms", [False, True], ids=["plain", "qk norm"])
@pytest.mark.parametrize("window", [None, 9, 30])
@pytest.mark.parametrize(
    ("head_dim", "num_heads", "num_kv_heads"),
    [(32, 4, 4), (64, 9, 3), (64, 14, 2), (96, 8, 1), (128, 8, 4), (256, 4, 1), (32, 5, 1), (32, 6, 1)],
)
def test_attention_is_that_of_torch(
    kernels: Kernels, head_dim: int, num_heads: int, num_kv_heads: int, window: int | None, has_norms: bool
):
    shape = architecture(head_dim=head_dim, num_heads=num_heads, num_kv_heads=num_kv_heads, window=window)
    layer, tables = layer_of(shape, has_norms=has_norms), RotaryTables(shape, 60)
    fused = outputs(PairedCache(kernels, shape, tables, SIZE), shape, layer)
    plain = outputs(PlainCache(shape, tables, SIZE), shape, layer)
    # Queries, keys and weights are rounded to bfloat16: 2^-9 of outputs of about 1, and several of them.
    assert float((fused - plain).abs().max()) < 0.04
    assert float((fused - plain).abs().mean()) < 0.002


def test_moved_rows_attend_to_what_they_kept(kernels: Kernels):
    shape = architecture()
    layer, tables = layer_of(shape, has_norms=False), RotaryTables(shape, 60)
    cache = PairedCache(kernels, shape, tables, SIZE)
    outputs(cache, shape, layer)
    qkv, ages = noise(5, 256, seed=9), torch.tensor([4, 10, 12, 18, 17])
    rows = Rows(prompt_slots=torch.tensor([0, 2, 0, 1, 2]), prompt_lengths=torch.tensor([37, 5, 37, 16, 5]), ages=ages)
    before = cache.attention(rows)(1, layer, qkv)
    cache.move_rows([3, 4], [0, 1])
    moved = Rows(prompt_slots=torch.tensor([1, 2, 0]), prompt_lengths=torch.tensor([16, 5, 37]), ages=ages[[3, 4, 2]])
    assert torch.equal(cache.attention(moved)(1, layer, qkv[[3, 4, 2]]), before[[3, 4, 2]])


# --- drawing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab_size", [1, 15, 16, 255, 264, 1000, 49_152])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_draws_and_logprobs_are_those_of_torch(kernels: Kernels, vocab_size: int, temperature: float):
    logits = noise(64, vocab_size, scale=3.0)
    numbers = torch.rand(64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    numbers[0], numbers[1] = 0.0, ALMOST_1
    tokens, logprobs = KernelOps(kernels, architecture()).drawn(logits, numbers, temperature)
    expected, expected_logprobs = drawn_in_two_levels(logits.float() / temperature, numbers)
    assert tokens.tolist() == expected.tolist()
    torch.testing.assert_close(logprobs, expected_logprobs, atol=1e-5, rtol=0)


def test_each_token_of_a_thin_tail_can_be_drawn_by_the_kernel(ops: KernelOps):
    logits = torch.full((1, 100_000), -18.5, dtype=BF16)
    logits[0, 0] = 0.0
    wanted, mass = [1, 2, 3, 255, 256, 257, 500, 99_999], math.exp(-18.5)
    numbers = torch.tensor([(1 + (token - 0.5) * mass) / (1 + 99_999 * mass) for token in wanted], dtype=torch.float64)
    tokens, _ = ops.drawn(logits.repeat(len(wanted), 1), numbers, 1.0)
    assert tokens.tolist() == wanted


def test_a_token_without_probability_is_never_drawn_by_the_kernel(ops: KernelOps):
    logits = torch.full((4, 600), -torch.inf, dtype=BF16)
    logits[:, [3, 300]] = 0.0
    tokens, logprobs = ops.drawn(logits, torch.tensor([0.0, 0.4999, 0.5, ALMOST_1], dtype=torch.float64), 1.0)
    assert tokens.tolist() == [3, 3, 300, 300]
    torch.testing.assert_close(logprobs, torch.full((4,), 0.5).log(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 17, 263])
def test_logits_that_are_not_finite_give_a_logprob_that_is_not_either(ops: KernelOps, value: float, place: int):
    logits = noise(1, 264)
    logits[0, place] = value
    tokens, logprobs = ops.drawn(logits, torch.tensor([0.5], dtype=torch.float64), 1.0)
    assert 0 <= int(tokens) < 264
    assert not bool(logprobs.isfinite())


# --- which path --------------------------------------------------------------------------------------------------------


def test_the_torch_path_can_be_forced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COVEY_NO_KERNELS", "1")
    ops, note = choose_ops(architecture(), BF16)
    assert isinstance(ops, TorchOps)
    assert "because COVEY_NO_KERNELS is set: sampling takes twice, an update" in note


@pytest.mark.parametrize(
    ("options", "dtype", "reason"),
    [
        ({}, torch.float32, "which compute in bfloat16"),
        ({"head_dim": 48}, BF16, "head_dim 48"),
        ({"head_dim": 320}, BF16, "head_dim 320"),
        ({"num_heads": 9, "num_kv_heads": 1}, BF16, "9 heads"),
    ],
)
def test_shapes_that_do_not_fit_take_the_torch_path_and_say_why(options: Any, dtype: torch.dtype, reason: str):
    ops, note = choose_ops(architecture(**options), dtype)
    assert isinstance(ops, TorchOps)
    assert reason in note


@pytest.mark.parametrize(("compiler", "said"), [("/bin/false", "could not be built"), ("/nowhere/c++", "could not be built")])
def test_a_failing_compiler_costs_speed_only(monkeypatch: pytest.MonkeyPatch, kernels: Kernels, compiler: str, said: str):
    monkeypatch.setenv("CXX", compiler)
    found = load_library.__wrapped__()
    assert isinstance(found, str)
    assert said in found


def test_a_compiler_that_rejects_the_source_is_quoted(monkeypatch: pytest.MonkeyPatch, kernels: Kernels, tmp_path: Path):
    compiler = tmp_path / "c++"
    compiler.write_text(
        "#!/bin/sh\n[ $1 = --version ] && echo mine 1.0 && exit 0\necho 'decoding.cpp:1: error: no' >&2\nexit 1\n"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert load_library.__wrapped__() == "they could not be built (decoding.cpp:1: error: no)"


def test_a_library_is_built_once_for_source_compiler_and_flags(
    monkeypatch: pytest.MonkeyPatch, kernels: Kernels, tmp_path: Path
):
    monkeypatch.setenv("COVEY_HOME", str(tmp_path))
    assert isinstance(load_library.__wrapped__(), Library)
    [library] = (tmp_path / "kernels").iterdir()
    built_at = library.stat().st_mtime_ns
    assert isinstance(load_library.__wrapped__(), Library)
    assert [file.stat().st_mtime_ns for file in (tmp_path / "kernels").iterdir()] == [built_at]
