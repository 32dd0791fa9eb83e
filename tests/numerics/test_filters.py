"""Which tokens keep their gradient: by hand, by slow loops, and never by what stands outside the mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.numerics.arrays import assert_close, mask_of, padded
from tests.numerics.transcriptions import mean
from torch import Tensor

from covey.algos.filters import clip_cov_mask, covariance, kl_cov_mask, top_entropy_mask

# Ten tokens in three completions.
ENTROPY = [[0.1, 2.0, 0.3, 0.4], [1.5, 0.6], [0.7, 0.8, 0.9, 0.05]]
LOGPROBS = [[-0.1, -2.0, -0.3, -4.0], [-4.5, -0.6], [-0.7, -0.2, -3.0, -0.05]]
ADVANTAGES = [[4.0] * 4, [-6.0] * 2, [2.0] * 4]
MASK = mask_of(ENTROPY)
GARBAGE = 50.0


def slow_covariance() -> list[list[float]]:
    center = mean([value for row in LOGPROBS for value in row])
    advantage = mean([value for row in ADVANTAGES for value in row])
    return [
        [(logprob - center) * (a - advantage) for logprob, a in zip(*rows, strict=True)]
        for rows in zip(LOGPROBS, ADVANTAGES, strict=True)
    ]


def chosen(mask: Tensor) -> set[tuple[int, int]]:
    return {(b, t) for b, t in mask.nonzero().tolist()}


def highest(values: list[list[float]], count: int) -> set[tuple[int, int]]:
    ranking = sorted(((value, (b, t)) for b, row in enumerate(values) for t, value in enumerate(row)), reverse=True)
    return {place for _, place in ranking[:count]}


@pytest.mark.parametrize(("share", "count"), [(0.1, 1), (0.2, 2), (0.5, 5), (1.0, 10)])
def test_the_tokens_of_highest_entropy_keep_their_gradient(share: float, count: int):
    found = top_entropy_mask(padded(ENTROPY, filler=GARBAGE), MASK, share=share)
    assert chosen(found) == highest(ENTROPY, count)


def test_of_few_tokens_at_least_one_keeps_its_gradient():
    assert chosen(top_entropy_mask(padded(ENTROPY, filler=GARBAGE), MASK, share=0.001)) == {(0, 1)}


def test_a_covariance_is_the_product_of_the_distances_from_the_means_over_the_step():
    found = covariance(padded(LOGPROBS, filler=GARBAGE), padded(ADVANTAGES, filler=GARBAGE), MASK)
    assert_close(found, padded(slow_covariance(), filler=0.0), atol=1e-12)


def test_the_mean_of_the_covariances_is_the_covariance():
    found = covariance(padded(LOGPROBS, filler=GARBAGE), padded(ADVANTAGES, filler=GARBAGE), MASK)
    pairs = torch.stack([padded(LOGPROBS)[MASK], padded(ADVANTAGES)[MASK]])
    assert float(found[MASK].mean()) == pytest.approx(float(torch.cov(pairs, correction=0)[0, 1]), abs=1e-12)


@pytest.mark.parametrize(("share", "count"), [(2e-4, 1), (0.1, 1), (0.3, 3), (0.8, 8)])
def test_the_tokens_of_highest_covariance_pay_for_moving(share: float, count: int):
    found = kl_cov_mask(padded(LOGPROBS, filler=GARBAGE), padded(ADVANTAGES, filler=GARBAGE), MASK, share=share)
    assert chosen(found) == highest(slow_covariance(), count)


def clip_cov(numbers: Tensor, *, share: float, low: float = 1.0, high: float = 5.0) -> set[tuple[int, int]]:
    logprobs, advantages = padded(LOGPROBS, filler=GARBAGE), padded(ADVANTAGES, filler=GARBAGE)
    return chosen(clip_cov_mask(logprobs, advantages, MASK, numbers, share=share, low=low, high=high))


def candidates(low: float, high: float) -> set[tuple[int, int]]:
    return {(b, t) for b, row in enumerate(slow_covariance()) for t, value in enumerate(row) if low < value < high}


@given(
    numbers=st.permutations(range(12)),
    share=st.sampled_from([2e-4, 0.1, 0.2, 0.3, 1.0]),
    bounds=st.sampled_from([(1.0, 5.0), (-1.0, 1.0), (3.0, 4.0), (90.0, 91.0)]),
)
def test_random_tokens_within_the_bounds_lose_their_gradient(numbers: list[int], share: float, bounds: tuple[float, float]):
    table = torch.tensor(numbers, dtype=torch.float64).reshape(3, 4)
    within = candidates(*bounds)
    count = min(max(1, round(share * 10)), len(within))
    expected = sorted(within, key=lambda place: float(table[place]))[:count]
    assert clip_cov(table, share=share, low=bounds[0], high=bounds[1]) == set(expected)


def test_the_paper_s_bounds_leave_some_candidates_here_and_exclude_others():
    """Else the test above would test nothing."""
    values = [value for row in slow_covariance() for value in row]
    assert min(values) < 1.0
    assert max(values) > 5.0
    assert 2 <= len(candidates(1.0, 5.0)) <= 6


def test_every_candidate_can_be_drawn():
    generator = torch.Generator().manual_seed(0)
    drawn = [clip_cov(torch.rand(3, 4, generator=generator, dtype=torch.float64), share=0.1) for _ in range(60)]
    assert set.union(*drawn) == candidates(1.0, 5.0)


def test_a_step_without_a_trained_token_has_no_token_to_choose():
    nothing = torch.zeros_like(MASK)
    numbers = padded(ENTROPY)
    assert not top_entropy_mask(numbers, nothing, share=0.2).any()
    assert not kl_cov_mask(numbers, numbers, nothing, share=0.2).any()
    assert not clip_cov_mask(numbers, numbers, nothing, numbers, share=0.2).any()
