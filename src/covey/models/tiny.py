"""A tiny model with random weights and a byte-level tokenizer, written without a network.

It is an ordinary Hugging Face directory, so tests and demonstrations take the same path as a real model. It keeps two
traits of real ones that code must not stumble over: padding and end of turn are the same token, and the embedding has
more rows than the tokenizer has tokens.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from covey.models.saving import save_model
from covey.types import CoveyError

__all__ = ["write_tiny_model"]

_NUM_HEADS = 4
_NUM_KV_HEADS = 2
_MAX_POSITIONS = 2048
# Wider than the usual 0.02, which at this width leaves the next-token distribution almost uniform.
_WEIGHT_STD = 0.15

_TURN_START = "<|im_start|>"
_TURN_END = "<|im_end|>"
_TURN_START_ID = 256
_TURN_END_ID = 257
_NUM_TOKENS = 258

_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_tiny_model(
    directory: Path,
    *,
    seed: int = 0,
    hidden_size: int = 64,
    num_layers: int = 2,
    vocab_size: int = 264,
    has_chat_template: bool = True,
) -> Path:
    """Write a random Llama and its tokenizer; return `directory`.

    It has 4 heads, 2 key-value heads, tied embeddings and float32 weights. The same arguments give the same bytes.
    Without a chat template it stands for a base model.
    """
    if hidden_size % (2 * _NUM_HEADS):
        raise CoveyError(f"hidden_size={hidden_size}: must be a multiple of {2 * _NUM_HEADS} ({_NUM_HEADS} even heads)")
    if vocab_size < _NUM_TOKENS:
        raise CoveyError(f"vocab_size={vocab_size}: must be at least {_NUM_TOKENS} (256 bytes and 2 special tokens)")
    directory.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=_NUM_HEADS,
        num_key_value_heads=_NUM_KV_HEADS,
        max_position_embeddings=_MAX_POSITIONS,
        initializer_range=_WEIGHT_STD,
        tie_word_embeddings=True,
        bos_token_id=_TURN_START_ID,
        eos_token_id=_TURN_END_ID,
        pad_token_id=_TURN_END_ID,
        dtype="float32",
    )
    save_model(_random_llama(config, seed), _byte_tokenizer(has_chat_template=has_chat_template), directory)
    return directory


def _random_llama(config: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """Return a model whose weights depend on `seed` alone and leave the global random state untouched."""
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config).float()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            # The one-dimensional weights are norms, which stay at one.
            if weight.dim() > 1:
                weight.normal_(0.0, config.initializer_range, generator=generator)
    return model


def _byte_tokenizer(*, has_chat_template: bool) -> PreTrainedTokenizerFast:
    """Return a tokenizer in which the id of a byte is its value; any ids decode, broken UTF-8 as U+FFFD."""
    vocab = {character: byte for byte, character in enumerate(_byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    # Added in the order of their ids, 256 and 257.
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (_TURN_START, _TURN_END)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_TURN_START,
        eos_token=_TURN_END,
        pad_token=_TURN_END,
        chat_template=_CHAT_TEMPLATE if has_chat_template else None,
        model_max_length=_MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def _byte_characters() -> list[str]:
    """Return the printable character by which byte-level tokenizers write each byte, in the order of the bytes.

    GPT-2's convention: printable Latin-1 stands for itself, the other bytes are numbered from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
