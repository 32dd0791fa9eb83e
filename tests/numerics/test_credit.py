"""From one advantage a completion to one a token: copied, penalised token by token, whitened over the step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.numerics.arrays import assert_close, mask_of, padded, unpadded
from tests.numerics.transcriptions import deviation, mean

from covey.algos.credit import outcome_credit, whitened

tenths = st.integers(-30, 30).map(lambda value: value / 10)


def test_each_completion_carries_its_own_advantage_on_its_tokens_and_nothing_elsewhere():
    advantages = torch.tensor([[0.5, -1.0, 2.0], [3.0, 0.0, -4.0]], dtype=torch.float64)  # [P, G]
    lengths = torch.tensor([2, 1, 3, 0, 2, 1])
    credit = outcome_credit(advantages, torch.arange(3)[None] < lengths[:, None])
    assert credit.tolist() == [
        [0.5, 0.5, 0.0],
        [-1.0, 0.0, 0.0],
        [2.0, 2.0, 2.0],
        [0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0],
        [-4.0, 0.0, 0.0],
    ]


def test_credit_is_float32_and_carries_no_gradient():
    advantages = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    credit = outcome_credit(advantages, torch.ones(2, 3, dtype=torch.bool))
    assert credit.dtype == torch.float32
    assert not credit.requires_grad


@given(rows=st.lists(st.lists(tenths, min_size=1, max_size=5), min_size=1, max_size=4), eps=st.sampled_from([1e-8, 0.1]))
def test_whitened_credit_has_the_mean_and_the_deviation_of_all_tokens_taken_out(rows: list[list[float]], eps: float):
    everything = [value for row in rows for value in row]
    found = whitened(padded(rows, filler=1e6), mask_of(rows), eps=eps)
    if len(set(everything)) < 2:
        assert torch.equal(found, torch.zeros_like(found))
        return
    center, std = mean(everything), deviation(everything, 1)
    for row, values in zip(unpadded(found, rows), rows, strict=True):
        assert row == pytest.approx([(value - center) / (std + eps) for value in values], abs=1e-9)
    assert (found[~mask_of(rows)] == 0).all()


def test_a_long_completion_counts_more_than_a_short_one_when_tokens_are_whitened():
    """Rewards 1 and 0 on 3 tokens and 1: mean 3/4, deviation 1/2."""
    found = whitened(padded([[1.0, 1.0, 1.0], [0.0]]), mask_of([[1.0, 1.0, 1.0], [0.0]]))
    assert_close(found, [[0.5, 0.5, 0.5], [-1.5, 0.0, 0.0]], atol=1e-7)


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e6])
def test_equal_credit_on_every_token_is_no_signal_whatever_its_rounding(value: float):
    mask = mask_of([[0.0] * 7, [0.0] * 3])
    credit = torch.where(mask, torch.tensor(value, dtype=torch.float32), 0.0)
    assert torch.equal(whitened(credit, mask), torch.zeros(2, 7))


@pytest.mark.parametrize("mask", [[[False, False]], [[True, False]]])
def test_fewer_than_two_tokens_cannot_be_whitened_and_give_zero(mask: list[list[bool]]):
    assert whitened(torch.tensor([[3.0, 5.0]]), torch.tensor(mask)).tolist() == [[0.0, 0.0]]
