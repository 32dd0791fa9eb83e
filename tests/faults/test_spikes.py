"""An update that exceeds a declared limit never reaches the weights: left out, or gone back from, as the recipe says."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.digits import (
    bits_of,
    digest,
    digit_share,
    newest,
    num_timed_steps,
    resume_digits,
    stop_at,
    train_digits,
    weights_of,
)
from tests.ranks import on_ranks
from tests.tiny_batches import ON_POLICY, SPEC, make_batch, make_learner, objective_of, ragged_groups

from covey.api import Run
from covey.checkpoint import load_checkpoint
from covey.distributed import ALONE, Ranks
from covey.learner import Learner
from covey.learner_specs import SpikeLimits, Update
from covey.models.policy import Policy
from covey.monitor.run_directory import read_jsonl, read_rows
from covey.types import CoveyError

HUGE = 1e4
"""What a reward is multiplied by in a poisoned step: so much larger are its advantages, and the gradient."""

LIMITS: dict[str, Any] = {"grad_norm_factor": 10.0, "num_norms": 2}
PLAIN: dict[str, Any] = {
    "algorithm__name": "dr_grpo",  # Rows that divide by the spread of rewards take a huge one for any other.
    "reward_range": (0.0, HUGE),
    "max_grad_norm": 1e9,  # Clipping would hide how large a gradient was.
}


pytestmark = pytest.mark.usefixtures("no_slow_parts")


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with limits, whose fourth batch is poisoned."""
    return train_with(tmp_path_factory.mktemp("poisoned"), "run", huge, {4}, **LIMITS)


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same run without limits, in whose fourth step there is nothing to learn."""
    return train_with(tmp_path_factory.mktemp("without"), "run", flat, {4})


def in_steps(run: Path, steps: set[int], reward: Callable[[str], float]) -> Callable[[str], float]:
    """Return the reward as it is in these steps of the run, and in all others the share of digits."""
    return lambda completion: (reward if num_timed_steps(run) in steps else digit_share)(completion)


def huge(completion: str) -> float:
    return HUGE * digit_share(completion)


def flat(completion: str) -> float:
    """A reward without any signal: its step makes no update."""
    return 0.0


def enlarge_gradient(patch: pytest.MonkeyPatch, *, update: int) -> None:
    """Multiply the gradient of the update with this number, counted from 1, for rows that make rewards alike."""
    plain, made = Learner.accumulate_gradient, [0]

    def enlarged(self: Learner, *arguments: Any, **options: Any) -> Update:
        found = plain(self, *arguments, **options)
        made[0] += 1
        for weight in self.model.parameters() if made[0] == update else ():
            assert weight.grad is not None
            weight.grad *= HUGE
        return found

    patch.setattr(Learner, "accumulate_gradient", enlarged)


def train_with(directory: Path, name: str, reward: Callable[[str], float], steps: set[int], **changes: Any) -> Run:
    return train_digits(directory, name, **(PLAIN | {"reward": in_steps(directory / name, steps, reward)} | changes))


def trained(run: Path) -> dict[str, str]:
    """Return hashes of weights and optimizer."""
    names = ["model.safetensors", "optimizer.safetensors"]
    return {name: digest(newest(run) / name) for name in names}


def messages(run: Path, kind: str) -> list[str]:
    return [event["message"] for event in read_jsonl(run / "events.jsonl") if event["kind"] == kind]


# --- Left out --------------------------------------------------------------------------------------------------------


def test_a_poisoned_batch_leaves_the_weights_of_a_run_without_it(poisoned: Run, without: Run):
    assert [row.get("update/spiked") for row in poisoned.metrics] == [None, None, None, 1, None, None]
    assert [row["optimizer/num_updates"] for row in poisoned.metrics] == [1, 2, 3, 3, 4, 5]
    assert trained(poisoned.path) == trained(without.path)


def test_what_was_exceeded_is_said_and_the_completions_are_kept(tmp_path: Path):
    run = train_with(tmp_path, "run", huge, {4}, **LIMITS, num_steps=4, checkpoint__rollouts_every=5)
    [message] = messages(run.path, "spiked")
    assert "above 10 times" in message
    assert "its completions are in step-000004.parquet" in message
    assert (run.path / "rollouts/step-000004.parquet").exists(), "what spoiled it is kept to be looked at"
    assert not (run.path / "rollouts/step-000003.parquet").exists()


def test_without_a_limit_the_same_batch_moves_the_weights(tmp_path: Path, without: Run):
    run = train_with(tmp_path, "poisoned", huge, {4})
    norms = [row["grad/norm"] for row in run.metrics]
    assert norms[3] > 1000 * max(norms[:3]), "the poison is one"
    assert weights_of(run.path) != weights_of(without.path)


def test_a_limit_that_nothing_exceeds_changes_no_bit(tmp_path: Path):
    limited = train_digits(tmp_path, "limited", **LIMITS, beta=0.1, max_kl=10.0)
    assert bits_of(limited.path) == bits_of(train_digits(tmp_path, "free", beta=0.1).path)


def test_a_run_that_goes_on_decides_as_one_that_was_left_alone(tmp_path: Path, poisoned: Run):
    stopped = tmp_path / "stopped"
    train_digits(tmp_path, "stopped", **PLAIN, **LIMITS, reward=stop_at(stopped, 3))
    assert load_checkpoint(newest(stopped)).state["norms"] == [row["grad/norm"] for row in poisoned.metrics[1:3]]
    resume_digits(tmp_path, "stopped", reward=in_steps(stopped, {4}, huge), reward_range=PLAIN["reward_range"])
    assert bits_of(stopped) == bits_of(poisoned.path)


def test_before_there_are_enough_norms_nothing_is_a_spike(tmp_path: Path):
    run = train_with(tmp_path, "run", huge, {4}, grad_norm_factor=10.0, num_norms=4, num_steps=4)
    assert not any("update/spiked" in row for row in run.metrics)


def test_a_distance_from_the_reference_beyond_its_limit_leaves_an_update_out(tmp_path: Path):
    run = train_digits(tmp_path, "run", num_steps=3, track_kl=True, max_kl=1e-9)
    assert [row.get("update/spiked") for row in run.metrics] == [None, 1, 1]
    assert "its mean KL from the reference is" in messages(run.path, "spiked")[0]


def test_a_ratio_beyond_its_limit_leaves_out_the_later_update_alone(tmp_path: Path):
    run = train_digits(tmp_path, "run", num_steps=2, num_iterations=2, max_ratio=1.0001)
    assert [(row["optimizer/num_updates"], row["update/spiked"]) for row in run.metrics] == [(1, 1), (2, 1)]
    assert "its largest importance ratio is" in messages(run.path, "spiked")[0]


def test_a_value_model_does_not_learn_from_a_batch_that_was_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = train_digits(tmp_path, "before", num_steps=3, algorithm__name="ppo")
    enlarge_gradient(monkeypatch, update=4)
    after = train_digits(tmp_path, "after", num_steps=4, algorithm__name="ppo", **LIMITS)
    assert after.metrics[3]["update/spiked"] == 1
    assert "critic/loss" not in after.metrics[3]
    name = "critic.safetensors"
    assert digest(newest(after.path) / name) == digest(newest(before.path) / name)


# --- Gone back from --------------------------------------------------------------------------------------------------


def test_by_rule_a_spike_puts_the_run_back_to_its_last_checkpoint(tmp_path: Path):
    before = train_digits(tmp_path, "before", **PLAIN, num_steps=4)
    run = train_with(tmp_path, "run", huge, {6}, **LIMITS, action="go_back", num_steps=6)
    assert trained(run.path) == trained(before.path)
    [message] = messages(run.path, "went_back")
    assert message == "an update was a spike; weights and optimizer are those of step 4 again"


def test_the_prompts_of_the_window_are_not_asked_again(tmp_path: Path):
    """Back at step 4, the run goes on with the prompts behind the spike: those of steps 5 and 6 are passed over."""
    run = train_with(tmp_path, "run", huge, {6}, **LIMITS, action="go_back", num_steps=7)
    free = train_digits(tmp_path, "free", **PLAIN, num_steps=7)

    def asked(path: Path) -> list[set[str]]:
        tables = [read_rows(path / f"rollouts/step-{step:06d}.parquet") for step in range(1, 8)]
        return [{row["question"] for row in table} for table in tables]

    assert asked(run.path) == asked(free.path)
    assert run.metrics[-1]["optimizer/num_updates"] == 5


def test_a_stop_before_the_spike_does_not_change_where_the_run_goes_back_to(tmp_path: Path):
    changes = {**LIMITS, "action": "go_back", "num_steps": 8}
    alone = train_with(tmp_path, "alone", huge, {6}, **changes)
    stopped = tmp_path / "stopped"
    train_digits(tmp_path, "stopped", **(PLAIN | changes), reward=stop_at(stopped, 5))
    resume_digits(tmp_path, "stopped", reward=in_steps(stopped, {6}, huge), reward_range=PLAIN["reward_range"])
    assert len(messages(stopped, "went_back")) == 1
    assert bits_of(stopped) == bits_of(alone.path)


def test_a_spike_before_the_first_checkpoint_is_left_out(tmp_path: Path):
    run = train_with(tmp_path, "run", huge, {4}, **LIMITS, action="go_back", checkpoint__every=10)
    assert [row["optimizer/num_updates"] for row in run.metrics] == [1, 2, 3, 3, 4, 5]
    assert messages(run.path, "went_back") == []


@pytest.mark.parametrize(("action", "num_spikes"), [("go_back", 3), ("skip", 9)])
def test_where_going_back_does_not_help_the_run_is_stopped(tmp_path: Path, action: str, num_spikes: int):
    changes = {**LIMITS, "action": action, "num_steps": 20}
    with pytest.raises(CoveyError, match=r"going back 2 times has not helped.*higher limits in \[spikes\]"):
        train_with(tmp_path, "run", huge, set(range(4, 21)), **changes)
    assert len(messages(tmp_path / "run", "went_back")) == 2
    assert len(messages(tmp_path / "run", "spiked")) == num_spikes


# --- False alarms ----------------------------------------------------------------------------------------------------


def test_no_alarm_in_twenty_clean_runs(tmp_path: Path):
    quick: dict[str, Any] = {"checkpoint__every": 0, "evaluation__every": 0, "rollouts_every": 0, "max_new_tokens": 4}
    limits: dict[str, Any] = {"grad_norm_factor": 10.0, "num_norms": 3, "track_kl": True, "max_kl": 10.0}
    runs = [train_digits(tmp_path, f"{seed}", seed=seed, num_steps=9, **quick, **limits) for seed in range(20)]
    num_judged = sum(max(0, run.metrics[-1]["optimizer/num_updates"] - limits["num_norms"]) for run in runs)
    assert num_judged > 100
    assert [row for run in runs for row in run.metrics if "update/spiked" in row] == []


# --- Several processes -----------------------------------------------------------------------------------------------


def spiked_step(policy: Policy, ranks: Ranks) -> tuple[Update, str]:
    """Return what came of a poisoned batch behind two others, and a hash of the weights after it."""
    policy = dataclasses.replace(policy, model=copy.deepcopy(policy.model))
    objective = objective_of("dr_grpo")
    spec = dataclasses.replace(SPEC, limits=SpikeLimits(grad_norm_factor=10.0, num_norms=2))
    learner: Learner = make_learner(policy, objective, cut=(64, 64), spec=spec, ranks=ranks)
    batch = make_batch(ragged_groups(), objective, ON_POLICY)
    for _ in range(2):
        learner.update(batch)
    update = learner.update(dataclasses.replace(batch, advantages=HUGE * batch.advantages))
    weights = torch.cat([weight.detach().reshape(-1) for weight in policy.model.parameters()])
    return update, hashlib.sha256(weights.numpy().tobytes()).hexdigest()


def decided(ranks: Ranks, policy_file: Path) -> tuple[tuple[str, ...], int, str]:
    update, bits = spiked_step(pickle.loads(policy_file.read_bytes()), ranks)
    return update.exceeded, update.num_updates, bits


def test_all_processes_decide_alike(shared_tiny_policy64: Policy, tmp_path: Path):
    file = tmp_path / "policy.pickle"
    file.write_bytes(pickle.dumps(shared_tiny_policy64))
    first, second = on_ranks(2, decided, file, directory=tmp_path)
    assert first == second
    alone, _ = spiked_step(shared_tiny_policy64, ALONE)
    assert first[:2] == (alone.exceeded, 0)
    assert len(alone.exceeded) == 1
