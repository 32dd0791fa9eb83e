"""What stands beside the group-relative family: GAE, DPO and IPO, pass@k, and coefficients that follow a target."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.numerics import transcriptions
from tests.numerics.arrays import assert_close, float64, mask_of, padded, unpadded

from covey.algos.controllers import adaptive_beta, entropy_coefficient
from covey.algos.critic import clipped_value_loss, gae
from covey.algos.preference import dpo_loss, ipo_loss, preference_margin
from covey.stats import pass_at_k

numbers = st.integers(-20, 20).map(lambda value: value / 10)

# --- generalised advantage estimation --------------------------------------------------------------------------------


@pytest.mark.parametrize(("lam", "key"), [(0.95, "gae_r_[0,0,1]_v_[.2,.5,.4]_lam.95"), (1.0, "gae_lam1")])
def test_gae_is_golden(golden: dict[str, Any], lam: float, key: str):
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = gae(float64([[0, 0, 1]]), float64([[0.2, 0.5, 0.4, 0.0]]), mask, gamma=1.0, lam=lam)
    assert_close(advantages, [golden[key]], atol=1e-12)
    assert_close(returns, advantages + float64([[0.2, 0.5, 0.4]]), atol=1e-15)


@given(
    steps=st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5), min_size=1, max_size=3),
    last=numbers,
    gamma=st.sampled_from([0.9, 1.0]),
    lam=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
)
def test_gae_is_the_double_sum_whatever_stands_beyond_the_end(steps: Any, last: float, gamma: float, lam: float):
    rewards, values = [[r for r, _ in row] for row in steps], [[v for _, v in row] for row in steps]
    width = max(len(row) for row in steps) + 1
    padded_values = torch.cat(
        [padded(values, width=width, filler=77.0), torch.full((len(steps), 1), last, dtype=torch.float64)], dim=1
    )
    mask = mask_of(rewards, width=width)
    advantages, returns = gae(padded(rewards, width=width, filler=99.0), padded_values, mask, gamma=gamma, lam=lam)
    for row, of_rewards, of_values in zip(unpadded(advantages, steps), rewards, values, strict=True):
        expected = transcriptions.gae(of_rewards, [*of_values, last], gamma=gamma, lam=lam)
        assert row == pytest.approx(expected, abs=1e-12)
    assert (advantages[~mask] == 0).all()
    assert_close(returns[mask], (advantages + padded_values[:, :-1])[mask], atol=1e-12)


def test_gae_passes_over_tokens_in_the_middle_that_are_not_the_policys():
    """As if they were not there: a tool's answer between two of the policy's tokens."""
    mask = torch.tensor([[True, False, True]])
    with_tool, _ = gae(float64([[0.5, 9.0, 1.0]]), float64([[0.2, 9.0, 0.4, 0.3]]), mask, gamma=0.9, lam=0.8)
    without, _ = gae(float64([[0.5, 1.0]]), float64([[0.2, 0.4, 0.3]]), mask[:, ::2], gamma=0.9, lam=0.8)
    assert_close(with_tool[:, ::2], without, atol=1e-15)
    assert with_tool[0, 1] == 0


def test_with_lambda_one_an_advantage_is_the_return_less_the_value():
    mask = torch.ones(1, 3, dtype=torch.bool)
    _, returns = gae(float64([[1.0, -2.0, 4.0]]), float64([[0.2, 0.5, 0.4, 0.0]]), mask, gamma=1.0, lam=1.0)
    assert_close(returns, [[3.0, 2.0, 4.0]], atol=1e-12)


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "slope"),
    [
        (0.1, 0.0, 1.0, 0.405, -0.9),  # within the range: the plain square
        (0.5, 0.0, 1.0, 0.32, 0.0),  # moved too far towards the target: no gradient
        (0.5, 0.0, -1.0, 1.125, 1.5),  # moved too far away from it: the full gradient back
    ],
)
def test_the_value_loss_takes_the_worse_of_the_clipped_and_the_plain_square(
    value: float, old: float, target: float, loss: float, slope: float
):
    leaf = float64([[value]]).requires_grad_()
    found = clipped_value_loss(leaf, float64([[old]]), float64([[target]]), value_epsilon=0.2)
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    assert float(found.detach()) == pytest.approx(loss, abs=1e-12)
    assert float(gradient) == pytest.approx(slope, abs=1e-12)


# --- preference pairs ------------------------------------------------------------------------------------------------


def margin(chosen: float, rejected: float, ref_chosen: float, ref_rejected: float) -> torch.Tensor:
    return preference_margin(*(float64([value]) for value in (chosen, rejected, ref_chosen, ref_rejected)))


def test_dpo_is_golden(golden: dict[str, Any]):
    found = margin(-10.0, -12.0, -11.0, -11.5)
    assert float(found) == golden["dpo"]["logits"]
    assert_close(dpo_loss(found, pair_beta=0.1), [golden["dpo"]["loss_beta0.1"]])


def test_ipo_is_golden_for_sums_and_for_means_over_tokens(golden: dict[str, Any]):
    sums = ipo_loss(margin(-10.0, -12.0, -11.0, -11.5), pair_beta=0.1)
    means = ipo_loss(margin(-10.0 / 5, -12.0 / 6, -11.0 / 5, -11.5 / 6), pair_beta=0.1)
    assert_close(sums, [golden["dpo"]["ipo_sum_beta0.1"]])
    assert_close(means, [golden["dpo"]["ipo_mean_len(5,6)_beta0.1"]])


@given(values=st.tuples(*[st.integers(-300, 0).map(lambda value: value / 10)] * 4), beta=st.sampled_from([0.01, 0.1, 1.0]))
def test_preference_losses_are_their_formulas(values: tuple[float, float, float, float], beta: float):
    chosen, rejected, ref_chosen, ref_rejected = values
    slow = (chosen - ref_chosen) - (rejected - ref_rejected)
    assert float(dpo_loss(margin(*values), pair_beta=beta)) == pytest.approx(
        -transcriptions.log_sigmoid(beta * slow), abs=1e-10
    )
    assert float(ipo_loss(margin(*values), pair_beta=beta)) == pytest.approx((slow - 1 / (2 * beta)) ** 2, abs=1e-9)


def test_swapping_the_pair_turns_the_margin_round_and_the_probabilities_add_up():
    forth, back = margin(-10.0, -12.0, -11.0, -11.5), margin(-12.0, -10.0, -11.5, -11.0)
    assert float(forth) == -float(back)
    assert float((-dpo_loss(forth, pair_beta=0.3)).exp() + (-dpo_loss(back, pair_beta=0.3)).exp()) == pytest.approx(
        1.0, abs=1e-12
    )


def test_a_pair_that_is_hopelessly_wrong_has_a_finite_loss_and_gradient():
    chosen = torch.tensor([-1e5], requires_grad=True)
    zero = torch.zeros(1)
    loss = dpo_loss(preference_margin(chosen, zero, zero, zero), pair_beta=1.0).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert chosen.grad is not None
    assert float(chosen.grad) == pytest.approx(-1.0)


# --- pass@k ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "n", "c", "k"), [("n10c3k5", 10, 3, 5), ("n10c3k1", 10, 3, 1), ("n8c8k4", 8, 8, 4), ("n8c0k4", 8, 0, 4)]
)
def test_pass_at_k_is_golden(golden: dict[str, Any], key: str, n: int, c: int, k: int):
    assert pass_at_k(n, c, k) == pytest.approx(golden["pass@k"][key], abs=1e-8)


def test_the_plug_in_formula_is_biased(golden: dict[str, Any]):
    plugged_in = 1 - (1 - 3 / 10) ** 5
    assert plugged_in == pytest.approx(golden["pass@k"]["biased 1-(1-c/n)^k n10c3k5"], abs=1e-8)
    assert pass_at_k(10, 3, 5) - plugged_in > 0.08


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_is_the_share_of_sets_of_k_with_a_right_sample(n: int):
    for c in range(n + 1):
        for k in range(1, n + 1):
            sets = list(combinations([index < c for index in range(n)], k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(any(chosen) for chosen in sets) / len(sets), abs=1e-12)


# --- controllers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kl", "factor"), [(6.0, 1.0), (6.6, 1.01), (5.4, 0.99), (7.2, 1.02), (600.0, 1.02), (4.8, 0.98), (0.0, 0.98)]
)
def test_beta_follows_the_relative_error_of_the_kl_up_to_a_fifth(kl: float, factor: float):
    """With 64 completions of a horizon of 640, a tenth of the error, at most 0.2."""
    assert adaptive_beta(0.05, kl, target=6.0, horizon=640.0, num_samples=64) == pytest.approx(0.05 * factor, abs=1e-12)


def test_the_entropy_coefficient_rises_while_entropy_is_too_low_and_falls_otherwise_within_its_bounds():
    assert entropy_coefficient(0.01, 0.1, target=0.2, change=0.005) == pytest.approx(0.015)
    assert entropy_coefficient(0.01, 0.3, target=0.2, change=0.005) == pytest.approx(0.005)
    assert entropy_coefficient(0.003, 0.3, target=0.2, change=0.005) == 0.0
    assert entropy_coefficient(0.999, 0.1, target=0.2, change=0.005, highest=1.0) == 1.0
