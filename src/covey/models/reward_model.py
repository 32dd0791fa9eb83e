"""A Bradley-Terry reward model: a sequence classifier with one output, the score s(x, y) of a completion y to a prompt x.

P(y1 is preferred to y2) = sigmoid(s(x, y1) - s(x, y2)), so scores have no zero and mean something between completions of
one prompt only. Dimension key: N pairs or texts, T tokens.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from covey.models.policy import (
    NOTICES,
    PLAIN_CHAT_TEMPLATE,
    ComputeDtype,
    ModelIdentity,
    choose_compute_dtype,
    resolve_model,
    weights_sha256,
)
from covey.types import CoveyError, Message

__all__ = [
    "RewardModel",
    "load_reward_model",
    "new_reward_model",
    "pair_losses",
    "save_reward_model",
]

Text = tuple[Sequence[Message], str]
"""A conversation that waits for an answer, and the answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardModel:
    """A sequence classifier with one output, its tokenizer and its identity."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: ModelIdentity
    compute_dtype: torch.dtype
    """Matrix products run in it; the weights are float32."""
    uses_plain_template: bool

    def encode(self, messages: Sequence[Message], completion: str) -> list[int]:
        """Return the token ids of the conversation with the completion as its last turn, rendered by the chat template.

        Special tokens that the completion spells out are taken from it: in the rendered text they would end its turn, and
        what follows could pose as somebody else's.
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        turns.append({"role": "assistant", "content": without_special_tokens(completion, self.tokenizer)})
        ids: Any = self.tokenizer.apply_chat_template(turns, add_generation_prompt=False, return_dict=False)
        return [int(token) for token in ids]

    def score(self, texts: Sequence[Text], *, max_batch_tokens: int = 16_384) -> list[float | None]:
        """Return s(x, y) of each text, in order; None = it is longer than the model can read, and nothing is ever cut.

        A batch holds texts of similar length, `max_batch_tokens` with their padding, and at least one. The score of a text
        does not depend on the others, up to rounding.
        """
        rows = [self.encode(messages, completion) for messages, completion in texts]
        fitting = [index for index, row in enumerate(rows) if len(row) <= self.max_sequence_tokens]
        scores: list[float | None] = [None] * len(rows)
        batches = batches_by_length({index: len(rows[index]) for index in fitting}, max_batch_tokens=max_batch_tokens)
        with torch.inference_mode():
            for batch in batches:
                values = row_scores(self, [rows[index] for index in batch]).tolist()
                for index, value in zip(batch, values, strict=True):
                    scores[index] = value
        return scores

    @property
    def max_sequence_tokens(self) -> int:
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", 1 << 30))


def row_scores(reward_model: RewardModel, rows: Sequence[Sequence[int]]) -> Float[Tensor, "N"]:
    """Return the model's own output for each row of token ids, as it is for the row alone; gradients flow.

    Rows are padded on the right with the id that the model's configuration calls padding: the model finds the last token
    of a row by it. A model without such an id reads one row at a time.
    """
    model = reward_model.model
    pad_id = getattr(model.config.get_text_config(), "pad_token_id", None)
    if pad_id is None and len(rows) > 1:
        return torch.cat([row_scores(reward_model, [row]) for row in rows])
    longest = max(len(row) for row in rows)
    padded = [[*row, *[pad_id or 0] * (longest - len(row))] for row in rows]
    input_ids = torch.tensor(padded, device=model.device)  # [N, T]
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    mask = (torch.arange(longest, device=model.device) < lengths[:, None]).long()  # [N, T]
    dtype = reward_model.compute_dtype
    with torch.autocast(model.device.type, dtype=dtype, enabled=dtype != torch.float32):
        return model(input_ids=input_ids, attention_mask=mask).logits[:, 0].float()


def pair_losses(
    chosen: Float[Tensor, "N"], rejected: Float[Tensor, "N"], *, margin: Float[Tensor, "N"] | float = 0.0
) -> Float[Tensor, "N"]:
    """Return -log sigmoid(s_chosen - s_rejected - margin) of each pair.

    The likelihood of Bradley and Terry (1952); the margin asks for a distance, larger where one answer is much better
    (Llama 2, arXiv 2307.09288, section 3.2.2).
    """
    return -torch.nn.functional.logsigmoid(chosen - rejected - margin)


def batches_by_length(lengths: dict[int, int], *, max_batch_tokens: int) -> list[list[int]]:
    """Return the keys in batches, the longest first: (number in it) * (its longest) <= max_batch_tokens, or one alone."""
    batches: list[list[int]] = []
    for key in sorted(lengths, key=lambda key: (-lengths[key], key)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_batch_tokens:
            batches[-1].append(key)
        else:
            batches.append([key])
    return batches


def without_special_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text without what the tokenizer would read as special tokens, also where taking one out makes another."""
    added: Any = getattr(tokenizer, "added_tokens_decoder", {})
    names = {*tokenizer.all_special_tokens, *(token.content for token in added.values() if token.special)} - {""}
    special = sorted(names, key=lambda token: (-len(token), token))
    while found := next((token for token in special if token in text), None):
        text = text.replace(found, "")
    return text


def load_reward_model(
    name: str,
    *,
    revision: str | None = None,
    compute_dtype: ComputeDtype = "float32",
    progress: Callable[[str], None] = lambda message: None,
) -> RewardModel:
    """Load a local directory or a hub id: a sequence classifier with one output. Code that comes with a model never runs.

    Raises:
        CoveyError: it cannot be found, has no trained head, or more outputs than one.
    """
    path = resolve_model(name, revision=revision, progress=progress, key="reward model")
    config = read_config(path, name)
    if config.num_labels != 1:
        raise CoveyError(
            f"the reward model {name!r} has {config.num_labels} outputs; a Bradley-Terry model has one. Choose another, or "
            "make one of a language model and preference pairs"
        )
    model, missing = read_classifier(path, name, config)
    if missing:
        raise CoveyError(
            f"the reward model {name!r} lacks {len(missing)} tensors ({', '.join(missing[:3])}): these are not the weights of "
            "a reward model. Make one of a language model and preference pairs"
        )
    return as_reward_model(model, path, name, compute_dtype=compute_dtype)


def new_reward_model(
    name: str,
    *,
    revision: str | None = None,
    compute_dtype: ComputeDtype = "float32",
    progress: Callable[[str], None] = lambda message: None,
) -> RewardModel:
    """Return a reward model made of a language model's body and a head of zeros: it gives every text 0 until it is trained.

    `name` is a bundled model, a local directory or a hub id. A head of zeros needs no random numbers and prefers nothing.

    Raises:
        CoveyError: it cannot be found, or transformers knows no sequence classifier of its kind.
    """
    path = resolve_model(name, revision=revision, progress=progress, key="reward model")
    config = read_config(path, name)
    config.num_labels = 1
    model, missing = read_classifier(path, name, config)
    body = f"{model.base_model_prefix}."
    if not missing or any(tensor.startswith(body) for tensor in missing):
        raise CoveyError(
            f"no reward model can be made of {name!r}: its weights must be those of a language model without such a head "
            f"(the new tensors would be {', '.join(missing[:3]) or 'none'})"
        )
    with torch.no_grad():
        for tensor in missing:
            model.get_parameter(tensor).zero_()
    return as_reward_model(model, path, name, compute_dtype=compute_dtype)


def read_config(path: Path, name: str) -> Any:
    """Return the configuration of a model directory.

    Raises:
        CoveyError: there is none that transformers knows without code of the model's own.
    """
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CoveyError(f"the reward model {name!r} has no configuration that can be read in {path}: {error}") from error


def read_classifier(path: Path, name: str, config: Any) -> tuple[PreTrainedModel, list[str]]:
    """Return a float32 sequence classifier and the tensors that the directory lacks, which are random.

    Raises:
        CoveyError: it is no model that transformers can make one of.
    """
    shows_bar, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # It would warn of the new head, which is the point.
    try:
        with torch.random.fork_rng(devices=[]):
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                path,
                config=config,
                dtype=torch.float32,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CoveyError(
            f"the reward model {name!r} could not be loaded from {path}: {error}. It must be in the Hugging Face format with "
            "safetensors weights, and of a kind that transformers knows as a sequence classifier"
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shows_bar:
            transformers_logging.enable_progress_bar()
    model, info = loaded
    return model, sorted(info["missing_keys"])


def as_reward_model(model: PreTrainedModel, path: Path, name: str, *, compute_dtype: ComputeDtype) -> RewardModel:
    """Return the model with its tokenizer, without dropout, ready to score."""
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CoveyError(f"the reward model {name!r} has no tokenizer that can be read in {path}: {error}") from error
    embeddings: Any = model.get_input_embeddings()
    embeddings.padding_idx = None  # Where padding is also the end token, its embedding would never be trained.
    model.config.use_cache = False
    model.eval()
    uses_plain_template = not tokenizer.chat_template
    if uses_plain_template:
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    identity = ModelIdentity(
        name=name,
        path=str(path),
        sha256=weights_sha256(path),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        note="",
    )
    return RewardModel(
        model=model,
        tokenizer=tokenizer,
        identity=identity,
        compute_dtype=choose_compute_dtype(compute_dtype),
        uses_plain_template=uses_plain_template,
    )


def save_reward_model(reward_model: RewardModel, directory: Path) -> None:
    """Write a plain Hugging Face directory: safetensors, config, tokenizer, chat template, the base's licence and notice."""
    directory.mkdir(parents=True, exist_ok=True)
    reward_model.model.save_pretrained(directory)
    reward_model.tokenizer.save_pretrained(directory)
    for notice in NOTICES:
        source = Path(reward_model.identity.path, notice)
        if source.is_file() and not (directory / notice).exists():
            shutil.copyfile(source, directory / notice)
