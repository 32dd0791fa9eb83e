"""Names from recipes and data stay in their place, files are private, and a model's own code does not run unasked."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.digits import leave_out_slow_parts, train_digits

from covey.models.policy import load_policy
from covey.models.tiny import write_tiny_model
from covey.types import CoveyError

HOSTILE_NAMES = ["../escaped", "/tmp/covey-escaped-run", "a/../../escaped", "..", ".", "a\x00b", "x" * 300, "a/b", "~/escaped"]
CANARIES = {
    "HF_TOKEN": "hf_" + "q" * 34,
    "WANDB_API_KEY": "c0ffee" * 7,
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIcovey/K7MDENGbPxRfiCYcanaryKEY",
    "OPENAI_API_KEY": "sk-proj-" + "z" * 40,
    "GITHUB_TOKEN": "ghp_" + "w" * 36,
    "DATABASE_URL": "postgres://user:hunter2canary@host/db",
    "SSH_KEY": "-----BEGIN OPENSSH PRIVATE KEY-----canary",
    "COVEY_UNRELATED": "unrelated-canary-value",
}


@pytest.fixture(autouse=True)
def _no_slow_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_slow_parts(monkeypatch)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_run_stays_in_its_directory(tmp_path: Path, name: str):
    runs = tmp_path / "inside" / "runs"
    runs.mkdir(parents=True)
    try:
        run = train_digits(runs, name, num_steps=1)
    except CoveyError:
        run = None
    assert run is None, f"{name!r} was taken for a run's name: {run.path}"
    outside = [path for path in tmp_path.rglob("*") if "escaped" in path.name]
    assert outside == []
    assert not Path("/tmp/covey-escaped-run").exists()


def test_files_of_a_run_are_the_users_alone(tmp_path: Path):
    before = os.umask(0o000)
    try:
        run = train_digits(tmp_path, "run", num_steps=1)
    finally:
        os.umask(before)
    open_files = {
        str(path.relative_to(run.path)): oct(path.stat().st_mode & 0o777)
        for path in [run.path, *run.path.rglob("*")]
        if path.stat().st_mode & 0o077
    }
    assert open_files == {}


def test_nothing_of_the_environment_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    run = train_digits(tmp_path, "passing", num_steps=1)

    def fail(completion: str) -> float:
        raise RuntimeError("no secret here")

    with pytest.raises(CoveyError):
        train_digits(tmp_path, "failing", num_steps=1, reward=fail)
    for directory in (run.path, tmp_path / "failing"):
        for path in directory.rglob("*"):
            content = path.read_bytes() if path.is_file() else b""
            leaked = [name for name, value in CANARIES.items() if value.encode() in content]
            assert leaked == [], f"{path} holds {leaked}"


def test_a_models_own_code_does_not_run_unasked(tmp_path: Path):
    model = write_tiny_model(tmp_path / "model")
    canary = tmp_path / "canary"
    (model / "modeling_evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Evil: pass\n")
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"}
    config["model_type"] = "evil"
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(CoveyError):
        load_policy(str(model))
    assert not canary.exists()
