"""Two processes that train together do what one does alone: a step of every row, and a whole run."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests import processes
from tests.commands import covey
from tests.digits import bits_of, leave_out_slow_parts, newest, resume_digits, stop_at, tiny_model, train_digits
from tests.processes import Finished
from tests.ranks import free_port, on_ranks
from tests.rows import PLAIN_ROWS
from tests.tiny_batches import SPEC, STATS, Cut, make_learner, objective_of, ragged_groups, shifted_scores
from torch import Tensor

from covey.algos.objective import Coefficients
from covey.batch import make_tokens
from covey.distributed import ALONE, Ranks
from covey.learner import Learner
from covey.metrics import metric_values
from covey.models.policy import Policy
from covey.monitor.run_directory import read_jsonl, read_rows
from covey.tensors import Scores
from covey.types import Group

# --- A step ----------------------------------------------------------------------------------------------------------

ONE_GROUP = [[1.0, 0.0, 0.5]]
CASES: dict[str, tuple[str, Cut]] = {name: (name, (64, 64)) for name in PLAIN_ROWS}
CASES["one micro-batch for two ranks"] = ("grpo", (4096, 4096))
CASES["nothing to learn from"] = ("dr_grpo", (64, 64))


def groups_of(case: str) -> list[Group]:
    if case == "one micro-batch for two ranks":
        return ragged_groups(ONE_GROUP, prompt_lengths=[9], completion_lengths=[[3, 5, 2]])
    return ragged_groups([[1.0] * 5] * 3) if case == "nothing to learn from" else ragged_groups()


def step_of(policy: Policy, case: str, ranks: Ranks) -> tuple[Tensor, dict[str, Any], Tensor]:
    """Return the parameters after two updates on a batch, the metrics, and the old log-probs as the learner scored them."""
    name, cut = CASES[case]
    policy, groups = dataclasses.replace(policy, model=copy.deepcopy(policy.model)), groups_of(case)
    beta = 0.0 if case == "nothing to learn from" else 0.3
    learner: Learner = make_learner(
        policy,
        objective_of(name),
        cut=cut,
        spec=dataclasses.replace(SPEC, num_iterations=2),
        coefficients=Coefficients(beta=beta, entropy=beta / 30),
        ranks=ranks,
    )
    tokens = make_tokens(groups, (), STATS)
    old = learner.score(policy.model, tokens)
    ref = shifted_scores(old.logprobs, groups).ref_logprobs if beta else None
    batch = learner.make_batch(tokens, Scores(old_logprobs=old.logprobs, ref_logprobs=ref, entropy=old.entropy))
    metrics = metric_values(learner.train_on(batch).metrics)
    weights = torch.cat([weight.detach().reshape(-1) for weight in policy.model.parameters()])
    return weights, metrics, torch.stack([old.logprobs, old.entropy])


def compare_with_one_process(ranks: Ranks, policy_file: Path) -> dict[str, dict[str, Any]]:
    """Return for each case how far this rank's result is from that of a process alone, and the result's own bits."""
    policy: Policy = pickle.loads(policy_file.read_bytes())
    found: dict[str, dict[str, Any]] = {}
    for case in CASES:
        weights, metrics, scores = step_of(policy, case, ranks)
        expected, expected_metrics, expected_scores = step_of(policy, case, ALONE)
        start = torch.cat([weight.detach().reshape(-1) for weight in policy.model.parameters()])
        found[case] = {
            "error": float((weights - expected).abs().max()),
            "moved": float((weights - start).abs().max()),
            "metrics": metrics,
            "expected_metrics": expected_metrics,
            "scores_are_equal": torch.equal(scores, expected_scores),
            "bits": hashlib.sha256(weights.numpy().tobytes()).hexdigest(),
        }
    return found


@pytest.fixture(scope="module")
def compared(shared_tiny_policy64: Policy, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    """What each of two ranks found, all cases in one pair of processes."""
    directory = tmp_path_factory.mktemp("ranks")
    (directory / "policy.pickle").write_bytes(pickle.dumps(shared_tiny_policy64))
    return on_ranks(2, compare_with_one_process, directory / "policy.pickle", directory=directory)


@pytest.mark.parametrize("case", CASES)
def test_a_step_of_two_ranks_is_the_step_of_one_process(compared: list[dict[str, dict[str, Any]]], case: str):
    for of_rank in compared:
        found = of_rank[case]
        assert found["error"] < 1e-10
        assert (found["moved"] > 1e-4) == (case != "nothing to learn from")
        assert found["scores_are_equal"]
        assert found["metrics"] == pytest.approx(found["expected_metrics"], abs=1e-10)
    assert compared[0][case]["bits"] == compared[1][case]["bits"]
    assert compared[0][case]["metrics"] == compared[1][case]["metrics"]


# --- A run -----------------------------------------------------------------------------------------------------------

REWARD = """
def digit_share(completion):
    return sum(character in "0123456789" for character in completion) / max(1, len(completion))
"""
RUN = [
    *("run.num_threads=1", "model.compute_dtype=float32", "sampling.max_new_tokens=6", "evaluation.num_prompts=4"),
    *("train.num_steps=2", "train.prompts_per_step=3", "train.group_size=4", "train.max_draws=1"),
    *("train.learning_rate=0.003", "train.warmup_steps=0", "train.decay=false", "algorithm.beta=0.05"),
    *("reward.name=digit_reward:digit_share", "reward.gold=none"),
]


@pytest.fixture(scope="module")
def runs(tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two runs of one recipe: runs/two under torchrun, runs/one of a single process."""
    directory = tmp_path_factory.mktemp("torchrun")
    (directory / "digit_reward.py").write_text(REWARD)
    command = ["train", "arithmetic", "--model", str(tiny_directory), *RUN]
    alone = covey(*command, "--name", "one", directory=directory)
    assert alone.code == 0, alone.err
    ended = torchrun([*command, "--name", "two"], directory)
    assert ended.code == 0, ended.err
    return directory / "runs"


def torchrun(arguments: list[str], directory: Path) -> Finished:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "covey"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(directory)}
    ended = subprocess.run([*launcher, *arguments], cwd=directory, env=environment, capture_output=True, text=True, timeout=120)
    return Finished(ended.returncode, ended.stdout, ended.stderr)


def test_torchrun_leaves_one_run_directory_that_is_complete(runs: Path):
    assert sorted(path.name for path in runs.iterdir()) == ["one", "two"]
    one, two = (
        {str(path.relative_to(runs / name)) for path in (runs / name).rglob("*") if path.is_file()} for name in ("one", "two")
    )
    assert one == two


def test_the_metrics_of_a_run_are_those_of_both_ranks_together(runs: Path):
    one, two = (read_jsonl(runs / name / "metrics.jsonl") for name in ("one", "two"))
    assert len(one) == len(two) == 2
    for alone, together in zip(one, two, strict=True):
        assert together == pytest.approx(alone, abs=1e-5)
    assert [len(read_rows(path)) for path in sorted((runs / "two" / "rollouts").glob("*.parquet"))] == [12, 12]
    assert read_jsonl(runs / "two" / "eval.jsonl") == read_jsonl(runs / "one" / "eval.jsonl")


def test_two_ranks_end_with_the_weights_of_one_process(runs: Path, tiny_directory: Path):
    start = load_file(tiny_directory / "model.safetensors")
    one, two = (load_file(newest(runs / name) / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert max(float((one[name].float() - two[name].float()).abs().max()) for name in one) < 1e-5
    assert max(float((one[name].float() - start[name].float()).abs().max()) for name in one) > 1e-3


def test_a_run_of_two_ranks_that_was_stopped_and_resumed_has_the_bits_of_one_that_was_not(tmp_path: Path):
    tiny_model(tmp_path / "model")  # Here, because the ranks would both write it.
    run_on_two_ranks(train, tmp_path, "alone", None)
    run_on_two_ranks(train, tmp_path, "stopped", 2)
    assert len(read_jsonl(tmp_path / "stopped" / "metrics.jsonl")) == 2
    run_on_two_ranks(go_on, tmp_path, "stopped")
    assert bits_of(tmp_path / "stopped") == bits_of(tmp_path / "alone")
    assert len(read_jsonl(tmp_path / "stopped" / "metrics.jsonl")) == 4


def train(directory: Path, name: str, stop_step: int | None) -> None:
    leave_out_slow_parts(pytest.MonkeyPatch())
    changes: dict[str, Any] = {} if stop_step is None else {"reward": stop_at(directory / name, stop_step)}
    train_digits(directory, name, num_steps=4, beta=0.05, **changes)


def go_on(directory: Path, name: str) -> None:
    leave_out_slow_parts(pytest.MonkeyPatch())
    resume_digits(directory, name)


def run_on_two_ranks(function: Any, directory: Path, *arguments: Any) -> None:
    """Call function(directory, *arguments) in two processes that find each other as those of torchrun do."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "CUDA_VISIBLE_DEVICES": ""}
    running = [
        processes.start(
            function, directory, *arguments, directory=directory, environment=shared | {"RANK": rank, "LOCAL_RANK": rank}
        )
        for rank in ("0", "1")
    ]
    for process in running:
        ended = process.finish()
        assert ended.code == 0, ended.err


# --- Models that come with the package -------------------------------------------------------------------------------


def prepare_on_rank_1(ranks: Ranks, home: Path) -> list[str]:
    from covey.models.bundled import ensure_bundled

    os.environ["COVEY_HOME"] = str(home)
    if ranks.index == 1:
        ensure_bundled("tiny", progress=lambda message: None)
    ranks.barrier()
    return sorted(path.name for path in (home / "models").glob("tiny-*/*"))


def test_a_model_that_another_rank_than_the_first_prepares_is_complete(tmp_path: Path):
    """Whoever gets the lock writes it. transformers writes weights on the first rank only, and what it leaves stays."""
    found, _ = on_ranks(2, prepare_on_rank_1, tmp_path / "home", directory=tmp_path)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(found)
