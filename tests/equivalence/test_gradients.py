"""The gradient of a step, for every row: the one that the papers write down, however the step is cut and laid out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.rows import PLAIN_ROWS
from tests.slow_objective import ROWS, Step, places_of, slow_credit, slow_loss
from tests.tiny_batches import (
    BINARY,
    ON_POLICY,
    REWARDS,
    STATS,
    WHOLE,
    Cut,
    gradient_of,
    make_learner,
    objective_of,
    ragged_groups,
    relative_error,
    shifted_scores,
    slow_logprobs,
    widened,
)
from torch import Tensor, nn

from covey.algos.aggregate import AGGREGATIONS
from covey.algos.kl import KL_TERMS
from covey.algos.objective import Coefficients, Objective
from covey.algos.registry import ALGORITHMS
from covey.batch import make_tokens
from covey.learner import Learner
from covey.metrics import metric_values
from covey.models.policy import Policy
from covey.tensors import Scores, Tokens
from covey.types import Group

every_row = pytest.mark.parametrize("name", PLAIN_ROWS)
CUTS: tuple[Cut, ...] = ((1, 0), (64, 64), WHOLE)

# Rows that see right and wrong in a reward are shown such rewards, too.
CASES = {name: (name, REWARDS) for name in PLAIN_ROWS}
CASES |= {f"{name}, right or wrong": (name, BINARY) for name in ("maxrl", "passk", "bnpo", "reinforce_pp_baseline")}


def learner_of(policy: Policy, objective: Objective, *, beta: float = 0.0, cut: Cut = WHOLE) -> Learner:
    return make_learner(policy, objective, cut=cut, coefficients=Coefficients(beta=beta))


def step_gradient(policy: Policy, objective: Objective, tokens: Tokens, scores: Scores, *, beta: float = 0.0) -> Tensor:
    learner = learner_of(policy, objective, beta=beta)
    return gradient_of(policy.model, lambda: learner.accumulate_gradient(learner.make_batch(tokens, scores)))


def tokens_of(groups: list[Group]) -> Tokens:
    return make_tokens(groups, (), STATS)


# --- The formula -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logprobs_of(shared_tiny_policy64: Policy) -> Callable[..., Tensor]:
    """Return the log-probs of the tiny groups, with gradient. They do not depend on the rewards, but on who has one."""
    kept: dict[Any, Tensor] = {}

    def logprobs(rewards: Any) -> Tensor:
        if rewards not in kept:
            kept[rewards] = slow_logprobs(shared_tiny_policy64.model, ragged_groups(rewards))
        return kept[rewards]

    return logprobs


def slow_gradient(policy: Policy, loss: Tensor) -> Tensor:
    pieces = torch.autograd.grad(loss, list(policy.model.parameters()), retain_graph=True)
    return torch.cat([piece.reshape(-1) for piece in pieces])


def assert_is_textbook(
    policy: Policy, name: str, objective: Objective, step: Step, *, cuts: tuple[Cut, ...] = (WHOLE,)
) -> None:
    """Compare the gradient and the loss with the slow transcription's."""
    step = dataclasses.replace(step, options=objective.options, kl=objective.kl, mean=objective.aggregation)
    loss = slow_loss(name, step)
    expected = slow_gradient(policy, loss)
    assert float(expected.norm()) > 1e-3  # Else anything would do.
    for cut in cuts:
        scores = Scores(old_logprobs=step.old, ref_logprobs=step.ref)
        gradient, metrics = gradient_and_metrics(policy, objective, list(step.groups), scores, beta=step.beta, cut=cut)
        assert relative_error(gradient, expected) < 1e-10, cut
        assert metrics["loss/value"] == pytest.approx(float(loss.detach()), abs=1e-12)


def gradient_and_metrics(
    policy: Policy, objective: Objective, groups: list[Group], scores: Scores, *, beta: float = 0.0, cut: Cut = WHOLE
) -> tuple[Tensor, dict[str, float | None]]:
    learner = learner_of(policy, objective, beta=beta, cut=cut)
    batch = learner.make_batch(tokens_of(groups), scores)
    found: list[dict[str, float | None]] = []
    gradient = gradient_of(policy.model, lambda: found.append(metric_values(learner.accumulate_gradient(batch).metrics)))
    return gradient, found[0]


def off_policy(logprobs: Tensor, groups: list[Group], *, beta: float = 0.0, scale: float = 0.3) -> Step:
    scores = shifted_scores(logprobs, groups, scale=scale)
    return Step(groups=groups, logprobs=logprobs, old=scores.old_logprobs, ref=scores.ref_logprobs, beta=beta)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_the_gradient_is_the_textbook_one_however_the_step_is_cut(
    shared_tiny_policy64: Policy, logprobs_of: Callable[..., Tensor], case: str, beta: float
):
    name, rewards = CASES[case]
    step = off_policy(logprobs_of(rewards), ragged_groups(rewards), beta=beta)
    assert_is_textbook(shared_tiny_policy64, name, objective_of(name), step, cuts=CUTS)


@every_row
def test_the_rows_own_aggregation_and_kl_term_are_the_papers(name: str):
    assert (ALGORITHMS[name].aggregation, ALGORITHMS[name].kl) == (ROWS[name].mean, ROWS[name].kl)


@every_row
def test_on_policy_the_gradient_is_the_textbook_one(
    shared_tiny_policy64: Policy, logprobs_of: Callable[..., Tensor], name: str
):
    step = Step(groups=ragged_groups(), logprobs=logprobs_of(REWARDS))
    assert_is_textbook(shared_tiny_policy64, name, objective_of(name), step)


@pytest.mark.parametrize("mode", AGGREGATIONS)
@pytest.mark.parametrize("name", ["grpo", "gspo"])
def test_every_aggregation_is_the_textbook_one(
    shared_tiny_policy64: Policy, logprobs_of: Callable[..., Tensor], mode: Any, name: str
):
    step = off_policy(logprobs_of(REWARDS), ragged_groups(), beta=0.3)
    assert_is_textbook(shared_tiny_policy64, name, objective_of(name, aggregation=mode), step, cuts=((64, 64), WHOLE))


@pytest.mark.parametrize("kl", KL_TERMS)
@pytest.mark.parametrize("name", ["grpo", "gmpo", "reinforce_pp"])
def test_every_kl_term_is_the_textbook_one(
    shared_tiny_policy64: Policy, logprobs_of: Callable[..., Tensor], kl: str, name: str
):
    step = off_policy(logprobs_of(REWARDS), ragged_groups(), beta=0.3)
    assert_is_textbook(shared_tiny_policy64, name, objective_of(name, kl=kl), step, cuts=((64, 64),))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("grpo", {"dual_clip": 2.0}),
        ("grpo", {"delta": 1.5}),
        ("grpo", {"ddof": 0, "eps": 0.1}),
        ("grpo", {"min_group_std": 0.4}),
        ("maxrl", {"all_fail_correction": False}),
        ("passk", {"k": 3}),
        ("reinforce_pp_baseline", {"whiten_over": "tokens"}),
        ("gdpo", {"ddof": 0}),
    ],
    ids=str,
)
def test_the_options_of_a_row_reach_its_gradient(
    shared_tiny_policy64: Policy, logprobs_of: Callable[..., Tensor], name: str, options: dict[str, Any]
):
    """With ratios far enough from 1 for the outer clips to act."""
    rewards = BINARY if name == "maxrl" else REWARDS
    step = off_policy(logprobs_of(rewards), ragged_groups(rewards), scale=1.0)
    assert_is_textbook(shared_tiny_policy64, name, objective_of(name, **options), step)
    plain = dataclasses.replace(step, options=objective_of(name).options)
    assert float(slow_loss(name, plain)) != pytest.approx(
        float(slow_loss(name, dataclasses.replace(step, options=objective_of(name, **options).options))), rel=1e-3
    )


@every_row
def test_metrics_do_not_depend_on_the_cut(shared_tiny_policy64: Policy, logprobs_of: Callable[..., Tensor], name: str):
    objective, groups = objective_of(name), ragged_groups()
    scores = shifted_scores(logprobs_of(REWARDS), groups)
    whole, *others = (
        gradient_and_metrics(shared_tiny_policy64, objective, groups, scores, beta=0.3, cut=cut)[1]
        for cut in (WHOLE, *CUTS[:2])
    )
    for metrics in others:
        assert metrics == pytest.approx(whole, abs=1e-10)


@pytest.mark.parametrize(("name", "low", "high"), [("grpo", 0.8, 1.28), ("gmpo", 0.8187307531, 1.3231298123)])
def test_the_clipped_share_is_that_of_the_tokens_in_rows_with_a_gradient(
    shared_tiny_policy64: Policy, logprobs_of: Callable[..., Tensor], name: str, low: float, high: float
):
    objective, groups = objective_of(name), ragged_groups()
    step = dataclasses.replace(off_policy(logprobs_of(REWARDS), groups), options=objective.options)
    assert step.old is not None
    ratio, credit = (step.logprobs - step.old).exp(), slow_credit(name, step)
    rows = [tokens for group in places_of(step) for tokens in group if any(credit[place] for place in tokens)]
    places = [place for tokens in rows for place in tokens]
    scores = Scores(old_logprobs=step.old, ref_logprobs=None)
    _, metrics = gradient_and_metrics(shared_tiny_policy64, objective, groups, scores)
    num_low = sum(float(ratio[place]) < low and credit[place] < 0 for place in places)
    num_high = sum(float(ratio[place]) > high and credit[place] > 0 for place in places)
    assert num_low > 0
    assert num_high > 0
    assert metrics["clip/low_frac"] == pytest.approx(num_low / len(places))
    assert metrics["clip/high_frac"] == pytest.approx(num_high / len(places))


# --- What it must not depend on --------------------------------------------------------------------------------------


@every_row
@pytest.mark.parametrize("cut", CUTS[:2], ids=str)
def test_in_float32_the_cut_changes_the_gradient_by_rounding_only(shared_tiny_policy: Policy, name: str, cut: Cut):
    objective, groups = objective_of(name), ragged_groups()
    learners = [learner_of(shared_tiny_policy, objective, beta=0.3, cut=each) for each in (WHOLE, cut)]
    scores = shifted_scores(learners[0].score(shared_tiny_policy.model, tokens_of(groups)).logprobs, groups)
    batch = learners[0].make_batch(tokens_of(groups), scores)
    whole, found = (gradient_of(learner.model, lambda to=learner: to.accumulate_gradient(batch)) for learner in learners)
    assert relative_error(found, whole) < 1e-5


@pytest.fixture
def shifted(logprobs_of: Callable[..., Tensor]) -> Scores:
    """Log-probs of frozen models for the tiny groups."""
    return shifted_scores(logprobs_of(REWARDS), ragged_groups())


def of_rows(scores: Scores, rows: list[int]) -> Scores:
    assert scores.old_logprobs is not None
    assert scores.ref_logprobs is not None
    return Scores(old_logprobs=scores.old_logprobs[rows], ref_logprobs=scores.ref_logprobs[rows])


@every_row
def test_more_padding_changes_nothing(shared_tiny_policy64: Policy, shifted: Scores, name: str):
    tokens = tokens_of(ragged_groups())
    assert shifted.old_logprobs is not None
    assert shifted.ref_logprobs is not None
    wide = Scores(
        old_logprobs=nn.functional.pad(shifted.old_logprobs, (0, 9)),
        ref_logprobs=nn.functional.pad(shifted.ref_logprobs, (0, 9)),
    )
    expected = step_gradient(shared_tiny_policy64, objective_of(name), tokens, shifted, beta=0.3)
    found = step_gradient(shared_tiny_policy64, objective_of(name), widened(tokens, extra=9), wide, beta=0.3)
    assert relative_error(found, expected) < 1e-12


@every_row
def test_the_order_of_the_groups_does_not_matter(shared_tiny_policy64: Policy, shifted: Scores, name: str):
    groups, order = ragged_groups(), [2, 0, 1]
    rows = [5 * group + sample for group in order for sample in range(5)]
    reordered = tokens_of([groups[index] for index in order])
    expected = step_gradient(shared_tiny_policy64, objective_of(name), tokens_of(groups), shifted, beta=0.3)
    found = step_gradient(shared_tiny_policy64, objective_of(name), reordered, of_rows(shifted, rows), beta=0.3)
    assert relative_error(found, expected) < 1e-10


@every_row
@pytest.mark.parametrize("max_shared_tokens", [0, 4096])
def test_what_stands_after_the_end_of_a_completion_changes_no_bit(
    shared_tiny_policy: Policy, shifted: Scores, name: str, max_shared_tokens: int
):
    tokens = tokens_of(ragged_groups())
    beyond = ~tokens.completion_mask
    assert shifted.old_logprobs is not None
    assert shifted.ref_logprobs is not None
    old, ref = shifted.old_logprobs.float(), shifted.ref_logprobs.float()
    spoiled = dataclasses.replace(tokens, completion_ids=tokens.completion_ids.masked_fill(beyond, 65))
    learner = learner_of(shared_tiny_policy, objective_of(name), beta=0.3, cut=(4096, max_shared_tokens))
    batches = [
        learner.make_batch(tokens, Scores(old_logprobs=old, ref_logprobs=ref)),
        learner.make_batch(
            spoiled, Scores(old_logprobs=old.masked_fill(beyond, -3.0), ref_logprobs=ref.masked_fill(beyond, 5.0))
        ),
    ]
    batches[1] = dataclasses.replace(batches[1], advantages=batches[1].advantages.masked_fill(beyond, 11.0))
    metrics: list[dict[str, Any]] = []
    clean, dirty = (
        gradient_of(learner.model, lambda batch=batch: metrics.append(learner.accumulate_gradient(batch).metrics))
        for batch in batches
    )
    assert torch.equal(dirty, clean)
    assert metrics[1] == metrics[0]


@every_row
def test_an_unscorable_completion_leaves_numerator_and_denominators(shared_tiny_policy64: Policy, name: str):
    """What it says does not matter, and the others count as a batch without it: here, a group that is rid of one member."""
    with_one = ragged_groups([[1.0, 0.0, 0.5, None, 0.5]], prompt_lengths=[30], completion_lengths=[[3, 14, 1, 9, 6]])
    rollouts = with_one[0].rollouts
    without = [dataclasses.replace(with_one[0], rollouts=rollouts[:3] + rollouts[4:])]
    expected = step_gradient(shared_tiny_policy64, objective_of(name), tokens_of(without), ON_POLICY)
    found = step_gradient(shared_tiny_policy64, objective_of(name), tokens_of(with_one), ON_POLICY)
    assert relative_error(found, expected) < 1e-10


@pytest.mark.parametrize("name", [name for name in PLAIN_ROWS if name not in ("reinforce", "reinforce_pp")])
def test_a_flat_group_that_is_left_out_leaves_the_denominators_but_not_the_statistics(shared_tiny_policy64: Policy, name: str):
    """The two rows without a baseline learn from it; for the others it has no signal."""
    objective, groups = objective_of(name), ragged_groups()
    assert objective.has_signal(tokens_of(groups).stats)[:, 0].tolist() == [True, True, False]
    kept = step_gradient(shared_tiny_policy64, objective, tokens_of(groups), ON_POLICY)
    dropped = step_gradient(shared_tiny_policy64, objective, make_tokens(groups[:2], groups[2:], STATS), ON_POLICY)
    num_tokens = tokens_of(groups).completion_mask.sum(dim=1)
    ratio = num_tokens.sum() / num_tokens[:10].sum() if objective.aggregation == "token-mean" else 14 / 9
    assert relative_error(dropped, kept * ratio) < 1e-6


EXACT_WITH: dict[str, dict[str, Any]] = {"batch_std": {"ddof": 0}, "reinforce_pp_baseline": {"ddof": 0}, "gdpo": {"ddof": 0}}
"""Rows with a deviation over the batch: with the divisor n, and not n - 1, it does not feel that everything comes twice."""


@pytest.mark.parametrize("name", [name for name in PLAIN_ROWS if name not in ("reinforce_pp", "bnpo")])
def test_a_batch_that_comes_twice_has_the_loss_and_the_gradient_of_one(
    shared_tiny_policy64: Policy, shifted: Scores, name: str
):
    objective, groups = objective_of(name, **EXACT_WITH.get(name, {})), ragged_groups()
    once = step_gradient(shared_tiny_policy64, objective, tokens_of(groups), shifted, beta=0.3)
    twice = of_rows(shifted, [*range(15), *range(15)])
    found = step_gradient(shared_tiny_policy64, objective, tokens_of(groups + groups), twice, beta=0.3)
    assert relative_error(found, once) < 1e-10


@pytest.mark.parametrize("name", ["reinforce_pp", "bnpo"])
def test_where_a_divisor_n_minus_1_is_fixed_a_batch_that_comes_twice_has_the_gradient_of_the_papers_twofold_batch(
    shared_tiny_policy64: Policy, logprobs_of: Callable[..., Tensor], name: str
):
    groups, logprobs = ragged_groups(), logprobs_of(REWARDS)
    step = off_policy(logprobs.repeat(2, 1), groups + groups)
    assert_is_textbook(shared_tiny_policy64, name, objective_of(name), step)


def test_whitening_feels_a_batch_that_comes_twice_by_its_divisor_alone(shared_tiny_policy64: Policy, shifted: Scores):
    objective, groups = objective_of("reinforce_pp"), ragged_groups()
    once = step_gradient(shared_tiny_policy64, objective, tokens_of(groups), shifted, beta=0.3)
    twice = of_rows(shifted, [*range(15), *range(15)])
    found = step_gradient(shared_tiny_policy64, objective, tokens_of(groups + groups), twice, beta=0.3)
    n = int(tokens_of(groups).completion_mask.sum())
    assert relative_error(found, once * ((2 * n - 1) / (2 * n - 2)) ** 0.5) < 1e-6
