"""From per-token losses to one number: slow loops, and what the result must not depend on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.numerics.transcriptions import aggregated
from torch import Tensor

from covey.algos.aggregate import AGGREGATIONS, Aggregation, aggregate, sequence_weights

every_mode = pytest.mark.parametrize("mode", AGGREGATIONS)
MAX_LENGTH = 11
LENGTHS = [4, 1, 0, 7, 3, 2]
GROUP_SIZE = 3


def ragged(lengths: list[int], *, width: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return random token losses and the mask of these lengths."""
    losses = torch.randn(len(lengths), width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return losses, torch.arange(width)[None] < torch.tensor(lengths)[:, None]


def weights_of(mask: Tensor, mode: Aggregation, *, group_size: int = GROUP_SIZE) -> Tensor:
    return sequence_weights(mask, mode, group_size=group_size, max_length=MAX_LENGTH, dtype=torch.float64)


def loss_of(losses: Tensor, mask: Tensor, mode: Aggregation, *, group_size: int = GROUP_SIZE) -> float:
    return float(aggregate(losses, mask, weights_of(mask, mode, group_size=group_size)))


@every_mode
@given(groups=st.lists(st.lists(st.integers(0, 7), min_size=3, max_size=3), min_size=1, max_size=4))
def test_each_mode_is_its_definition(mode: Aggregation, groups: list[list[int]]):
    lengths = [length for group in groups for length in group]
    losses, mask = ragged(lengths)
    rows = [row[:length] for row, length in zip(losses.tolist(), lengths, strict=True)]
    slow = [rows[start : start + GROUP_SIZE] for start in range(0, len(rows), GROUP_SIZE)]
    expected = aggregated(slow, mode, max_length=MAX_LENGTH) if any(lengths) else 0.0
    assert loss_of(losses, mask, mode) == pytest.approx(expected, abs=1e-13)


@every_mode
def test_the_weights_of_the_learner_are_these_in_float32(mode: Aggregation):
    _, mask = ragged(LENGTHS)
    single = sequence_weights(mask, mode, group_size=GROUP_SIZE, max_length=MAX_LENGTH)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), weights_of(mask, mode), atol=1e-7, rtol=0)


@every_mode
def test_the_batch_twice_over_has_the_same_loss(mode: Aggregation):
    losses, mask = ragged(LENGTHS)
    twice, mask_twice = torch.cat([losses, losses]), torch.cat([mask, mask])
    assert loss_of(twice, mask_twice, mode) == pytest.approx(loss_of(losses, mask, mode), abs=1e-14)


@every_mode
@pytest.mark.parametrize("cuts", [[6], [1, 5], [2, 2, 2], [1] * 6])
def test_the_shares_of_micro_batches_add_up_to_the_loss_of_the_step(mode: Aggregation, cuts: list[int]):
    losses, mask = ragged(LENGTHS)
    weights = weights_of(mask, mode)
    pieces = zip(losses.split(cuts), mask.split(cuts), weights.split(cuts), strict=True)
    shares = [float(aggregate(*piece)) for piece in pieces]
    assert sum(shares) == pytest.approx(loss_of(losses, mask, mode), abs=1e-14)


@every_mode
def test_tokens_left_out_leave_the_denominators_too(mode: Aggregation):
    """As if they had never been sampled: every second token is rejected, or taken out of the batch."""
    losses, mask = ragged([7, 3, 5, 1, 6, 4])
    rejected = mask.clone()
    rejected[:, 1::2] = False
    assert loss_of(losses, rejected, mode) == pytest.approx(loss_of(losses[:, ::2], mask[:, ::2], mode), abs=1e-14)


@every_mode
def test_a_group_or_completion_without_a_trained_token_counts_for_nothing(mode: Aggregation):
    losses, mask = ragged([4, 1, 2, 0, 0, 0])
    assert loss_of(losses, mask, mode) == pytest.approx(loss_of(losses[:3], mask[:3], mode), abs=1e-14)


@every_mode
def test_padding_does_not_count(mode: Aggregation):
    losses, mask = ragged(LENGTHS)
    wide = torch.nn.functional.pad(losses, (0, 50), value=3.0)
    assert loss_of(wide, torch.nn.functional.pad(mask, (0, 50)), mode) == loss_of(losses, mask, mode)


@every_mode
@pytest.mark.parametrize("garbage", [1e30, torch.inf, torch.nan])
def test_what_stands_in_masked_positions_does_not_matter(mode: Aggregation, garbage: float):
    losses, mask = ragged(LENGTHS)
    assert loss_of(losses.masked_fill(~mask, garbage), mask, mode) == loss_of(losses, mask, mode)


@every_mode
def test_a_step_without_a_trained_token_has_a_loss_of_zero(mode: Aggregation):
    losses, mask = ragged([0, 0, 0])
    assert loss_of(losses, mask, mode) == 0.0


def test_with_equal_lengths_the_mean_over_tokens_is_the_mean_over_sequences_and_over_groups():
    losses, mask = ragged([5, 5, 5, 5, 5, 5])
    over_tokens = loss_of(losses, mask, "token-mean")
    assert loss_of(losses, mask, "seq-mean-token-mean") == pytest.approx(over_tokens, abs=1e-14)
    assert loss_of(losses, mask, "group-mean-token-mean") == pytest.approx(over_tokens, abs=1e-14)


def test_a_token_weighs_by_its_length_by_the_step_by_its_group_or_by_a_constant():
    _, mask = ragged([1, 4, 2, 1])
    weights = {mode: weights_of(mask, mode, group_size=2).tolist() for mode in AGGREGATIONS}
    assert weights == {
        "token-mean": pytest.approx([1 / 8] * 4),
        "seq-mean-token-mean": pytest.approx([1 / 4, 1 / 16, 1 / 8, 1 / 4]),
        "seq-mean-token-sum": pytest.approx([1 / 4] * 4),
        "seq-mean-token-sum-norm": pytest.approx([1 / 44] * 4),
        "group-mean-token-mean": pytest.approx([1 / 10, 1 / 10, 1 / 6, 1 / 6]),
    }
