"""Tokens and masks: what is trained is what was sampled, all of it, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.builders import END, make_prompt, make_reward
from tests.conformance.cases import (
    CUTS,
    alone,
    batch_of,
    distance,
    gradient_from,
    groups_of,
    learner_of,
    rows_of,
    slow_logprobs,
    step_gradient,
    with_garbage,
)

from covey.batch import StatsSpec, make_tokens
from covey.learner import Learner
from covey.models.policy import Policy
from covey.refusals import refuse_long_prompts
from covey.tasks.base import Task
from covey.tensors import Batch, Scores
from covey.types import CoveyError


def trained_positions(learner: Learner, batch: Batch) -> dict[tuple[int, ...], list[int]]:
    """Return for each sequence, by its input ids, the positions whose hidden states get a gradient."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def note(module: Any, arguments: Any, options: dict[str, Any], output: Any) -> None:
        output.last_hidden_state.retain_grad()
        seen.append((options["input_ids"], output.last_hidden_state))

    handle = learner.model.get_decoder().register_forward_hook(note, with_kwargs=True)
    step_gradient(learner, batch)
    handle.remove()
    found: dict[tuple[int, ...], list[int]] = {}
    for ids, hidden in seen:
        assert hidden.grad is not None
        found[tuple(ids[0].tolist())] = (hidden.grad[0] != 0).any(dim=-1).nonzero()[:, 0].tolist()
    return found


def test_the_loss_reaches_the_positions_that_predict_a_completion_its_end_included_and_no_others(tiny_policy64: Policy):
    """The end token is the padding token here, as in many models."""
    groups = groups_of()
    learner = learner_of(tiny_policy64, cut=(1, 0))
    found = trained_positions(learner, batch_of(learner, groups))
    for rollout in rows_of(groups):
        ids, prompt_length = rollout.completion.token_ids, len(rollout.prompt_ids)
        assert ids[-1] == END
        positions = found.get(tuple(rollout.prompt_ids + ids[:-1]))
        assert positions == list(range(prompt_length - 1, prompt_length - 1 + len(ids)))


def test_the_tokens_of_a_step_are_the_completions_tokens(tiny_policy64: Policy):
    groups = groups_of()
    tokens = make_tokens(groups)
    rows = [ids[mask].tolist() for ids, mask in zip(tokens.completion_ids, tokens.completion_mask, strict=True)]
    assert rows == [rollout.completion.token_ids for rollout in rows_of(groups)]


def test_what_stands_behind_the_end_changes_no_bit(tiny_policy64: Policy):
    groups = groups_of()
    learner = learner_of(tiny_policy64)
    scores = Scores(old_logprobs=None, ref_logprobs=None)
    clean = step_gradient(learner, learner.make_batch(make_tokens(groups), scores))
    dirty = step_gradient(learner, learner.make_batch(with_garbage(make_tokens(groups)), scores))
    assert torch.equal(clean, dirty)


@pytest.mark.parametrize("cut", CUTS)
@torch.no_grad()
def test_a_completion_scores_the_same_alone_padded_and_behind_a_shared_prompt(tiny_policy64: Policy, cut: tuple[int, int]):
    groups = groups_of()
    found = learner_of(tiny_policy64, cut=cut).score(tiny_policy64.model, make_tokens(groups))
    torch.testing.assert_close(found.logprobs, slow_logprobs(tiny_policy64.model, groups), atol=1e-10, rtol=0)


@torch.no_grad()
def test_the_entropy_is_that_of_the_distribution_each_token_was_drawn_from(tiny_policy64: Policy):
    groups = groups_of()
    found = learner_of(tiny_policy64).score(tiny_policy64.model, make_tokens(groups)).entropy
    for row, rollout in enumerate(rows_of(groups)):
        table = alone(tiny_policy64.model, rollout)
        expected = -(table.exp() * table).sum(dim=-1)
        torch.testing.assert_close(found[row, : len(expected)], expected, atol=1e-10, rtol=0)


# Truncated completions


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
def test_a_masked_truncated_completion_is_as_if_it_were_not_there(tiny_policy64: Policy, aggregation: str):
    """The second group's last completion was cut off: neither its reward nor its tokens nor its place in a count is left."""
    rewards, lengths = [[1.0, 0.0, 0.5], [0.2, 0.9, 0.4]], [[3, 14, 1], [8, 2, 11]]
    learner = learner_of(tiny_policy64, "dr_grpo", aggregation=aggregation)
    masked = batch_of(learner, groups_of(rewards, lengths, cut_off=frozenset({5})), stats=StatsSpec(masks_truncated=True))
    gone = batch_of(learner, groups_of([rewards[0], [0.2, 0.9, None]], lengths, cut_off=frozenset({5})))
    assert masked.mask.any(dim=1).tolist() == [True] * 5 + [False]
    assert torch.equal(step_gradient(learner, masked), step_gradient(learner, gone))
    assert not torch.equal(
        step_gradient(learner, masked), step_gradient(learner, batch_of(learner, groups_of(rewards, lengths)))
    )


def test_a_masked_truncated_completion_leaves_the_denominators(tiny_policy64: Policy):
    rewards, lengths = [[1.0, 0.0, 0.5], [0.2, 0.9, 0.4]], [[3, 14, 1], [8, 2, 11]]
    learner = learner_of(tiny_policy64, "dr_grpo", aggregation="seq-mean-token-sum-norm")
    batch = batch_of(learner, groups_of(rewards, lengths, cut_off=frozenset({5})), stats=StatsSpec(masks_truncated=True))
    logprobs = slow_logprobs(tiny_policy64.model, groups_of(rewards, lengths, cut_off=frozenset({5})))
    expected = -(logprobs * batch.advantages).sum() / (5 * 16)  # five completions are left, and 16 is the token limit
    found = step_gradient(learner, batch)
    assert distance(found, gradient_from(tiny_policy64.model, expected)) < 1e-10


def test_a_batch_of_truncated_completions_makes_no_update(tiny_policy: Policy):
    before = [weight.clone() for weight in tiny_policy.model.parameters()]
    learner = learner_of(tiny_policy)
    learner.update(batch_of(learner, groups_of()))  # so that there is momentum
    after = [weight.clone() for weight in tiny_policy.model.parameters()]
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    batch = batch_of(learner, groups_of(cut_off=frozenset(range(12))), stats=StatsSpec(masks_truncated=True))
    assert learner.update(batch).metrics == {}
    assert all(torch.equal(old, new) for old, new in zip(after, tiny_policy.model.parameters(), strict=True))


# Prompts


def test_a_long_prompt_is_encoded_whole(shared_tiny_policy: Policy):
    text = "".join(chr(ord("a") + index % 26) for index in range(1500))
    ids = shared_tiny_policy.encode(make_prompt(text=text).messages)
    assert text in str(shared_tiny_policy.tokenizer.decode(ids))


def test_a_prompt_that_does_not_fit_is_refused_by_name(shared_tiny_policy: Policy):
    """The tiny model has 2048 positions."""
    fits, fits_not = make_prompt("fits", "x" * 1900), make_prompt("too long", "x" * 2040)
    reward = make_reward(lambda sample: 0.0)

    def task(*prompts: Any) -> Task:
        return Task(name="t", train=prompts, held_out={}, proxy=reward, gold=None, probes=())

    refuse_long_prompts(shared_tiny_policy, task(fits), max_new_tokens=16)
    with pytest.raises(CoveyError, match="too long"):
        refuse_long_prompts(shared_tiny_policy, task(fits, fits_not), max_new_tokens=16)
