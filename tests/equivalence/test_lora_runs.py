"""Runs that train adapters: what their checkpoints hold, that they resume to the same bits, and what is exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.digits import digest, leave_out_slow_parts, newest, resume_digits, stop_at, tiny_model, train_digits
from transformers import AutoModelForCausalLM, AutoTokenizer

from covey.api import Run
from covey.export import export_model
from covey.models.policy import load_policy
from covey.types import CoveyError

LORA: dict[str, Any] = {"lora__rank": 4, "learning_rate": 5e-2, "beta": 0.05}
IDS = torch.arange(1, 60)[None]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module", autouse=True)
def _no_slow_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        leave_out_slow_parts(patch)
        yield


@pytest.fixture(scope="module")
def alone(directory: Path) -> Run:
    """A run that was left alone; its base model carries a licence."""
    (tiny_model(directory / "model") / "LICENSE").write_text("do what is right")
    return train_digits(directory, "alone", **LORA)


def logits(directory: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()(IDS).logits


def bits_of(run: Path) -> dict[str, str]:
    checkpoint = newest(run)
    files = {name: digest(checkpoint / name) for name in ("adapter_model.safetensors", "optimizer.safetensors")}
    return files | {"metrics": (run / "metrics.jsonl").read_text(), "eval": (run / "eval.jsonl").read_text()}


# --- Checkpoints ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_adapters_and_their_optimizer_state_and_no_weights_of_the_base(directory: Path, alone: Run):
    checkpoint = newest(alone.path)
    weights, moments = load_file(checkpoint / "adapter_model.safetensors"), load_file(checkpoint / "optimizer.safetensors")
    assert not (checkpoint / "model.safetensors").exists()
    assert {name.rpartition(".lora_")[2] for name in weights} == {"A.weight", "B.weight"}
    num_trained = sum(weight.numel() for weight in weights.values())
    assert sum(moment.numel() for name, moment in moments.items() if "exp_avg" in name) == 2 * num_trained
    assert num_trained < 0.1 * sum(weight.numel() for weight in load_file(directory / "model" / "model.safetensors").values())


def test_the_adapters_have_moved_and_kl_started_at_0(alone: Run):
    weights = load_file(newest(alone.path) / "adapter_model.safetensors")
    assert all(bool(weight.any()) for name, weight in weights.items() if "lora_B" in name)
    lines = [event["message"] for event in _events(alone.path) if event["kind"] == "self_check"]
    assert "KL to the reference starts at exactly 0" in lines
    assert alone.metrics[-1]["kl/ref"] > 1e-3


def _events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


VARIANTS: dict[str, dict[str, Any]] = {
    "merged": {},
    "unmerged": {"lora__sampling": "unmerged"},
    "native, in bfloat16": {"engine__name": "native", "compute_dtype": "bfloat16"},
    "several updates of some layers": {"lora__targets": ["q_proj", "down_proj"], "num_iterations": 2, "num_minibatches": 2},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_that_was_stopped_resumes_to_the_same_bits(directory: Path, variant: str):
    changes, name = LORA | VARIANTS[variant], f"stopped {variant}"
    expected = bits_of(train_digits(directory, f"alone {variant}", **changes).path)
    for step in (1, 4):
        reward = stop_at(directory / name, step)
        train_digits(directory, name, reward=reward, **changes) if step == 1 else resume_digits(directory, name, reward=reward)
    resume_digits(directory, name)
    assert bits_of(directory / name) == expected


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(directory: Path, alone: Run):
    assert bits_of(train_digits(directory, "again", **LORA).path) == bits_of(alone.path)
    other = newest(train_digits(directory, "other seed", seed=1, **LORA).path)
    assert digest(other / "adapter_model.safetensors") != digest(newest(alone.path) / "adapter_model.safetensors")


def test_changed_base_weights_are_refused(directory: Path):
    from covey.models.tiny import write_tiny_model

    model = write_tiny_model(directory / "changing")
    train_digits(directory, "changing base", model=str(model), num_steps=1, **LORA)
    write_tiny_model(model, seed=1)
    with pytest.raises(CoveyError, match=r"the weights of .* are not those"):
        resume_digits(directory, "changing base", num_steps=2)


def test_another_rank_is_refused_when_a_run_goes_on(directory: Path):
    train_digits(directory, "rank", num_steps=1, **LORA)
    with pytest.raises(CoveyError, match=r"lora\.rank=8: the run was started with 4"):
        resume_digits(directory, "rank", lora__rank=8)


# --- Starting from an adapter -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported_adapter(directory: Path, alone: Run) -> Path:
    return export_model(alone.path, directory / "adapter", adapter_only=True)


@pytest.mark.parametrize(("reference", "is_near"), [("start", True), ("base", False)])
def test_a_run_starts_from_an_adapter(directory: Path, exported_adapter: Path, reference: str, is_near: bool):
    start = {"lora__adapter": str(exported_adapter), "lora__reference": reference}
    run = train_digits(directory, f"from {reference}", **(LORA | start | {"num_steps": 2}))
    assert (run.metrics[0]["kl/ref"] == 0.0) == is_near
    checks = [event["message"] for event in _events(run.path) if event["kind"] == "self_check"]
    assert ("KL to the reference starts at exactly 0" in checks) == is_near


def test_a_starting_adapter_that_has_changed_is_refused_when_the_run_goes_on(directory: Path, exported_adapter: Path):
    copied = directory / "copied adapter"
    shutil.copytree(exported_adapter, copied)
    train_digits(directory, "start changes", num_steps=1, lora__adapter=str(copied), **LORA)
    other = newest(train_digits(directory, "other adapter", seed=3, num_steps=1, **LORA).path)
    shutil.copyfile(other / "adapter_model.safetensors", copied / "adapter_model.safetensors")
    with pytest.raises(CoveyError, match=r"the adapter .* is not the one that"):
        resume_digits(directory, "start changes", num_steps=2)


# --- Export -----------------------------------------------------------------------------------------------------------


def test_the_merged_export_is_a_plain_model_with_the_logits_of_base_and_adapter(directory: Path, alone: Run):
    merged = export_model(alone.path, directory / "merged")
    names = {file.name for file in merged.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "LICENSE"} <= names
    assert not [name for name in names if "adapter" in name or name in ("base.json", "optimizer.safetensors", "state.json")]
    assert (merged / "LICENSE").read_text() == "do what is right"
    assert set(load_file(merged / "model.safetensors")) == set(load_file(directory / "model" / "model.safetensors"))
    torch.testing.assert_close(logits(merged), logits(newest(alone.path)), atol=1e-4, rtol=0)
    assert not torch.allclose(logits(merged), logits(directory / "model"), atol=0.1)


def test_the_adapter_alone_loads_in_peft_and_gives_the_same_logits(directory: Path, alone: Run, exported_adapter: Path):
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(directory / "model", dtype=torch.float32)
    with torch.no_grad():
        found = PeftModel.from_pretrained(base, exported_adapter).eval()(IDS).logits
    assert torch.equal(found, logits(newest(alone.path)))
    assert {"LICENSE", "tokenizer.json", "base.json"} <= {file.name for file in exported_adapter.iterdir()}
    assert not {"optimizer.safetensors", "state.json"} & {file.name for file in exported_adapter.iterdir()}
    tokenizer: Any = AutoTokenizer.from_pretrained(exported_adapter)
    assert tokenizer.chat_template


def test_a_checkpoint_is_loaded_as_a_model_to_ask(alone: Run):
    policy = load_policy(str(alone.model_path), compute_dtype="float32")
    with torch.no_grad():
        torch.testing.assert_close(policy.model(IDS).logits, logits(newest(alone.path)), atol=1e-4, rtol=0)


def test_a_run_that_trained_every_weight_has_no_adapter_to_export(directory: Path):
    run = train_digits(directory, "every weight", num_steps=1)
    with pytest.raises(CoveyError, match="trained every weight and has no adapter"):
        export_model(run.path, directory / "none", adapter_only=True)
    assert not (directory / "none").exists()


def test_an_export_that_fails_leaves_nothing_behind(directory: Path):
    from covey.models.tiny import write_tiny_model

    model = write_tiny_model(directory / "gone")
    run = train_digits(directory, "base is gone", model=str(model), num_steps=1, **LORA)
    shutil.rmtree(model)
    with pytest.raises(CoveyError, match=r"gone' is neither"):
        export_model(run.path, directory / "failed")
    assert not [entry for entry in directory.iterdir() if "failed" in entry.name]
