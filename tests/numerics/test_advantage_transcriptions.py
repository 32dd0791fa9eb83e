"""Every estimator against its slow transcription, on batches with None rewards, uneven groups, lengths and parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.numerics import transcriptions
from tests.numerics.arrays import batches_of_answers, float64, stats_of_answers, tenths
from tests.numerics.transcriptions import Advantages, Answer
from torch import Tensor

from covey.algos.advantages import (
    dr_grpo_advantages,
    grpo_advantages,
    maxrl_advantages,
    opo_advantages,
    passk_advantages,
    passk_max_advantages,
    raw_rewards,
    remax_advantages,
    rloo_advantages,
)
from covey.algos.batch_advantages import (
    batch_std_advantages,
    bnpo_advantages,
    gdpo_advantages,
    reinforce_pp_baseline_advantages,
)

Batch = list[list[Answer]]
LOW, HIGH = -2.0, 2.0
binary = st.sampled_from([0.0, 1.0])
ddofs = st.sampled_from([0, 1])
epsilons = st.sampled_from([1e-8, 1e-6, 1e-4, 0.1])


def assert_equal(found: Tensor, expected: Advantages, *, atol: float = 1e-9, rtol: float = 1e-9) -> None:
    """Short groups were filled up with rollouts that could not be scored: those must have got exactly 0."""
    for values, row in zip(found, expected, strict=True):
        torch.testing.assert_close(values[: len(row)], float64(row), atol=atol, rtol=rtol)
        assert (values[len(row) :] == 0).all()


@given(batch=batches_of_answers())
def test_dr_grpo(batch: Batch):
    assert_equal(dr_grpo_advantages(stats_of_answers(batch)), transcriptions.dr_grpo(batch))


@given(batch=batches_of_answers(), ddof=ddofs, eps=epsilons, floor=st.sampled_from([0.0, 0.1, 0.3]))
def test_grpo(batch: Batch, ddof: int, eps: float, floor: float):
    found = grpo_advantages(stats_of_answers(batch, low=LOW, high=HIGH), ddof=ddof, eps=eps, min_group_std=floor)
    options: dict[str, Any] = {"ddof": ddof, "eps": eps, "min_group_std": floor, "reward_range": HIGH - LOW}
    assert_equal(found, transcriptions.grpo(batch, **options))


@given(batch=batches_of_answers())
def test_rloo(batch: Batch):
    assert_equal(rloo_advantages(stats_of_answers(batch)), transcriptions.rloo(batch))


@given(batch=batches_of_answers())
def test_opo(batch: Batch):
    assert_equal(opo_advantages(stats_of_answers(batch)), transcriptions.opo(batch))


@given(batch=batches_of_answers())
def test_reinforce(batch: Batch):
    assert_equal(raw_rewards(stats_of_answers(batch)), transcriptions.raw(batch), atol=0, rtol=0)


@given(batch=batches_of_answers(), data=st.data())
def test_remax(batch: Batch, data: st.DataObject):
    baselines = data.draw(st.lists(st.none() | tenths, min_size=len(batch), max_size=len(batch)))
    found = remax_advantages(stats_of_answers(batch, baselines=baselines))
    assert_equal(found, transcriptions.remax(batch, baselines=baselines))


@given(batch=batches_of_answers() | batches_of_answers(binary), low=st.sampled_from([0.0, LOW]), corrects=st.booleans())
def test_maxrl(batch: Batch, low: float, corrects: bool):
    batch = [[at_least(answer, low) for answer in group] for group in batch]
    found = maxrl_advantages(stats_of_answers(batch, low=low, high=HIGH), all_fail_correction=corrects)
    assert_equal(found, transcriptions.maxrl(batch, low=low, high=HIGH, all_fail_correction=corrects))


def at_least(answer: Answer, low: float) -> Answer:
    return Answer(reward=None if answer.reward is None else max(answer.reward, low), length=answer.length)


@given(batch=batches_of_answers() | batches_of_answers(binary), k=st.integers(1, 6), low=st.sampled_from([0.0, LOW]))
def test_pass_at_k_training_by_counting_every_set_of_k(batch: Batch, k: int, low: float):
    found = passk_advantages(stats_of_answers(batch, low=low, high=1.0), k=k)
    assert_equal(found, transcriptions.passk(batch, low=low, high=1.0, k=k))


@given(batch=batches_of_answers(), ddof=ddofs, eps=epsilons)
def test_pass_at_k_by_the_best(batch: Batch, ddof: int, eps: float):
    found = passk_max_advantages(stats_of_answers(batch), ddof=ddof, eps=eps)
    assert_equal(found, transcriptions.passk_max(batch, ddof=ddof, eps=eps))


@given(batch=batches_of_answers(), ddof=ddofs, eps=epsilons)
def test_batch_std(batch: Batch, ddof: int, eps: float):
    found = batch_std_advantages(stats_of_answers(batch), ddof=ddof, eps=eps)
    assert_equal(found, transcriptions.batch_std(batch, ddof=ddof, eps=eps))


@given(batch=batches_of_answers(), ddof=ddofs, eps=epsilons, whiten_over=st.sampled_from(["sequences", "tokens"]))
def test_reinforce_pp_baseline(batch: Batch, ddof: int, eps: float, whiten_over: Any):
    found = reinforce_pp_baseline_advantages(stats_of_answers(batch), ddof=ddof, eps=eps, whiten_over=whiten_over)
    expected = transcriptions.reinforce_pp_baseline(batch, ddof=ddof, eps=eps, over_tokens=whiten_over == "tokens")
    assert_equal(found, expected)


@given(batch=batches_of_answers() | batches_of_answers(binary))
def test_bnpo(batch: Batch):
    found = bnpo_advantages(stats_of_answers(batch, low=LOW, high=HIGH))
    assert_equal(found, transcriptions.bnpo(batch, low=LOW, high=HIGH), rtol=1e-7)


@pytest.mark.parametrize("num_parts", [1, 2, 3])
@given(data=st.data(), ddof=ddofs, eps=epsilons)
def test_gdpo(num_parts: int, data: st.DataObject, ddof: int, eps: float):
    batch = data.draw(batches_of_answers(num_parts=num_parts))
    weights = data.draw(st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=num_parts, max_size=num_parts))
    found = gdpo_advantages(stats_of_answers(batch, part_weights=weights), ddof=ddof, eps=eps)
    assert_equal(found, transcriptions.gdpo(batch, weights=weights, ddof=ddof, eps=eps))


@given(batch=batches_of_answers(num_parts=2))
def test_gdpo_counts_every_part_once_without_weights(batch: Batch):
    weighted = gdpo_advantages(stats_of_answers(batch, part_weights=[1.0, 1.0]))
    assert torch.equal(gdpo_advantages(stats_of_answers(batch)), weighted)


@given(batch=batches_of_answers())
def test_gdpo_takes_a_reward_without_parts_for_its_only_part(batch: Batch):
    only = [[Answer(reward=answer.reward, parts=(answer.reward or 0.0,)) for answer in group] for group in batch]
    found = gdpo_advantages(stats_of_answers(batch))
    assert_equal(found, transcriptions.gdpo(only, weights=[1.0], ddof=1, eps=1e-4))
