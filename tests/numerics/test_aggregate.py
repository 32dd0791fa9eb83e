"""From per-token losses to one number: slow loops, and what the result must not depend on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from covey.algos.aggregate import AGGREGATIONS, Aggregation, StepTotals, aggregate

every_mode = pytest.mark.parametrize("mode", AGGREGATIONS)
MAX_LENGTH = 11
LENGTHS = [4, 1, 0, 7, 3]


def ragged(lengths: list[int], *, width: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return random token losses and the mask of these lengths."""
    losses = torch.randn(len(lengths), width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return losses, torch.arange(width)[None] < torch.tensor(lengths)[:, None]


def totals_of(mask: Tensor) -> StepTotals:
    return StepTotals(num_sequences=int(mask.any(dim=1).sum()), num_tokens=int(mask.sum()), max_length=MAX_LENGTH)


def slow_aggregate(losses: list[list[float]], mode: Aggregation) -> float:
    """Return what each mode is defined as; `losses` holds the tokens of each completion that has any."""
    num_sequences, num_tokens = len(losses), sum(len(row) for row in losses)
    if mode == "token-mean":
        return sum(sum(row) for row in losses) / num_tokens
    if mode == "seq-mean-token-mean":
        return sum(sum(row) / len(row) for row in losses) / num_sequences
    if mode == "seq-mean-token-sum":
        return sum(sum(row) for row in losses) / num_sequences
    return sum(sum(row) / MAX_LENGTH for row in losses) / num_sequences


@every_mode
@pytest.mark.parametrize("lengths", [LENGTHS, [1], [7, 7, 7], [1, 6, 2]])
def test_each_mode_is_its_definition(mode: Aggregation, lengths: list[int]):
    losses, mask = ragged(lengths)
    rows = [row[:length] for row, length in zip(losses.tolist(), lengths, strict=True) if length]
    assert float(aggregate(losses, mask, mode, totals_of(mask))) == pytest.approx(slow_aggregate(rows, mode), abs=1e-14)


@every_mode
def test_the_batch_twice_over_has_the_same_loss(mode: Aggregation):
    losses, mask = ragged(LENGTHS)
    twice, mask_twice = torch.cat([losses, losses]), torch.cat([mask, mask])
    once = aggregate(losses, mask, mode, totals_of(mask))
    torch.testing.assert_close(aggregate(twice, mask_twice, mode, totals_of(mask_twice)), once, atol=1e-14, rtol=0)


@every_mode
@pytest.mark.parametrize("cuts", [[5], [1, 4], [2, 2, 1], [1, 1, 1, 1, 1]])
def test_the_shares_of_micro_batches_add_up_to_the_loss_of_the_step(mode: Aggregation, cuts: list[int]):
    losses, mask = ragged(LENGTHS)
    totals = totals_of(mask)
    shares = [aggregate(*piece, mode, totals) for piece in zip(losses.split(cuts), mask.split(cuts), strict=True)]
    torch.testing.assert_close(torch.stack(shares).sum(), aggregate(losses, mask, mode, totals), atol=1e-14, rtol=0)


@every_mode
def test_padding_does_not_count(mode: Aggregation):
    losses, mask = ragged(LENGTHS)
    wide = torch.nn.functional.pad(losses, (0, 50))
    wide_mask = torch.nn.functional.pad(mask, (0, 50))
    assert torch.equal(aggregate(wide, wide_mask, mode, totals_of(wide_mask)), aggregate(losses, mask, mode, totals_of(mask)))


@every_mode
@pytest.mark.parametrize("garbage", [1e30, torch.inf, torch.nan])
def test_what_stands_in_masked_positions_does_not_matter(mode: Aggregation, garbage: float):
    losses, mask = ragged(LENGTHS)
    spoiled = losses.masked_fill(~mask, garbage)
    assert torch.equal(aggregate(spoiled, mask, mode, totals_of(mask)), aggregate(losses, mask, mode, totals_of(mask)))


@every_mode
def test_a_step_without_a_trained_token_in_this_micro_batch_has_a_zero_share(mode: Aggregation):
    losses, mask = ragged([0, 0])
    totals = StepTotals(num_sequences=3, num_tokens=9, max_length=MAX_LENGTH)
    assert float(aggregate(losses, mask, mode, totals)) == 0.0


def test_with_equal_lengths_the_mean_over_tokens_is_the_mean_over_sequences():
    losses, mask = ragged([5, 5, 5])
    totals = totals_of(mask)
    over_tokens = aggregate(losses, mask, "token-mean", totals)
    torch.testing.assert_close(over_tokens, aggregate(losses, mask, "seq-mean-token-mean", totals), atol=1e-14, rtol=0)


def test_a_token_weighs_by_its_length_by_the_step_or_by_a_constant():
    losses, mask = ragged([1, 4])
    gradients = {}
    for mode in AGGREGATIONS:
        leaf = losses.clone().requires_grad_()
        (gradients[mode],) = torch.autograd.grad(aggregate(leaf, mask, mode, totals_of(mask)), leaf)
    first_tokens = {mode: gradient[:, 0].tolist() for mode, gradient in gradients.items()}
    assert first_tokens == {
        "token-mean": [1 / 5, 1 / 5],
        "seq-mean-token-mean": [1 / 2, 1 / 8],
        "seq-mean-token-sum": [1 / 2, 1 / 2],
        "seq-mean-token-sum-norm": [1 / 22, 1 / 22],
    }
