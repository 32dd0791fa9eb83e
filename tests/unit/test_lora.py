"""Adapters: where they go, how they start, which files they are, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.adapters import SPEC, adapted, peft_model

from covey.config import ConfigError, load_recipe
from covey.models.lora import (
    AdapterSpec,
    adapted_layers,
    adapted_names,
    adapter_state,
    frozen_copy,
    merge_adapters,
    merged_parameters,
    without_adapters,
)
from covey.models.policy import Policy, load_policy, save_model_directory, with_adapters
from covey.types import CoveyError

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.arange(1, 60)[None]


def copy_of(policy: Policy) -> Policy:
    return dataclasses.replace(policy, model=copy.deepcopy(policy.model))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


# --- Where adapters go, and how they start ----------------------------------------------------------------------------


def test_all_linear_layers_but_the_head_get_an_adapter(shared_tiny_policy: Policy):
    names = [name.rpartition(".")[2] for name in adapted_layers(adapted(shared_tiny_policy).model)]
    assert names == PROJECTIONS * 2


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("q_proj", "v_proj"), [f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ("q_proj", "v_proj")]),
        (("layers.1.mlp.up_proj",), ["model.layers.1.mlp.up_proj"]),
        (("1.mlp.up_proj",), ["model.layers.1.mlp.up_proj"]),
    ],
    ids=str,
)
def test_targets_are_ends_of_names_in_the_order_of_the_model(
    shared_tiny_policy: Policy, targets: tuple[str, ...], expected: list[str]
):
    spec = dataclasses.replace(SPEC, targets=targets)
    assert list(adapted_layers(adapted(shared_tiny_policy, spec=spec).model)) == expected


def test_of_many_single_layers_those_get_an_adapter_and_no_others(tmp_path: Path):
    """peft shortens long lists of names to their ends, which must not reach further than the list."""
    from covey.models.tiny import write_tiny_model

    policy = load_policy(str(write_tiny_model(tmp_path / "deep", num_layers=24)), compute_dtype="float32")
    wanted = tuple(f"layers.{layer}.self_attn.q_proj" for layer in range(22))
    found = list(adapted_layers(adapted(policy, spec=dataclasses.replace(SPEC, targets=wanted)).model))
    assert found == [f"model.{name}" for name in wanted]


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "qproj", "proj", "input_layernorm", "all-linear"])
def test_a_target_that_is_no_linear_layer_is_refused_with_those_that_are(shared_tiny_policy: Policy, target: str):
    with pytest.raises(CoveyError, match=rf"is called '{target}'\. This model has down_proj, gate_proj, k_proj") as refusal:
        adapted_names(shared_tiny_policy.model, ["q_proj", target])
    assert "lora.targets=['q_proj'" in str(refusal.value)


def test_adapters_start_as_pefts_do_with_b_at_0(shared_tiny_policy: Policy):
    policy = with_adapters(copy_of(shared_tiny_policy), SPEC, start="", seed=0)
    for layer in adapted_layers(policy.model).values():
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert (down.shape, up.shape) == ((SPEC.rank, layer.in_features), (layer.out_features, SPEC.rank))
        assert (down.dtype, up.dtype) == (torch.float32, torch.float32)
        assert not up.any()
        bound = layer.in_features**-0.5  # of kaiming_uniform_ with a = sqrt(5)
        assert 0.9 * bound < float(down.detach().abs().max()) <= bound
        assert layer.scaling["default"] == SPEC.alpha / SPEC.rank


def test_the_seed_and_nothing_else_decides_how_adapters_start(shared_tiny_policy: Policy):
    def start(seed: int, spec: AdapterSpec = SPEC) -> dict[str, torch.Tensor]:
        return adapter_state(with_adapters(copy_of(shared_tiny_policy), spec, start="", seed=seed).model)

    torch.manual_seed(1)
    first, drawn = start(0), torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)  # The global state was left alone.
    again, other = start(0), start(1)
    fewer = start(0, dataclasses.replace(SPEC, targets=("down_proj",)))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[name], fewer[name]) for name in fewer)
    downs = [name for name in first if "lora_A" in name]
    assert not any(torch.equal(first[name], other[name]) for name in downs)
    assert len({first[name].flatten()[:5].sum().item() for name in downs}) == len(downs)


def test_no_module_is_left_in_training_mode(shared_tiny_policy: Policy):
    assert not any(module.training for module in adapted(shared_tiny_policy).model.modules())


# --- Merged, off, copied ----------------------------------------------------------------------------------------------


def test_merged_parameters_are_those_that_peft_merges(shared_tiny_policy: Policy):
    policy = adapted(shared_tiny_policy)
    theirs = dict(peft_model(shared_tiny_policy, policy).merge_and_unload().named_parameters())
    ours = dict(merged_parameters(policy.model))
    assert list(ours) == list(theirs)
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-6, rtol=0)
    changed = [not torch.equal(ours[name], weight) for name, weight in shared_tiny_policy.model.named_parameters()]
    assert sum(changed) == 14


def test_the_merged_parameters_of_a_plain_model_are_its_own(shared_tiny_policy: Policy):
    named = dict(shared_tiny_policy.model.named_parameters())
    assert {name: weight.data_ptr() for name, weight in merged_parameters(shared_tiny_policy.model)} == {
        name: weight.data_ptr() for name, weight in named.items()
    }


def test_merging_for_good_leaves_an_ordinary_model_that_computes_the_same(shared_tiny_policy: Policy):
    model = adapted(shared_tiny_policy).model
    expected = logits(model)
    merge_adapters(model)
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=0)
    plain = shared_tiny_policy.model
    assert [(name, type(module)) for name, module in model.named_modules()] == [
        (name, type(module)) for name, module in plain.named_modules()
    ]
    assert all(weight.requires_grad for weight in model.parameters())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_without_adapters_is_the_plain_model_around_the_same_tensors(shared_tiny_policy: Policy):
    policy = adapted(shared_tiny_policy)
    plain = without_adapters(policy.model)
    assert torch.equal(logits(plain), logits(shared_tiny_policy.model))
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in shared_tiny_policy.model.named_parameters()]
    own = {weight.data_ptr() for weight in policy.model.parameters()}
    assert all(weight.data_ptr() in own for weight in plain.parameters())
    assert len(adapted_layers(policy.model)) == 14  # The policy keeps its own.


def test_the_merged_parameters_of_a_copy_with_adapters_off_are_the_plain_ones(shared_tiny_policy: Policy):
    held = frozen_copy(adapted(shared_tiny_policy).model, adapters_on=False)
    plain = dict(shared_tiny_policy.model.named_parameters())
    assert all(torch.equal(weight, plain[name]) for name, weight in merged_parameters(held))


# --- Files ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from covey.models.tiny import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def plain(base: Path) -> Policy:
    return load_policy(str(base), compute_dtype="float32")


@pytest.fixture
def saved(plain: Policy, tmp_path: Path) -> Path:
    """An adapter of the base, written as a checkpoint has it."""
    policy = adapted(plain)
    directory = tmp_path / "adapter"
    directory.mkdir()
    for name, data in policy.describing_files().items():
        (directory / name).write_bytes(data)
    save_file(
        {name: weight.detach() for name, weight in adapter_state(policy.model).items()}, directory / "adapter_model.safetensors"
    )
    return directory


def test_peft_loads_our_files(plain: Policy, saved: Path):
    from peft import PeftModel

    theirs = PeftModel.from_pretrained(copy.deepcopy(plain.model), saved).eval()
    assert torch.equal(logits(theirs), logits(adapted(plain).model))
    assert not torch.allclose(logits(theirs), logits(plain.model), atol=0.1)


def test_transformers_loads_our_files_with_the_base_that_they_name(plain: Policy, saved: Path):
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32).eval()
    assert torch.equal(logits(theirs), logits(adapted(plain).model))


def test_we_load_pefts_files(plain: Policy, tmp_path: Path):
    theirs = peft_model(plain, adapted(plain))
    theirs.save_pretrained(tmp_path / "theirs")
    policy = with_adapters(copy_of(plain), SPEC, start=str(tmp_path / "theirs"), seed=5)
    assert torch.equal(logits(policy.model), logits(theirs))
    assert policy.adapters is not None
    assert policy.adapters.start_sha256


def test_an_adapter_is_loaded_as_a_model_of_its_base_with_the_adapter_merged(plain: Policy, saved: Path):
    policy = load_policy(str(saved), compute_dtype="float32")
    torch.testing.assert_close(logits(policy.model), logits(adapted(plain).model), atol=1e-4, rtol=0)
    assert policy.adapters is None
    assert not adapted_layers(policy.model)
    assert policy.identity.sha256 not in ("", plain.identity.sha256)
    assert (policy.identity.name, policy.identity.path) == (str(saved), plain.identity.path)


def test_a_merged_adapter_is_saved_as_a_plain_model(plain: Policy, saved: Path, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    merged = load_policy(str(saved), compute_dtype="float32")
    save_model_directory(merged, tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)), logits(merged.model))


def test_the_configuration_is_the_same_text_for_the_same_adapters(saved: Path, plain: Policy):
    again = adapted(plain).describing_files()["adapter_config.json"]
    assert (saved / "adapter_config.json").read_bytes() == again
    config = json.loads(again)
    assert config["target_modules"] == sorted(config["target_modules"])
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 6, plain.identity.name)


# --- Refusals of saved adapters ---------------------------------------------------------------------------------------


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def start_from(plain: Policy, saved: Path, spec: AdapterSpec = SPEC) -> Policy:
    return with_adapters(copy_of(plain), spec, start=str(saved), seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 8}, "has rank 8 and alpha 6, .* Set lora.rank=8 and lora.alpha=6"),
        ({"lora_alpha": 16}, "Set lora.rank=4 and lora.alpha=16"),
        ({"use_dora": True}, "use_dora=True, which Covey does not reproduce"),
        ({"use_rslora": True}, "use_rslora=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save="),
        ({"something_new": {"a": 1}}, "something_new="),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', which changes the base weights"),
        ({"peft_type": "IA3"}, "an adapter of type 'IA3'; Covey knows LoRA only"),
    ],
    ids=str,
)
def test_an_adapter_that_is_not_the_recipes_plain_lora_is_refused(
    plain: Policy, saved: Path, changes: dict[str, Any], message: str
):
    edit(saved / "adapter_config.json", lambda config: config.update(changes))
    with pytest.raises(CoveyError, match=message):
        start_from(plain, saved)


def test_what_says_nothing_of_how_an_adapter_acts_is_not_compared(plain: Policy, saved: Path):
    changes = {"lora_dropout": 0.05, "peft_version": "0.1", "inference_mode": False, "base_model_name_or_path": "elsewhere"}
    edit(saved / "adapter_config.json", lambda config: config.update(changes))
    assert torch.equal(logits(start_from(plain, saved).model), logits(adapted(plain).model))


def test_an_adapter_of_other_layers_is_refused_with_the_names_that_fit(plain: Policy, saved: Path):
    spec = dataclasses.replace(SPEC, targets=("q_proj",))
    with pytest.raises(CoveyError, match=r'set lora.targets=\["down_proj", "gate_proj", .*"v_proj"\]'):
        start_from(plain, saved, spec)


def test_an_adapter_of_another_base_is_refused_by_its_hash(plain: Policy, saved: Path):
    edit(saved / "base.json", lambda facts: facts.update(sha256="0" * 64))
    with pytest.raises(CoveyError, match="was trained on other weights than these"):
        start_from(plain, saved)
    with pytest.raises(CoveyError, match="was trained on other weights than these"):
        load_policy(str(saved))


def test_an_adapter_of_another_shape_is_refused_without_a_hash(plain: Policy, saved: Path):
    (saved / "base.json").unlink()
    weights = load_file(saved / "adapter_model.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name][:, :-1].contiguous()
    save_file(weights, saved / "adapter_model.safetensors")
    with pytest.raises(CoveyError, match=r"belongs to another base model or is damaged: .* has shape"):
        start_from(plain, saved)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_directory_without_an_adapter_is_refused(plain: Policy, saved: Path, file: str):
    (saved / file).unlink()
    with pytest.raises(CoveyError, match="is no adapter that can be read"):
        start_from(plain, saved)


def test_a_missing_adapter_is_refused_by_its_key(plain: Policy, tmp_path: Path):
    with pytest.raises(CoveyError, match=r"lora.adapter='.*nowhere' is neither"):
        start_from(plain, tmp_path / "nowhere")


def test_an_adapter_that_names_no_base_is_no_model(saved: Path):
    edit(saved / "adapter_config.json", lambda config: config.update(base_model_name_or_path=None))
    with pytest.raises(CoveyError, match="does not say of which model"):
        load_policy(str(saved))


def test_a_missing_base_is_named(saved: Path, base: Path, tmp_path: Path):
    shutil.copytree(base, tmp_path / "other")
    edit(saved / "adapter_config.json", lambda config: config.update(base_model_name_or_path=str(tmp_path / "gone")))
    with pytest.raises(CoveyError, match=r"model.name='.*gone' is neither"):
        load_policy(str(saved))


def test_without_peft_the_message_says_how_to_get_it(plain: Policy, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(CoveyError, match=r"adapters need peft: pip install 'covey\[lora\]'"):
        with_adapters(copy_of(plain), SPEC, start="", seed=0)


# --- Recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lora.alpha=16"], "lora.alpha=16.0: it belongs to rank, which is 0"),
        (["lora.targets=['q_proj']"], r"lora.targets=\('q_proj',\): it belongs to rank"),
        (["lora.adapter=here"], "lora.adapter='here': it belongs to rank"),
        (["lora.sampling=unmerged"], "lora.sampling='unmerged': it belongs to rank"),
        (["lora.rank=4", "lora.dropout=0.1"], "lora.dropout=0.1: completions are sampled without dropout"),
        (["lora.rank=4", "lora.targets=[]"], "name at least one kind of layer"),
        (["lora.rank=4", "lora.alpha=0"], "lora.alpha=0"),
        (["lora.rank=-1"], "lora.rank=-1"),
        (["lora.rank=4", "algorithm.beta=0.1", "algorithm.reference_every=5"], "algorithm.reference_every=5 with lora.rank=4"),
        (["lora.rank=4", "lora.reference=base"], "lora.reference='base': the run has no reference model"),
        (["lora.rank=4", "lora.sampling=unmerged", "engine.name=native"], "lora.sampling='unmerged' with engine.name='native'"),
    ],
    ids=str,
)
def test_recipes_that_cannot_be_are_refused(overrides: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        load_recipe(None, overrides)


@pytest.mark.parametrize(
    ("overrides", "is_start"),
    [
        ([], True),
        (["lora.reference=base"], True),
        (["lora.adapter=here"], True),
        (["lora.adapter=here", "lora.reference=base"], False),
    ],
    ids=str,
)
def test_only_with_adapters_off_under_a_saved_one_does_kl_not_start_at_0(overrides: list[str], is_start: bool):
    recipe = load_recipe(None, ["lora.rank=4", "algorithm.beta=0.1", *overrides])
    assert recipe.lora.starts_at_reference == is_start
