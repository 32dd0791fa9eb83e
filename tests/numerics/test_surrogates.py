"""The surrogates and the policy loss around them: golden losses and gradients, every quadrant of the clip, no overflow."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from tests.numerics.arrays import assert_close, float64, padded
from tests.numerics.losses import ADVANTAGES, LOGPROBS, MASK, OLD, REF, golden_logprobs, gradient_of_loss, loss_of
from tests.rows import PLAIN_ROWS

from covey.algos.aggregate import AGGREGATIONS, Aggregation
from covey.algos.objective import Coefficients, Objective
from covey.algos.ratios import MAX_LOG_RATIO, sequence_log_ratio, token_log_ratio
from covey.algos.registry import ALGORITHMS
from covey.algos.surrogates import clipped_surrogate
from covey.metrics import metric_values

GOLDEN_NAMES: dict[str, str] = {
    "token-mean": "token-mean",
    "seq-mean-token-mean": "seq-mean-token-mean",
    "seq-mean-token-sum": "seq-mean-token-sum",
    "seq-mean-token-sum-norm": "constant",
}


def objective_of(name: str = "grpo", *, aggregation: Aggregation = "token-mean", **options: Any) -> Objective:
    """Return the row with the golden fixture's clip range, where it has one, and these options."""
    own = {key: value for key, value in {"epsilon_low": 0.2, "epsilon_high": 0.28}.items() if key in ALGORITHMS[name].options}
    return dataclasses.replace(Objective.of_row(ALGORITHMS[name], **own | options), aggregation=aggregation)


# --- golden losses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", GOLDEN_NAMES)
def test_the_clipped_loss_is_golden(golden: dict[str, Any], mode: Aggregation):
    loss = loss_of(objective_of(aggregation=mode), golden_logprobs(), old=padded(OLD)).loss
    assert float(loss) == pytest.approx(golden["loss"][f"clip_{GOLDEN_NAMES[mode]}"], abs=1e-8)


def test_the_mean_over_groups_of_token_means_is_the_token_mean_in_one_group_and_the_sequence_mean_in_groups_of_one():
    """DAPO as printed. It has no golden number of its own, but two that it must meet."""
    objective = objective_of(aggregation="group-mean-token-mean")
    together = loss_of(objective, golden_logprobs(), old=padded(OLD), group_size=2).loss
    apart = loss_of(objective, golden_logprobs(), old=padded(OLD), group_size=1).loss
    assert (float(together), float(apart)) == (pytest.approx(-0.67535069, abs=1e-8), pytest.approx(-0.18356713, abs=1e-8))


@pytest.mark.parametrize(
    ("key", "objective"),
    [
        ("clip_symmetric_0.2_token-mean", objective_of(epsilon_high=0.2)),
        ("dual_clip_c3_token-mean", objective_of(dual_clip=3.0)),
        ("gspo_eps(3e-4,4e-4)", Objective.of_row(ALGORITHMS["gspo"])),
        ("gmpo_eps0.4", Objective.of_row(ALGORITHMS["gmpo"])),
        ("cispo_upper_only_1.28_token-mean", Objective.of_row(ALGORITHMS["cispo"])),
        ("cispo_verl_clip_0.8_1.28_token-mean", objective_of("cispo")),
        ("cispo_trl_cap5.0_token-mean", objective_of("cispo", epsilon_low=1.0, epsilon_high=4.0)),
        ("sapo_seqmean", Objective.of_row(ALGORITHMS["sapo"])),
        ("clip_token-mean", Objective.of_row(ALGORITHMS["dapo"])),
    ],
)
def test_the_loss_of_a_row_is_golden(golden: dict[str, Any], key: str, objective: Objective):
    loss = loss_of(objective, golden_logprobs(), old=padded(OLD)).loss
    assert float(loss) == pytest.approx(golden["loss"][key], abs=1e-8)


def test_the_ratio_of_a_sequence_is_golden_on_each_of_its_tokens(golden: dict[str, Any]):
    ratio = sequence_log_ratio(padded(LOGPROBS), padded(OLD, filler=-9.0), MASK).exp()
    assert_close(ratio[0], [golden["loss"]["gspo_ratio"][0]] * 3)
    assert_close(ratio[1, 0], golden["loss"]["gspo_ratio"][1])


def test_the_loss_of_reinforce_is_the_log_prob_times_the_advantage():
    loss = loss_of(objective_of("reinforce"), golden_logprobs(), old=padded(OLD)).loss
    assert float(loss) == pytest.approx((0.5 + 1.0 + 0.2 - 2.0) / 4, abs=1e-12)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
def test_the_gradient_is_golden(golden: dict[str, Any], mode: Aggregation):
    logprobs = golden_logprobs()
    gradient = gradient_of_loss(loss_of(objective_of(aggregation=mode), logprobs, old=padded(OLD)), logprobs)
    assert_close(gradient, golden["grad_clip_wrt_logp"][GOLDEN_NAMES[mode]])


def test_the_shares_of_clipped_tokens_are_golden(golden: dict[str, Any]):
    metrics = metric_values(loss_of(objective_of(), golden_logprobs(), old=padded(OLD)).metrics)
    assert metrics["clip/low_frac"] == golden["loss"]["clipfrac_low(A<0,r<0.8)"]
    assert metrics["clip/high_frac"] == golden["loss"]["clipfrac_high(A>0,r>1.28)"]


def test_the_other_metrics_are_those_of_the_unmasked_tokens():
    metrics = metric_values(loss_of(objective_of(), golden_logprobs(), old=padded(OLD)).metrics)
    ratios = [math.exp(0.2), 1.0, math.exp(0.4), math.exp(-0.5)]
    assert metrics["ratio/mean"] == pytest.approx(sum(ratios) / 4, abs=1e-12)
    assert metrics["ratio/max"] == pytest.approx(max(ratios), abs=1e-12)
    assert metrics["advantage/abs_mean"] == 1.0


# --- terms beside the surrogate --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kl", "key"), [("k1_loss", "k1"), ("k2_loss", "k2"), ("k3_loss", "k3"), ("weighted_k3_loss", "k3_times_ratio")]
)
def test_the_kl_term_is_added_with_weight_beta_and_the_ratio_stays_against_the_old_policy(
    golden: dict[str, Any], kl: str, key: str
):
    objective = dataclasses.replace(objective_of(), kl=kl)
    output = loss_of(objective, golden_logprobs(), old=padded(OLD), ref=padded(REF), coefficients=Coefficients(beta=0.5))
    expected = golden["loss"]["clip_token-mean"] + 0.5 * golden["loss"]["kl_token-mean"][key]
    assert float(output.loss) == pytest.approx(expected, abs=1e-8)
    assert metric_values(output.metrics)["loss/value"] == float(output.loss)


def test_kl_in_the_reward_adds_nothing_to_the_loss(golden: dict[str, Any]):
    objective = dataclasses.replace(objective_of(), kl="k1_reward")
    output = loss_of(objective, golden_logprobs(), old=padded(OLD), ref=padded(REF), coefficients=Coefficients(beta=0.5))
    assert float(output.loss) == pytest.approx(golden["loss"]["clip_token-mean"], abs=1e-8)


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_the_entropy_bonus_is_a_token_mean_whatever_the_aggregation(mode: Aggregation):
    entropy = padded([[1.0, 0.5, 0.1], [2.0]])
    objective = objective_of(aggregation=mode)
    without = loss_of(objective, golden_logprobs(), old=padded(OLD), entropy=entropy)
    output = loss_of(objective, golden_logprobs(), old=padded(OLD), entropy=entropy, coefficients=Coefficients(entropy=0.3))
    assert float(output.loss - without.loss) == pytest.approx(-0.3 * 3.6 / 4, abs=1e-12)
    assert metric_values(output.metrics)["entropy/mean"] == pytest.approx(0.9, abs=1e-12)


def test_token_weights_multiply_the_surrogate_but_not_the_kl_term(golden: dict[str, Any]):
    objective = dataclasses.replace(objective_of(), kl="k3_loss")
    weights = padded([[0.5, 2.0, 0.0], [3.0]])
    output = loss_of(
        objective,
        golden_logprobs(),
        old=padded(OLD),
        ref=padded(REF),
        token_weights=weights,
        coefficients=Coefficients(beta=0.5),
    )
    surrogate = (-0.5 * math.exp(0.2) - 2.0 + 3.0 * 0.8) / 4
    assert float(output.loss) == pytest.approx(surrogate + 0.5 * golden["loss"]["kl_token-mean"]["k3"], abs=1e-12)


def test_tokens_that_are_held_back_pay_for_the_distance_they_moved():
    objective = dataclasses.replace(objective_of(), kl_cov_coefficient=0.7)
    held_back = torch.tensor([[True, False, True], [True, False, False]])
    paid = loss_of(objective, golden_logprobs(), old=padded(OLD), held_back=held_back).loss
    free = loss_of(objective, golden_logprobs(), old=padded(OLD)).loss
    assert float(paid - free) == pytest.approx(0.7 * (0.2 + 0.4 + 0.5) / 4, abs=1e-12)


# --- the clip, quadrant by quadrant ----------------------------------------------------------------------------------

QUADRANTS = [
    # advantage, ratio, value, gradient with respect to the log-prob; clip range [0.8, 1.2]
    (1.0, 1.5, -1.2, 0.0),
    (1.0, 1.1, -1.1, -1.1),
    (1.0, 0.5, -0.5, -0.5),
    (-1.0, 1.5, 1.5, 1.5),
    (-1.0, 0.9, 0.9, 0.9),
    (-1.0, 0.5, 0.8, 0.0),
    (2.0, 1.5, -2.4, 0.0),
    (0.0, 1.5, 0.0, 0.0),
]


@pytest.mark.parametrize(("advantage", "ratio", "value", "gradient"), QUADRANTS)
def test_the_clip_takes_the_gradient_only_where_it_would_reward_moving_further(
    advantage: float, ratio: float, value: float, gradient: float
):
    assert clipped(advantage, ratio) == (pytest.approx(value, abs=1e-12), pytest.approx(gradient, abs=1e-12))


def clipped(advantage: float, ratio: float, **options: float) -> tuple[float, float]:
    """Return value and gradient of one token's clipped loss."""
    log_ratio = float64([[math.log(ratio)]]).requires_grad_()
    mask = torch.ones(1, 1, dtype=torch.bool)
    loss = clipped_surrogate(log_ratio, log_ratio, float64([[advantage]]), mask, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), log_ratio)
    return float(loss.detach()), float(gradient)


@pytest.mark.parametrize(("advantage", "ratio", "value"), [(1.0, 1.25, -1.25), (1.0, 1.4, -1.3), (-1.0, 0.85, 0.9)])
def test_the_two_sides_of_the_clip_are_set_apart(advantage: float, ratio: float, value: float):
    assert clipped(advantage, ratio, epsilon_low=0.1, epsilon_high=0.3)[0] == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("advantage", "ratio", "value", "gradient"),
    [(-1.0, 2.9, 2.9, 2.9), (-1.0, 5.0, 3.0, 0.0), (-2.0, 5.0, 6.0, 0.0), (1.0, 5.0, -1.2, 0.0), (-1.0, 0.5, 0.8, 0.0)],
)
def test_dual_clip_bounds_the_loss_of_a_negative_advantage_only(advantage: float, ratio: float, value: float, gradient: float):
    found = clipped(advantage, ratio, dual_clip=3.0)
    assert found == (pytest.approx(value, abs=1e-12), pytest.approx(gradient, abs=1e-12))


@pytest.mark.parametrize(
    ("advantage", "ratio", "value", "gradient"),
    [(-1.0, 3.9, 3.9, 3.9), (-1.0, 5.0, 4.0, 0.0), (-2.0, 5.0, 8.0, 0.0), (1.0, 5.0, -1.2, 0.0), (1.0, 1.1, -1.1, -1.1)],
)
def test_delta_bounds_the_ratio_of_the_unclipped_branch(advantage: float, ratio: float, value: float, gradient: float):
    found = clipped(advantage, ratio, delta=4.0)
    assert found == (pytest.approx(value, abs=1e-12), pytest.approx(gradient, abs=1e-12))


# --- overflow and ratios ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN_ROWS)
@pytest.mark.parametrize("difference", [100.0, -100.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_log_probs_that_differ_by_a_hundred_give_a_finite_loss_and_gradient(name: str, difference: float, advantage: float):
    logprobs = torch.full((2, 3), difference, dtype=torch.float32, requires_grad=True)
    zeros = torch.zeros(2, 3)
    objective = dataclasses.replace(Objective.of_row(ALGORITHMS[name]), kl="weighted_k3_loss")
    output = loss_of(
        objective,
        logprobs,
        old=zeros,
        ref=zeros,
        advantages=torch.full((2, 3), advantage),
        coefficients=Coefficients(beta=0.1),
    )
    assert torch.isfinite(output.loss)
    assert torch.isfinite(gradient_of_loss(output, logprobs)).all()


def test_the_log_ratio_is_the_difference_up_to_its_bound():
    logprobs, old = float64([[-1.0, 5.0, 0.0, 100.0, -100.0]]), float64([[-1.5, 2.0, 0.0, 0.0, 0.0]])
    mask = torch.ones(1, 5, dtype=torch.bool)
    assert token_log_ratio(logprobs, old, mask).tolist() == [[0.5, 3.0, 0.0, MAX_LOG_RATIO, -MAX_LOG_RATIO]]


@pytest.mark.parametrize("name", PLAIN_ROWS)
def test_what_stands_in_masked_positions_matters_neither_to_the_loss_nor_to_its_gradient(name: str):
    objective = Objective.of_row(ALGORITHMS[name])

    def outcome(filler: float) -> tuple[float, torch.Tensor]:
        logprobs = padded(LOGPROBS, filler=filler).requires_grad_()
        output = loss_of(objective, logprobs, old=padded(OLD, filler=-filler), advantages=padded(ADVANTAGES, filler=filler))
        return float(output.loss.detach()), gradient_of_loss(output, logprobs)

    (loss, gradient), (spoiled_loss, spoiled_gradient) = outcome(0.0), outcome(17.0)
    assert spoiled_loss == loss
    assert torch.equal(spoiled_gradient, gradient)
    assert (gradient[~MASK] == 0).all()


def test_without_old_log_probs_the_ratio_is_exactly_one():
    metrics = metric_values(loss_of(objective_of(), golden_logprobs()).metrics)
    assert (metrics["ratio/mean"], metrics["ratio/max"]) == (1.0, 1.0)
    assert (metrics["clip/low_frac"], metrics["clip/high_frac"]) == (0.0, 0.0)
