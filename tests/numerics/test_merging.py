"""Metrics gathered in pieces are those of one big batch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from covey.algos.mismatch import mismatch_metrics
from covey.algos.objective import Coefficients, LossInputs, Objective, kl_metrics, policy_loss
from covey.algos.registry import ALGORITHMS
from covey.metrics import Max, Mean, Metric, Sum, mean_of, merge_metrics, metric_values

pieces_of_numbers = st.lists(st.lists(st.integers(-1000, 1000), min_size=1), min_size=1)


@given(pieces=pieces_of_numbers)
def test_a_merged_mean_is_the_mean_of_all_numbers_whatever_the_sizes_of_the_pieces(pieces: list[list[int]]):
    merged = merge_metrics([{"m": mean_of(piece)} for piece in pieces])["m"]
    numbers = [number for piece in pieces for number in piece]
    assert merged == Mean(sum(numbers), len(numbers))
    assert merged.value == sum(numbers) / len(numbers)


@given(pieces=pieces_of_numbers)
def test_merged_sums_and_maxima_are_those_of_all_numbers(pieces: list[list[int]]):
    merged = merge_metrics([{"sum": Sum(sum(piece)), "max": Max(max(piece))} for piece in pieces])
    numbers = [number for piece in pieces for number in piece]
    assert metric_values(merged) == {"sum": sum(numbers), "max": max(numbers)}


def test_a_key_that_only_some_pieces_have_is_kept():
    assert merge_metrics([{"a": Sum(1)}, {"b": Sum(2)}, {"a": Sum(3)}]) == {"a": Sum(4), "b": Sum(2)}


def test_a_mean_of_nothing_is_null_and_vanishes_in_a_merge():
    assert math.isnan(Mean(0, 0).value)
    assert metric_values({"m": Mean(0, 0)}) == {"m": None}
    assert Mean(0, 0).merge(Mean(6, 2)) == Mean(6, 2)


@pytest.mark.parametrize("cuts", [[1, 1, 1, 1, 1, 1], [2, 4], [3, 2, 1]])
def test_the_metrics_of_micro_batches_merge_to_those_of_the_whole_batch(cuts: list[int]):
    generator = torch.Generator().manual_seed(3)

    def random() -> torch.Tensor:
        return torch.randn(6, 8, generator=generator, dtype=torch.float64)

    logprobs, old, ref, advantages, entropy = random(), random(), random(), random(), random().abs()
    mask = torch.arange(8)[None] < torch.tensor([8, 1, 3, 0, 5, 2])[:, None]

    def metrics_of(rows: torch.Tensor) -> dict[str, Metric]:
        inputs = LossInputs(
            logprobs=logprobs[rows],
            old_logprobs=old[rows],
            ref_logprobs=ref[rows],
            entropy=entropy[rows],
            advantages=advantages[rows],
            mask=mask[rows],
            weights=torch.full((len(rows),), 0.1, dtype=torch.float64),
            num_tokens=19,
        )
        output = policy_loss(Objective.of_row(ALGORITHMS["grpo"]), inputs, Coefficients(beta=0.1, entropy=0.2))
        distance = kl_metrics(logprobs[rows], ref[rows], mask[rows])
        return output.metrics | distance | mismatch_metrics(logprobs[rows], old[rows], mask[rows])

    whole = metric_values(metrics_of(torch.arange(6)))
    merged = metric_values(merge_metrics([metrics_of(rows) for rows in torch.arange(6).split(cuts)]))
    assert merged == pytest.approx(whole, abs=1e-12)
    assert set(whole) >= {"loss/value", "ratio/mean", "ratio/max", "clip/low_frac", "clip/high_frac", "entropy/mean"}
    assert set(whole) >= {"kl/ref", "kl/token_median", "kl/sequence", "kl/sequence_max", "mismatch/ess_frac"}
