"""Low-rank adapters: the base model stays frozen, and each adapted projection learns a product of two thin matrices.

    y = W x + scale * B (A x)      A [rank, in], B [out, rank], scale = alpha / rank      (LoRA, arXiv 2106.09685)

peft puts the adapters into the model, and files are in its format. Here is all that is particular to adapters: everything
else in Covey sees an ordinary model, some of whose weights are frozen.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from covey.sampling import stream_key
from covey.types import CoveyError

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
BASE_IDENTITY = "base.json"
"""Name and hash of the model that the adapter beside it was trained on."""

ALL_LINEAR = "all-linear"
"""Stands for every linear layer but the output head."""

_NAME = "default"  # what peft calls the only adapter of a model
_PREFIX = "base_model.model."  # in peft's files, before the name of a module

# Of an adapter's file: what says nothing of how it acts, or is compared by itself.
_NOT_COMPARED = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"),
    *("exclude_modules", "layers_pattern", "layers_to_transform", "target_modules", "megatron_config", "megatron_core"),
    # Dropout acts in training only, and where it was trained with it is none of ours.
    *("init_lora_weights", "lora_alpha", "lora_dropout", "qalora_group_size", "r"),
}
# Other initialisations take their share out of the base weights, which the file does not hold.
_PLAIN_INITIALISATIONS = (True, False, "gaussian", "orthogonal")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterSpec:
    """Which adapters a model carries."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    """Names of linear layers, or ends of names; ("all-linear",) = all but the output head."""
    is_merged: bool = True
    """Whether engines serve W + scale * B A as one matrix, or base and adapter side by side."""
    start_sha256: str = ""
    """Of the weights that training starts from; empty = fresh ones, which change nothing yet."""


def attach_adapters(model: PreTrainedModel, spec: AdapterSpec, *, seed: int) -> None:
    """Freeze the model and give it fresh adapters: A uniform within 1 / sqrt(in), as peft has it, and B = 0.

    Raises:
        CoveyError: peft is not installed, or a target is no linear layer of the model.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise CoveyError("lora.rank is set, and adapters need peft: pip install 'covey[lora]', or set lora.rank=0") from error
    alpha: Any = int(spec.alpha) if spec.alpha == int(spec.alpha) else spec.alpha
    config = LoraConfig(r=spec.rank, lora_alpha=alpha, target_modules=adapted_names(model, spec.targets), task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(config, model)
    model.eval()
    for name, layer in adapted_layers(model).items():
        generator = torch.Generator().manual_seed(stream_key(seed, "lora", name))
        nn.init.kaiming_uniform_(layer.lora_A[_NAME].weight, a=math.sqrt(5), generator=generator)


def adapted_names(model: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """Return the names of the linear layers that `targets` means.

    Raises:
        CoveyError: a target means none.
    """
    # The head's weights are often the embedding's as well: an adapter there would untie them.
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    if tuple(targets) == (ALL_LINEAR,) and names:
        return names
    for target in targets:
        if not any(_is_called(name, target) for name in names):
            known = sorted({name.rpartition(".")[2] for name in names})
            raise CoveyError(
                f"lora.targets={list(targets)}: no linear layer before the output head is called {target!r}. This model has "
                f"{', '.join(known) or 'none at all'}"
            )
    return [name for name in names if any(_is_called(name, target) for target in targets)]


def _is_called(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def is_adapted(module: nn.Module) -> bool:
    """Return whether this projection carries an adapter."""
    down = getattr(module, "lora_A", None)
    return isinstance(down, nn.ModuleDict) and _NAME in down


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Return the projections that carry an adapter, by name; empty = the model has no adapters."""
    return {name: module for name, module in model.named_modules() if is_adapted(module)}


def merged_weight(linear: nn.Module) -> Float[Tensor, "out in"]:
    """Return W + scale * B A in the precision of the master weights; W itself without an adapter, or with one that is off."""
    layer: Any = linear
    weight = layer.weight.detach()
    if not is_adapted(linear) or layer.disable_adapters:
        return weight
    return weight + layer.get_delta_weight(_NAME).detach()


def active_adapter(linear: nn.Module) -> tuple[nn.Parameter, nn.Parameter, float] | None:
    """Return A, B and the scale of a projection's adapter; None without an adapter, or with one that is off."""
    layer: Any = linear
    if not is_adapted(linear) or layer.disable_adapters:
        return None
    return layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight, float(layer.scaling[_NAME])


def merged_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield names and values of what the model's parameters would be with the adapters merged into them, one at a time.

    Of a model without adapters these are its `named_parameters`.
    """
    layers = adapted_layers(model)
    for name, parameter in model.named_parameters():
        owner, is_base, leaf = name.partition(".base_layer.")
        if is_base and owner in layers:
            yield f"{owner}.{leaf}", merged_weight(layers[owner]) if leaf == "weight" else parameter.detach()
        elif name.partition(".lora_")[0] not in layers:
            yield name, parameter.detach()


def merge_adapters(model: PreTrainedModel) -> None:
    """Put the adapters into the weights for good: what is left is an ordinary model, to be trained in full."""
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            layer.base_layer.weight.copy_(merged_weight(layer))
    _take_off(model)
    model.requires_grad_(True)


def without_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with its adapters off: modules of its own around the very same parameters, not a copy of them."""
    plain = _copy_around(model, list(model.parameters()))
    _take_off(plain)
    return plain


def frozen_copy(model: PreTrainedModel, *, adapters_on: bool) -> PreTrainedModel:
    """Return a frozen model as this one is now, or as it is without adapters. Only they are copied, the rest is shared.

    Its modules are of the same kinds in both cases, so that it is scored in the same way as the model itself: where the
    two compute the same, they do so bit for bit.
    """
    copied = _copy_around(model, [weight for weight in model.parameters() if not weight.requires_grad]).requires_grad_(False)
    for layer in adapted_layers(copied).values():
        layer.enable_adapters(adapters_on)
    return copied.requires_grad_(False)


def _copy_around(model: PreTrainedModel, kept: Sequence[nn.Parameter]) -> PreTrainedModel:
    # A deep copy takes what its memo has for the copy.
    return copy.deepcopy(model, {id(parameter): parameter for parameter in kept})


def _take_off(model: PreTrainedModel) -> None:
    for name, layer in adapted_layers(model).items():
        model.set_submodule(name, layer.base_layer)
    if "peft_config" in vars(model):
        del model.peft_config


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the adapters' weights under the names that peft's files have for them; they are not copied."""
    return {
        f"{_PREFIX}{name}.{side}.weight": getattr(layer, side)[_NAME].weight
        for name, layer in adapted_layers(model).items()
        for side in ("lora_A", "lora_B")
    }


def load_adapter_state(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy the adapters' weights into the model."""
    with torch.no_grad():
        for name, parameter in adapter_state(model).items():
            parameter.copy_(weights[name])


def adapter_config_json(model: PreTrainedModel, *, base: str) -> str:
    """Return `adapter_config.json` of the model's adapters: the same text for the same adapters."""
    config = dict(_peft_config(model).to_dict())
    config |= {"base_model_name_or_path": base, "inference_mode": True, "target_modules": sorted(config["target_modules"])}
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def _peft_config(model: PreTrainedModel) -> Any:
    return vars(model)["peft_config"][_NAME]


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedAdapter:
    """An adapter as it lies in a directory."""

    path: Path
    config: dict[str, Any]
    weights: dict[str, Tensor]

    @property
    def base(self) -> str:
        """Name or path of the model it was trained on; empty = it does not say."""
        return str(self.config.get("base_model_name_or_path") or "")

    @property
    def base_sha256(self) -> str:
        """Of that model's weights; empty = Covey did not write it."""
        file = self.path / BASE_IDENTITY
        return str(json.loads(file.read_text())["sha256"]) if file.is_file() else ""

    @property
    def module_names(self) -> list[str]:
        """The adapted modules, in the order of the file."""
        return list(dict.fromkeys(name.removeprefix(_PREFIX).partition(".lora_")[0] for name in self.weights))

    @property
    def spec(self) -> AdapterSpec:
        return AdapterSpec(rank=self.config["r"], alpha=self.config["lora_alpha"], targets=tuple(self.module_names))


def is_adapter(path: Path) -> bool:
    """Return whether the directory holds an adapter and no model."""
    return (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file()


def read_adapter(path: Path) -> SavedAdapter:
    """Return the adapter of a directory.

    Raises:
        CoveyError: there is none, or it is not plain LoRA.
    """
    try:
        config, weights = json.loads((path / ADAPTER_CONFIG).read_bytes()), load_file(path / ADAPTER_WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise CoveyError(
            f"{path} is no adapter that can be read: {error}. It must hold {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}, as peft "
            "writes them"
        ) from error
    if config.get("peft_type") != "LORA" or not {"r", "lora_alpha"} <= set(config):
        raise CoveyError(f"{path} is an adapter of type {config.get('peft_type')!r}; Covey knows LoRA only")
    if config.get("init_lora_weights", True) not in _PLAIN_INITIALISATIONS:
        raise CoveyError(
            f"{path} was made with init_lora_weights={config['init_lora_weights']!r}, which changes the base weights, too. "
            "Convert it to plain LoRA with peft"
        )
    return SavedAdapter(path=path, config=config, weights=weights)


def load_adapter(model: PreTrainedModel, saved: SavedAdapter, *, base_sha256: str) -> None:
    """Give the adapters that are attached to the model the weights of a saved one.

    Raises:
        CoveyError: it is of another base, rank or kind, or adapts other layers.
    """
    _refuse_another_base(saved, base_sha256)
    _refuse_other_options(saved, _peft_config(model).to_dict())
    own = adapter_state(model)
    if set(own) != set(saved.weights):
        ends = sorted({name.rpartition(".")[2] for name in saved.module_names})
        raise CoveyError(
            f"adapter {saved.path} adapts {len(saved.module_names)} layers, called {', '.join(ends)}, which are not those of "
            f"lora.targets on this model. If it belongs to this model, set lora.targets={json.dumps(ends)}"
        )
    for name, parameter in own.items():
        found = saved.weights[name].shape
        if found != parameter.shape:
            raise CoveyError(
                f"adapter {saved.path} belongs to another base model or is damaged: {name} has shape {list(found)} where "
                f"this model needs {list(parameter.shape)}"
            )
    load_adapter_state(model, saved.weights)


def _refuse_another_base(saved: SavedAdapter, base_sha256: str) -> None:
    if saved.base_sha256 and saved.base_sha256 != base_sha256:
        raise CoveyError(
            f"adapter {saved.path} was trained on other weights than these; it was trained on {saved.base!r}. Give that model, "
            "as it was then"
        )


def _refuse_other_options(saved: SavedAdapter, own: Mapping[str, Any]) -> None:
    rank, alpha = saved.config["r"], saved.config["lora_alpha"]
    if (rank, alpha) != (own["r"], own["lora_alpha"]):
        raise CoveyError(
            f"adapter {saved.path} has rank {rank} and alpha {alpha}, the recipe has lora.rank={own['r']} and "
            f"lora.alpha={own['lora_alpha']}. Set lora.rank={rank} and lora.alpha={alpha}"
        )
    for key, value in saved.config.items():
        if key not in _NOT_COMPARED and (value or None) != (own.get(key) or None):
            raise CoveyError(f"adapter {saved.path} has {key}={value!r}, which Covey does not reproduce: only plain LoRA")
