"""What lies in memory during a step, part by part: a pure function of the model's sizes and the recipe's numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from covey.models.policy import Policy

SAVED_COPY = "copy of what is saved"
"""Of a checkpoint that is written while training goes on; without the memory for it training waits, so it is never needed."""

_MASTER_BYTES = 4  # float32
# Logits of a chunk in the compute dtype, then in float32: shaped, their log-softmax, and their gradient.
_LOGIT_COPIES_BYTES = 14
_CHUNK_TOKENS = 512
# Logits of a decoding step in the compute dtype and in float32, and their sums.
_DRAWN_LOGIT_BYTES = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSizes:
    """A model without its weights, counted in numbers."""

    num_parameters: int
    num_trained: int
    body_products: int
    """Weights of the linear layers below the head: each token is multiplied by all of them."""
    head_products: int
    embedding: int
    vocab_size: int
    cache_values: int
    """Keys and values of one token, in all layers."""
    num_layers: int
    num_heads: int
    head_dim: int
    compute_bytes: int
    """Of one number in the compute dtype."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What the recipe asks for."""

    prompt_slots: int
    """Prompts whose keys and values are held together."""
    prompt_tokens: int
    """Of the longest prompt."""
    num_rows: int
    """Completions decoded together."""
    row_tokens: int
    """Of the longest completion."""
    micro_batch_tokens: int
    activation_token_bytes: float
    """What the backward pass needs of one token of a micro-batch."""
    has_reference: bool
    has_packed_head: bool
    """Whether the engine holds the head besides the embedding, though they are one tensor in the model."""


def model_sizes(policy: Policy) -> ModelSizes:
    """Return the sizes of any Hugging Face causal language model, read from its modules and its config."""
    model: PreTrainedModel = policy.model
    config: Any = model.config.get_text_config()
    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    body = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
    num_heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    return ModelSizes(
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_trained=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        body_products=sum(module.weight.numel() for module in body),
        head_products=head.weight.numel(),
        embedding=embedding.weight.numel(),
        vocab_size=head.weight.shape[0],
        cache_values=config.num_hidden_layers * 2 * num_kv_heads * head_dim,
        num_layers=config.num_hidden_layers,
        num_heads=num_heads,
        head_dim=head_dim,
        compute_bytes=policy.compute_dtype.itemsize,
    )


def memory_parts(sizes: ModelSizes, demand: Demand, *, interpreter_bytes: int) -> dict[str, float]:
    """Return the bytes of each part. See `peak_bytes`."""
    rounds = sizes.compute_bytes < _MASTER_BYTES
    products = sizes.body_products + sizes.head_products
    served = sizes.num_parameters + (sizes.head_products if demand.has_packed_head else 0)
    cached = demand.prompt_slots * demand.prompt_tokens + demand.num_rows * demand.row_tokens
    scored = min(_CHUNK_TOKENS, demand.micro_batch_tokens)
    reference = sizes.num_parameters * _MASTER_BYTES + (products * sizes.compute_bytes if rounds else 0)
    parts = {
        "interpreter and libraries": interpreter_bytes,
        "weights, float32": sizes.num_parameters * _MASTER_BYTES,
        "moments of AdamW": 2 * sizes.num_trained * _MASTER_BYTES,
        "the trainer's rounded copy": products * sizes.compute_bytes if rounds else 0,
        "the engine's copy": served * sizes.compute_bytes,
        "reference model": reference if demand.has_reference else 0,
        "sampling: keys and values": cached * sizes.cache_values * sizes.compute_bytes,
        "sampling: logits": demand.num_rows * sizes.vocab_size * _DRAWN_LOGIT_BYTES,
        "update: gradient": sizes.num_trained * _MASTER_BYTES,
        "update: activations": demand.micro_batch_tokens * demand.activation_token_bytes,
        "update: logits": scored * sizes.vocab_size * _LOGIT_COPIES_BYTES,
    }
    return {name: float(size) for name, size in parts.items()}


def saved_copy_bytes(sizes: ModelSizes) -> int:
    """Return the size of a copy of what training changes: weights and both moments."""
    return 3 * sizes.num_trained * _MASTER_BYTES


def kept_bytes(parts: dict[str, float]) -> float:
    """Return what lies there between two steps, when a checkpoint is saved."""
    return sum(size for name, size in parts.items() if not name.startswith(("sampling:", "update:")))


def peak_bytes(parts: dict[str, float]) -> float:
    """Return what the process holds at most: all of it, since the allocator keeps what sampling has freed.

    The blocks of an update are larger than the holes that sampling leaves. Measured: at the first step W, W-long and W-wide
    of benchmarks/step_time.py hold 4.79, 5.51 and 5.36 GB, which are 4.70 without the parts of sampling, 4.84, 5.12 and 4.97
    with them.
    """
    return sum(parts.values())
