"""The gradient of a step: the same however the step is cut and laid out, and the one that the papers write down."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tests.builders import END
from tests.tiny_batches import (
    CUTS,
    REWARDS,
    SPEC,
    WHOLE,
    Cut,
    gradient_of,
    make_batch,
    make_learner,
    ragged_groups,
    relative_error,
    shifted_scores,
    slow_loss,
    widened,
)
from torch import Tensor, nn

from covey.algos.objective import Objective
from covey.algos.registry import ALGORITHMS
from covey.algos.surrogates import Clip
from covey.learner import rows_with_gradient
from covey.metrics import metric_values
from covey.models.policy import Policy
from covey.tensors import Batch, Scores
from covey.types import Group, Message

ON_POLICY = Scores(old_logprobs=None, ref_logprobs=None)

every_row = pytest.mark.parametrize("name", ALGORITHMS)
every_cut = pytest.mark.parametrize("cut", CUTS, ids=str)


def objective_of(name: str, *, beta: float = 0.0) -> Objective:
    return Objective(spec=ALGORITHMS[name], clip=Clip(low=0.2, high=0.28), beta=beta)


def step_gradient(policy: Policy, objective: Objective, batch: Batch, *, cut: Cut = WHOLE) -> Tensor:
    learner = make_learner(policy, objective, cut=cut)
    return gradient_of(policy.model, lambda: learner.accumulate_gradient(batch))


def slow_gradient(policy: Policy, objective: Objective, groups: list[Group], scores: Scores) -> Tensor:
    return gradient_of(policy.model, lambda: slow_loss(policy.model, groups, objective, scores).backward())


# --- The formula -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def textbook(shared_tiny_policy64: Policy) -> dict[tuple[str, float], tuple[Scores, float, Tensor]]:
    """Old and reference log-probs, loss and gradient of the slow transcription, by row and beta."""
    policy, groups = shared_tiny_policy64, ragged_groups()
    found: dict[tuple[str, float], tuple[Scores, float, Tensor]] = {}
    for name in ALGORITHMS:
        for beta in (0.0, 0.3):
            objective = objective_of(name, beta=beta)
            scores = shifted_scores(policy.model, groups, has_reference=beta > 0)
            loss = float(slow_loss(policy.model, groups, objective, scores).detach())
            found[name, beta] = (scores, loss, slow_gradient(policy, objective, groups, scores))
    return found


@every_row
@pytest.mark.parametrize("beta", [0.0, 0.3])
@every_cut
def test_the_gradient_is_the_textbook_one_however_the_step_is_cut(
    shared_tiny_policy64: Policy, textbook: dict[Any, Any], name: str, beta: float, cut: Cut
):
    scores, _, expected = textbook[name, beta]
    objective = objective_of(name, beta=beta)
    batch = make_batch(ragged_groups(), objective, scores)
    found = step_gradient(shared_tiny_policy64, objective, batch, cut=cut)
    assert relative_error(found, expected) < 1e-10


@every_row
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_loss_and_metrics_do_not_depend_on_the_cut(
    shared_tiny_policy64: Policy, textbook: dict[Any, Any], name: str, beta: float
):
    scores, loss, _ = textbook[name, beta]
    objective = objective_of(name, beta=beta)
    batch = make_batch(ragged_groups(), objective, scores)

    def metrics_of(cut: Cut) -> dict[str, float | None]:
        learner = make_learner(shared_tiny_policy64, objective, cut=cut)
        found: list[dict[str, float | None]] = []
        gradient_of(learner.model, lambda: found.append(metric_values(learner.accumulate_gradient(batch))))
        return found[0]

    whole = metrics_of(WHOLE)
    assert whole["loss/value"] == pytest.approx(loss, abs=1e-12)
    assert 0 < (whole["clip/low_frac"] or 0) < 1  # The batch is off policy enough to clip on both sides.
    assert 0 < (whole["clip/high_frac"] or 0) < 1
    assert ("kl/ref" in whole) == (beta > 0)
    for cut in CUTS:
        assert metrics_of(cut) == pytest.approx(whole, abs=1e-10)


@every_row
def test_on_policy_the_gradient_is_the_textbook_one(shared_tiny_policy64: Policy, name: str):
    objective, groups = objective_of(name), ragged_groups()
    found = step_gradient(shared_tiny_policy64, objective, make_batch(groups, objective, ON_POLICY))
    assert relative_error(found, slow_gradient(shared_tiny_policy64, objective, groups, ON_POLICY)) < 1e-10


@every_row
@every_cut
def test_in_float32_the_cut_changes_the_gradient_by_rounding_only(shared_tiny_policy: Policy, name: str, cut: Cut):
    objective, groups = objective_of(name, beta=0.3), ragged_groups()
    batch = make_batch(groups, objective, shifted_scores(shared_tiny_policy.model, groups, has_reference=True))
    whole = step_gradient(shared_tiny_policy, objective, batch)
    found = step_gradient(shared_tiny_policy, objective, batch, cut=cut)
    assert relative_error(found, whole) < 1e-5


# --- What it must not depend on --------------------------------------------------------------------------------------


@every_row
def test_more_padding_changes_nothing(shared_tiny_policy64: Policy, name: str):
    objective, groups = objective_of(name, beta=0.3), ragged_groups()
    scores = shifted_scores(shared_tiny_policy64.model, groups, has_reference=True)
    batch = make_batch(groups, objective, scores)

    def wide(values: Tensor | None) -> Tensor:
        assert values is not None
        return nn.functional.pad(values, (0, 9))

    wider = Batch(
        tokens=widened(batch.tokens, extra=9),
        scores=Scores(old_logprobs=wide(scores.old_logprobs), ref_logprobs=wide(scores.ref_logprobs)),
        advantages=wide(batch.advantages),
    )
    expected = step_gradient(shared_tiny_policy64, objective, batch)
    assert relative_error(step_gradient(shared_tiny_policy64, objective, wider), expected) < 1e-12


@every_row
def test_the_order_of_the_groups_does_not_matter(shared_tiny_policy64: Policy, name: str):
    objective, groups = objective_of(name, beta=0.3), ragged_groups()
    scores = shifted_scores(shared_tiny_policy64.model, groups, has_reference=True)
    assert scores.old_logprobs is not None
    assert scores.ref_logprobs is not None
    order = [2, 0, 1]
    rows = [5 * group + sample for group in order for sample in range(5)]
    reordered = make_batch(
        [groups[index] for index in order],
        objective,
        Scores(old_logprobs=scores.old_logprobs[rows], ref_logprobs=scores.ref_logprobs[rows]),
    )
    expected = step_gradient(shared_tiny_policy64, objective, make_batch(groups, objective, scores), cut=(64, 64))
    assert relative_error(step_gradient(shared_tiny_policy64, objective, reordered, cut=(64, 64)), expected) < 1e-10


@every_row
@pytest.mark.parametrize("max_shared_tokens", [0, 4096])
def test_what_stands_after_the_end_of_a_completion_changes_no_bit(
    shared_tiny_policy: Policy, name: str, max_shared_tokens: int
):
    objective, groups = objective_of(name, beta=0.3), ragged_groups()
    batch = make_batch(groups, objective, shifted_scores(shared_tiny_policy.model, groups, has_reference=True))
    beyond = ~batch.tokens.completion_mask
    assert batch.tokens.sampling_logprobs is not None
    assert batch.scores.old_logprobs is not None
    assert batch.scores.ref_logprobs is not None
    spoiled = Batch(
        tokens=dataclasses.replace(
            batch.tokens,
            completion_ids=batch.tokens.completion_ids.masked_fill(beyond, 65),
            sampling_logprobs=batch.tokens.sampling_logprobs.masked_fill(beyond, -77.0),
        ),
        scores=Scores(
            old_logprobs=batch.scores.old_logprobs.masked_fill(beyond, -3.0),
            ref_logprobs=batch.scores.ref_logprobs.masked_fill(beyond, 5.0),
        ),
        advantages=batch.advantages.masked_fill(beyond, 11.0),
    )
    learner = make_learner(shared_tiny_policy, objective, cut=(4096, max_shared_tokens))
    metrics: list[dict[str, Any]] = []
    clean_gradient = gradient_of(learner.model, lambda: metrics.append(learner.accumulate_gradient(batch)))
    spoiled_gradient = gradient_of(learner.model, lambda: metrics.append(learner.accumulate_gradient(spoiled)))
    assert torch.equal(spoiled_gradient, clean_gradient)
    assert metrics[1] == metrics[0]


@every_row
def test_an_unscorable_completion_leaves_numerator_and_denominators(shared_tiny_policy64: Policy, name: str):
    """What it says does not matter, and the others count as a batch without it: here, a group that is rid of one member."""
    objective = objective_of(name)
    with_one = ragged_groups([[1.0, 0.0, 0.5, None, 0.5]], prompt_lengths=[30], completion_lengths=[[3, 14, 1, 9, 6]])
    rollouts = with_one[0].rollouts
    without = [dataclasses.replace(with_one[0], rollouts=rollouts[:3] + rollouts[4:])]
    expected = step_gradient(shared_tiny_policy64, objective, make_batch(without, objective, ON_POLICY))
    found = step_gradient(shared_tiny_policy64, objective, make_batch(with_one, objective, ON_POLICY))
    assert relative_error(found, expected) < 1e-10


@every_row
def test_a_dropped_flat_group_leaves_the_denominators(shared_tiny_policy64: Policy, name: str):
    objective = objective_of(name)
    groups = ragged_groups([REWARDS[1], REWARDS[1], [1.0] * 5])
    kept = step_gradient(shared_tiny_policy64, objective, make_batch(groups, objective, ON_POLICY))
    dropped = step_gradient(shared_tiny_policy64, objective, make_batch(groups[:2], objective, ON_POLICY))
    assert relative_error(dropped, kept * 3 / 2) < 1e-10  # Two thirds of the completions, each now with that much more weight.


# --- Which positions and rows take part ------------------------------------------------------------------------------


def positions_with_gradient(policy: Policy, groups: list[Group], *, max_shared_tokens: int) -> list[list[int]]:
    """Return for each forward pass, one pack each, the positions whose hidden state (and so logits) gets a gradient."""
    states: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        output.last_hidden_state.retain_grad()
        states.append(output.last_hidden_state)

    objective = objective_of("grpo")
    learner = make_learner(policy, objective, cut=(1, max_shared_tokens))
    hook = policy.model.get_decoder().register_forward_hook(keep)
    gradient_of(policy.model, lambda: learner.accumulate_gradient(make_batch(groups, objective, ON_POLICY)))
    hook.remove()
    gradients = [state.grad[0] for state in states if state.grad is not None]
    assert len(gradients) == len(states)
    return [gradient.abs().sum(dim=1).nonzero()[:, 0].tolist() for gradient in gradients]


def test_the_loss_reaches_the_logits_that_predict_the_completion_its_end_included_and_no_others(
    shared_tiny_policy: Policy,
):
    groups = ragged_groups([[1.0, 0.0]], prompt_lengths=[7], completion_lengths=[[4, 2]])
    assert groups[0].rollouts[0].completion.token_ids[-1] == END  # Which is the padding token, too.
    found = positions_with_gradient(shared_tiny_policy, groups, max_shared_tokens=0)
    assert found == [[6, 7, 8, 9], [6, 7]]  # Position 6, the prompt's last, predicts the first token; 9 predicts the end.


def test_behind_a_shared_prompt_the_loss_reaches_the_same_logits(shared_tiny_policy: Policy):
    groups = ragged_groups([[1.0, 0.0]], prompt_lengths=[7], completion_lengths=[[4, 2]])
    found = positions_with_gradient(shared_tiny_policy, groups, max_shared_tokens=4096)
    assert found == [[6, 7, 8, 9, 10]]  # 7 to 9 and 10 are the completions without their last tokens.


def test_the_end_token_is_learned_although_it_is_the_padding_token(tiny_policy64: Policy):
    """Its probability after a rewarded completion must rise."""
    groups = ragged_groups([[1.0, 0.0]], prompt_lengths=[7], completion_lengths=[[4, 1]])
    rollout = groups[0].rollouts[0]
    ids = torch.tensor([rollout.prompt_ids + rollout.completion.token_ids[:-1]])

    def end_logprob() -> float:
        with torch.no_grad():
            return float(tiny_policy64.model(input_ids=ids).logits[0, -1].log_softmax(dim=-1)[END])

    before = end_logprob()
    learner = make_learner(tiny_policy64, objective_of("grpo"), spec=dataclasses.replace(SPEC, learning_rate=1e-4))
    learner.update(make_batch(groups, learner.objective, ON_POLICY))
    assert end_logprob() > before


def test_the_embedding_of_the_end_token_is_trained_where_a_prompt_contains_it(tiny_policy: Policy):
    """Embeddings with a padding index drop that token's gradient without a word."""
    model = tiny_policy.model
    # Untied, because the gradient of a shared output matrix would hide a missing one.
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    prompt_ids = tiny_policy.encode([Message(role="user", content="Hi")])
    assert END in prompt_ids
    assert tiny_policy.tokenizer.pad_token_id == END
    group = ragged_groups([[1.0, 0.0]], prompt_lengths=[1], completion_lengths=[[1, 1]])[0]  # No end token in these.
    rollouts = tuple(dataclasses.replace(rollout, prompt_ids=prompt_ids) for rollout in group.rollouts)
    batch = make_batch([dataclasses.replace(group, rollouts=rollouts)], objective_of("grpo"), ON_POLICY)
    make_learner(tiny_policy, objective_of("grpo")).accumulate_gradient(batch)
    gradient = dict(model.named_parameters())["model.embed_tokens.weight"].grad
    assert gradient is not None
    assert gradient.abs().sum(dim=1).nonzero()[:, 0].tolist() == sorted(set(prompt_ids))


def test_rows_whose_advantage_is_exactly_zero_are_skipped_unless_there_is_a_kl_term():
    batch = make_batch(ragged_groups(), objective_of("grpo"), ON_POLICY)
    scored = [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]  # Row 3 could not be scored.
    assert rows_with_gradient(batch, has_kl=True) == scored
    assert rows_with_gradient(batch, has_kl=False) == [0, 1, 5, 6, 7, 8, 9]  # 2 and 4 are at the mean, 10 to 14 are flat.


@every_row
def test_skipping_rows_changes_no_gradient(shared_tiny_policy64: Policy, name: str, monkeypatch: pytest.MonkeyPatch):
    objective = objective_of(name)
    batch = make_batch(ragged_groups(), objective, ON_POLICY)
    skipping = step_gradient(shared_tiny_policy64, objective, batch)
    monkeypatch.setattr("covey.learner.rows_with_gradient", lambda batch, has_kl: [*range(3), *range(4, 15)])
    assert relative_error(skipping, step_gradient(shared_tiny_policy64, objective, batch)) < 1e-12
