"""Drawing in two levels, block and token: what `test_drawing.py` asks of drawing in one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
import torch
from tests.processors import SHAPES
from torch import Tensor

from covey.engines.native.ops import drawn_in_two_levels
from covey.engines.transformers import draw_tokens
from covey.models.distribution import shape_logits
from covey.sampling import Sampling, stream_key, uniform

ALMOST_1 = 1 - 2.0**-53


def draw(logits: Tensor, *numbers: float) -> list[int]:
    tokens, _ = drawn_in_two_levels(logits.expand(len(numbers), -1), torch.tensor(numbers, dtype=torch.float64))
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


def test_a_number_on_the_edge_of_a_block_belongs_to_the_next_block():
    assert draw(torch.zeros(1024), 0.0, 0.25 - 2.0**-30, 0.25, 0.5, 0.75, ALMOST_1) == [0, 255, 256, 512, 768, 1023]


@pytest.mark.parametrize("vocab_size", [17, 255, 256, 257, 700])
def test_random_rows_agree_with_a_slow_inverse_cdf(vocab_size: int):
    logits = 3 * torch.randn(50, vocab_size, generator=torch.Generator().manual_seed(0))
    numbers = [uniform(1, row) for row in range(50)]
    tokens, logprobs = drawn_in_two_levels(logits, torch.tensor(numbers, dtype=torch.float64))
    probabilities = logits.double().softmax(dim=-1).tolist()
    expected = [inverse_cdf(row, number) for row, number in zip(probabilities, numbers, strict=True)]
    assert tokens.tolist() == expected
    assert logprobs.exp().tolist() == pytest.approx(
        [row[token] for row, token in zip(probabilities, expected, strict=True)], rel=1e-5
    )


@pytest.mark.parametrize("sampling", SHAPES.values(), ids=SHAPES.keys())
def test_the_reference_engine_draws_the_same_from_shaped_logits(sampling: Sampling):
    logits = 3 * torch.randn(500, 600, generator=torch.Generator().manual_seed(0))
    numbers = torch.tensor([uniform(2, row) for row in range(498)] + [0.0, ALMOST_1], dtype=torch.float64)
    seen = logits > 1
    tokens, logprobs = drawn_in_two_levels(shape_logits(logits, sampling, seen=seen), numbers)
    expected, expected_logprobs = draw_tokens(logits, numbers, sampling, seen=seen)
    assert tokens.tolist() == expected.tolist()
    torch.testing.assert_close(logprobs, expected_logprobs, atol=1e-5, rtol=0)


def test_draws_have_the_frequencies_of_the_softmax():
    num_draws = 20_000
    logits = torch.tensor([1.0, -1.0, 0.0, 2.0, 0.5, -2.0])
    counts = np.bincount(draw(logits, *(uniform(stream_key(0, "two levels", row), 0) for row in range(num_draws))), minlength=6)
    assert scipy.stats.chisquare(counts, num_draws * logits.double().softmax(dim=-1).numpy()).pvalue > 0.01


@pytest.mark.parametrize("vocab_size", [1, 2, 264, 49_152])
@pytest.mark.parametrize("seed", range(3))
def test_the_largest_number_stays_inside_the_vocabulary(vocab_size: int, seed: int):
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed))
    assert 0 <= draw(logits, ALMOST_1)[0] < vocab_size


def test_a_token_without_probability_is_never_drawn():
    impossible = float("-inf")
    logits = torch.tensor([impossible, 0.0, impossible, 0.0, *[impossible] * 600])
    assert draw(logits, 0.0, 0.4999, 0.5, ALMOST_1) == [1, 1, 3, 3]


def test_each_token_of_a_thin_tail_can_be_drawn():
    # Behind a likely token, float32 sums step by 6e-8 and would pass over five of six tokens of probability 1e-8.
    logits = torch.full((100_000,), float(np.log(1e-8)))
    logits[0] = 0.0
    wanted = [1, 2, 3, 255, 256, 257, 500, 501, 502, 99_999]
    numbers = [(1 + (token - 0.5) * 1e-8) / (1 + 99_999 * 1e-8) for token in wanted]
    assert draw(logits, *numbers) == wanted


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_give_a_logprob_that_is_not_either(value: float):
    logits = torch.zeros(2, 600)
    logits[1, 300] = value
    tokens, logprobs = drawn_in_two_levels(logits, torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert 0 <= int(tokens[1]) < 600
    assert logprobs.isfinite().tolist() == [True, False]
