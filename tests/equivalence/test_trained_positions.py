"""Which rows and which positions of a step the gradient comes from: all that are trained on, and no others."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tests.builders import END
from tests.rows import PLAIN_ROWS
from tests.slow_objective import Step, slow_credit
from tests.tiny_batches import (
    ON_POLICY,
    SPEC,
    STATS,
    gradient_of,
    make_batch,
    make_learner,
    objective_of,
    ragged_groups,
    relative_error,
    shifted_scores,
)
from torch import Tensor, nn

from covey.algos.objective import Coefficients
from covey.batch import make_tokens
from covey.learner import Learner
from covey.models.policy import Policy
from covey.tensors import Batch
from covey.types import Group, Message

every_row = pytest.mark.parametrize("name", PLAIN_ROWS)

# --- Rows ------------------------------------------------------------------------------------------------------------

SCORED = [0, 1, 2, *range(4, 15)]
"""Row 3 could not be scored."""


@every_row
def test_rows_whose_advantage_is_exactly_zero_are_skipped(shared_tiny_policy64: Policy, name: str):
    objective, groups = objective_of(name), ragged_groups()
    learner = make_learner(shared_tiny_policy64, objective)
    step = Step(groups=groups, logprobs=torch.zeros(15, 14), options=objective.options)
    credit = slow_credit(name, step)
    rows = sorted({row for (row, _), value in credit.items() if value})
    assert learner.rows_with_gradient(learner.make_batch(make_tokens(groups, (), STATS), ON_POLICY)) == rows


def test_no_scored_row_is_skipped_where_kl_or_entropy_is_in_the_loss(shared_tiny_policy64: Policy):
    objective, groups = objective_of("grpo"), ragged_groups()
    tokens, scores = make_tokens(groups), shifted_scores(torch.zeros(15, 14), groups)
    for coefficients, rows in [
        (Coefficients(), [0, 1, 5, 6, 7, 8, 9]),  # 2 and 4 are at the mean, 10 to 14 are flat.
        (Coefficients(beta=0.3), SCORED),
        (Coefficients(entropy=0.01), SCORED),
    ]:
        learner = make_learner(shared_tiny_policy64, objective, coefficients=coefficients)
        assert learner.rows_with_gradient(learner.make_batch(tokens, scores)) == rows


@every_row
def test_skipping_rows_changes_no_gradient(shared_tiny_policy64: Policy, name: str, monkeypatch: pytest.MonkeyPatch):
    learner = make_learner(shared_tiny_policy64, objective_of(name))
    batch = learner.make_batch(make_tokens(ragged_groups(), (), STATS), ON_POLICY)
    skipping = gradient_of(learner.model, lambda: learner.accumulate_gradient(batch))

    def all_scored(learner: Learner, batch: Batch) -> list[int]:
        return SCORED

    monkeypatch.setattr(Learner, "rows_with_gradient", all_scored)
    assert relative_error(skipping, gradient_of(learner.model, lambda: learner.accumulate_gradient(batch))) < 1e-12


# --- Positions -------------------------------------------------------------------------------------------------------


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
