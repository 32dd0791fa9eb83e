"""From one advantage a completion to one a token."""

from __future__ import annotations

import torch

from covey.algos.credit import outcome_credit


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
