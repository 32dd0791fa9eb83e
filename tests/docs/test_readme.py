"""The README's commands and code run as they are written, on the tiny model and in a few steps."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SHORT = ("train.prompts_per_step=2", "train.group_size=2", "evaluation.num_prompts=2", "evaluation.every=0")


def blocks(language: str) -> list[str]:
    """Return the README's fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("home")
    return os.environ | {"COVEY_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def run(words: list[str], *, cwd: Path, environment: dict[str, str]) -> str:
    """Return standard output of a command that must succeed; `covey` is the one of this interpreter."""
    if words[0] == "covey":
        words = [sys.executable, "-c", "from covey.cli import main; main()", *words[1:]]
    result = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_command_lines_run_one_after_the_other(tmp_path: Path, environment: dict[str, str]) -> None:
    commands = [shlex.split(line) for block in blocks("bash") for line in block.splitlines() if line.startswith("covey ")]
    assert [words[1] for words in commands] == ["train", "train", "evaluate", "chat", "export", "report"]
    for words in commands:
        if words[1] == "train":
            steps = "3" if "--resume" in words else "2"
            words = [re.sub(r"num_steps=\d+", f"num_steps={steps}", word) for word in words]
            words += [] if "--resume" in words else ["--model", "tiny", *SHORT]
        if words[1] == "evaluate":
            words += ["--num-prompts", "2"]
        run(words, cwd=tmp_path, environment=environment)
    assert (tmp_path / "first-model" / "model.safetensors").is_file()
    assert [json.loads(line)["step"] for line in (tmp_path / "runs/first/metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_the_python_example_runs(tmp_path: Path, environment: dict[str, str]) -> None:
    [code] = blocks("python")
    code = code.replace("smollm2-135m", "tiny").replace("num_steps=20", "num_steps=2, num_prompts=2, prompts_per_step=2")
    out = run([sys.executable, "-c", code], cwd=tmp_path, environment=environment)
    assert "report.html" in out


def test_make_train_and_make_test_are_the_two_commands_and_ci_runs_the_tests() -> None:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    assert lines[0] == "make train"
    assert "make test" in lines
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()


def test_make_train_runs_the_shipped_recipe(tmp_path: Path, environment: dict[str, str]) -> None:
    """In two steps on the tiny model, in the environment that the tests run in instead of one that make sets up."""
    overrides = ["--model tiny", "train.num_steps=2", *SHORT, f"run.directory={tmp_path}"]
    words = ["make", "-o", ".venv/.base", "train", f"BIN={Path(sys.executable).parent}", f"ARGS={' '.join(overrides)}"]
    out = run(words, cwd=ROOT, environment=environment)
    assert "step 2/2" in out
    assert "held-out accuracy" in out
    assert str(tmp_path / "arithmetic" / "report.html") in out


def test_the_quoted_result_is_the_committed_one() -> None:
    result = json.loads((ROOT / "benchmarks/results/main_job.json").read_text())
    for measured in result["runs"]:
        row = (
            f"| {measured['seed']} | {measured['greedy_before']:.1%} | {measured['greedy_after']:.1%} | "
            f"{100 * measured['gain']:+.1f} [{100 * measured['gain_low']:+.1f}, {100 * measured['gain_high']:+.1f}] | "
            f"{measured['minutes']:.1f} |"
        )
        assert row in README
