"""What an update does on average, by enumerating every outcome of a one-token policy: exact, no sampling noise.

The policy says "right" with probability p = sigmoid(z); a group of 8 has 2^8 outcomes, which differ in the number of rights.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.tiny_batches import stats_of

from covey.algos.aggregate import StepTotals
from covey.algos.credit import outcome_credit
from covey.algos.objective import Objective, policy_loss
from covey.algos.registry import ALGORITHMS
from covey.algos.surrogates import Clip

GROUP_SIZE = 8


def expected_update(name: str, p: float) -> float:
    """Return E[-dL/dz] of the algorithm `name`, on policy."""
    objective = Objective(spec=ALGORITHMS[name], clip=Clip())
    z = torch.tensor(math.log(p / (1 - p)), dtype=torch.float64, requires_grad=True)
    total = 0.0
    for num_right in range(GROUP_SIZE + 1):
        rewards = [1.0] * num_right + [0.0] * (GROUP_SIZE - num_right)
        signs = torch.tensor([1.0 if reward else -1.0 for reward in rewards], dtype=torch.float64)
        mask = torch.ones(GROUP_SIZE, 1, dtype=torch.bool)
        output = policy_loss(
            objective,
            logprobs=torch.nn.functional.logsigmoid(signs * z)[:, None],
            old_logprobs=None,
            ref_logprobs=None,
            advantages=outcome_credit(objective.spec.advantage(stats_of([rewards]), min_group_std=0.0), mask),
            mask=mask,
            totals=StepTotals(num_sequences=GROUP_SIZE, num_tokens=GROUP_SIZE, max_length=1),
        )
        (gradient,) = torch.autograd.grad(output.loss, z)
        probability = math.comb(GROUP_SIZE, num_right) * p**num_right * (1 - p) ** (GROUP_SIZE - num_right)
        total -= probability * float(gradient)
    return total


def test_grpo_updates_as_enumerated(golden: dict[str, Any]):
    expected = golden["expected_update_p0.3_G8"]["grpo_ddof1_eps1e-4"]
    assert expected_update("grpo", 0.3) == pytest.approx(expected, abs=1e-7)


def test_dr_grpo_updates_as_enumerated(golden: dict[str, Any]):
    expected = golden["expected_update_p0.3_G8"]["drgrpo"]
    assert expected_update("dr_grpo", 0.3) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9])
def test_dr_grpo_is_the_true_policy_gradient_times_a_constant(p: float):
    assert expected_update("dr_grpo", p) == pytest.approx((GROUP_SIZE - 1) / GROUP_SIZE * p * (1 - p), abs=1e-7)
