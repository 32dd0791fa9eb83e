"""The tiny random model: deterministic, ordinary to load, with the traps of real tokenizers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from covey.models.tiny import write_tiny_model
from covey.types import CoveyError


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Any:
    return AutoTokenizer.from_pretrained(directory)


def file_hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def test_the_same_seed_gives_the_same_bytes(directory: Path, tmp_path: Path):
    torch.manual_seed(123)
    assert file_hashes(write_tiny_model(tmp_path, seed=0)) == file_hashes(directory)


def test_another_seed_changes_the_weights_and_nothing_else(directory: Path, tmp_path: Path):
    ours, theirs = file_hashes(directory), file_hashes(write_tiny_model(tmp_path, seed=1))
    assert [name for name in ours if ours[name] != theirs[name]] == ["model.safetensors"]


def test_writing_leaves_the_global_random_state_alone(tmp_path: Path):
    before = torch.random.get_rng_state()
    write_tiny_model(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_it_loads_as_a_float32_llama_with_grouped_heads_and_tied_embeddings(directory: Path):
    model = AutoModelForCausalLM.from_pretrained(directory)
    config = model.config
    assert (config.model_type, config.num_attention_heads, config.num_key_value_heads) == ("llama", 4, 2)
    assert model.dtype == torch.float32
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model(torch.tensor([[72, 105]])).logits.shape == (1, 2, 264)


def test_sizes_can_be_chosen(tmp_path: Path):
    write_tiny_model(tmp_path, hidden_size=32, num_layers=1, vocab_size=300)
    config = AutoModelForCausalLM.from_pretrained(tmp_path).config
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (32, 1, 300)


def test_padding_is_the_end_of_turn_for_tokenizer_and_model(directory: Path, tokenizer: Any):
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 257
    config = AutoModelForCausalLM.from_pretrained(directory).generation_config
    assert (config.eos_token_id, config.pad_token_id) == (257, 257)


def test_the_model_has_more_rows_than_the_tokenizer_has_tokens(tokenizer: Any):
    assert len(tokenizer) == 258


@settings(max_examples=50)
@given(text=st.text())
def test_text_encodes_to_its_bytes_and_back(tokenizer: Any, text: str):
    token_ids = tokenizer.encode(text)
    assert token_ids == list(text.encode())
    assert tokenizer.decode(token_ids) == text


@given(token_ids=st.lists(st.integers(0, 263)))
def test_every_sequence_of_ids_decodes(tokenizer: Any, token_ids: list[int]):
    expected = bytes(token_id for token_id in token_ids if token_id < 256).decode(errors="replace")
    decoded = tokenizer.decode(token_ids, skip_special_tokens=True)
    assert decoded.replace("\ufffd", "") == expected.replace("\ufffd", "")


def test_special_tokens_are_single_ids_that_can_be_left_out(tokenizer: Any):
    token_ids = tokenizer.encode("<|im_start|>a<|im_end|>")
    assert token_ids == [256, 97, 257]
    assert tokenizer.decode(token_ids, skip_special_tokens=True) == "a"


def test_the_chat_template_renders_chatml_with_a_generation_prompt(tokenizer: Any):
    messages = [{"role": "user", "content": "2 + 2?"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"


def test_the_generation_prompt_is_left_out_on_request(tokenizer: Any):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    assert rendered == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"


def test_a_base_model_has_no_chat_template(tmp_path: Path):
    write_tiny_model(tmp_path, has_chat_template=False)
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.chat_template is None


def test_a_width_that_does_not_split_into_heads_is_refused(tmp_path: Path):
    with pytest.raises(CoveyError, match="multiple of 8"):
        write_tiny_model(tmp_path, hidden_size=36)


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(tmp_path: Path):
    with pytest.raises(CoveyError, match="at least 258"):
        write_tiny_model(tmp_path, vocab_size=257)
