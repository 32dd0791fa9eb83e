"""The engine holds weights in the compute dtype, and everything else as the trainer has it."""

from __future__ import annotations

import dataclasses

import torch

from covey.engines.transformers import TransformersEngine
from covey.models.policy import Policy


def test_buffers_stay_float32_when_the_weights_are_bfloat16(shared_tiny_policy: Policy) -> None:
    """Rotary frequencies rounded to 8 bits turn by another angle: the engine would sample from another model."""
    engine = TransformersEngine(dataclasses.replace(shared_tiny_policy, compute_dtype=torch.bfloat16))
    ours, theirs = dict(engine._model.named_buffers()), dict(shared_tiny_policy.model.named_buffers())
    assert ours.keys() == theirs.keys()
    assert "model.rotary_emb.inv_freq" in ours
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert {parameter.dtype for parameter in engine._model.parameters()} == {torch.bfloat16}
