"""The C++ kernels of training against the same steps in torch. Inputs are bfloat16, so only the roundings inside differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from tests.tiny_batches import relative_error
from torch import Tensor

from covey.models.kernels.build import load_library
from covey.models.packed.attention import AttentionShape
from covey.models.packed.kernels import KernelSteps
from covey.models.packed.layout import PackedLayout, pack_layout
from covey.models.packed.steps import TokenScores, TorchSteps

BF16 = torch.bfloat16
EXACT = TorchSteps(torch.float32)
# A bfloat16 has 8 bits: rounded once, it is off by at most 2^-9 of the value.
ROUNDED = 2.0**-9
NUM_ROWS, WIDTH = 37, 96

every_activation = pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh"])


@pytest.fixture(scope="module")
def kernels() -> KernelSteps:
    """Skips where there are none, and says why: the torch path is tested everywhere."""
    library = load_library()
    if isinstance(library, str):
        pytest.skip(library)
    return KernelSteps(library)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def noise(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Return float32 noise."""
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rounded(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return noise(*shape, seed=seed, scale=scale).to(BF16)


def assert_close(found: Tensor, exact: Tensor, bound: float) -> None:
    """Compare Euclidean norms: `bound` is relative."""
    assert found.shape == exact.shape
    assert relative_error(found.double(), exact.double()) < bound


# --- Norms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_rows", [1, 5, NUM_ROWS])
@pytest.mark.parametrize("has_branch", [False, True])
def test_add_norm_is_that_of_torch(kernels: KernelSteps, num_rows: int, has_branch: bool):
    x, gain = noise(num_rows, WIDTH), noise(WIDTH, seed=2)
    branch = rounded(num_rows, WIDTH, seed=1) if has_branch else None
    total, normed = kernels.add_norm(x, branch, gain, 1e-5)
    exact_total, exact_normed = EXACT.add_norm(x, None if branch is None else branch.float(), gain, 1e-5)
    assert torch.equal(total, exact_total)
    assert normed.dtype == BF16
    assert_close(normed, exact_normed, ROUNDED)


def test_eps_counts_in_rows_of_small_numbers(kernels: KernelSteps):
    x, gain = noise(3, WIDTH, scale=1e-3), noise(WIDTH, seed=2)
    assert_close(kernels.add_norm(x, None, gain, 1e-5)[1], EXACT.add_norm(x, None, gain, 1e-5)[1], ROUNDED)


@pytest.mark.parametrize("has_sum", [False, True])
@pytest.mark.parametrize("num_rows", [1, 5, NUM_ROWS])
def test_the_gradient_of_add_norm_is_that_of_torch(kernels: KernelSteps, num_rows: int, has_sum: bool):
    total, gain = noise(num_rows, WIDTH), noise(WIDTH, seed=1)
    grad_sum, grad_normed = noise(num_rows, WIDTH, seed=2) if has_sum else None, rounded(num_rows, WIDTH, seed=3)
    grad, grad_rounded, grad_gain = kernels.add_norm_backward(grad_sum, grad_normed, total, gain, 1e-5)
    exact, _, exact_gain = EXACT.add_norm_backward(grad_sum, grad_normed.float(), total, gain, 1e-5)
    assert_close(grad, exact, 1e-5)
    assert_close(grad_gain, exact_gain, 1e-5)
    assert torch.equal(grad_rounded, grad.to(BF16))


# --- Gates -----------------------------------------------------------------------------------------------------------


def gate_up() -> Tensor:
    """Return [gate | up] in which some gates are where exponentials end."""
    found = rounded(NUM_ROWS, 160, scale=2.0)
    found[0, :6] = torch.tensor([0.0, -100.0, 100.0, -1e-3, 30000.0, -30000.0])
    found[0, 80:86] = 1.0
    return found


@every_activation
def test_the_gate_is_that_of_torch(kernels: KernelSteps, activation: str):
    found = kernels.gated(gate_up(), activation)
    torch.testing.assert_close(found.float(), EXACT.gated(gate_up().float(), activation), rtol=2.0**-8, atol=1e-6)


@every_activation
def test_the_gradient_of_the_gate_is_that_of_torch(kernels: KernelSteps, activation: str):
    grad = rounded(NUM_ROWS, 80, seed=1)
    found = kernels.gated_backward(grad, gate_up(), activation)
    exact = EXACT.gated_backward(grad.float(), gate_up().float(), activation)
    torch.testing.assert_close(found.float(), exact, rtol=2.0**-8, atol=1e-5)


# --- Rotation --------------------------------------------------------------------------------------------------------


def turns(num_tokens: int, head_dim: int) -> tuple[Tensor, Tensor]:
    angles = torch.arange(num_tokens)[:, None] / 100 ** (torch.arange(0, head_dim, 2) / head_dim)
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("head_dim", [32, 64, 96, 128])
@pytest.mark.parametrize("num_rotated", [1, 4, 5])
def test_heads_are_turned_as_by_torch_and_the_others_left_alone(kernels: KernelSteps, head_dim: int, num_rotated: int):
    heads = rounded(NUM_ROWS, 5, head_dim)
    cos, sin = turns(NUM_ROWS, head_dim)
    found = kernels.rotate(heads, num_rotated, 1.1 * cos, 1.1 * sin)
    exact = EXACT.rotate(heads.float(), num_rotated, 1.1 * cos, 1.1 * sin)
    assert_close(found[:, :num_rotated], exact[:, :num_rotated], ROUNDED)
    assert torch.equal(found[:, num_rotated:], heads[:, num_rotated:])


def test_minus_the_sine_turns_heads_back(kernels: KernelSteps):
    heads, (cos, sin) = rounded(NUM_ROWS, 5, 64), turns(NUM_ROWS, 64)
    there = kernels.rotate(heads, 4, cos, sin)
    assert relative_error(there.float(), heads.float()) > 0.5
    assert_close(kernels.rotate(there, 4, cos, -sin), heads, 2 * ROUNDED)


# --- Scores ----------------------------------------------------------------------------------------------------------

# Below, at and above whole vectors of 16, and blocks of 1024.
every_vocab = pytest.mark.parametrize("vocab_size", [1, 15, 16, 17, 264, 1024, 1040, 2051])
every_temperature = pytest.mark.parametrize("temperature", [1.0, 0.7])


def logits_and_targets(vocab_size: int) -> tuple[Tensor, Tensor]:
    """The first and the last token are targets, too."""
    targets = torch.randint(vocab_size, (20,), generator=torch.Generator().manual_seed(1))
    targets[0], targets[1] = 0, vocab_size - 1
    return rounded(20, vocab_size, scale=3.0), targets


def slow_scores(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probs, entropies and log sums in float64. A token without probability adds nothing to the entropy."""
    scaled = logits.double() / temperature
    logprobs = scaled.log_softmax(dim=1)
    entropy = -torch.where(logprobs.isinf(), 0.0, logprobs.exp() * logprobs).sum(dim=1)
    return logprobs.gather(1, targets[:, None])[:, 0], entropy, scaled.logsumexp(dim=1)


def parts_of(scores: TokenScores) -> tuple[Tensor, Tensor, Tensor]:
    return scores.logprobs, scores.entropy, scores.log_sums


def assert_scores(found: TokenScores, exact: tuple[Tensor, Tensor, Tensor]) -> None:
    for part, expected in zip(parts_of(found), exact, strict=True):
        torch.testing.assert_close(part.double(), expected, atol=1e-5, rtol=1e-5)


@every_vocab
@every_temperature
def test_log_probs_and_entropies_are_those_of_the_formula(kernels: KernelSteps, vocab_size: int, temperature: float):
    logits, targets = logits_and_targets(vocab_size)
    assert_scores(kernels.score(logits, targets, temperature), slow_scores(logits, targets, temperature))


def test_large_logits_lose_nothing(kernels: KernelSteps):
    logits, targets = logits_and_targets(264)
    exact = slow_scores(logits + 1000, targets, 0.7)
    assert_scores(kernels.score(logits + 1000, targets, 0.7), exact)


def without_some(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the logits, every third of them minus infinity: no target."""
    removed = (torch.arange(logits.shape[1]) % 3 == 0).expand_as(logits).clone()
    removed[torch.arange(len(targets)), targets] = False
    return logits.masked_fill(removed, -torch.inf)


@pytest.mark.parametrize("vocab_size", [17, 264, 1040])
def test_tokens_without_probability_add_nothing(kernels: KernelSteps, vocab_size: int):
    logits, targets = logits_and_targets(vocab_size)
    logits = without_some(logits, targets)
    assert_scores(kernels.score(logits, targets, 0.7), slow_scores(logits, targets, 0.7))


def slow_gradient(
    logits: Tensor, targets: Tensor, temperature: float, grad_logprobs: Tensor, grad_entropy: Tensor | None
) -> Tensor:
    leaf = logits.double().requires_grad_()
    logprobs, entropy, _ = slow_scores(leaf, targets, temperature)
    loss = (grad_logprobs * logprobs).sum()
    loss = loss if grad_entropy is None else loss + (grad_entropy * entropy).sum()
    return torch.autograd.grad(loss, leaf)[0]


@every_vocab
@every_temperature
@pytest.mark.parametrize("has_entropy", [False, True])
def test_the_gradient_of_the_logits_is_that_of_autograd(
    kernels: KernelSteps, vocab_size: int, temperature: float, has_entropy: bool
):
    logits, targets = logits_and_targets(vocab_size)
    grads = (noise(20, seed=2), noise(20, seed=3) if has_entropy else None)
    scores = kernels.score(logits, targets, temperature)
    found = kernels.score_backward(*grads, logits.clone(), targets, scores, temperature)
    exact = slow_gradient(logits, targets, temperature, *grads)
    torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=2.0**-8)


def test_tokens_without_probability_get_no_gradient(kernels: KernelSteps):
    logits, targets = logits_and_targets(264)
    logits = without_some(logits, targets)
    found = kernels.score_backward(
        noise(20, seed=2), noise(20, seed=3), logits.clone(), targets, kernels.score(logits, targets, 0.7), 0.7
    )
    assert bool(found.isfinite().all())
    assert not bool(found[logits.isinf()].any())


def test_a_target_without_probability_gets_its_own_gradient(kernels: KernelSteps):
    logits, targets = logits_and_targets(264)
    logits[torch.arange(20), targets] = -torch.inf
    grad = noise(20, seed=2)
    found = kernels.score_backward(grad, None, logits.clone(), targets, kernels.score(logits, targets, 0.7), 0.7)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found[torch.arange(20), targets].float(), grad / 0.7, atol=1e-5, rtol=2.0**-8)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 17, 263])
def test_logits_that_are_not_finite_give_log_probs_that_are_not_either(kernels: KernelSteps, value: float, place: int):
    logits, targets = logits_and_targets(264)
    logits[:, place] = value
    assert not bool(kernels.score(logits, targets, 1.0).logprobs.isfinite().any())


# --- Attention -------------------------------------------------------------------------------------------------------

Lengths = Sequence[tuple[int, Sequence[int]]]
LENGTHS: dict[str, Lengths] = {
    "short": [(9, (1, 0, 5, 12)), (4, (7,)), (1, (2, 1)), (16, ())],
    "longer than a tile": [(70, (150, 1, 33, 65)), (130, (2, 300)), (64, (64, 0, 129))],
}
every_length = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
every_window = pytest.mark.parametrize("window", [0, 7])
every_shape = pytest.mark.parametrize("sizes", [(9, 3, 64), (4, 1, 128), (2, 2, 96), (8, 1, 32)], ids=str)


def layout_of(lengths: Lengths) -> PackedLayout:
    zeros = torch.zeros(1000, dtype=torch.long)
    return pack_layout([(zeros[:prompt], [zeros[:length] for length in rows]) for prompt, rows in lengths])


def shape_of(sizes: tuple[int, int, int], window: int) -> AttentionShape:
    num_heads, num_kv_heads, head_dim = sizes
    return AttentionShape(
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, scale=head_dim**-0.5, window=window
    )


def heads_and_gradient(layout: PackedLayout, shape: AttentionShape) -> tuple[Tensor, Tensor]:
    num_tokens = len(layout.token_ids)
    heads = rounded(num_tokens, shape.num_heads + 2 * shape.num_kv_heads, shape.head_dim)
    return heads, rounded(num_tokens, shape.num_heads, shape.head_dim, seed=1)


@every_shape
@every_window
@every_length
def test_attention_is_that_of_torch(kernels: KernelSteps, sizes: tuple[int, int, int], window: int, lengths: Lengths):
    layout, shape = layout_of(lengths), shape_of(sizes, window)
    heads, _ = heads_and_gradient(layout, shape)
    out, log_sums = kernels.attend(heads, layout.spans, layout.offsets(), shape)
    exact, exact_sums = EXACT.attend(heads.float(), layout.spans, layout.offsets(), shape)
    assert out.dtype == BF16
    assert_close(out, exact, 4e-3)
    torch.testing.assert_close(log_sums, exact_sums, atol=1e-5, rtol=1e-5)


@every_shape
@every_window
@every_length
def test_the_gradient_of_attention_is_that_of_torch(
    kernels: KernelSteps, sizes: tuple[int, int, int], window: int, lengths: Lengths
):
    layout, shape = layout_of(lengths), shape_of(sizes, window)
    heads, grad = heads_and_gradient(layout, shape)
    arguments = (layout.spans, layout.offsets(), shape)
    found = kernels.attend_backward(grad, heads, *kernels.attend(heads, *arguments), *arguments)
    exact = EXACT.attend_backward(grad.float(), heads.float(), *EXACT.attend(heads.float(), *arguments), *arguments)
    num, num_kv = shape.num_heads, shape.num_kv_heads
    for part in (slice(0, num), slice(num, num + num_kv), slice(num + num_kv, None)):
        assert_close(found[:, part], exact[:, part], 6e-3)


# --- The same bits ---------------------------------------------------------------------------------------------------


def all_results(kernels: KernelSteps) -> dict[str, Tensor]:
    """Return what every kernel gives, by name."""
    layout, shape = layout_of(LENGTHS["longer than a tile"]), shape_of((9, 3, 64), 0)
    heads, grad = heads_and_gradient(layout, shape)
    arguments = (layout.spans, layout.offsets(), shape)
    out, log_sums = kernels.attend(heads, *arguments)
    logits, targets = logits_and_targets(1040)
    scores = kernels.score(logits, targets, 0.7)
    total, normed = kernels.add_norm(noise(NUM_ROWS, WIDTH), rounded(NUM_ROWS, WIDTH, seed=1), noise(WIDTH, seed=2), 1e-5)
    of_sum, _, of_gain = kernels.add_norm_backward(total, normed, total, noise(WIDTH, seed=2), 1e-5)
    return {
        "attention": out,
        "log sums": log_sums,
        "gradient of attention": kernels.attend_backward(grad, heads, out, log_sums, *arguments),
        "log-probs": scores.logprobs,
        "entropies": scores.entropy,
        "gradient of logits": kernels.score_backward(noise(20), noise(20), logits, targets, scores, 0.7),
        "sum": total,
        "norm": normed,
        "gradient of the sum": of_sum,
        "gradient of the gain": of_gain,
        "gate": kernels.gated(gate_up(), "silu"),
        "gradient of the gate": kernels.gated_backward(rounded(NUM_ROWS, 80), gate_up(), "silu"),
        "rotated": kernels.rotate(rounded(NUM_ROWS, 5, 64), 4, *turns(NUM_ROWS, 64)),
    }


def test_results_repeat_bit_by_bit(kernels: KernelSteps, set_threads: Callable[[int], None]):
    set_threads(2)
    first = all_results(kernels)
    for _ in range(3):
        for name, result in all_results(kernels).items():
            assert torch.equal(result, first[name]), name


@pytest.mark.parametrize("num_threads", [2, 3])
def test_results_do_not_depend_on_the_number_of_threads(
    kernels: KernelSteps, set_threads: Callable[[int], None], num_threads: int
):
    set_threads(1)
    first = all_results(kernels)
    set_threads(num_threads)
    found = all_results(kernels)
    # Its rows are added by thread, and the sums of the threads after that: equal up to the order of a sum.
    assert_close(found.pop("gradient of the gain"), first.pop("gradient of the gain"), 1e-6)
    for name, result in found.items():
        assert torch.equal(result, first[name]), name
