"""One update: its first ratio and KL, its learning rate, and the batches that must leave everything as it was."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from tests.rows import PLAIN_ROWS
from tests.tiny_batches import ON_POLICY, REWARDS, SPEC, gradient_of, make_batch, make_learner, objective_of, ragged_groups
from torch import Tensor

from covey.algos.objective import Coefficients
from covey.algos.registry import ALGORITHMS
from covey.learner import Learner
from covey.metrics import metric_values
from covey.models.policy import Policy
from covey.tensors import Scores
from covey.types import Group, Score


def state_of(learner: Learner) -> list[Tensor]:
    """Return copies of all weights and of everything the optimizer remembers."""
    remembered = [value for state in learner.optimizer.state.values() for value in state.values()]
    return [tensor.detach().clone() for tensor in [*learner.model.parameters(), *remembered]]


def is_same_state(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_on_the_first_update_the_ratio_is_one_and_the_kl_to_a_copy_is_zero_exactly(tiny_policy: Policy):
    objective, groups = objective_of("grpo"), ragged_groups([REWARDS[1]] * 3)
    learner = make_learner(tiny_policy, objective, cut=(64, 64), coefficients=Coefficients(beta=0.3))
    tokens = make_batch(groups, objective, ON_POLICY).tokens
    ref_logprobs = learner.score(copy.deepcopy(tiny_policy.model), tokens).logprobs
    batch = learner.make_batch(tokens, Scores(old_logprobs=None, ref_logprobs=ref_logprobs))
    metrics = metric_values(learner.train_on(batch).metrics)
    assert (metrics["ratio/mean"], metrics["ratio/max"]) == (1.0, 1.0)
    assert (metrics["kl/ref"], metrics["kl/sequence"], metrics["kl/token_max"]) == (0.0, 0.0, 0.0)
    again = metric_values(learner.train_on(batch).metrics)
    assert (again["kl/ref"] or 0.0) > 0.0


def test_on_policy_the_loss_is_zero_but_the_weights_move(tiny_policy: Policy):
    """With equal lengths, because the mean over each completion weighs tokens by length."""
    objective = objective_of("grpo")
    groups = ragged_groups([REWARDS[1]] * 3, completion_lengths=[[6] * 5] * 3)
    learner = make_learner(tiny_policy, objective)
    before = state_of(learner)
    metrics = metric_values(learner.update(make_batch(groups, objective, ON_POLICY)).metrics)
    assert metrics["loss/value"] == pytest.approx(0.0, abs=1e-6)
    assert (metrics["grad/norm"] or 0.0) > 0.01
    assert not is_same_state(state_of(learner)[: len(before)], before)


def test_the_reported_norm_is_that_of_the_gradient_before_it_is_clipped(tiny_policy: Policy):
    objective = objective_of("grpo")
    batch = make_batch(ragged_groups(), objective, ON_POLICY)
    unclipped = make_learner(tiny_policy, objective)
    expected = float(gradient_of(tiny_policy.model, lambda: unclipped.accumulate_gradient(batch)).norm())
    learner = make_learner(tiny_policy, objective, spec=dataclasses.replace(SPEC, max_grad_norm=expected / 10))
    assert metric_values(learner.update(batch).metrics)["grad/norm"] == pytest.approx(expected, rel=1e-5)


def test_moments_are_there_before_the_first_update_which_is_what_it_would_be_without_them(tiny_policy: Policy):
    objective = objective_of("grpo")
    batch = make_batch(ragged_groups(), objective, ON_POLICY)
    states = []
    for has_moments in (True, False):
        learner = make_learner(dataclasses.replace(tiny_policy, model=copy.deepcopy(tiny_policy.model)), objective)
        assert len(learner.optimizer.state) == len(list(learner.model.parameters()))
        if not has_moments:
            learner.optimizer.state.clear()
        learner.update(batch)
        learner.update(batch)
        states.append(state_of(learner))
    assert is_same_state(*states)


def test_a_gradient_left_over_from_before_does_not_leak_into_an_update(tiny_policy: Policy):
    objective = objective_of("grpo")
    batch = make_batch(ragged_groups(), objective, ON_POLICY)
    other = dataclasses.replace(tiny_policy, model=copy.deepcopy(tiny_policy.model))
    clean, dirty = make_learner(tiny_policy, objective), make_learner(other, objective)
    dirty.accumulate_gradient(make_batch(ragged_groups(seed=7), objective, ON_POLICY))
    for learner in (clean, dirty):
        learner.update(batch)
    assert is_same_state(state_of(dirty), state_of(clean))


RATES = [
    # warm-up, decay, rates of updates 1, 2, ... of 10 for a learning rate of 1
    (4, False, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1, 1, 1, 1]),
    (0, False, [1] * 11),
    (4, True, [1 / 4, 2 / 4, 3 / 4, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]),
    (0, True, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0]),
]


@pytest.mark.parametrize(("warmup_steps", "decay", "rates"), RATES)
def test_the_learning_rate_rises_and_falls_as_tabled(
    shared_tiny_policy: Policy, warmup_steps: int, decay: bool, rates: list[float]
):
    spec = dataclasses.replace(SPEC, learning_rate=1.0, warmup_steps=warmup_steps, num_steps=10, decay=decay)
    learner = make_learner(shared_tiny_policy, objective_of("grpo"), spec=spec)
    found: list[float] = []
    for num_updates in range(11):
        learner.num_updates = num_updates
        found.append(learner.learning_rate())
    assert found == pytest.approx(rates, abs=1e-12)


def test_each_update_uses_the_rate_of_its_number(tiny_policy: Policy):
    objective = objective_of("grpo")
    learner = make_learner(tiny_policy, objective, spec=dataclasses.replace(SPEC, learning_rate=1e-3, warmup_steps=4))
    batch = make_batch(ragged_groups(), objective, ON_POLICY)
    before = [weight.detach().clone() for weight in learner.model.parameters()]
    rates = [metric_values(learner.update(batch).metrics)["optimizer/lr"]]
    moved = max(float((a - b).detach().abs().max()) for a, b in zip(learner.model.parameters(), before, strict=True))
    assert moved == pytest.approx(1e-3 / 4, rel=0.01)  # The first step of Adam moves weights by the rate itself.
    rates.append(metric_values(learner.update(batch).metrics)["optimizer/lr"])
    assert rates == pytest.approx([1e-3 / 4, 2e-3 / 4])
    assert learner.num_updates == 2


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_leaves_weights_and_optimizer_untouched(tiny_policy: Policy, poison: float):
    objective = objective_of("grpo")
    learner = make_learner(tiny_policy, objective)
    good = make_batch(ragged_groups(), objective, ON_POLICY)
    learner.update(good)
    before = state_of(learner)
    spoiled = good.advantages.clone()
    spoiled[0, 0] = poison
    skipped = learner.update(dataclasses.replace(good, advantages=spoiled))
    assert (skipped.num_updates, metric_values(skipped.metrics)) == (0, {"update/skipped": 1})
    assert is_same_state(state_of(learner), before)
    assert learner.num_updates == 1
    assert all(weight.grad is None for weight in learner.model.parameters())


def left_out(name: str) -> list[Group]:
    """Return groups from which the row learns nothing: without spread, or without a score where it needs none."""
    if ALGORITHMS[name].min_group_size == 1:
        return ragged_groups([[None] * 5] * 3)
    flat = ragged_groups([[1.0] * 5, [0.5] * 5, [0.1] * 5])
    return [
        dataclasses.replace(
            group,
            rollouts=tuple(
                dataclasses.replace(rollout, reward=Score(value=rollout.reward.value)) for rollout in group.rollouts
            ),
        )
        for group in flat
    ]


@pytest.mark.parametrize("name", PLAIN_ROWS)
def test_a_step_without_a_usable_group_changes_nothing(tiny_policy: Policy, name: str):
    """Not even through momentum or the count of updates."""
    objective = objective_of(name)
    learner = make_learner(tiny_policy, objective)
    learner.update(make_batch(ragged_groups(), objective, ON_POLICY))
    before = state_of(learner)
    learner.update(make_batch(left_out(name), objective, ON_POLICY))
    assert is_same_state(state_of(learner), before)
    assert learner.num_updates == 1
