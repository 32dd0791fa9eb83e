"""What goes on over updates and steps: ratios, minibatches, the learning rate, controllers and the reference."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from tests.builders import shake
from tests.rows import PLAIN_ROWS
from tests.slow_objective import Step, slow_loss
from tests.tiny_batches import (
    ON_POLICY,
    SPEC,
    STATS,
    gradient_of,
    make_learner,
    objective_of,
    ragged_groups,
    relative_error,
    shifted_scores,
    slow_logprobs,
)
from torch import Tensor
from torch.testing import assert_close

from covey.algos.objective import Coefficients, Objective
from covey.algos.registry import ALGORITHMS
from covey.batch import make_tokens, select_groups
from covey.learner import ControllerSpec, Learner, Update
from covey.metrics import metric_values
from covey.models.policy import Policy
from covey.models.reference import refresh_reference
from covey.tensors import Batch, Scores
from covey.types import Group

NUM_ROWS = 15


def groups_of(number: int) -> list[Group]:
    return ragged_groups() if number == 3 else ragged_groups() + ragged_groups(seed=1)[: number - 3]


def scored_batch(learner: Learner, groups: list[Group], *, reference: Any = None) -> Batch:
    tokens = make_tokens(groups, (), STATS)
    return learner.make_batch(tokens, learner.make_scores(tokens, reference))


def values_of(learner: Learner, batch: Batch, *, step: int = 0) -> dict[str, float | None]:
    return metric_values(learner.train_on(batch, step=step).metrics)


# --- Ratios ----------------------------------------------------------------------------------------------------------


def updates_of(learner: Learner, batch: Batch, *, step: int = 0) -> list[Update]:
    """Return what came of each of the batch's updates."""
    made: list[Update] = []
    update = learner.update

    def recorded(part: Batch, **arguments: Any) -> Update:
        made.append(update(part, **arguments))
        return made[-1]

    learner.update = recorded  # ty: ignore[invalid-assignment]
    learner.train_on(batch, step=step)
    return made


@pytest.mark.parametrize("cut", [(1, 0), (64, 64), (4096, 4096)], ids=str)
def test_the_ratio_is_exactly_one_in_the_first_update_and_not_in_the_second(tiny_policy: Policy, cut: tuple[int, int]):
    learner = make_learner(tiny_policy, objective_of("grpo"), cut=cut, spec=dataclasses.replace(SPEC, num_iterations=2))
    first, second = (metric_values(update.metrics) for update in updates_of(learner, scored_batch(learner, ragged_groups())))
    assert (first["ratio/mean"], first["ratio/max"]) == (1.0, 1.0)
    assert (second["ratio/max"] or 0.0) > 1 + 1e-3


@pytest.mark.parametrize("name", ["grpo", "gspo"])
@pytest.mark.parametrize("has_reference", [False, True])
def test_while_the_policy_stands_still_every_ratio_is_exactly_one(tiny_policy: Policy, name: str, has_reference: bool):
    """Whatever the layout of a minibatch: rounding that differed would be clipped by a narrow range such as GSPO's."""
    spec = dataclasses.replace(SPEC, num_iterations=2, num_minibatches=3, learning_rate=1e-30)
    learner = make_learner(tiny_policy, Objective.of_row(ALGORITHMS[name]), cut=(64, 64), spec=spec)
    reference = copy.deepcopy(tiny_policy.model) if has_reference else None
    made = [
        metric_values(update.metrics)
        for update in updates_of(learner, scored_batch(learner, groups_of(6), reference=reference))
    ]
    assert len([values for values in made if values]) >= 4
    assert {values["ratio/max"] for values in made if values} == {1.0}
    assert {values[f"clip/{side}_frac"] for values in made if values for side in ("low", "high")} == {0.0}


def test_a_batch_is_scored_before_only_if_something_asks_for_it(tiny_policy: Policy):
    tokens = make_tokens(ragged_groups())
    several = dataclasses.replace(SPEC, num_iterations=2)
    assert make_learner(tiny_policy, objective_of("grpo"), spec=several).make_scores(tokens, None).old_logprobs is None
    assert make_learner(tiny_policy, objective_of("grpo")).make_scores(tokens, tiny_policy.model).old_logprobs is not None


def test_several_passes_are_that_many_updates_against_the_same_old_policy(tiny_policy64: Policy):
    start = copy.deepcopy(tiny_policy64.model.state_dict())
    learner = make_learner(tiny_policy64, objective_of("grpo"), spec=dataclasses.replace(SPEC, num_iterations=3))
    batch = scored_batch(learner, ragged_groups())
    old = learner.score(tiny_policy64.model, batch.tokens).logprobs
    update = learner.train_on(batch)
    assert learner.num_updates == update.num_updates == 3
    assert update.logprobs is not None
    assert float((update.logprobs - old)[update.is_scored].abs().max()) < 1e-12
    together = weights_of(tiny_policy64)

    tiny_policy64.model.load_state_dict(start)
    single = make_learner(tiny_policy64, objective_of("grpo"))
    for _ in range(3):
        single.update(dataclasses.replace(batch, scores=Scores(old_logprobs=old, ref_logprobs=None)))
    assert_close(weights_of(tiny_policy64), together, atol=1e-9, rtol=0)


def weights_of(policy: Policy) -> Tensor:
    return torch.cat([weight.detach().reshape(-1) for weight in policy.model.parameters()])


# --- Minibatches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_groups", "count"), [(7, 3), (4, 4), (3, 5), (6, 1), (1, 2)])
def test_each_pass_uses_every_group_once(shared_tiny_policy: Policy, num_groups: int, count: int):
    learner = make_learner(shared_tiny_policy, objective_of("grpo"), spec=dataclasses.replace(SPEC, num_minibatches=count))
    for iteration in range(3):
        parts = learner.minibatches(num_groups, step=5, iteration=iteration)
        assert len(parts) == min(count, num_groups)
        assert sorted(group for part in parts for group in part) == list(range(num_groups))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_steps_passes_and_seeds_have_orders_of_their_own_that_can_be_had_again(shared_tiny_policy: Policy):
    def order(seed: int, step: int, iteration: int) -> list[list[int]]:
        spec = dataclasses.replace(SPEC, num_minibatches=4, seed=seed)
        return make_learner(shared_tiny_policy, objective_of("grpo"), spec=spec).minibatches(16, step=step, iteration=iteration)

    orders = [order(0, 1, 0), order(0, 1, 1), order(0, 2, 0), order(1, 1, 0)]
    assert len({str(parts) for parts in orders}) == 4
    assert order(0, 1, 0) == orders[0]


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo"])
def test_a_minibatch_has_denominators_of_its_own(shared_tiny_policy64: Policy, name: str):
    """These rows' advantages come from the group alone, so a minibatch is the textbook step of its groups."""
    objective, groups = objective_of(name), ragged_groups()
    logprobs = slow_logprobs(shared_tiny_policy64.model, groups)
    scores = shifted_scores(logprobs, groups)
    learner = make_learner(shared_tiny_policy64, objective)
    batch = select_groups(learner.make_batch(make_tokens(groups, (), STATS), scores), [0, 2])
    rows = [*range(5), *range(10, 15)]
    assert scores.old_logprobs is not None
    part = Step(
        groups=[groups[0], groups[2]], logprobs=logprobs[rows], old=scores.old_logprobs[rows], options=objective.options
    )
    losses: list[float] = []
    gradient_of(learner.model, lambda: losses.append(learner.accumulate_gradient(batch).metrics["loss/value"].value))
    assert losses[0] == pytest.approx(float(slow_loss(name, part).detach()), abs=1e-12)


@pytest.mark.parametrize("name", PLAIN_ROWS)
def test_a_minibatch_keeps_the_advantages_of_the_whole_batch(shared_tiny_policy64: Policy, name: str):
    learner = make_learner(shared_tiny_policy64, objective_of(name))
    batch = learner.make_batch(make_tokens(ragged_groups(), (), STATS), ON_POLICY)
    part = select_groups(batch, [1])
    assert torch.equal(part.advantages, batch.advantages[5:10])
    assert torch.equal(part.tokens.completion_ids, batch.tokens.completion_ids[5:10])


def test_a_pass_of_minibatches_is_their_updates_in_turn(tiny_policy64: Policy):
    start = copy.deepcopy(tiny_policy64.model.state_dict())
    spec = dataclasses.replace(SPEC, num_iterations=2, num_minibatches=2)
    learner = make_learner(tiny_policy64, objective_of("batch_std"), spec=spec)
    batch = scored_batch(learner, groups_of(5))
    old = Scores(old_logprobs=learner.score(tiny_policy64.model, batch.tokens).logprobs, ref_logprobs=None)
    learner.train_on(batch, step=7)
    together = weights_of(tiny_policy64)

    tiny_policy64.model.load_state_dict(start)
    single = make_learner(tiny_policy64, objective_of("batch_std"), spec=spec)
    for iteration in range(2):
        for groups in single.minibatches(5, step=7, iteration=iteration):
            single.update(select_groups(dataclasses.replace(batch, scores=old), groups))
    assert learner.num_updates == single.num_updates == 4
    assert_close(weights_of(tiny_policy64), together, atol=1e-9, rtol=0)


def test_a_minibatch_without_a_signal_makes_no_update(tiny_policy64: Policy):
    """Of three groups one is flat: two updates a pass, and the metrics are those of the two."""
    learner = make_learner(tiny_policy64, objective_of("grpo"), spec=dataclasses.replace(SPEC, num_minibatches=3))
    values = values_of(learner, scored_batch(learner, ragged_groups()))
    assert learner.num_updates == 2
    assert values["optimizer/lr"] == SPEC.learning_rate
    assert values["tokens/trained"] == 3 + 14 + 27  # Rows 0, 1 and 5 to 9: the others have no gradient.


def test_the_learning_rate_counts_updates(tiny_policy: Policy):
    spec = dataclasses.replace(SPEC, num_steps=2, num_iterations=2, num_minibatches=2, warmup_steps=2, decay=True)
    learner = make_learner(tiny_policy, objective_of("reinforce"), spec=spec)
    batch = scored_batch(learner, ragged_groups()[:2])
    rates: list[float | None] = [metric_values(learner.update(batch).metrics)["optimizer/lr"] for _ in range(8)]
    expected = [0.5, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert rates == pytest.approx([SPEC.learning_rate * share for share in expected])

    again = make_learner(tiny_policy, objective_of("reinforce"), spec=spec)
    first, second = (values_of(again, batch, step=step)["optimizer/lr"] for step in (1, 2))
    assert first == pytest.approx(SPEC.learning_rate * sum(expected[:4]) / 4)
    assert second == pytest.approx(SPEC.learning_rate * sum(expected[4:]) / 4)


# --- Controllers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_beta_follows_the_kl_of_a_completion(tiny_policy: Policy, name: str):
    """beta (1 + clip(KL/target - 1, +-0.2) n/horizon) from step to step: first down, at the reference, and then up."""
    reference = dataclasses.replace(tiny_policy, model=copy.deepcopy(tiny_policy.model))
    learner = make_learner(
        tiny_policy,
        objective_of(name),
        coefficients=Coefficients(beta=0.1),
        controllers=ControllerSpec(kl_target=0.5, kl_horizon=100),
    )
    beta, kls = 0.1, []
    for step in range(3):
        values = values_of(learner, scored_batch(learner, ragged_groups(), reference=reference.model), step=step)
        kl = values["kl/sequence"]
        assert kl is not None
        assert values["kl/beta"] == pytest.approx(beta)  # What was in force.
        beta *= 1 + min(max(kl / 0.5 - 1, -0.2), 0.2) * NUM_ROWS / 100
        assert learner.coefficients.beta == pytest.approx(beta)
        kls.append(kl)
        shake(reference, scale=0.1, seed=step)
    assert kls[0] == pytest.approx(0.0, abs=1e-4)
    assert max(kls) > 0.6


@pytest.mark.parametrize(("target", "expected"), [(100.0, [0.01, 0.015, 0.02]), (1e-3, [0.01, 0.005, 0.0])])
def test_the_entropy_bonus_grows_while_entropy_is_below_its_target_and_ends_at_zero_above(
    tiny_policy: Policy, target: float, expected: list[float]
):
    learner = make_learner(
        tiny_policy,
        objective_of("grpo"),
        coefficients=Coefficients(entropy=0.01),
        controllers=ControllerSpec(entropy_target=target),
    )
    found = [values_of(learner, scored_batch(learner, ragged_groups()))["entropy/coefficient"] for _ in range(3)]
    assert found == pytest.approx(expected)


def test_without_targets_the_coefficients_stay(tiny_policy: Policy):
    learner = make_learner(tiny_policy, objective_of("grpo"), coefficients=Coefficients(beta=0.1, entropy=0.01))
    values_of(learner, scored_batch(learner, ragged_groups(), reference=copy.deepcopy(tiny_policy.model)))
    assert learner.coefficients == Coefficients(beta=0.1, entropy=0.01)


# --- The reference ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rloo", "reinforce_pp"])
def test_kl_in_the_reward_draws_back_what_has_gone_far_from_the_reference(tiny_policy64: Policy, name: str):
    """Where all rewards are 0, KL alone acts: log-probs fall, weighted by the KL from their token to the end."""
    reference = copy.deepcopy(tiny_policy64.model)
    shake(tiny_policy64, scale=0.05)
    groups = ragged_groups([[0.0] * 5] * 3)
    spec = dataclasses.replace(SPEC, learning_rate=1e-5)
    without = make_learner(tiny_policy64, objective_of(name), spec=spec)
    assert without.train_on(scored_batch(without, groups, reference=reference)).num_updates == 0
    learner = make_learner(tiny_policy64, objective_of(name), spec=spec, coefficients=Coefficients(beta=0.1))
    batch = scored_batch(learner, groups, reference=reference)
    old, ref, mask = batch.scores.old_logprobs, batch.scores.ref_logprobs, batch.mask
    assert old is not None
    assert ref is not None
    to_go = torch.zeros_like(old)
    for b, t in mask.nonzero().tolist():
        to_go[b, t] = (old - ref)[b, t:][mask[b, t:]].sum()
    learner.train_on(batch)
    change = learner.score(tiny_policy64.model, batch.tokens).logprobs - old
    if name == "reinforce_pp":
        to_go = to_go - to_go[mask].mean()
    assert float((to_go * change)[mask].sum()) < 0


def test_a_step_that_holds_a_reference_but_no_beta_is_measured_and_not_changed(tiny_policy64: Policy):
    reference, start = copy.deepcopy(tiny_policy64.model), copy.deepcopy(tiny_policy64.model.state_dict())
    shake(reference_policy := dataclasses.replace(tiny_policy64, model=reference), scale=0.05)
    ends: list[Tensor] = []
    for held in (None, reference_policy.model):
        tiny_policy64.model.load_state_dict(start)
        learner = make_learner(tiny_policy64, objective_of("grpo"))
        values = values_of(learner, scored_batch(learner, ragged_groups(), reference=held))
        assert ("kl/ref" in values) == (held is not None)
        ends.append(weights_of(tiny_policy64))
    assert float((ends[0] - ends[1]).abs().max()) < 1e-10


def test_the_reference_is_never_trained(tiny_policy: Policy):
    reference = copy.deepcopy(tiny_policy.model).requires_grad_(False)
    before = copy.deepcopy(reference.state_dict())
    learner = make_learner(
        tiny_policy,
        objective_of("grpo"),
        spec=dataclasses.replace(SPEC, num_iterations=2),
        coefficients=Coefficients(beta=0.1),
    )
    learner.train_on(scored_batch(learner, ragged_groups(), reference=reference))
    assert all(torch.equal(weight, before[name]) for name, weight in reference.state_dict().items())


@pytest.mark.parametrize("mix", [1.0, 0.25])
def test_a_refreshed_reference_has_taken_over_a_share_of_the_policys_weights(tiny_policy: Policy, mix: float):
    reference = copy.deepcopy(tiny_policy.model).requires_grad_(False)
    old = copy.deepcopy(reference.state_dict())
    shake(tiny_policy, scale=0.1)
    policy = copy.deepcopy(tiny_policy.model.state_dict())
    refresh_reference(reference, tiny_policy.model, mix=mix)
    for name, weight in reference.state_dict().items():
        torch.testing.assert_close(weight, (1 - mix) * old[name] + mix * policy[name], atol=1e-6, rtol=0)
    shake(tiny_policy, scale=0.1, seed=2)  # They share no memory.
    assert relative_error(flat(reference.state_dict()), flat(tiny_policy.model.state_dict())) > 0.01


def flat(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.reshape(-1) for value in state.values()])
