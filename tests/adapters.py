"""Policies with adapters, and the same models as peft alone makes them."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch

from covey.models.lora import AdapterSpec, adapted_layers
from covey.models.policy import Policy, with_adapters

SPEC = AdapterSpec(rank=4, alpha=6.0, targets=("all-linear",))


def adapted(policy: Policy, *, spec: AdapterSpec = SPEC, seed: int = 0, b_std: float = 0.1) -> Policy:
    """Return a copy of the policy with adapters that do something: B is no longer 0."""
    own = dataclasses.replace(policy, model=copy.deepcopy(policy.model))
    own = with_adapters(own, spec, start="", seed=seed)
    change_adapters(own, b_std=b_std)
    return own


def change_adapters(policy: Policy, *, b_std: float, seed: int = 1) -> None:
    """Add seeded noise to B of every adapter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapted_layers(policy.model).values():
            weight = layer.lora_B["default"].weight
            weight.add_(b_std * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))


def peft_model(plain: Policy, policy: Policy, *, rank: int = SPEC.rank, alpha: int = int(SPEC.alpha)) -> Any:
    """Return a PeftModel made by peft alone, on a copy of the plain model, with the policy's numbers in its adapters."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(copy.deepcopy(plain.model), config).eval()
    theirs = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if parameter.requires_grad:
                theirs.pop(f"base_model.model.{name}").copy_(parameter)
    assert not any(parameter.requires_grad for parameter in theirs.values())
    return model
