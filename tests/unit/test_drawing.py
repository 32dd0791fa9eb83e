"""Drawing tokens: the inverse of the cumulative distribution, exact at its edges and in its tail."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
import torch
from tests.processors import SHAPES, processed
from torch import Tensor

from covey.engines.transformers import draw_tokens
from covey.models.distribution import shape_logits
from covey.sampling import Sampling, stream_key, uniform

ALMOST_1 = 1 - 2.0**-53


def draw(logits: Tensor, *numbers: float, temperature: float = 1.0) -> list[int]:
    repeated = logits.expand(len(numbers), -1)
    tokens, _ = draw_tokens(repeated, torch.tensor(numbers, dtype=torch.float64), Sampling(temperature=temperature))
    return tokens.tolist()


def inverse_cdf(probabilities: Sequence[float], number: float) -> int:
    """Slow transcription: the first token whose cumulative probability exceeds the number."""
    total = 0.0
    for token, probability in enumerate(probabilities):
        total += probability
        if total > number:
            return token
    raise AssertionError("the probabilities do not add up")


def test_tokens_follow_the_inverse_cdf_table():
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    numbers = (0.0, 0.4999, 0.5001, 0.7499, 0.7501, 0.8749, 0.8751, ALMOST_1)
    assert draw(logits, *numbers) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_number_on_the_edge_belongs_to_the_next_token():
    assert draw(torch.zeros(4), 0.0, 0.25, 0.5, 0.75) == [0, 1, 2, 3]


def test_random_rows_agree_with_a_slow_inverse_cdf():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(50, 17, generator=generator)
    numbers = [uniform(1, row) for row in range(50)]
    tokens, logprobs = draw_tokens(logits, torch.tensor(numbers, dtype=torch.float64), Sampling(temperature=0.7))
    probabilities = (logits.double() / 0.7).softmax(dim=-1).tolist()
    expected = [inverse_cdf(row, number) for row, number in zip(probabilities, numbers, strict=True)]
    assert tokens.tolist() == expected
    assert logprobs.exp().tolist() == pytest.approx(
        [row[token] for row, token in zip(probabilities, expected, strict=True)], rel=1e-5
    )


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_have_the_frequencies_of_the_softmax(temperature: float):
    num_draws = 20_000
    logits = torch.tensor([1.0, -1.0, 0.0, 2.0, 0.5, -2.0])
    numbers = [uniform(stream_key(0, "chi-square", row), 0) for row in range(num_draws)]
    counts = np.bincount(draw(logits, *numbers, temperature=temperature), minlength=6)
    expected = num_draws * (logits.double() / temperature).softmax(dim=-1).numpy()
    assert scipy.stats.chisquare(counts, expected).pvalue > 0.01


@pytest.mark.parametrize("vocab_size", [1, 2, 264, 49_152])
@pytest.mark.parametrize("seed", range(3))
def test_the_largest_number_stays_inside_the_vocabulary(vocab_size: int, seed: int):
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed))
    assert 0 <= draw(logits, ALMOST_1)[0] < vocab_size


def test_a_token_without_probability_is_never_drawn():
    impossible = float("-inf")
    logits = torch.tensor([impossible, 0.0, impossible, 0.0, impossible])
    assert draw(logits, 0.0, 0.4999, 0.5, ALMOST_1) == [1, 1, 3, 3]


@pytest.mark.parametrize("sampling", SHAPES.values(), ids=SHAPES.keys())
def test_the_largest_and_the_smallest_number_stay_inside_a_shaped_distribution(sampling: Sampling):
    """Cumulative sums are off 1 by rounding, to either side: no draw may fall behind the last token that is kept."""
    logits = 3 * torch.randn(500, 60, generator=torch.Generator().manual_seed(0))
    seen = logits > 1
    shaped = shape_logits(logits, sampling, seen=seen)
    for number in (0.0, ALMOST_1):
        tokens, logprobs = draw_tokens(logits, torch.full((500,), number, dtype=torch.float64), sampling, seen=seen)
        assert bool(shaped.gather(1, tokens[:, None]).isfinite().all())
        assert bool(logprobs.isfinite().all())


@pytest.mark.parametrize("sampling", SHAPES.values(), ids=SHAPES.keys())
def test_draws_have_the_frequencies_of_the_shaped_distribution(sampling: Sampling):
    num_draws = 5000
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0))
    seen = logits > 0
    numbers = torch.tensor([uniform(stream_key(0, "shaped", row), 0) for row in range(num_draws)], dtype=torch.float64)
    tokens, logprobs = draw_tokens(logits.expand(num_draws, -1), numbers, sampling, seen=seen.expand(num_draws, -1))
    expected = processed(logits[0], seen[0].nonzero()[:, 0].tolist(), sampling).double().softmax(dim=-1)
    counts = torch.from_numpy(np.bincount(tokens.tolist(), minlength=12))
    is_kept = expected > 0
    assert int(counts[~is_kept].sum()) == 0
    assert scipy.stats.chisquare(counts[is_kept], num_draws * expected[is_kept]).pvalue > 0.01
    torch.testing.assert_close(logprobs.double(), expected.log()[tokens], atol=1e-6, rtol=0)


def test_greedy_is_the_arg_max_of_the_penalised_logits():
    logits = torch.tensor([[2.0, 1.5, -1.0]])
    seen = torch.tensor([[True, False, False]])
    sampling = Sampling(temperature=0.0, repetition_penalty=2.0)
    tokens, logprobs = draw_tokens(logits, torch.tensor([0.0], dtype=torch.float64), sampling, seen=seen)
    assert tokens.tolist() == [1]
    assert float(logprobs[0]) == pytest.approx(float(torch.tensor([1.0, 1.5, -1.0]).log_softmax(dim=0)[1]))


def test_each_token_of_a_thin_tail_can_be_drawn():
    # Behind a likely token, float32 sums step by 6e-8 and would pass over five of six tokens of probability 1e-8.
    logits = torch.full((100_000,), float(np.log(1e-8)))
    logits[0] = 0.0
    wanted = [1, 2, 3, 500, 501, 502]
    numbers = [(1 + (token - 0.5) * 1e-8) / (1 + 99_999 * 1e-8) for token in wanted]
    assert draw(logits, *numbers) == wanted


def test_greedy_is_the_arg_max_whatever_the_number():
    logits = torch.tensor([0.1, 0.7, 0.7001, -5.0])
    assert draw(logits, 0.0, 0.5, ALMOST_1, temperature=0.0) == [2, 2, 2]


def test_the_logprob_is_of_the_tempered_distribution():
    logits = torch.tensor([[2.0, 0.0]])
    _, logprobs = draw_tokens(logits, torch.tensor([0.0], dtype=torch.float64), Sampling(temperature=0.5))
    assert float(logprobs[0]) == pytest.approx(-np.log1p(np.exp(-4.0)), abs=1e-6)
