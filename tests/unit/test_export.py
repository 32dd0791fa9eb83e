"""The trained model leaves the run directory as a plain Hugging Face directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.digits import digest, leave_out_slow_parts, newest, tiny_model, train_digits
from transformers import AutoModelForCausalLM, AutoTokenizer

from covey.api import Run
from covey.export import export_model
from covey.types import CoveyError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with two checkpoints, of a base model that carries its licence."""
    directory = tmp_path_factory.mktemp("export")
    base = tiny_model(directory / "model")
    (base / "LICENSE").write_text("do what is right")
    (base / "NOTICE.md").write_text("random numbers")
    (base / "README.md").write_text("a model card that is about the base model only")
    with pytest.MonkeyPatch.context() as patch:
        leave_out_slow_parts(patch)
        return train_digits(directory, "run", num_steps=3, learning_rate=1e-2)


@pytest.fixture(scope="module")
def exported(run: Run) -> Path:
    return export_model(run.path, run.path.parent / "models" / "mine")


def logits(directory: Path, text: str = "Say digits") -> torch.Tensor:
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    with torch.no_grad():
        return model(ids).logits


def test_transformers_loads_it_and_gives_the_trained_logits(run: Run, exported: Path) -> None:
    assert torch.equal(logits(exported), logits(newest(run.path)))
    assert not torch.allclose(logits(exported), logits(run.path.parent / "model"), atol=1e-2)


def test_the_newest_checkpoint_is_exported(run: Run, exported: Path) -> None:
    assert newest(run.path).name == "step-000003"
    assert digest(exported / "model.safetensors") == digest(newest(run.path) / "model.safetensors")


def test_it_holds_the_model_its_tokenizer_and_its_notices_and_nothing_of_the_run(exported: Path) -> None:
    names = {file.name for file in exported.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "LICENSE", "NOTICE.md"} <= names
    assert names & {"optimizer.safetensors", "state.json", "MANIFEST.json", "README.md"} == set()
    assert not [name for name in names if name.startswith(".") or name.endswith((".bin", ".pt", ".pkl"))]
    assert (exported / "LICENSE").read_text() == "do what is right"


def test_the_tied_output_embedding_is_written_once(exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(exported)
    assert config["tie_word_embeddings"]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_nothing_is_left_beside_it(exported: Path) -> None:
    assert [entry.name for entry in exported.parent.iterdir()] == ["mine"]


def test_an_existing_target_is_refused_and_left_as_it_is(run: Run, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(CoveyError, match="exists already; nothing is overwritten"):
        export_model(run.path, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["precious"]


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.toml").write_text("")
    with pytest.raises(CoveyError, match="no checkpoint to export yet"):
        export_model(run, tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CoveyError, match="is not the directory of a run"):
        export_model(tmp_path, tmp_path / "mine")


def test_a_damaged_newest_checkpoint_is_not_exported(run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    weights = copy / "checkpoints" / "step-000003" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    exported = export_model(copy, tmp_path / "mine")
    assert digest(exported / "model.safetensors") == digest(run.path / "checkpoints" / "step-000002" / "model.safetensors")
