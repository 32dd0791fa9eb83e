"""Steps in which not every token counts in full: what is rejected has left the denominators, what is filtered has not."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tests.numerics import transcriptions
from tests.rows import PLAIN_ROWS
from tests.slow_objective import Step, places_of, slow_credit, slow_loss
from tests.tiny_batches import (
    ON_POLICY,
    STATS,
    gradient_of,
    make_learner,
    objective_of,
    ragged_groups,
    relative_error,
    shifted_scores,
    slow_entropy,
    slow_logprobs,
)
from torch import Tensor

from covey.algos.objective import Coefficients, Objective
from covey.batch import StatsSpec, make_tokens
from covey.learner import Learner
from covey.models.policy import Policy
from covey.tensors import Batch, Scores, Tokens
from covey.token_choice import TokenChoice
from covey.types import Group

BOUNDS = {
    "tis_token": (0.0, 1.2),
    "tis_sequence": (0.0, 1.2),
    "mask_token": (0.8, 1.3),
    "mask_sequence": (0.5, 2.0),
    "mask_geometric": (0.9, 1.1),
}


@pytest.fixture(scope="module")
def logprobs(shared_tiny_policy64: Policy) -> Tensor:
    """Of the tiny groups, with gradient."""
    return slow_logprobs(shared_tiny_policy64.model, ragged_groups())


def slow_gradient(policy: Policy, loss: Tensor) -> Tensor:
    pieces = torch.autograd.grad(loss, list(policy.model.parameters()), retain_graph=True)
    return torch.cat([piece.reshape(-1) for piece in pieces])


def gradient_and_loss(learner: Learner, batch: Batch) -> tuple[Tensor, float]:
    losses: list[float] = []
    gradient = gradient_of(learner.model, lambda: losses.append(learner.accumulate_gradient(batch).metrics["loss/value"].value))
    return gradient, losses[0]


def assert_is_textbook(policy: Policy, name: str, learner: Learner, batch: Batch, step: Step) -> None:
    step = dataclasses.replace(step, options=learner.objective.options)
    loss = slow_loss(name, step)
    gradient, found = gradient_and_loss(learner, batch)
    assert relative_error(gradient, slow_gradient(policy, loss)) < 1e-10
    assert found == pytest.approx(float(loss.detach()), abs=1e-12)


def off_policy(logprobs: Tensor, **fields: Any) -> Step:
    scores = shifted_scores(logprobs, ragged_groups())
    return Step(groups=ragged_groups(), logprobs=logprobs, old=scores.old_logprobs, ref=scores.ref_logprobs, **fields)


def scores_of(step: Step, entropy: Tensor | None = None) -> Scores:
    return Scores(old_logprobs=step.old, ref_logprobs=step.ref, entropy=entropy)


# --- Corrections of engine against trainer ---------------------------------------------------------------------------


def sampled_elsewhere(step: Step) -> Tokens:
    """Return the tokens as an engine reports them whose log-probs are off by some tenths."""
    tokens = make_tokens(step.groups, (), STATS)
    assert step.old is not None
    noise = torch.randn(step.old.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return dataclasses.replace(tokens, sampling_logprobs=(step.old + 0.3 * noise) * tokens.completion_mask)


def slow_weights(step: Step, tokens: Tokens, correction: str) -> Tensor:
    assert step.old is not None
    assert tokens.sampling_logprobs is not None
    low, high = BOUNDS[correction]
    weights = torch.zeros_like(step.old)
    for places in (places for group in places_of(step) for places in group if places):
        old = [float(step.old[place]) for place in places]
        sampling = [float(tokens.sampling_logprobs[place]) for place in places]
        for place, weight in zip(places, transcriptions.correction(correction, old, sampling, low=low, high=high), strict=True):
            weights[place] = weight
    return weights


@pytest.mark.parametrize("correction", BOUNDS)
@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo", "rloo"])
def test_a_corrected_step_is_the_textbook_one(shared_tiny_policy64: Policy, logprobs: Tensor, correction: str, name: str):
    """Tokens of weight 0 are out of every sum and every count, those of the KL term and of a sequence's ratio included."""
    step = off_policy(logprobs, beta=0.3)
    tokens, (low, high) = sampled_elsewhere(step), BOUNDS[correction]
    choice = TokenChoice(correction=correction, correction_low=low, correction_high=high)
    learner = make_learner(
        shared_tiny_policy64, objective_of(name), cut=(64, 64), coefficients=Coefficients(beta=0.3), choice=choice
    )
    weights = slow_weights(step, tokens, correction)
    is_out = tokens.completion_mask & (weights == 0)
    assert bool(is_out.any()) == correction.startswith("mask")
    assert not bool(is_out.sum() == tokens.completion_mask.sum())
    batch = learner.make_batch(tokens, scores_of(step))
    assert_is_textbook(shared_tiny_policy64, name, learner, batch, dataclasses.replace(step, weights=weights, is_out=is_out))


@pytest.mark.parametrize("name", PLAIN_ROWS)
def test_a_step_with_rejected_completions_is_one_without_them(shared_tiny_policy64: Policy, logprobs: Tensor, name: str):
    """One of each group is rejected. The others keep the advantages that they had beside it."""
    groups, rejected = ragged_groups(), [4, 7, 10]
    step = off_policy(logprobs)
    tokens = make_tokens(groups, (), STATS)
    assert step.old is not None
    sampling = step.old.clone()
    sampling[rejected] += 5.0
    choice = TokenChoice(correction="mask_sequence", correction_low=0.5, correction_high=2.0)
    learner = make_learner(shared_tiny_policy64, objective_of(name), choice=choice)
    batch = learner.make_batch(dataclasses.replace(tokens, sampling_logprobs=sampling), scores_of(step))
    kept = [row for row in range(15) if row not in rejected]
    fewer = [
        dataclasses.replace(
            group, rollouts=tuple(rollout for sample, rollout in enumerate(group.rollouts) if 5 * index + sample in kept)
        )
        for index, group in enumerate(groups)
    ]
    without = Batch(
        tokens=make_tokens(fewer, (), STATS),
        scores=Scores(old_logprobs=step.old[kept], ref_logprobs=None),
        advantages=batch.advantages[kept],
        mask=tokens.completion_mask[kept],
    )
    gradient, loss = gradient_and_loss(learner, batch)
    expected, expected_loss = gradient_and_loss(learner, without)
    assert relative_error(gradient, expected) < 1e-10
    assert loss == pytest.approx(expected_loss, abs=1e-12)


# --- Filters ---------------------------------------------------------------------------------------------------------


def filtered(policy: Policy, objective: Objective, token_filter: str, share: float) -> Learner:
    return make_learner(policy, objective, cut=(64, 64), choice=TokenChoice(token_filter=token_filter, filter_share=share))


def slow_covariance(name: str, step: Step) -> dict[tuple[int, int], float]:
    assert step.old is not None
    credit = slow_credit(name, dataclasses.replace(step, options=objective_of(name).options))
    old = {place: float(step.old[place]) for place in credit}
    mean_old, mean_credit = transcriptions.mean([*old.values()]), transcriptions.mean([*credit.values()])
    return {place: (old[place] - mean_old) * (credit[place] - mean_credit) for place in credit}


@pytest.mark.parametrize("name", ["grpo", "dapo"])
def test_only_the_tokens_of_highest_entropy_keep_a_gradient(shared_tiny_policy64: Policy, logprobs: Tensor, name: str):
    step, learner = off_policy(logprobs), filtered(shared_tiny_policy64, objective_of(name), "top_entropy", 0.3)
    tokens = make_tokens(step.groups, (), STATS)
    scored = learner.make_scores(tokens, None)
    slow = [entropy.detach() for entropy in slow_entropy(shared_tiny_policy64.model, step.groups)]
    places = [place for group in places_of(step) for completion in group for place in completion]
    ranking = sorted(places, key=lambda place: -float(slow[place[0]][place[1]]))
    weights = torch.zeros_like(logprobs)
    for place in ranking[: -(-len(places) * 3 // 10)]:
        weights[place] = 1.0
    assert scored.old_logprobs is not None
    batch = learner.make_batch(tokens, scores_of(step, scored.entropy))
    assert_is_textbook(shared_tiny_policy64, name, learner, batch, dataclasses.replace(step, weights=weights))


def test_clip_cov_takes_the_gradient_from_a_random_few_of_the_tokens_that_move_entropy(
    shared_tiny_policy64: Policy, logprobs: Tensor
):
    step, learner = off_policy(logprobs), filtered(shared_tiny_policy64, objective_of("dapo"), "clip_cov", 0.05)
    tokens, covariance = make_tokens(step.groups, (), STATS), slow_covariance("dapo", step)
    batch = learner.make_batch(tokens, scores_of(step), step=1)
    assert batch.token_weights is not None
    dropped = {place for place in covariance if batch.token_weights[place] == 0}
    candidates = {place for place, value in covariance.items() if 1.0 < value < 5.0}
    assert len(dropped) == int(0.05 * len(covariance)) < len(candidates)
    assert dropped <= candidates
    assert torch.equal(batch.mask, tokens.completion_mask)  # The denominators count them.
    kept = dataclasses.replace(step, weights=batch.token_weights)
    assert_is_textbook(shared_tiny_policy64, "dapo", learner, batch, kept)
    others = [learner.make_batch(tokens, scores_of(step), step=number).token_weights for number in (1, 2)]
    assert others[0] is not None
    assert others[1] is not None
    assert torch.equal(others[0], batch.token_weights)
    assert not torch.equal(others[1], batch.token_weights)


def test_kl_cov_makes_the_tokens_of_highest_covariance_pay_for_each_change(shared_tiny_policy64: Policy, logprobs: Tensor):
    step, objective = off_policy(logprobs), dataclasses.replace(objective_of("grpo"), kl_cov_coefficient=0.7)
    learner = filtered(shared_tiny_policy64, objective, "kl_cov", 0.1)
    covariance = slow_covariance("grpo", step)
    held_back = torch.zeros(logprobs.shape, dtype=torch.bool)
    for place in sorted(covariance, key=lambda place: -covariance[place])[: int(0.1 * len(covariance))]:
        held_back[place] = True
    batch = learner.make_batch(make_tokens(step.groups, (), STATS), scores_of(step))
    paying = dataclasses.replace(step, held_back=held_back, penalty=0.7)
    assert_is_textbook(shared_tiny_policy64, "grpo", learner, batch, paying)
    assert float(slow_loss("grpo", dataclasses.replace(paying, options=objective.options))) != pytest.approx(
        float(slow_loss("grpo", dataclasses.replace(step, options=objective.options))), rel=1e-3
    )


def test_a_held_back_token_gives_its_row_a_gradient_although_its_advantage_is_zero(
    shared_tiny_policy64: Policy, logprobs: Tensor
):
    learner = make_learner(shared_tiny_policy64, objective_of("grpo"))
    batch = learner.make_batch(make_tokens(ragged_groups()), scores_of(off_policy(logprobs)))
    held_back = torch.zeros(logprobs.shape, dtype=torch.bool)
    held_back[12, 1] = True
    rows = learner.rows_with_gradient(batch)
    assert 12 not in rows
    assert learner.rows_with_gradient(dataclasses.replace(batch, held_back=held_back)) == [*rows, 12]


# --- Truncated completions -------------------------------------------------------------------------------------------

LEFT_OUT = StatsSpec(masks_truncated=True)
LENGTHS = ((3, 14, 1, 9, 6), (8, 2, 11, 1, 5), (1, 7, 4, 2, 10))
"""One completion in each group has length 1: it does not end with the end token, so it was cut at the limit."""


def with_whole_baseline(group: Group) -> Group:
    """Return the group with a greedy completion that ended by itself: one that was cut off is no baseline."""
    assert group.baseline is not None
    completion = dataclasses.replace(group.baseline.completion, finish_reason="stop")
    return dataclasses.replace(group, baseline=dataclasses.replace(group.baseline, completion=completion))


@pytest.mark.parametrize("name", PLAIN_ROWS)
def test_a_step_that_leaves_truncated_completions_out_is_one_without_them(shared_tiny_policy64: Policy, name: str):
    groups = ragged_groups(
        [[1.0, 0.0, 0.5, 0.0, 1.0], [0.2, 0.9, 0.4, 0.1, 0.7], [0.0, 1.0, 0.0, 0.0, 1.0]], completion_lengths=LENGTHS
    )
    without = [
        dataclasses.replace(group, rollouts=tuple(r for r in group.rollouts if r.completion.finish_reason == "stop"))
        for group in groups
    ]
    assert [len(group.rollouts) for group in without] == [4, 4, 4]
    groups = [with_whole_baseline(group) for group in groups]
    without = [dataclasses.replace(group, baseline=whole.baseline) for group, whole in zip(without, groups, strict=True)]
    learner = make_learner(shared_tiny_policy64, objective_of(name))
    found = gradient_and_loss(learner, learner.make_batch(make_tokens(groups, (), LEFT_OUT), ON_POLICY))
    expected = gradient_and_loss(learner, learner.make_batch(make_tokens(without), ON_POLICY))
    assert relative_error(found[0], expected[0]) < 1e-10
    assert found[1] == pytest.approx(expected[1], abs=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_a_step_of_truncated_completions_only_changes_nothing(tiny_policy64: Policy, beta: float):
    groups = ragged_groups([[1.0, 0.0, 0.5]] * 2, prompt_lengths=(9, 5), completion_lengths=[[1, 1, 1]] * 2)
    learner = make_learner(tiny_policy64, objective_of("grpo"), coefficients=Coefficients(beta=beta, entropy=0.1))
    before = [weight.detach().clone() for weight in tiny_policy64.model.parameters()]
    tokens = make_tokens(groups, (), LEFT_OUT)
    update = learner.train_on(learner.make_batch(tokens, learner.make_scores(tokens, tiny_policy64.model)))
    assert update.metrics == {}
    assert learner.num_updates == 0
    assert all(torch.equal(weight, old) for weight, old in zip(tiny_policy64.model.parameters(), before, strict=True))


# --- The entropy bonus -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mean_entropy(shared_tiny_policy64: Policy) -> Tensor:
    """The mean over all trained tokens, with gradient."""
    entropies = slow_entropy(shared_tiny_policy64.model, ragged_groups())
    values = torch.cat([values for row, values in enumerate(entropies) if row != 3])  # Row 3 could not be scored.
    return values.mean()


@pytest.mark.parametrize("name", PLAIN_ROWS)
def test_the_entropy_bonus_is_the_same_token_mean_in_every_row(
    shared_tiny_policy64: Policy, logprobs: Tensor, mean_entropy: Tensor, name: str
):
    step, objective = off_policy(logprobs), objective_of(name)
    tokens = make_tokens(step.groups, (), STATS)
    found: list[tuple[Tensor, float]] = []
    for coefficient, cut in [(0.0, (64, 64)), (0.25, (64, 64))]:
        learner = make_learner(shared_tiny_policy64, objective, cut=cut, coefficients=Coefficients(entropy=coefficient))
        found.append(gradient_and_loss(learner, learner.make_batch(tokens, scores_of(step))))
    (plain, plain_loss), (with_bonus, loss) = found
    expected = -0.25 * slow_gradient(shared_tiny_policy64, mean_entropy)
    assert relative_error(with_bonus - plain, expected) < 1e-9
    assert loss - plain_loss == pytest.approx(-0.25 * float(mean_entropy.detach()), abs=1e-10)
