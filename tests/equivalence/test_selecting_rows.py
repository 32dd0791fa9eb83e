"""Rows that learn from a selection: their gradient is that of the papers' losses, written down directly and differentiated."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.rows import SELECTING_ROWS
from tests.tiny_batches import (
    STATS,
    WHOLE,
    Cut,
    gradient_of,
    make_learner,
    objective_of,
    ragged_groups,
    relative_error,
    slow_logprobs,
    widened,
)
from torch import Tensor

from covey.algos.objective import Coefficients, Objective
from covey.algos.registry import ALGORITHMS
from covey.batch import make_tokens, select_groups
from covey.credit import pair_metrics
from covey.learner import Learner
from covey.metrics import metric_values
from covey.models.policy import Policy
from covey.tensors import Scores, Tokens
from covey.types import Group

every_row = pytest.mark.parametrize("name", SELECTING_ROWS)
pair_rows = pytest.mark.parametrize("name", [name for name in SELECTING_ROWS if ALGORITHMS[name].pair_loss])
nll_rows = pytest.mark.parametrize("name", [name for name in SELECTING_ROWS if not ALGORITHMS[name].pair_loss])
every_cut = pytest.mark.parametrize("cut", [(1, 0), (64, 64), WHOLE], ids=str)

REWARDS = ((1.0, 0.0, 0.5, None, 0.4), (0.2, 0.9, 0.4, 0.1, 0.7), (0.3, 0.3, 0.3, 0.3, 0.3))
SELECTED = [0, 2, 6, 9]
"""Rows with a reward of at least half the range."""
PAIRS = [(0, 1), (6, 8)]
"""The best and the worst row of each group with two rewards."""


def reference_logprobs(logprobs: Tensor, tokens: Tokens) -> Tensor:
    noise = torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return (logprobs.detach() + 0.3 * noise.to(logprobs.dtype)) * tokens.completion_mask


def tokens_of(groups: Sequence[Group]) -> Tokens:
    return make_tokens(groups, (), STATS, is_on_policy=False)


def learner_of(policy: Policy, name: str, *, cut: Cut = WHOLE, **options: Any) -> Learner:
    return make_learner(policy, objective_of(name, **options), cut=cut, coefficients=Coefficients())


def step_gradient(
    policy: Policy, name: str, groups: Sequence[Group], ref: Tensor, *, cut: Cut = WHOLE, **options: Any
) -> Tensor:
    """Return the gradient of a step on these groups, the old log-probs scored by the learner as it does it in a run."""
    learner, tokens = learner_of(policy, name, cut=cut, **options), tokens_of(groups)
    old = learner.score(policy.model, tokens)
    batch = learner.make_batch(tokens, Scores(old_logprobs=old.logprobs, ref_logprobs=ref))
    return gradient_of(policy.model, lambda: learner.accumulate_gradient(batch))


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    return ragged_groups(REWARDS)


@pytest.fixture(scope="module")
def logprobs(shared_tiny_policy64: Policy, groups: list[Group]) -> Tensor:
    return slow_logprobs(shared_tiny_policy64.model, groups)


@pytest.fixture(scope="module")
def ref(logprobs: Tensor, groups: list[Group]) -> Tensor:
    return reference_logprobs(logprobs, tokens_of(groups))


def slow_gradient(policy: Policy, loss: Tensor) -> Tensor:
    pieces = torch.autograd.grad(loss, list(policy.model.parameters()), retain_graph=True)
    return torch.cat([piece.reshape(-1) for piece in pieces])


def margins_of(learner: Learner, tokens: Tokens, scores: Scores) -> Tensor:
    margins = learner.make_batch(tokens, scores).margins
    assert margins is not None
    return margins


def slow_pair_loss(name: str, logprobs: Tensor, ref: Tensor, pair_beta: float) -> Tensor:
    """Return the mean over pairs, with whole completions' log-probs."""
    losses = []
    for chosen, rejected in PAIRS:
        margin = (logprobs[chosen].sum() - ref[chosen].sum()) - (logprobs[rejected].sum() - ref[rejected].sum())
        if name == "ipo":
            losses.append((margin - 1 / (2 * pair_beta)) ** 2)
        else:
            losses.append(torch.log1p(torch.exp(-pair_beta * margin)))
    return torch.stack(losses).mean()


@nll_rows
@every_cut
def test_the_gradient_is_that_of_the_likelihood_of_the_selected_completions(
    shared_tiny_policy64: Policy, groups: list[Group], logprobs: Tensor, ref: Tensor, name: str, cut: Cut
):
    """Each of their tokens weighs the same, and nothing else is in the loss or what it is divided by."""
    num_tokens = int(tokens_of(groups).completion_mask[SELECTED].sum())
    expected = slow_gradient(shared_tiny_policy64, -logprobs[SELECTED].sum() / num_tokens)
    assert relative_error(step_gradient(shared_tiny_policy64, name, groups, ref, cut=cut), expected) < 1e-10


@nll_rows
def test_the_threshold_says_what_a_success_is(shared_tiny_policy64: Policy, groups: list[Group], logprobs: Tensor, name: str):
    tokens = tokens_of(groups)
    expected = slow_gradient(shared_tiny_policy64, -logprobs[[0, 6]].sum() / int(tokens.completion_mask[[0, 6]].sum()))
    found = step_gradient(shared_tiny_policy64, name, groups, torch.zeros_like(logprobs), threshold=0.8)
    assert relative_error(found, expected) < 1e-10


@pair_rows
@every_cut
def test_the_gradient_is_that_of_the_loss_of_the_pairs(
    shared_tiny_policy64: Policy, groups: list[Group], logprobs: Tensor, ref: Tensor, name: str, cut: Cut
):
    expected = slow_gradient(shared_tiny_policy64, slow_pair_loss(name, logprobs, ref, 0.4))
    found = step_gradient(shared_tiny_policy64, name, groups, ref, cut=cut, pair_beta=0.4)
    assert relative_error(found, expected) < 1e-6  # Credit is held in float32.


@pair_rows
def test_the_loss_of_the_pairs_is_logged(
    shared_tiny_policy64: Policy, groups: list[Group], logprobs: Tensor, ref: Tensor, name: str
):
    learner = learner_of(shared_tiny_policy64, name, pair_beta=0.4)
    scores = Scores(old_logprobs=logprobs.detach(), ref_logprobs=ref)
    batch = learner.make_batch(tokens_of(groups), scores)
    assert batch.margins is not None
    found = metric_values(pair_metrics(learner.objective, batch.margins))
    assert found["pair/loss"] == pytest.approx(float(slow_pair_loss(name, logprobs, ref, 0.4).detach()), rel=1e-9)
    assert len(batch.margins) == len(PAIRS)


@pair_rows
def test_a_pair_that_is_swapped_has_the_opposite_margin(shared_tiny_policy64: Policy, ref: Tensor, logprobs: Tensor, name: str):
    turned = [[None if reward is None else 1.0 - reward for reward in row] for row in REWARDS]
    margins = []
    for rewards in (REWARDS, turned):
        learner = learner_of(shared_tiny_policy64, name)
        scores = Scores(old_logprobs=logprobs.detach(), ref_logprobs=ref)
        margins.append(margins_of(learner, tokens_of(ragged_groups(rewards)), scores))
    assert torch.equal(margins[0], -margins[1])


@pair_rows
def test_online_and_offline_differ_by_who_has_sampled_and_by_nothing_else(name: str):
    spec = ALGORITHMS[name]
    assert (spec.samples_from == "reference") == (name != "online_dpo")
    assert spec.needs_reference


@every_row
def test_no_completion_outside_the_selection_is_trained_on(
    shared_tiny_policy64: Policy, groups: list[Group], ref: Tensor, name: str
):
    learner, tokens = learner_of(shared_tiny_policy64, name), tokens_of(groups)
    batch = learner.make_batch(tokens, learner.make_scores(tokens, shared_tiny_policy64.model))
    trained = batch.mask.any(dim=1).nonzero()[:, 0].tolist()
    assert trained == (sorted(row for pair in PAIRS for row in pair) if ALGORITHMS[name].pair_loss else SELECTED)
    assert learner.rows_with_gradient(batch) == trained
    scored = (
        (batch.scores.old_logprobs != 0).any(dim=1).nonzero()[:, 0].tolist() if batch.scores.old_logprobs is not None else []
    )
    assert scored == trained


@every_row
def test_a_group_without_a_selection_has_no_signal(groups: list[Group], name: str):
    found = objective_of(name).has_signal(tokens_of(groups).stats)[:, 0].tolist()
    assert found == [True, True, False]


@every_row
def test_padding_and_the_order_of_groups_change_nothing(
    shared_tiny_policy64: Policy, groups: list[Group], ref: Tensor, name: str
):
    expected = step_gradient(shared_tiny_policy64, name, groups, ref)
    order = [2, 0, 1]
    rows = [5 * group + sample for group in order for sample in range(5)]
    found = step_gradient(shared_tiny_policy64, name, [groups[index] for index in order], ref[rows])
    assert relative_error(found, expected) < 1e-7
    learner = learner_of(shared_tiny_policy64, name)
    wide = widened(make_tokens(groups, (), STATS), extra=7)
    padded = torch.nn.functional.pad(ref, (0, 7))
    old = learner.score(shared_tiny_policy64.model, wide)
    batch = learner.make_batch(wide, Scores(old_logprobs=old.logprobs, ref_logprobs=padded))
    assert relative_error(gradient_of(learner.model, lambda: learner.accumulate_gradient(batch)), expected) < 1e-7


@every_row
def test_a_step_in_two_minibatches_sees_every_group_once(
    shared_tiny_policy64: Policy, groups: list[Group], ref: Tensor, name: str
):
    """The sum of the parts' gradients, each weighed by its share of what the loss is a mean over, is that of the whole."""
    learner, tokens = learner_of(shared_tiny_policy64, name), tokens_of(groups)
    old = learner.score(shared_tiny_policy64.model, tokens)
    batch = learner.make_batch(tokens, Scores(old_logprobs=old.logprobs, ref_logprobs=ref))
    counts, pieces = [], []
    for part in (select_groups(batch, [0]), select_groups(batch, [1, 2])):
        is_trained = part.mask.any(dim=1)
        counts.append(float(is_trained.sum()) if ALGORITHMS[name].pair_loss else float(part.mask.sum()))
        pieces.append(gradient_of(learner.model, lambda part=part: learner.accumulate_gradient(part)))
    whole = gradient_of(learner.model, lambda: learner.accumulate_gradient(batch))
    summed = sum(count / sum(counts) * piece for count, piece in zip(counts, pieces, strict=True))
    assert relative_error(summed, whole) < 1e-10


@pair_rows
def test_at_the_initial_policy_a_pair_is_worth_half_of_pair_beta_or_what_ipo_asks_for(
    shared_tiny_policy64: Policy, groups: list[Group], name: str
):
    """DPO's slope at margin 0 is pair_beta / 2, IPO's 1 / pair_beta; twice that, because the mean counts two rows a pair."""
    learner, tokens = learner_of(shared_tiny_policy64, name, pair_beta=0.2), tokens_of(groups)
    batch = learner.make_batch(tokens, learner.make_scores(tokens, shared_tiny_policy64.model))
    slope = 1 / 0.2 if name == "ipo" else 0.2 / 2
    values = {round(float(value), 6) for value in batch.advantages[batch.mask].unique()}
    assert values == {round(2 * slope, 6), round(-2 * slope, 6)}


def test_ipo_asks_for_a_margin_and_no_more(shared_tiny_policy64: Policy, groups: list[Group], logprobs: Tensor):
    """At a margin of 1 / (2 pair_beta) its gradient is 0; beyond, it turns round."""
    tokens = tokens_of(groups)
    objective: Objective = objective_of("ipo", pair_beta=0.25)
    marks = objective.advantages(tokens.stats)
    asked = torch.full((3,), 2.0, dtype=torch.float64)
    assert not bool(objective.pair_advantages(marks, asked).any())
    beyond = objective.pair_advantages(marks, asked + 1)
    assert float(beyond[0, 0]) < 0 < float(beyond[0, 1])


@every_row
def test_a_recipe_may_update_again_only_where_that_is_sound(name: str):
    spec = ALGORITHMS[name]
    assert spec.reuses_data == (spec.pair_loss is None)


def test_dropped_padding_of_the_reference_never_counts(shared_tiny_policy64: Policy, groups: list[Group], logprobs: Tensor):
    """What stands behind the end of a completion in old or reference log-probs is not part of a margin."""
    learner, tokens = learner_of(shared_tiny_policy64, "dpo"), tokens_of(groups)
    clean = Scores(old_logprobs=logprobs.detach(), ref_logprobs=torch.zeros_like(logprobs))
    beyond = ~tokens.completion_mask
    spoiled = dataclasses.replace(clean, old_logprobs=logprobs.detach().masked_fill(beyond, 7.0))
    first, second = (margins_of(learner, tokens, scores) for scores in (clean, spoiled))
    assert torch.equal(first, second)
