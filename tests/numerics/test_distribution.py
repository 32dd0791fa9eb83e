"""The sampling distribution of given logits, against transformers' own processors and numbers known by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tests.processors import SHAPES, processed
from torch import Tensor, nn

from covey.models.distribution import History, entropy_of, shape_logits, smallest_in_top_p
from covey.models.policy import Policy
from covey.models.scoring import chunked_logprobs
from covey.sampling import Sampling

PROBABILITIES = [0.4, 0.3, 0.1, 0.1, 0.06, 0.04]
NONE = float("-inf")
every_shape = pytest.mark.parametrize("sampling", SHAPES.values(), ids=SHAPES.keys())


def random_logits(num_rows: int = 40, vocab_size: int = 100, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(num_rows, vocab_size, generator=generator, dtype=torch.float64)


def kept(sampling: Sampling, probabilities: list[float] = PROBABILITIES, keep: int | None = None) -> list[int]:
    """Return which tokens of a known distribution stay."""
    logits = torch.tensor([probabilities], dtype=torch.float64).log()
    shaped = shape_logits(logits, sampling, keep=None if keep is None else torch.tensor([keep]))
    return (~shaped[0].isneginf()).nonzero()[:, 0].tolist()


@every_shape
@pytest.mark.parametrize("seed", range(3))
def test_shaped_logits_are_those_of_transformers(sampling: Sampling, seed: int):
    logits = random_logits(seed=seed)
    tokens = torch.randint(100, (len(logits), 12), generator=torch.Generator().manual_seed(seed))
    seen = torch.zeros(logits.shape, dtype=torch.bool).scatter(1, tokens, True)
    expected = torch.stack([processed(row, ids, sampling) for row, ids in zip(logits, tokens.tolist(), strict=True)])
    torch.testing.assert_close(shape_logits(logits, sampling, seen=seen), expected, atol=1e-12, rtol=0)


@torch.no_grad()
def test_the_order_is_the_one_in_which_transformers_generates(shared_tiny_policy: Policy):
    sampling, prompt = SHAPES["all"], list(b"What is the sum?")
    output = shared_tiny_policy.model.generate(  # ty: ignore[not-callable]
        torch.tensor([prompt]),
        do_sample=True,
        max_new_tokens=8,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    completion = output.sequences[:, len(prompt) :]
    places = torch.tensor([(0, position) for position in range(len(output.logits))])
    history = History(prompts=[torch.tensor(prompt)], completions=completion, places=places)
    shaped = shape_logits(torch.cat(output.logits), sampling, seen=history.seen(264))
    torch.testing.assert_close(shaped, torch.cat(output.scores), atol=1e-5, rtol=0)


def test_a_plain_distribution_is_only_tempered():
    logits = random_logits()
    assert torch.equal(shape_logits(logits, Sampling(temperature=0.7)), logits / 0.7)


def test_bfloat16_logits_are_shaped_in_float32():
    logits = random_logits().bfloat16()
    expected = shape_logits(logits.float(), SHAPES["top_p"])
    assert torch.equal(shape_logits(logits, SHAPES["top_p"]), expected)


def test_top_k_keeps_everything_as_likely_as_the_kth():
    assert [kept(Sampling(top_k=k)) for k in (1, 2, 3, 4, 5)] == [[0], [0, 1], [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3, 4]]


def test_top_k_larger_than_the_vocabulary_keeps_everything():
    assert kept(Sampling(top_k=1000)) == list(range(6))


def test_top_p_keeps_the_token_that_crosses_the_share_and_everything_as_likely_as_it():
    assert [kept(Sampling(top_p=p)) for p in (0.01, 0.39, 0.41, 0.71, 0.89, 0.91, 0.97)] == [
        [0],
        [0],
        [0, 1],
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4, 5],
    ]


def test_min_p_keeps_what_reaches_its_share_of_the_likeliest():
    assert [kept(Sampling(min_p=p)) for p in (0.76, 0.74, 0.24, 0.11, 1.0)] == [
        [0],
        [0, 1],
        [0, 1, 2, 3],
        [0, 1, 2, 3, 4],
        [0],
    ]


def test_top_p_counts_its_share_among_what_top_k_left():
    # 0.4 of 0.4 + 0.3 is 0.571.
    assert kept(Sampling(top_k=2, top_p=0.56)) == [0]
    assert kept(Sampling(top_p=0.56)) == [0, 1]


@pytest.mark.parametrize("name", ["top_k", "top_p", "min_p"])
def test_equal_tokens_are_kept_or_removed_together(name: str):
    """As rounding to bfloat16 makes them: which of them stay must not hang on the order of a sort."""
    logits = random_logits(vocab_size=300).round()
    shaped = shape_logits(logits, SHAPES[name])
    for row, after in zip(logits, shaped, strict=True):
        removed = set(row[after.isneginf()].tolist())
        assert removed
        assert removed.isdisjoint(row[~after.isneginf()].tolist())


@pytest.mark.parametrize("num_candidates", [1, 2, 7, 99, 100])
@pytest.mark.parametrize("top_p", [0.1, 0.6, 0.99])
def test_the_nucleus_does_not_depend_on_how_many_candidates_are_looked_at_first(num_candidates: int, top_p: float):
    logits = random_logits()
    expected = smallest_in_top_p(logits, top_p, num_candidates=1000)
    assert torch.equal(smallest_in_top_p(logits, top_p, num_candidates=num_candidates), expected)


@every_shape
def test_what_is_kept_is_renormalised(sampling: Sampling):
    logits = random_logits()
    probabilities = shape_logits(logits, sampling, seen=logits > 2).softmax(dim=-1)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(40, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_token_that_was_sampled_is_never_removed():
    assert kept(Sampling(top_k=2), keep=5) == [0, 1, 5]
    assert kept(Sampling(top_p=0.5, min_p=0.5), keep=1) == [0, 1]
    logits = torch.tensor([PROBABILITIES], dtype=torch.float64).log()
    logprobs = shape_logits(logits, Sampling(top_k=2), keep=torch.tensor([5])).log_softmax(dim=-1)
    assert float(logprobs[0, 5].exp()) == pytest.approx(0.04 / 0.74)


def test_greedy_takes_the_penalty_alone():
    logits = torch.tensor([[2.0, 1.9, -1.0, -3.0]])
    seen = torch.tensor([[True, False, True, False]])
    greedy = Sampling(temperature=0.0, top_k=1, top_p=0.1, min_p=0.9)
    assert torch.equal(shape_logits(logits, greedy), logits)
    penalised = shape_logits(logits, dataclasses.replace(greedy, repetition_penalty=2.0), seen=seen)
    assert penalised.tolist() == [[1.0, pytest.approx(1.9), -2.0, -3.0]]


def test_tokens_are_seen_from_the_place_behind_them():
    prompts = [torch.tensor([5, 5, 7]), torch.tensor([0])]
    completions = torch.tensor([[1, 1, 5, 2], [3, 0, 4, 0]])
    places = torch.tensor([(row, position) for row in range(2) for position in range(4)])
    history = History(prompts=prompts, completions=completions, places=places)
    seen = history.seen(8)
    expected = [{int(token) for token in [*prompts[row], *completions[row, :position]]} for row, position in places.tolist()]
    assert [set(row.nonzero()[:, 0].tolist()) for row in seen] == expected
    assert torch.equal(torch.cat([part.seen(8) for part in history.split(3)]), seen)


# --- as scoring uses it -------------------------------------------------------------------------------------------------


def as_head(vocab_size: int) -> nn.Linear:
    """Return an output head whose logits are the hidden states themselves."""
    head = nn.Linear(vocab_size, vocab_size, bias=False, dtype=torch.float64)
    nn.init.eye_(head.weight)
    return head


def scored(logits: Tensor, target: int, sampling: Sampling, *, entropy_gradient: bool = False) -> tuple[Tensor, Tensor]:
    head, targets = as_head(logits.shape[1]), torch.full((len(logits),), target)
    return chunked_logprobs(logits, head, targets, sampling=sampling, chunk_tokens=3, entropy_gradient=entropy_gradient)


def known_logits() -> Tensor:
    return torch.tensor([PROBABILITIES], dtype=torch.float64).log().requires_grad_()


def test_the_entropy_of_a_truncated_distribution_counts_what_is_left():
    logprobs, entropy = scored(known_logits(), 0, Sampling(top_k=2))
    assert logprobs.item() == pytest.approx(math.log(4 / 7))
    assert entropy.item() == pytest.approx(-(4 / 7) * math.log(4 / 7) - (3 / 7) * math.log(3 / 7))


def test_the_entropy_of_a_single_token_is_zero():
    assert float(scored(known_logits(), 0, Sampling(top_k=1))[1]) == 0.0


def test_tokens_outside_the_distribution_get_no_gradient():
    logits = known_logits()
    (gradient,) = torch.autograd.grad(scored(logits, 0, Sampling(temperature=0.5, top_k=2))[0], logits)
    share = 16 / 25  # 0.4 ** 2 of 0.4 ** 2 + 0.3 ** 2
    assert gradient[0].tolist() == pytest.approx([2 * (1 - share), -2 * (1 - share), 0.0, 0.0, 0.0, 0.0])


def test_entropy_is_detached_unless_its_gradient_is_asked_for():
    assert not scored(known_logits(), 0, Sampling(top_k=2))[1].requires_grad
    assert not scored(known_logits(), 0, Sampling())[1].requires_grad


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7), Sampling(top_k=2), Sampling(top_p=0.85)], ids=str)
def test_the_gradient_of_the_entropy_is_minus_p_times_log_p_plus_entropy(sampling: Sampling):
    logits = known_logits()
    _, entropy = scored(logits, 0, sampling, entropy_gradient=True)
    (gradient,) = torch.autograd.grad(entropy, logits)
    share = [p ** (1 / sampling.temperature) if token in kept(sampling) else 0.0 for token, p in enumerate(PROBABILITIES)]
    share = [p / sum(share) for p in share]
    expected = [-p * (math.log(p) + entropy.item()) / sampling.temperature if p else 0.0 for p in share]
    assert gradient[0].tolist() == pytest.approx(expected, abs=1e-12)


def test_the_entropy_of_a_row_with_impossible_tokens_is_finite_and_so_is_its_gradient():
    logits = torch.tensor([[0.0, NONE, 0.0]], dtype=torch.float64, requires_grad=True)
    entropy = entropy_of(logits.log_softmax(dim=-1))
    (gradient,) = torch.autograd.grad(entropy, logits)
    assert entropy.item() == pytest.approx(math.log(2))
    assert gradient.tolist() == [[pytest.approx(0.0), 0.0, pytest.approx(0.0)]]
