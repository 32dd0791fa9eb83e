"""Which Hugging Face models the native engine can serve, and what their decoders look like.

A family is a row of `FAMILIES`. Everything that a checkpoint can choose is read from its modules and its config.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from covey.models.lora import adapter_state, is_adapted


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """How a family's decoder differs from Llama's."""

    norm_offset: float = 0.0
    """Added to the weight of every norm."""
    has_qk_norm: bool = False
    """Whether each head's queries and keys pass a norm before they are rotated."""
    has_branch_norms: bool = False
    """Whether attention and MLP pass a norm of their own before they are added to the residual."""
    window: Literal["none", "all layers", "layer types"] = "none"
    """Which layers see only the last `config.sliding_window` positions."""
    ropes: Literal["one", "layer types"] = "one"
    """Whether there is one set of rotary frequencies, or one for each layer type."""


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(window="all layers"),
    "qwen2": Family(window="layer types"),
    "qwen3": Family(has_qk_norm=True, window="layer types"),
    "gemma3_text": Family(norm_offset=1.0, has_qk_norm=True, has_branch_norms=True, window="layer types", ropes="layer types"),
}
"""By `config.model_type`."""

ACTIVATIONS = ("silu", "gelu_pytorch_tanh")

# Set, these change attention or logits in ways that the decoder does not know.
_REFUSED_OPTIONS = (
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "use_bidirectional_attention",
)
# Frequencies that depend on the length of the sequence.
_REFUSED_ROPES = ("dynamic", "longrope")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rope:
    """Rotary positions (arXiv 2104.09864): pair i of a head's halves turns by position * inv_freq[i]."""

    inv_freq: Float[Tensor, "half"]
    scaling: float
    """Factor of cosine and sine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerShape:
    """What layers of one model may differ in."""

    window: int | None
    """How many positions a token sees, itself included; None = all before it."""
    rope: str
    """Key into `Architecture.ropes`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A decoder without its weights."""

    hidden_size: int
    intermediate_size: int
    vocab_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    activation: str
    embedding_scale: float
    attention_scale: float
    layers: tuple[LayerShape, ...]
    ropes: dict[str, Rope]

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def heads_per_kv(self) -> int:
        return self.num_heads // self.num_kv_heads


def unsupported_reason(model: PreTrainedModel, *, allows_adapters: bool = False) -> str | None:
    """Return why the decoders that are Covey's own cannot compute this model, None if they can.

    `allows_adapters`: whether they compute low-rank adapters beside its projections.
    """
    config: Any = model.config
    family = FAMILIES.get(config.model_type)
    if family is None:
        return f"{config.model_type} models have no row in its table ({', '.join(FAMILIES)})"
    if not type(model).__module__.startswith("transformers.models.") or not type(model).__name__.endswith("ForCausalLM"):
        return f"{type(model).__name__} is not transformers' own causal language model"
    for option in _REFUSED_OPTIONS:
        if getattr(config, option, None) not in (None, False, 1, 1.0):
            return f"{option}={getattr(config, option)} is set"
    activation = _activation(config)
    if activation not in ACTIVATIONS:
        return f"its activation {activation} is none of {', '.join(ACTIVATIONS)}"
    kinds = set(getattr(config, "layer_types", None) or ())
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        return f"it has layers of {', '.join(sorted(unknown))}"
    for name, parts in _linears(model).items():
        if any(type(plain_linear(part) if allows_adapters else part) is not nn.Linear for part in parts):
            return f"a projection ({name}) is no plain linear layer"
    return _unsupported_rope(model, family) or _unsupported_parameters(model, family)


def _unsupported_rope(model: PreTrainedModel, family: Family) -> str | None:
    rotary: Any = _decoder(model).rotary_emb
    types = [rotary.rope_type] if family.ropes == "one" else list(rotary.rope_type.values())
    for name in types:
        if name in _REFUSED_ROPES:
            return f"its rotary frequencies depend on the length of the sequence ({name})"
    head_dim = _head_dim(model)
    if any(2 * len(rope.inv_freq) != head_dim for rope in _ropes(model, family).values()):
        return "it rotates a part of each head only"
    return None


def _unsupported_parameters(model: PreTrainedModel, family: Family) -> str | None:
    """Return why these weights cannot be served: each has to be read by the decoder, or something would be left out."""
    read = {
        id(parameter)
        for module in [*_norms(model, family).values(), *(part for parts in _linears(model).values() for part in parts)]
        for parameter in module.parameters()
    }
    read |= {id(weight) for weight in (embedding_of(model).weight, *adapter_state(model).values())}
    for name, parameter in model.named_parameters():
        if id(parameter) not in read:
            return f"it has weights that the decoder does not know ({name})"
        if parameter.device.type != "cpu":
            return f"its weights are on {parameter.device}, and the engine computes on the CPU"
        if parameter.dtype not in (torch.float32, torch.float64):
            return f"its weights are {parameter.dtype}, and master weights are float32"
    return None


def read_architecture(model: PreTrainedModel) -> Architecture:
    """Return what the decoder of a supported model looks like."""
    config: Any = model.config
    family = FAMILIES[config.model_type]
    layer: Any = _decoder(model).layers[0]
    embedding: Any = embedding_of(model)
    return Architecture(
        hidden_size=embedding.embedding_dim,
        intermediate_size=layer.mlp.gate_proj.out_features,
        vocab_size=embedding.num_embeddings,
        num_heads=layer.self_attn.q_proj.out_features // _head_dim(model),
        num_kv_heads=layer.self_attn.k_proj.out_features // _head_dim(model),
        head_dim=_head_dim(model),
        norm_eps=config.rms_norm_eps,
        activation=_activation(config),
        embedding_scale=float(getattr(embedding, "embed_scale", 1.0)),
        attention_scale=float(layer.self_attn.scaling),
        layers=tuple(_layer_shape(config, family, index) for index in range(config.num_hidden_layers)),
        ropes=_ropes(model, family),
    )


def norms_of(model: PreTrainedModel) -> Iterator[tuple[str, Float[Tensor, "_"]]]:
    """Yield (name, float32 gain) of every norm, the family's offset added."""
    family = FAMILIES[model.config.model_type]
    for name, module in _norms(model, family).items():
        yield name, module.weight.detach().float() + family.norm_offset


def linears_of(model: PreTrainedModel) -> Iterator[tuple[str, tuple[nn.Linear, ...]]]:
    """Yield (name, projections that are computed as one) of every matrix product."""
    yield from _linears(model).items()


def plain_linear(part: nn.Module) -> nn.Module:
    """Return the projection itself, without the adapter that it may carry."""
    layer: Any = part
    return layer.base_layer if is_adapted(part) else part


def embedding_of(model: PreTrainedModel) -> Any:
    """Return the input embedding."""
    return model.get_input_embeddings()


def _decoder(model: PreTrainedModel) -> Any:
    return model.get_decoder()


def _head_dim(model: PreTrainedModel) -> int:
    return int(_decoder(model).layers[0].self_attn.head_dim)


def _activation(config: Any) -> str:
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


def _layer_shape(config: Any, family: Family, index: int) -> LayerShape:
    kind = config.layer_types[index] if getattr(config, "layer_types", None) else "full_attention"
    has_window = family.window == "all layers" or (family.window == "layer types" and kind == "sliding_attention")
    return LayerShape(
        window=config.sliding_window if has_window else None, rope=kind if family.ropes == "layer types" else "one"
    )


def _ropes(model: PreTrainedModel, family: Family) -> dict[str, Rope]:
    rotary: Any = _decoder(model).rotary_emb
    if family.ropes == "one":
        return {"one": Rope(inv_freq=rotary.inv_freq.float(), scaling=float(rotary.attention_scaling))}
    return {
        kind: Rope(
            inv_freq=getattr(rotary, f"{kind}_inv_freq").float(), scaling=float(getattr(rotary, f"{kind}_attention_scaling"))
        )
        for kind in rotary.layer_types
    }


def _norms(model: PreTrainedModel, family: Family) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for index, layer in enumerate(_decoder(model).layers):
        found[f"{index}.attention_norm"] = layer.input_layernorm
        # What Llama calls the norm after attention is the one before its MLP.
        found[f"{index}.mlp_norm"] = (
            layer.pre_feedforward_layernorm if family.has_branch_norms else layer.post_attention_layernorm
        )
        if family.has_branch_norms:
            found[f"{index}.attention_branch_norm"] = layer.post_attention_layernorm
            found[f"{index}.mlp_branch_norm"] = layer.post_feedforward_layernorm
        if family.has_qk_norm:
            found[f"{index}.query_norm"] = layer.self_attn.q_norm
            found[f"{index}.key_norm"] = layer.self_attn.k_norm
    found["final_norm"] = _decoder(model).norm
    return found


def _linears(model: PreTrainedModel) -> dict[str, tuple[nn.Linear, ...]]:
    found: dict[str, tuple[nn.Linear, ...]] = {}
    for index, layer in enumerate(_decoder(model).layers):
        attention, mlp = layer.self_attn, layer.mlp
        found[f"{index}.qkv"] = (attention.q_proj, attention.k_proj, attention.v_proj)
        found[f"{index}.attention_out"] = (attention.o_proj,)
        found[f"{index}.gate_up"] = (mlp.gate_proj, mlp.up_proj)
        found[f"{index}.mlp_out"] = (mlp.down_proj,)
    head: Any = model.get_output_embeddings()
    found["head"] = (head,)
    return found
