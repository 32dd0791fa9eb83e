"""Loading a model: which tokens end, how prompts are rendered, what is refused, and how weights are told apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from covey.models.policy import Policy, choose_compute_dtype, load_policy, save_model_directory, weights_digest
from covey.models.tiny import write_tiny_model
from covey.types import CoveyError, Message

BOS, END = 256, 257
HELLO = [Message(role="user", content="hello")]


@pytest.fixture
def directory(tiny_directory: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be spoilt."""
    return Path(shutil.copytree(tiny_directory, tmp_path / "model"))


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# --- loading -----------------------------------------------------------------------------------------------------------


def test_weights_are_float32_and_dropout_is_off(shared_tiny_policy: Policy):
    assert {parameter.dtype for parameter in shared_tiny_policy.model.parameters()} == {torch.float32}
    assert not any(module.training for module in shared_tiny_policy.model.modules())


def test_weights_that_were_saved_in_bfloat16_are_loaded_as_float32(directory: Path):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    model.save_pretrained(directory)
    assert {parameter.dtype for parameter in load_policy(str(directory)).model.parameters()} == {torch.float32}


def test_every_end_token_that_anything_names_ends_a_completion(directory: Path):
    edit(directory / "generation_config.json", eos_token_id=[3, 4])
    edit(directory / "config.json", eos_token_id=5)
    assert load_policy(str(directory)).stop_ids == {3, 4, 5, END}


def test_one_end_token_is_a_set_of_one(shared_tiny_policy: Policy):
    assert shared_tiny_policy.stop_ids == {END}


def test_a_tokenizer_without_end_token_adds_none(directory: Path):
    edit(directory / "tokenizer_config.json", eos_token=None)
    assert load_policy(str(directory)).stop_ids == {END}


def test_the_gradient_of_the_padding_token_is_not_dropped(tiny_policy: Policy):
    # Padding and end of turn are one token here, as in SmolLM2.
    embedding = tiny_policy.model.get_input_embeddings()
    assert embedding.padding_idx is None
    embedding(torch.tensor([END])).sum().backward()
    assert embedding.weight.grad is not None
    assert embedding.weight.grad[END].abs().sum() > 0


def test_the_identity_names_the_weights(tiny_directory: Path, directory: Path, shared_tiny_policy: Policy):
    identity = shared_tiny_policy.identity
    assert (identity.name, identity.path) == (str(tiny_directory), str(tiny_directory))
    assert identity.num_parameters == sum(parameter.numel() for parameter in shared_tiny_policy.model.parameters())
    assert load_policy(str(directory)).identity.sha256 == identity.sha256
    write_tiny_model(directory, seed=1)
    assert load_policy(str(directory)).identity.sha256 != identity.sha256


def test_a_bundled_name_is_a_model():
    assert load_policy("tiny").identity.name == "tiny"


@pytest.mark.parametrize("name", ["no-such-model", "no/such-model", "no such model!", "/no/such/directory"])
def test_an_unknown_model_is_refused_with_what_would_be_one(name: str):
    with pytest.raises(CoveyError, match=rf"model\.name='{name}' is neither a bundled model \(.*tiny.*nor a local directory"):
        load_policy(name)


def test_a_directory_without_model_is_refused(tmp_path: Path):
    with pytest.raises(CoveyError, match=r"could not be loaded from .*safetensors weights"):
        load_policy(str(tmp_path))


def test_pickled_weights_are_never_loaded(directory: Path, shared_tiny_policy: Policy):
    (directory / "model.safetensors").unlink()
    torch.save(shared_tiny_policy.model.state_dict(), directory / "pytorch_model.bin")
    with pytest.raises(CoveyError, match="could not be loaded"):
        load_policy(str(directory))


def test_damaged_weights_are_refused(directory: Path):
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CoveyError, match="could not be loaded"):
        load_policy(str(directory))


def test_weights_with_a_missing_tensor_are_refused(directory: Path):
    """It would be filled with random numbers."""
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CoveyError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load_policy(str(directory))


def test_weights_of_other_shapes_than_the_config_says_are_refused(directory: Path):
    edit(directory / "config.json", intermediate_size=64)
    with pytest.raises(CoveyError, match="could not be loaded"):
        load_policy(str(directory))


@pytest.mark.parametrize("option", ["final_logit_softcapping", "logit_scale", "logits_scaling"])
def test_a_head_that_does_more_than_project_is_refused(directory: Path, option: str):
    edit(directory / "config.json", **{option: 30.0})
    with pytest.raises(CoveyError, match=rf"has {option}=30\.0: its output head does more than a projection"):
        load_policy(str(directory))


@pytest.mark.parametrize("value", [None, 1, 1.0])
def test_a_head_option_that_does_nothing_is_none(directory: Path, value: float | None):
    edit(directory / "config.json", logit_scale=value)
    load_policy(str(directory))


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_compute_dtype_can_be_named(name: Any, dtype: torch.dtype):
    assert choose_compute_dtype(name) == dtype


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)],
    ids=["avx512", "amx", "neither"],
)
def test_the_dtype_follows_what_the_processor_multiplies_natively(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], dtype: torch.dtype
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_compute_dtype("auto") == dtype


def test_the_longest_sequence_is_that_of_the_model(shared_tiny_policy: Policy):
    assert shared_tiny_policy.max_sequence_tokens == 2048


# --- rendering ---------------------------------------------------------------------------------------------------------


def test_a_prompt_is_rendered_by_the_chat_template_ready_to_be_answered(shared_tiny_policy: Policy):
    expected = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert shared_tiny_policy.tokenizer.decode(shared_tiny_policy.encode(HELLO)) == expected
    assert not shared_tiny_policy.uses_plain_template


def test_a_base_model_gets_a_plain_template(tmp_path: Path):
    policy = load_policy(str(write_tiny_model(tmp_path, has_chat_template=False)))
    turns = [Message(role="system", content="Be short."), *HELLO]
    assert policy.uses_plain_template
    assert policy.tokenizer.decode(policy.encode(turns)) == "<|im_start|>System: Be short.\nUser: hello\nAssistant:"


@pytest.mark.parametrize("has_chat_template", [True, False])
def test_a_tokenizer_that_adds_its_own_beginning_gives_no_second_one(tmp_path: Path, has_chat_template: bool):
    """The template has the beginning in it already."""
    write_tiny_model(tmp_path, has_chat_template=False)
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", BOS)]
    )
    if has_chat_template:
        tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(tmp_path)
    policy = load_policy(str(tmp_path))
    assert policy.tokenizer.encode("hello").count(BOS) == 1
    assert policy.encode(HELLO).count(BOS) == 1
    assert policy.encode(HELLO)[0] == BOS


def test_a_tokenizer_without_beginning_token_gives_a_plain_template_without_one(tmp_path: Path):
    write_tiny_model(tmp_path, has_chat_template=False)
    edit(tmp_path / "tokenizer_config.json", bos_token=None)
    policy = load_policy(str(tmp_path))
    assert policy.tokenizer.decode(policy.encode(HELLO)) == "User: hello\nAssistant:"


def test_special_tokens_in_a_text_are_left_out_of_what_is_shown(shared_tiny_policy: Policy):
    assert shared_tiny_policy.decode([BOS, *b"a  b .", END]) == "a  b ."


# --- telling weights apart ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("rate", [1e-3, 1e-6])
def test_any_optimizer_step_changes_the_digest(tiny_policy: Policy, make: Any, rate: float):
    model = tiny_policy.model
    before = weights_digest(model, torch.float32)
    optimizer = make(model.parameters(), lr=rate, weight_decay=0.0)
    model(torch.tensor([[1, 2, 3]])).logits.logsumexp(dim=-1).sum().backward()
    optimizer.step()
    assert weights_digest(model, torch.float32) != before


def test_the_digest_sees_a_change_of_any_tensor(tiny_policy: Policy):
    model = tiny_policy.model
    digests = [weights_digest(model, torch.float32)]
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.add_(1e-3)
        digests.append(weights_digest(model, torch.float32))
    assert len(set(digests)) == len(digests)


def test_the_digest_is_of_the_weights_as_they_are_served(shared_tiny_policy: Policy, tiny_policy: Policy):
    served = tiny_policy.model.to(torch.bfloat16)
    assert weights_digest(served, torch.bfloat16) == weights_digest(shared_tiny_policy.model, torch.bfloat16)
    assert weights_digest(served, torch.float32) != weights_digest(shared_tiny_policy.model, torch.float32)


def test_a_saved_policy_is_an_ordinary_model_directory(shared_tiny_policy: Policy, tmp_path: Path):
    save_model_directory(shared_tiny_policy, tmp_path)
    again = load_policy(str(tmp_path))
    assert weights_digest(again.model, torch.float32) == weights_digest(shared_tiny_policy.model, torch.float32)
    assert again.encode(HELLO) == shared_tiny_policy.encode(HELLO)
    assert isinstance(again.tokenizer, PreTrainedTokenizerFast)


def test_the_describing_files_make_a_directory_of_weights_a_model(shared_tiny_policy: Policy, tmp_path: Path):
    for name, content in shared_tiny_policy.describing_files().items():
        (tmp_path / name).write_bytes(content)
    shutil.copy(Path(shared_tiny_policy.identity.path) / "model.safetensors", tmp_path)
    again = load_policy(str(tmp_path))
    assert (again.stop_ids, again.encode(HELLO)) == (shared_tiny_policy.stop_ids, shared_tiny_policy.encode(HELLO))
