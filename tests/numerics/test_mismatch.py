"""Engine against trainer: golden weights, slow loops, and the metrics of the gap."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.numerics import transcriptions
from tests.numerics.arrays import assert_close, mask_of, padded, unpadded
from torch import Tensor

from covey.algos.mismatch import CORRECTIONS, mismatch_metrics
from covey.metrics import metric_values

# The golden fixture: differences of log 0.497, 0 and 2.4 in the first completion, -0.5 in the second.
OLD = [[-0.7, -1.0, -0.6], [-1.5]]
SAMPLING = [[-0.001, -1.0, -3.0], [-1.0]]
MASK = mask_of(OLD)

every_correction = pytest.mark.parametrize("name", CORRECTIONS)
differences = st.lists(st.lists(st.integers(-150, 150), min_size=1, max_size=5), min_size=1, max_size=4)


def weights_of(name: str, *, low: float, high: float, old: Any = OLD, sampling: Any = SAMPLING, filler: float = 9.0) -> Tensor:
    mask = mask_of(old)
    weights = CORRECTIONS[name].weights(padded(old, filler=filler), padded(sampling, filler=-filler), mask, low=low, high=high)
    assert weights.shape == mask.shape
    return torch.where(mask, weights, 0.0)


@pytest.mark.parametrize(
    ("name", "low", "high", "key"), [("tis_token", 0.0, 2.0, "tis_token_C2"), ("mask_token", 0.5, 5.0, "icepop_0.5_5")]
)
def test_the_weights_of_tokens_are_golden(golden: dict[str, Any], name: str, low: float, high: float, key: str):
    assert_close(weights_of(name, low=low, high=high), golden["loss"][key])
    assert (CORRECTIONS[name].low or 0.0, CORRECTIONS[name].high) == (low, high)


@pytest.mark.parametrize(
    ("name", "high", "key"), [("tis_sequence", 1e9, "seq_is_ratio"), ("mask_sequence", 3.0, "seq_mask_C3")]
)
def test_the_weights_of_completions_are_golden_on_each_token(golden: dict[str, Any], name: str, high: float, key: str):
    weights = weights_of(name, low=0.0, high=high)
    first, second = golden["loss"][key]
    assert_close(weights, [[first] * 3, [second, 0.0, 0.0]])


def test_a_completion_is_filtered_by_its_golden_geometric_mean(golden: dict[str, Any]):
    means = golden["loss"]["geo_mean_ratio"]
    for row, mean in enumerate(means):
        for low, high, expected in [
            (mean - 1e-6, mean + 1e-6, 1.0),
            (mean + 1e-6, 9.0, 0.0),
            (0.0, mean - 1e-6, 0.0),
        ]:
            weights = weights_of("mask_geometric", low=low, high=high)[row]
            assert weights.tolist() == [expected if is_token else 0.0 for is_token in MASK[row].tolist()]


@every_correction
@given(drawn=differences, low=st.sampled_from([0.0, 0.513, 0.9]), high=st.sampled_from([1.0173, 2.017, 30.0]))
def test_each_correction_is_its_formula(name: str, drawn: list[list[int]], low: float, high: float):
    old = [[-1.0 - 0.1 * t for t in range(len(row))] for row in drawn]
    sampling = [[o - d / 100 for o, d in zip(values, row, strict=True)] for values, row in zip(old, drawn, strict=True)]
    expected = [transcriptions.correction(name, *pair, low=low, high=high) for pair in zip(old, sampling, strict=True)]
    assume(all(abs(math.prod(transcriptions.ratios(*pair)) - 1) < 1e8 for pair in zip(old, sampling, strict=True)))
    found = unpadded(weights_of(name, old=old, sampling=sampling, low=low, high=high), old)
    for row, slow in zip(found, expected, strict=True):
        assert row == pytest.approx(slow, rel=1e-10, abs=1e-12)


@every_correction
def test_weights_are_one_where_engine_and_trainer_agree(name: str):
    weights = weights_of(name, sampling=OLD, low=0.5, high=2.0)
    assert torch.equal(weights, MASK.double())


@every_correction
@pytest.mark.parametrize("difference", [100.0, -100.0])
def test_weights_of_log_probs_that_differ_by_a_hundred_are_finite(name: str, difference: float):
    weights = weights_of(name, old=[[difference] * 3], sampling=[[0.0] * 3], low=0.0, high=2.0)
    assert torch.isfinite(weights).all()


@every_correction
@pytest.mark.parametrize("filler", [0.0, 1e4])
def test_what_stands_beyond_the_end_of_a_completion_does_not_matter(name: str, filler: float):
    assert torch.equal(weights_of(name, low=0.0, high=6.0, filler=filler), weights_of(name, low=0.0, high=6.0))


@every_correction
def test_weights_carry_no_gradient_of_their_own(name: str):
    weights = CORRECTIONS[name].weights(padded(OLD), padded(SAMPLING), MASK, low=0.0, high=6.0)
    assert not weights.requires_grad


def test_the_gap_is_measured_as_written_out_here():
    metrics = metric_values(mismatch_metrics(padded(OLD, filler=-9.0), padded(SAMPLING), MASK))
    gaps = [-0.699, 0.0, 2.4, -0.5]
    rho = [math.exp(gap) for gap in gaps]
    expected = {
        "mismatch/abs_mean": sum(abs(gap) for gap in gaps) / 4,
        "mismatch/max": 2.4,
        "mismatch/k3": sum(r - 1 - math.log(r) for r in rho) / 4,
        "mismatch/ratio_mean": sum(rho) / 4,
        "mismatch/chi_square": sum(r * r for r in rho) / 4 - 1,
        "mismatch/ess_frac": sum(rho) ** 2 / sum(r * r for r in rho) / 4,
    }
    assert metrics == pytest.approx(expected, abs=1e-10)


def test_no_gap_is_measured_where_there_is_none():
    metrics = metric_values(mismatch_metrics(padded(OLD), padded(OLD), MASK))
    assert metrics == {
        "mismatch/abs_mean": 0.0,
        "mismatch/max": 0.0,
        "mismatch/k3": 0.0,
        "mismatch/ratio_mean": 1.0,
        "mismatch/chi_square": 0.0,
        "mismatch/ess_frac": 1.0,
    }
