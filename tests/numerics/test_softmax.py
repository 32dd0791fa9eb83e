"""Log-probs and entropies of a known table of logits: the last step of scoring, without a model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from covey.models.scoring import chunked_logprobs
from covey.sampling import Sampling

LOGITS = [[1.0, 2.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0], [-5.0, 4.0, 0.5, 0.5]]
TARGETS = torch.tensor([2, 1, 0])


def as_head(vocab_size: int, dtype: torch.dtype = torch.float64) -> nn.Linear:
    """Return an output head whose logits are the hidden states themselves."""
    head = nn.Linear(vocab_size, vocab_size, bias=False, dtype=dtype)
    nn.init.eye_(head.weight)
    return head


def scored(
    logits: Tensor, targets: Tensor = TARGETS, *, temperature: float = 1.0, chunk_tokens: int = 512
) -> tuple[Tensor, Tensor]:
    head = as_head(logits.shape[1], logits.dtype)
    return chunked_logprobs(logits, head, targets, sampling=Sampling(temperature=temperature), chunk_tokens=chunk_tokens)


def slow_softmax(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(logit / temperature) for logit in logits]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
@pytest.mark.parametrize("chunk_tokens", [1, 2, 512])
def test_log_probs_are_those_of_the_tempered_softmax(temperature: float, chunk_tokens: int):
    logprobs, _ = scored(torch.tensor(LOGITS, dtype=torch.float64), temperature=temperature, chunk_tokens=chunk_tokens)
    tables = [slow_softmax(row, temperature) for row in LOGITS]
    expected = [math.log(table[target]) for table, target in zip(tables, TARGETS.tolist(), strict=True)]
    assert logprobs.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
@pytest.mark.parametrize("chunk_tokens", [1, 2, 512])
def test_entropies_are_those_of_the_tempered_softmax(temperature: float, chunk_tokens: int):
    _, entropy = scored(torch.tensor(LOGITS, dtype=torch.float64), temperature=temperature, chunk_tokens=chunk_tokens)
    tables = [slow_softmax(row, temperature) for row in LOGITS]
    assert entropy.tolist() == pytest.approx([-sum(p * math.log(p) for p in table) for table in tables], abs=1e-12)


@pytest.mark.parametrize("vocab_size", [2, 10, 49152 // 64])
def test_the_entropy_of_a_uniform_distribution_is_the_logarithm_of_the_vocabulary(vocab_size: int):
    _, entropy = scored(torch.full((1, vocab_size), 3.0, dtype=torch.float64), torch.tensor([0]))
    assert float(entropy) == pytest.approx(math.log(vocab_size), abs=1e-12)


@pytest.mark.parametrize("chunk_tokens", [1, 2, 512])
def test_the_gradient_of_a_log_prob_is_one_hot_minus_the_distribution_over_the_temperature(chunk_tokens: int):
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    logprobs, _ = scored(logits, temperature=0.7, chunk_tokens=chunk_tokens)
    (gradient,) = torch.autograd.grad(logprobs.sum(), logits)
    for row, table, target in zip(gradient.tolist(), LOGITS, TARGETS.tolist(), strict=True):
        expected = [((index == target) - p) / 0.7 for index, p in enumerate(slow_softmax(table, 0.7))]
        assert row == pytest.approx(expected, abs=1e-12)


def test_entropy_carries_no_gradient():
    logprobs, entropy = scored(torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True))
    assert logprobs.requires_grad
    assert not entropy.requires_grad


def test_bfloat16_logits_are_normalised_in_float32():
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(0)).mul(5).bfloat16()
    logprobs, entropy = scored(logits)
    expected = logits.float().log_softmax(dim=-1)
    assert torch.equal(logprobs, expected[torch.arange(3), TARGETS])
    assert entropy.dtype == torch.float32
