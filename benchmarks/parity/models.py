"""The tiny model: the policy, the old policy and the reference; in float64 exact to its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MethodType

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding

from parity.case import Case
from parity.fixture import sampler_noise

WEIGHT_NOISE = 0.01  # Moves a token's log-prob by 0.3 on average, up to 1.4: beyond the clip ranges.


def load_model(directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).train()
    return exact(model) if dtype == torch.float64 else model


def exact(model: PreTrainedModel) -> PreTrainedModel:
    """Compute norms and rotary angles in float64. Transformers has them in float32, whatever the weights are."""
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = MethodType(exact_norm, module)
        elif isinstance(module, LlamaRotaryEmbedding):
            module.forward = MethodType(exact_rotation, module)
    return model


def exact_norm(self: LlamaRMSNorm, hidden: Tensor) -> Tensor:
    return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(dim=-1, keepdim=True) + self.variance_epsilon)


def exact_rotation(self: LlamaRotaryEmbedding, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    angles = position_ids[..., None].double() * self.inv_freq.double()
    both = torch.cat([angles, angles], dim=-1)
    return both.cos() * self.attention_scaling, both.sin() * self.attention_scaling


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(directory)


def set_weights(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def moved_weights(model: PreTrainedModel, seed: int) -> dict[str, Tensor]:
    """Return the weights of another policy nearby."""
    numbers = torch.Generator().manual_seed(seed)
    return {
        name: weight.detach() + WEIGHT_NOISE * torch.randn(weight.shape, generator=numbers, dtype=torch.float32)
        for name, weight in sorted(model.named_parameters())
    }


def sampler_logprobs(case: Case, directory: Path) -> list[list[float]]:
    """Return the old policy's log-probs, one completion at a time, moved as by an engine in another precision."""
    model, tokenizer = load_model(directory, torch.float64), load_tokenizer(directory)
    set_weights(model, moved_weights(model, seed=1))
    values = []
    for row, (ids, noise) in enumerate(
        zip(case.data.completions, sampler_noise(case.data, case.theirs.sampler_noise), strict=True)
    ):
        prompt = tokenizer(case.data.prompts[row // case.data.group_size])["input_ids"]
        with torch.no_grad():
            logprobs = model(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(dim=-1)
        places = enumerate(zip(ids, noise, strict=True), start=len(prompt) - 1)
        values.append([float(logprobs[place, token]) + extra for place, (token, extra) in places])
    return values
