"""Every surrogate against its slow transcription: the loss of each token, and by finite differences its gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.numerics import transcriptions
from tests.numerics.arrays import float64, mask_of, padded, unpadded

from covey.algos import surrogates
from covey.algos.ratios import sequence_log_ratio, token_log_ratio

Rows = list[list[float]]
Slow = Callable[..., list[float]]

# Odd numbers, so that no ratio of the tests lies on the edge of a clip.
SURROGATES: dict[str, tuple[Callable[..., Any], Callable[..., Any], Slow, dict[str, float]]] = {
    "clip": (
        surrogates.clipped_surrogate,
        token_log_ratio,
        transcriptions.clipped,
        {"epsilon_low": 0.213, "epsilon_high": 0.287},
    ),
    "dual clip": (
        surrogates.clipped_surrogate,
        token_log_ratio,
        transcriptions.clipped,
        {"epsilon_low": 0.213, "epsilon_high": 0.287, "dual_clip": 1.517},
    ),
    "clip with delta": (
        surrogates.clipped_surrogate,
        token_log_ratio,
        transcriptions.clipped,
        {"epsilon_low": 0.213, "epsilon_high": 0.287, "delta": 1.617},
    ),
    "both": (
        surrogates.clipped_surrogate,
        token_log_ratio,
        transcriptions.clipped,
        {"epsilon_low": 0.213, "epsilon_high": 0.287, "dual_clip": 2.117, "delta": 1.817},
    ),
    "GSPO": (
        surrogates.clipped_surrogate,
        sequence_log_ratio,
        transcriptions.gspo,
        {"epsilon_low": 0.0613, "epsilon_high": 0.0817},
    ),
    "GMPO": (
        surrogates.gmpo_surrogate,
        token_log_ratio,
        transcriptions.gmpo,
        {"epsilon_low": 0.313, "epsilon_high": 0.387},
    ),
    "SAPO": (
        surrogates.sapo_surrogate,
        token_log_ratio,
        transcriptions.sapo,
        {"tau_positive": 1.3, "tau_negative": 2.1},
    ),
    "CISPO": (
        surrogates.cispo_surrogate,
        token_log_ratio,
        transcriptions.cispo,
        {"epsilon_low": 0.413, "epsilon_high": 0.287},
    ),
    "REINFORCE": (
        surrogates.reinforce_surrogate,
        token_log_ratio,
        lambda logprobs, old, advantage: [-advantage * logprob for logprob in logprobs],
        {},
    ),
}
every_surrogate = pytest.mark.parametrize("name", SURROGATES)

tokens = st.lists(st.tuples(st.integers(-300, -10), st.integers(-120, 120)), min_size=1, max_size=6)
completions = st.lists(st.tuples(tokens, st.integers(-15, 15).map(lambda value: value / 10)), min_size=1, max_size=3)


def arrays_of(drawn: Sequence[tuple[Sequence[tuple[int, int]], float]]) -> tuple[Rows, Rows, list[float]]:
    """Return log-probs, old log-probs up to 1.2 away, and one advantage a completion."""
    logprobs = [[logprob / 100 for logprob, _ in tokens] for tokens, _ in drawn]
    old = [[(logprob + shift) / 100 for logprob, shift in tokens] for tokens, _ in drawn]
    return logprobs, old, [advantage for _, advantage in drawn]


def slow_losses(name: str, logprobs: list[float], old: list[float], advantage: float) -> Callable[[list[float]], list[float]]:
    """Return the losses of the completion as a function of its log-probs."""
    _, _, slow, options = SURROGATES[name]
    if name == "CISPO":
        options = {**options, "frozen": logprobs}
    return functools.partial(lambda moved: slow(moved, old, advantage, **options))


@every_surrogate
@given(drawn=completions)
def test_each_token_has_the_loss_of_the_formula(name: str, drawn: Any):
    function, log_ratio, _, options = SURROGATES[name]
    logprobs, old, advantages = arrays_of(drawn)
    mask = mask_of(logprobs)
    new = padded(logprobs)
    credit = float64(advantages)[:, None] * mask
    found = function(new, log_ratio(new, padded(old, filler=-9.0), mask), credit, mask, **options)
    for row, expected in zip(
        unpadded(found, logprobs),
        [slow_losses(name, *completion)(completion[0]) for completion in zip(logprobs, old, advantages, strict=True)],
        strict=True,
    ):
        assert row == pytest.approx(expected, abs=1e-12)


@every_surrogate
@given(drawn=completions)
def test_each_log_prob_has_the_gradient_of_the_formula(name: str, drawn: Any):
    function, log_ratio, _, options = SURROGATES[name]
    logprobs, old, advantages = arrays_of(drawn)
    mask = mask_of(logprobs)
    new = padded(logprobs).requires_grad_()
    credit = float64(advantages)[:, None] * mask
    losses = function(new, log_ratio(new, padded(old, filler=-9.0), mask), credit, mask, **options)
    (gradient,) = torch.autograd.grad(torch.where(mask, losses, 0.0).sum(), new)
    assert (gradient[~mask] == 0).all()
    for row, completion in zip(unpadded(gradient, logprobs), zip(logprobs, old, advantages, strict=True), strict=True):
        slopes = list(transcriptions.slopes(slow_losses(name, *completion), completion[0]))
        assume(all(abs(left - right) < 1e-4 for left, right in slopes))  # Else the point lies on an edge of the clip.
        assert row == pytest.approx([(left + right) / 2 for left, right in slopes], abs=1e-6)


@given(drawn=completions)
def test_advantages_that_differ_from_token_to_token_act_token_by_token(drawn: Any):
    """As they do with KL in the reward. Tokens of sequence-wide surrogates share a ratio and keep their own advantage."""
    logprobs, old, _ = arrays_of(drawn)
    mask = mask_of(logprobs)
    generator = torch.Generator().manual_seed(0)
    credit = torch.randn(mask.shape, generator=generator, dtype=torch.float64) * mask
    for name in ("clip", "dual clip", "GSPO", "SAPO", "CISPO", "REINFORCE"):
        function, log_ratio, _, options = SURROGATES[name]
        new = padded(logprobs)
        found = function(new, log_ratio(new, padded(old), mask), credit, mask, **options)
        for b, t in mask.nonzero().tolist():
            expected = slow_losses(name, logprobs[b], old[b], float(credit[b, t]))(logprobs[b])[t]
            assert float(found[b, t]) == pytest.approx(expected, abs=1e-12)
