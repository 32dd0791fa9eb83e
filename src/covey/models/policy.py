"""Loading, identifying and saving the language model that is trained."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from covey.models.bundled import BUNDLED, ensure_bundled, is_bundled
from covey.models.lora import (
    ADAPTER_CONFIG,
    BASE_IDENTITY,
    AdapterSpec,
    SavedAdapter,
    adapter_config_json,
    attach_adapters,
    is_adapter,
    load_adapter,
    merge_adapters,
    read_adapter,
)
from covey.models.saving import save_model
from covey.types import CoveyError, Message

PLAIN_CHAT_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""Used, and shown, for a base model whose tokenizer carries no chat template."""

NOTICES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.md", "NOTICE.txt")
"""Files of the base model that go wherever its weights go."""

ComputeDtype = Literal["auto", "float32", "bfloat16"]

# Heads that do more than a projection: scoring applies the projection alone, so a model with one of these set is refused.
_UNSUPPORTED_HEAD_OPTIONS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelIdentity:
    """Which weights these are, so that a run can be repeated and a reference be named."""

    name: str
    path: str
    sha256: str
    """Of the names and hashes of the weight files."""
    num_parameters: int
    note: str
    """What a reader must know about the weights, such as that they were quantised once; may be empty."""
    code: Mapping[str, str] = field(default_factory=dict)
    """Python files that the model brought along and that were allowed to run, with their SHA-256 hashes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """A model with float32 master weights, its tokenizer and its identity."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: ModelIdentity
    compute_dtype: torch.dtype
    """Matrix products run in it; master weights, log-softmax and the loss stay float32."""
    stop_ids: frozenset[int]
    """Every token that ends a completion: a tokenizer may have several."""
    uses_plain_template: bool
    adapters: AdapterSpec | None = None
    """Which adapters the model carries and trains; None = none, and every weight is trained."""

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of the rendered conversation, ready for the model to continue."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        ids: Any = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        return [int(token) for token in ids]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text for display and scoring. It is never encoded again."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def token_text(self, token_id: int) -> str:
        """Return one token's text, special tokens included: for display."""
        return str(self.tokenizer.decode([token_id], skip_special_tokens=False))

    def describing_files(self) -> dict[str, bytes]:
        """Return config, tokenizer, chat template and the base model's licence and notice, by file name.

        Together with the weights they make a complete Hugging Face model directory; of a model with adapters, together with
        the adapters' weights, a complete directory of peft's.
        """
        notices = {name: Path(self.identity.path, name) for name in NOTICES}
        with tempfile.TemporaryDirectory() as directory:
            if self.adapters is not None:
                base = {"name": self.identity.name, "sha256": self.identity.sha256}
                Path(directory, ADAPTER_CONFIG).write_text(adapter_config_json(self.model, base=self.identity.name))
                Path(directory, BASE_IDENTITY).write_text(json.dumps(base, indent=1) + "\n")
            else:
                self.model.config.save_pretrained(directory)
                if self.model.generation_config is not None:
                    self.model.generation_config.save_pretrained(directory)
            self.tokenizer.save_pretrained(directory)
            files = {file.name: file for file in sorted(Path(directory).iterdir())}
            return {name: file.read_bytes() for name, file in {**notices, **files}.items() if file.is_file()}

    @property
    def max_sequence_tokens(self) -> int:
        return int(getattr(self.model.config, "max_position_embeddings", 1 << 30))


def load_policy(
    name: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    compute_dtype: ComputeDtype = "auto",
    progress: Callable[[str], None] = lambda message: None,
) -> Policy:
    """Load a bundled name, a local directory or a hub id as float32 weights with dropout off.

    Remote code runs only with `trust_remote_code`, and pickled weights are never loaded. Of a directory that holds an
    adapter, the base model that it names is loaded, of this revision, and the adapter merged into it.

    Raises:
        CoveyError: the model cannot be found, or does something that scoring would get wrong.
    """
    path = resolve_model(name, revision=revision, progress=progress)
    if is_adapter(path):
        saved = read_adapter(path)
        if not saved.base:
            raise CoveyError(f"model.name={name!r} is an adapter that does not say of which model. Merge it with peft first")
        base = load_policy(
            saved.base,
            revision=revision,
            trust_remote_code=trust_remote_code,
            compute_dtype=compute_dtype,
            progress=progress,
        )
        return merged_policy(base, saved, name=name)
    config, tokenizer, model = read_model(path, name, trust_remote_code=trust_remote_code)
    refuse_unsupported_head(model, name)
    # Llama-style embeddings drop the gradient of `padding_idx`; where the pad token is also the end token (SmolLM2),
    # the end token's embedding would never be trained. Covey masks by length and needs no padding index.
    embeddings: Any = model.get_input_embeddings()
    embeddings.padding_idx = None
    model.eval()  # No dropout, ever: sampling and scoring must see one and the same policy.
    uses_plain_template = not tokenizer.chat_template
    if uses_plain_template:
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    identity = ModelIdentity(
        name=name,
        path=str(path),
        sha256=weights_sha256(path),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        note=BUNDLED[name].note if is_bundled(name) else "",
        code=code_of(path) if trust_remote_code else {},
    )
    return Policy(
        model=model,
        tokenizer=tokenizer,
        identity=identity,
        compute_dtype=choose_compute_dtype(compute_dtype),
        stop_ids=stop_token_ids(model, tokenizer, config),
        uses_plain_template=uses_plain_template,
    )


def read_model(path: Path, name: str, *, trust_remote_code: bool) -> tuple[Any, Any, PreTrainedModel]:
    """Return config, tokenizer and float32 model of a directory; `name` is what the recipe calls it.

    Raises:
        CoveyError: it is no complete model in the Hugging Face format.
    """
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        model, missing = load_weights(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CoveyError(
            f"model.name={name!r} could not be loaded from {path}: {error}. It must be a causal language model in the "
            "Hugging Face format with safetensors weights; a model that brings its own code needs model.trust_remote_code=true"
        ) from error
    if missing:
        raise CoveyError(
            f"model.name={name!r}: the weights in {path} lack {len(missing)} tensors ({', '.join(missing[:3])}). The download "
            "is not complete, or config.json describes another model"
        )
    return config, tokenizer, model


def merged_policy(base: Policy, saved: SavedAdapter, *, name: str) -> Policy:
    """Return the base with a saved adapter merged into its weights: an ordinary policy under another name."""
    attach_adapters(base.model, saved.spec, seed=0)
    load_adapter(base.model, saved, base_sha256=base.identity.sha256)
    merge_adapters(base.model)
    sha256 = hashlib.sha256(f"{base.identity.sha256} {weights_sha256(saved.path)}".encode()).hexdigest()
    return replace(base, identity=replace(base.identity, name=name, sha256=sha256))


def with_adapters(policy: Policy, spec: AdapterSpec, *, start: str, seed: int) -> Policy:
    """Freeze the policy's model and give it adapters: fresh ones, or those of the directory or hub id `start`.

    Raises:
        CoveyError: peft is missing, a target is no layer of the model, or the saved adapter does not fit.
    """
    attach_adapters(policy.model, spec, seed=seed)
    if not start:
        return replace(policy, adapters=spec)
    path = resolve_model(start, revision=None, progress=lambda message: None, key="lora.adapter")
    load_adapter(policy.model, read_adapter(path), base_sha256=policy.identity.sha256)
    return replace(policy, adapters=replace(spec, start_sha256=weights_sha256(path)))


def load_weights(path: Path, *, trust_remote_code: bool) -> tuple[PreTrainedModel, list[str]]:
    """Return the model in float32 and the tensors it lacks: transformers fills those with random numbers and warns."""
    shows_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # Covey's own lines say what is loaded, and `--quiet` means quiet.
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, trust_remote_code=trust_remote_code, use_safetensors=True, output_loading_info=True
        )
    finally:
        if shows_bar:
            transformers_logging.enable_progress_bar()
    model, info = loaded
    return model, sorted(info["missing_keys"])


def resolve_model(name: str, *, revision: str | None, progress: Callable[[str], None], key: str = "model.name") -> Path:
    """Return the local directory of a bundled name, a directory or a hub id, downloading what is missing."""
    if is_bundled(name):
        return ensure_bundled(name, progress=progress)
    if os.path.isdir(name):  # Path.is_dir() raises where no directory could be called so.
        return Path(name)
    from huggingface_hub import snapshot_download  # Only a hub id needs it.
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [
        "*.safetensors",
        "*.safetensors.index.json",
        "*.json",
        "*.jinja",
        "*.model",
        "*.txt",
        "*.py",
        "LICENSE*",
        "NOTICE*",
    ]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CoveyError(
            f"{key}={name!r} is neither a bundled model ({', '.join(BUNDLED)}), nor a local directory, nor a model that "
            f"the hub served ({type(error).__name__}). Check the spelling and the network, or give a directory"
        ) from error


def refuse_unsupported_head(model: PreTrainedModel, name: str) -> None:
    """Raise if the model's logits are more than hidden states times the output embedding."""
    for option in _UNSUPPORTED_HEAD_OPTIONS:
        value = getattr(model.config, option, None)
        if value not in (None, 1, 1.0):
            raise CoveyError(
                f"model.name={name!r} has {option}={value}: its output head does more than a projection, "
                "which Covey's log-probs do not reproduce yet. Choose another model"
            )


def choose_compute_dtype(name: ComputeDtype) -> torch.dtype:
    """Return the dtype of matrix products; "auto" is bfloat16 where the processor multiplies it natively."""
    if name == "auto":
        capabilities = torch.cpu.get_capabilities()
        native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
        return torch.bfloat16 if native else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: object) -> frozenset[int]:
    """Return every end token that the generation config, the model config or the tokenizer names."""
    named = [
        getattr(model.generation_config, "eos_token_id", None),
        getattr(config, "eos_token_id", None),
        tokenizer.eos_token_id,
    ]
    listed = [item for entry in named for item in (entry if isinstance(entry, list) else [entry])]
    return frozenset(int(item) for item in listed if item is not None)


def weights_sha256(path: Path) -> str:
    """Return one hash over all weight files of a model directory: SHA-256 of their names and SHA-256 hashes."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb") as stream:
            digest.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def code_of(path: Path) -> dict[str, str]:
    """Return the Python files of a model directory with their SHA-256 hashes."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(path.glob("*.py"))}


def weights_digest(model: nn.Module, dtype: torch.dtype, *, samples_per_tensor: int = 64) -> str:
    """Return a hash of an even sample of every weight, as it looks in `dtype`.

    Two modules with the same digest hold the same weights, up to changes that miss every sampled place: an optimizer
    step of Adam changes all of them. Used to prove that an engine serves what the trainer has.
    """
    return parameters_digest(model.named_parameters(), dtype, samples_per_tensor=samples_per_tensor)


def parameters_digest(parameters: Iterable[tuple[str, Tensor]], dtype: torch.dtype, *, samples_per_tensor: int = 64) -> str:
    """Return `weights_digest` of parameters that no module holds, such as merged ones."""
    digest = hashlib.sha256()
    for name, parameter in parameters:
        flat: Tensor = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // samples_per_tensor)].to(dtype).float().cpu()
        digest.update(name.encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def save_model_directory(policy: Policy, directory: Path) -> None:
    """Write weights, config, tokenizer and chat template as a plain Hugging Face directory."""
    save_model(policy.model, policy.tokenizer, directory)
