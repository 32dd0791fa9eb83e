"""The reference model of a KL term, where it follows the policy."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel


def refresh_reference(reference: PreTrainedModel, policy: PreTrainedModel, *, mix: float) -> None:
    """Move the reference's weights towards the policy's: reference = (1 - mix) reference + mix policy."""
    with torch.no_grad():
        for old, new in zip(reference.parameters(), policy.parameters(), strict=True):
            old.lerp_(new, mix)
