"""The steps between matrix products in torch, against the formulas and against autograd."""

from __future__ import annotations

import pytest
import torch
from tests.unit.test_training_kernels import (
    NUM_ROWS,
    WIDTH,
    assert_close,
    every_activation,
    every_temperature,
    every_vocab,
    logits_and_targets,
    noise,
    parts_of,
    slow_gradient,
    slow_scores,
    turns,
)

from covey.models.packed.steps import TorchSteps

STEPS = TorchSteps(torch.float64)


def test_the_gradient_of_add_norm_in_torch_is_that_of_autograd():
    x, branch = (noise(NUM_ROWS, WIDTH, seed=seed).double().requires_grad_() for seed in (0, 1))
    gain = noise(WIDTH, seed=2).double().requires_grad_()
    grad_sum, grad_normed = (noise(NUM_ROWS, WIDTH, seed=seed).double() for seed in (3, 4))
    total = x + branch
    normed = total / (total.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * gain
    exact = torch.autograd.grad((grad_sum * total + grad_normed * normed).sum(), (x, branch, gain))
    for found, expected in zip(
        STEPS.add_norm_backward(grad_sum, grad_normed, total.detach(), gain.detach(), 1e-5), exact, strict=True
    ):
        assert_close(found, expected, 1e-12)


@every_vocab
@every_temperature
def test_log_probs_and_entropies_in_torch_are_those_of_the_formula(vocab_size: int, temperature: float):
    logits, targets = logits_and_targets(vocab_size)
    found = STEPS.score(logits.double(), targets, temperature)
    for part, expected in zip(parts_of(found), slow_scores(logits, targets, temperature), strict=True):
        torch.testing.assert_close(part, expected, atol=1e-12, rtol=0)


@every_temperature
@pytest.mark.parametrize("has_entropy", [False, True])
def test_the_gradient_of_the_logits_in_torch_is_that_of_autograd(temperature: float, has_entropy: bool):
    logits, targets = logits_and_targets(264)
    grads = (noise(20, seed=2).double(), noise(20, seed=3).double() if has_entropy else None)
    scores = STEPS.score(logits.double(), targets, temperature)
    found = STEPS.score_backward(*grads, logits.double(), targets, scores, temperature)
    assert_close(found, slow_gradient(logits, targets, temperature, *grads), 1e-12)


@every_activation
def test_the_gate_in_torch_is_the_activation_times_the_other_half(activation: str):
    gate_up = noise(5, 32, scale=2.0).double()
    gate, up = gate_up.chunk(2, dim=-1)
    inner = gate if activation == "silu" else 2 * (2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)
    assert_close(STEPS.gated(gate_up, activation), gate * torch.sigmoid(inner) * up, 1e-12)


@every_activation
def test_the_gradient_of_the_gate_in_torch_is_that_of_differences(activation: str):
    gate_up, grad, eps = noise(1, 8).double(), noise(1, 4, seed=1).double(), 1e-6
    steps = eps * torch.eye(8, dtype=torch.float64)
    slopes = [(STEPS.gated(gate_up + step, activation) - STEPS.gated(gate_up - step, activation)) / (2 * eps) for step in steps]
    exact = torch.stack([(grad * slope).sum() for slope in slopes])[None]
    assert_close(STEPS.gated_backward(grad, gate_up, activation), exact, 1e-8)


def test_heads_are_turned_in_torch_as_complex_numbers_are():
    heads, (cos, sin) = noise(5, 3, 8).double(), turns(5, 8)
    found = STEPS.rotate(heads, 2, cos.double(), sin.double())
    turned = torch.complex(heads[..., :4], heads[..., 4:]) * torch.complex(cos, sin).to(torch.complex128)[:, None]
    assert_close(found[:, :2], torch.cat([turned.real, turned.imag], dim=-1)[:, :2], 1e-12)
    assert torch.equal(found[:, 2:], heads[:, 2:])
