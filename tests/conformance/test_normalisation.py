"""Normalisation: a step's gradient is one number however it is cut, padded, shared among ranks or filtered."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tests.builders import make_prompt
from tests.conformance.cases import CUTS, batch_of, distance, gradient_from, groups_of, learner_of, slow_logprobs, step_gradient
from tests.ranks import on_ranks
from torch import Tensor

from covey.algos.aggregate import Aggregation, sequence_weights
from covey.batch import make_tokens
from covey.distributed import ALONE, Ranks
from covey.models.policy import Policy, load_policy
from covey.models.tiny import write_tiny_model
from covey.tasks.base import training_prompts
from covey.tensors import Scores
from covey.token_choice import TokenChoice

every_aggregation = pytest.mark.parametrize("aggregation", get_args(Aggregation))


@every_aggregation
def test_the_gradient_does_not_depend_on_how_the_step_is_cut(tiny_policy64: Policy, aggregation: str):
    gradients = []
    for cut in CUTS:
        learner = learner_of(tiny_policy64, cut=cut, aggregation=aggregation)
        gradients.append(step_gradient(learner, batch_of(learner, groups_of())))
    for gradient in gradients[:-1]:
        assert distance(gradient, gradients[-1]) < 1e-10


@pytest.mark.parametrize("cut", CUTS)
def test_the_gradient_is_the_plain_mean_over_all_tokens(tiny_policy64: Policy, cut: tuple[int, int]):
    """Not only equal for all cuts, but right: a constant factor in all of them would not show otherwise."""
    groups = groups_of()
    learner = learner_of(tiny_policy64, "dr_grpo", cut=cut, aggregation="token-mean")
    batch = batch_of(learner, groups)
    loss = -(slow_logprobs(tiny_policy64.model, groups) * batch.advantages).sum() / 80
    expected = gradient_from(tiny_policy64.model, loss)
    assert int(batch.mask.sum()) == 80
    assert distance(step_gradient(learner, batch), expected) < 1e-10


def test_dr_grpo_divides_by_the_number_of_completions_and_a_constant_of_the_run(tiny_policy64: Policy):
    learner = learner_of(tiny_policy64, "dr_grpo", max_new_tokens=64)
    groups = groups_of()
    batch = batch_of(learner, groups)
    padded = torch.nn.functional.pad(batch.mask, (0, 48))
    once = sequence_weights(batch.mask, "seq-mean-token-sum-norm", group_size=4, max_length=64)
    assert once.tolist() == pytest.approx([1 / (12 * 64)] * 12)
    assert torch.equal(sequence_weights(padded, "seq-mean-token-sum-norm", group_size=4, max_length=64), once)
    loss = learner.accumulate_gradient(batch).metrics["loss/value"].value
    tiny_policy64.model.zero_grad()
    assert loss == pytest.approx(float(-batch.advantages.sum()) / (12 * 64), abs=1e-9)


def test_the_batch_twice_over_has_the_same_gradient(tiny_policy64: Policy):
    for aggregation in get_args(Aggregation):
        learner = learner_of(tiny_policy64, "dr_grpo", aggregation=aggregation)
        once = step_gradient(learner, batch_of(learner, groups_of()))
        twice = step_gradient(learner, batch_of(learner, [*groups_of(), *groups_of()]))
        assert distance(twice, once) < 1e-10


def test_every_group_serves_in_one_update_of_a_pass(tiny_policy: Policy):
    for num_groups in range(1, 12):
        for num_minibatches in (1, 2, 3, 4):
            learner = learner_of(tiny_policy, num_minibatches=num_minibatches)
            parts = learner.minibatches(num_groups, step=1, iteration=0)
            assert sorted(group for part in parts for group in part) == list(range(num_groups))


def test_every_micro_batch_counts_the_last_one_too(tiny_policy64: Policy):
    learner = learner_of(tiny_policy64, cut=(40, 0))
    update = learner.accumulate_gradient(batch_of(learner, groups_of()))
    tiny_policy64.model.zero_grad()
    assert update.metrics["tokens/trained"].value == 80


# Rejected tokens


def test_tokens_that_a_correction_rejects_leave_the_denominator(tiny_policy64: Policy):
    """Engine and trainer disagree wildly about the second half of each completion."""
    groups = groups_of(lengths=((4, 4, 4, 4),) * 3)
    tokens = make_tokens(groups)
    old = slow_logprobs(tiny_policy64.model, groups).detach()
    is_kept = torch.arange(4) < 2
    tokens = dataclasses.replace(tokens, sampling_logprobs=torch.where(is_kept, old, old - 5.0).float())
    choice = TokenChoice(correction="mask_token", correction_low=0.5, correction_high=2.0)
    learner = learner_of(tiny_policy64, "dr_grpo", aggregation="token-mean", choice=choice)
    batch = learner.make_batch(tokens, Scores(old_logprobs=old, ref_logprobs=None))
    assert batch.mask.tolist() == [[True, True, False, False]] * 12
    loss = -(slow_logprobs(tiny_policy64.model, groups) * batch.advantages)[:, :2].sum() / 24
    assert distance(step_gradient(learner, batch), gradient_from(tiny_policy64.model, loss)) < 1e-5


def test_completions_without_a_trained_token_are_not_counted():
    mask = torch.tensor([[True, True], [True, False], [False, False], [False, False]])
    found = {mode: sequence_weights(mask, mode, group_size=2, max_length=4).tolist() for mode in get_args(Aggregation)}
    assert found["token-mean"] == pytest.approx([1 / 3] * 4)
    assert found["seq-mean-token-mean"][:2] == pytest.approx([1 / 4, 1 / 2])
    assert found["seq-mean-token-sum"] == pytest.approx([1 / 2] * 4)
    assert found["seq-mean-token-sum-norm"] == pytest.approx([1 / 8] * 4)
    assert found["group-mean-token-mean"][:2] == pytest.approx([1 / 3] * 2)


# Ranks and epochs


def gradient_on(ranks: Ranks, directory: str) -> Tensor:
    policy = load_policy(directory, compute_dtype="float32")
    learner = learner_of(policy, "dr_grpo", aggregation="token-mean", cut=(1, 0), ranks=ranks)
    return step_gradient(learner, batch_of(learner, groups_of([[1.0, 0.0]], [[1, 15]])))


def test_two_ranks_have_the_gradient_of_one_though_one_has_a_token_and_the_other_fifteen(tmp_path: Path):
    model = str(write_tiny_model(tmp_path / "model"))
    expected = gradient_on(ALONE, model)
    for found in on_ranks(2, gradient_on, model, directory=tmp_path):
        assert distance(found, expected) < 1e-5


def test_an_epoch_shows_every_prompt_once_and_the_next_in_another_order():
    train = [make_prompt(str(index)) for index in range(7)]
    steps: list[Any] = [training_prompts(train, seed=3, start=start, count=3) for start in range(0, 42, 3)]
    stream = [prompt.prompt_id for prompts in steps for prompt in prompts]
    epochs = [stream[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(epoch) == [str(index) for index in range(7)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
