"""Models, checkpoints, data and recipes that hold a program: it does not run, and the file is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tests.digits import newest, resume_digits, train_digits

from covey.convert import read_trl
from covey.models.policy import load_policy
from covey.models.reward_model import load_reward_model
from covey.models.tiny import write_tiny_model
from covey.monitor.run_directory import read_jsonl
from covey.tasks.registry import find_task
from covey.types import CoveyError


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.path), "w")


pytestmark = pytest.mark.usefixtures("no_slow_parts")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_digits(tmp_path_factory.mktemp("finished"), "run", num_steps=2, checkpoint__every=1).path


def as_pickle(path: Path, canary: Path) -> None:
    path.write_bytes(pickle.dumps({"weight": Touch(canary)}))


def as_torch(path: Path, canary: Path) -> None:
    torch.save({"weight": Touch(canary)}, path)


def as_numpy(path: Path, canary: Path) -> None:
    with open(path, "wb") as file:  # By a file: numpy would put .npy behind another name.
        np.save(file, np.array([Touch(canary)], dtype=object), allow_pickle=True)


def as_yaml(path: Path, canary: Path) -> None:
    path.write_text(f"learning_rate: !!python/object/apply:builtins.open [{str(canary)!r}, w]\n")


READERS: dict[Callable[[Path, Path], None], Callable[[Path], Any]] = {
    as_pickle: lambda path: pickle.loads(path.read_bytes()),
    as_torch: lambda path: torch.load(path, weights_only=False),
    as_numpy: lambda path: np.load(path, allow_pickle=True),
    as_yaml: lambda path: yaml.load(path.read_text(), Loader=yaml.UnsafeLoader),
}


@pytest.mark.parametrize("plant", READERS)
def test_read_carelessly_what_is_planted_does_run(plant: Callable[[Path, Path], None], tmp_path: Path, canary: Path) -> None:
    """The positive control: each kind of file holds a program that a careless reader runs."""
    plant(tmp_path / "file", canary)
    assert not canary.exists()
    READERS[plant](tmp_path / "file")
    assert canary.exists()


WEIGHTS: dict[str, Callable[[Path, Path], None]] = {
    "pytorch_model.bin": as_torch,
    "pytorch_model.pt": as_torch,
    "model.pkl": as_pickle,
    "model.npy": as_numpy,
    "model.safetensors": as_pickle,
    "model-00001-of-00001.safetensors": as_torch,
}


@pytest.mark.parametrize("load", [load_policy, load_reward_model])
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_model_of_planted_weights_is_refused(name: str, load: Callable[[str], Any], tmp_path: Path, canary: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    (model / "model.safetensors").unlink()
    WEIGHTS[name](model / name, canary)
    with pytest.raises(CoveyError):
        load(str(model))
    assert not canary.exists()


@pytest.mark.parametrize("name", ["training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "tokenizer.pkl"])
def test_planted_files_beside_a_model_are_not_read(name: str, tmp_path: Path, canary: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    as_torch(model / name, canary)
    load_policy(str(model))
    assert not canary.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"])
def test_a_planted_file_in_a_checkpoint_is_damage(name: str, finished: Path, tmp_path: Path, canary: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    as_torch(newest(run) / name, canary)
    resume_digits(tmp_path, "run")
    assert not canary.exists()
    assert [event["kind"] for event in read_jsonl(run / "events.jsonl") if event["kind"] == "fallback"] == ["fallback"]


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.parquet", "data.jsonl.gz", "data.pkl", "data.npy"])
def test_planted_data_are_refused(name: str, tmp_path: Path, canary: Path) -> None:
    (as_numpy if name.endswith("npy") else as_pickle)(tmp_path / name, canary)
    options = {"path": str(tmp_path / name), "prompt_column": "q", "answer_column": "a", "verifier": "last_number"}
    with pytest.raises(CoveyError):
        find_task("files", level="", options=options)
    assert not canary.exists()


def test_a_planted_configuration_is_refused(tmp_path: Path, canary: Path) -> None:
    as_yaml(tmp_path / "grpo.yaml", canary)
    with pytest.raises(CoveyError):
        read_trl(tmp_path / "grpo.yaml")
    assert not canary.exists()


def test_a_chat_template_reaches_nothing_of_python(tmp_path: Path, canary: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    reach = "{{ cycler.__init__.__globals__.os.system('touch " + str(canary) + "') }}"
    (model / "chat_template.jinja").write_text(reach)
    policy = load_policy(str(model))
    from covey.types import Message

    with pytest.raises(Exception, match=r"(?i)unsafe|undefined|security"):
        policy.encode([Message(role="user", content="Hi")])
    assert not canary.exists()


# Code that a model brings along


def model_with_code(directory: Path, canary: Path) -> Path:
    """Write a model with a class of its own, which says that it has run."""
    model = write_tiny_model(directory)
    source = "from transformers import LlamaConfig, LlamaForCausalLM\n"
    source += f"open({str(canary)!r}, 'w').close()\nclass OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
    source += "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    (model / "modeling_own.py").write_text(source)
    config = json.loads((model / "config.json").read_text()) | {"model_type": "own"}
    config["auto_map"] = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"}
    (model / "config.json").write_text(json.dumps(config))
    return model


def test_a_models_code_does_not_run_unasked(tmp_path: Path, canary: Path) -> None:
    with pytest.raises(CoveyError, match="trust_remote_code"):
        load_policy(str(model_with_code(tmp_path / "model", canary)))
    assert not canary.exists()


def test_asked_for_it_runs_with_a_warning_and_its_hash_is_written_down(
    tmp_path: Path, canary: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = model_with_code(tmp_path / "model", canary)
    options = {"model": str(model), "model__trust_remote_code": True, "engine__name": "transformers"}
    run = train_digits(tmp_path, "run", num_steps=1, **options)
    assert canary.exists()
    assert "model.trust_remote_code=true: modeling_own.py runs with all that you may do" in capfd.readouterr().err
    code = json.loads((run.path / "env.json").read_text())["model"]["code"]
    assert [len(code["modeling_own.py"]), *code] == [64, "modeling_own.py"]
    resume_digits(tmp_path, "run", num_steps=2)
    with open(model / "modeling_own.py", "a") as file:
        file.write("# Something else.\n")
    with pytest.raises(CoveyError, match=r"is not what .* was started with: modeling_own\.py"):
        resume_digits(tmp_path, "run", num_steps=3)
