"""A small comparison from the command line, on a tiny model: killed in the middle, given again, and told the truth about."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from covey.models.tiny import write_tiny_model
from covey.monitor.run_directory import read_jsonl, read_rows

REWARD = """
def digit_share(completion):
    return sum(character in "0123456789" for character in completion) / max(1, len(completion))


def starts_with_digit(completion):
    return float(completion[:1] in set("0123456789"))
"""
COMMAND = [
    *(sys.executable, "-m", "covey", "compare", "arithmetic", "model.compute_dtype=float32", "run.num_threads=1"),
    *("train.prompts_per_step=4", "train.group_size=4", "train.max_draws=1", "train.learning_rate=0.01", "checkpoint.every=2"),
    *("sampling.max_new_tokens=6", "evaluation.num_prompts=20", "evaluation.every=4", "reward.name=digits:digit_share"),
    *("reward.gold=digits:starts_with_digit", "reward.num_workers=0", "algorithm.beta=0.0"),
    *("--arms", "grpo,raft,best_of_n,majority", "--seeds", "2", "--budget", "tokens=1500", "--samples", "2"),
    *("--best-of", "4", "--harder", "hard", "--name", "small"),
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("compare")
    write_tiny_model(directory / "model")
    (directory / "digits.py").write_text(REWARD)
    return directory


def start(directory: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(directory), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*COMMAND, f"model.name={directory / 'model'}"],
        cwd=directory,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture(scope="module")
def comparison(directory: Path) -> Path:
    """A finished comparison that was stopped by SIGTERM in its second run, and then given again."""
    place = directory / "comparisons" / "small"
    first = start(directory)
    deadline = time.monotonic() + 120
    run = place / "runs" / "raft-seed0"
    while not (run / "metrics.jsonl").exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    _, error = first.communicate(timeout=120)
    assert first.returncode == 75, error
    assert sorted(path.name for path in (place / "results").iterdir()) == ["base.json", "grpo-seed0.json"]
    second = start(directory)
    out, error = second.communicate(timeout=240)
    assert second.returncode == 0, error
    (directory / "out.txt").write_text(out)
    return place


def results_of(place: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in (place / "results").iterdir()}


def test_a_stopped_comparison_goes_on_with_the_run_that_was_going_on(comparison: Path):
    kinds = [(row["kind"], row["piece"]) for row in read_jsonl(comparison / "log.jsonl")]
    assert kinds.count(("finished", "grpo-seed0")) == 1  # It was not done again.
    assert ("interrupted", "raft-seed0") in kinds
    assert ("resumed", "raft-seed0") in kinds or kinds.count(("started", "raft-seed0")) == 2
    names = ["base", "grpo-seed0", "grpo-seed1", "raft-seed0", "raft-seed1"]
    assert sorted(results_of(comparison)) == names


def test_every_run_has_had_its_budget_counted_from_its_completions(comparison: Path):
    for name, result in results_of(comparison).items():
        if name != "base":
            files = (comparison / result["run"] / "rollouts").glob("*.parquet")
            recounted = sum(row["num_tokens"] for file in files for row in read_rows(file))
            assert recounted == result["tokens"]["generated"]
            assert abs(recounted - 1500) <= 0.02 * 1500


def test_arms_of_a_seed_started_from_the_same_model_prompts_and_random_numbers(comparison: Path):
    first = [
        {
            (row["prompt_id"], row["completion"])
            for row in read_rows(comparison / "runs" / name / "rollouts" / "step-000001.parquet")
        }
        for name in ("grpo-seed0", "raft-seed0")
    ]
    assert first[0] == first[1]


def test_the_summary_has_every_arm_and_a_verdict_in_words(comparison: Path, directory: Path):
    summary = json.loads((comparison / "summary.json").read_text())
    assert [arm["name"] for arm in summary["arms"]] == ["base", "best_of_n", "majority", "grpo", "raft"]
    assert set(summary["verdicts"]) == {"test/sampled", "test/greedy", "hard/sampled"}
    first = summary["verdicts"]["test/sampled"][0]
    assert (first["arm"], first["reference"], first["is_primary"]) == ("grpo", "raft", True)
    assert first["sentence"] in (directory / "out.txt").read_text()
    for arm in summary["arms"][3:]:
        assert arm["costs"]["peak_rss_bytes"] > 0
        assert set(arm["scores"]) == {"test/sampled", "test/greedy", "hard/sampled"}
        assert all(len(scores["by_seed"]) == 2 for scores in arm["scores"].values())


def test_weights_are_not_kept_unless_asked_for(comparison: Path):
    assert not [*comparison.glob("runs/*/checkpoints")]


def test_the_report_is_there_and_names_every_arm(comparison: Path):
    html, markdown = (comparison / "report.html").read_text(), (comparison / "report.md").read_text()
    for arm in ("base", "best_of_n", "majority", "grpo", "raft"):
        assert arm in html
        assert arm in markdown


def test_a_finished_comparison_is_only_read_again(comparison: Path, directory: Path):
    before = {path: path.stat().st_mtime_ns for path in (comparison / "results").iterdir()}
    again = start(directory)
    out, error = again.communicate(timeout=120)
    assert again.returncode == 0, error
    assert out == (directory / "out.txt").read_text()
    assert {path: path.stat().st_mtime_ns for path in (comparison / "results").iterdir()} == before


def test_a_dry_run_says_what_would_be_done_and_does_nothing(directory: Path):
    command = [word for word in COMMAND if word != "small"] + ["dry", "--dry-run", f"model.name={directory / 'model'}"]
    environment = os.environ | {"PYTHONPATH": str(directory)}
    ended = subprocess.run(command, cwd=directory, env=environment, text=True, capture_output=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "is grpo better than raft?" in ended.stderr
    assert not (directory / "comparisons" / "dry").exists()
