"""The loop on a tiny model: it learns, it makes no step without a signal, and it logs what the documents say, no more."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.digits import SMALL, digest, digit_share, leave_out_slow_parts, num_timed_steps, train_digits

from covey.api import Run
from covey.engines.native.engine import NativeEngine
from covey.engines.transformers import TransformersEngine
from covey.models.policy import Policy
from covey.monitor.run_directory import ENV_KEYS, EVAL_COLUMNS, EVAL_KEYS, ROLLOUT_COLUMNS, TIMING_KEYS, read_jsonl, read_rows
from covey.rewards.failures import ERROR_KINDS
from covey.train import Clock, is_due
from covey.types import CoveyError, Score

GLOSSARY = Path(__file__).parents[2] / "docs" / "metrics.md"
NUM_STEPS = 4


def scored_in_parts(completion: str) -> Score:
    """The share of digits, and how much of it is due to the digit 7."""
    sevens = completion.count("7") / max(1, len(completion))
    return Score(value=digit_share(completion), parts={"sevens": sevens, "others": digit_share(completion) - sevens})


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("train")


@pytest.fixture(autouse=True)
def _no_slow_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_slow_parts(monkeypatch)


@pytest.fixture(scope="module")
def run(directory: Path) -> Run:
    """A run with everything on: a reference, parts of the reward, gold, evaluations, checkpoints, a report."""
    return train_digits(directory, "run", reward=scored_in_parts, beta=0.05, num_steps=NUM_STEPS, evaluation__every=2)


@pytest.fixture(scope="module")
def plain(directory: Path) -> Run:
    """A run without a reference, without gold and without parts."""
    return train_digits(directory, "plain", gold=None, num_steps=2)


def weights_after(run: Path, step: int) -> str:
    return digest(run / "checkpoints" / f"step-{step:06d}" / "model.safetensors")


# Learning


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo"])
def test_the_reward_rises_and_so_does_held_out_accuracy(directory: Path, algorithm: str) -> None:
    started = time.monotonic()
    run = train_digits(directory, algorithm, algorithm__name=algorithm, num_steps=20, group_size=8, learning_rate=1e-2)
    rewards = [row["reward/mean"] for row in run.metrics]
    greedy = [row["proxy_mean"] for row in run.evaluation if (row["part"], row["mode"]) == ("choose", "greedy")]
    assert max(rewards[:2]) < 0.2
    assert min(rewards[-3:]) > 0.8
    assert greedy[-1] > greedy[0] + 0.5
    assert time.monotonic() - started < 15


# A step without a signal


def from_step(run: Path, step: int, before: Any, after: Any) -> Any:
    """Return a reward that is `before` until `step` begins, and `after` from then on."""
    return lambda completion: (after if num_timed_steps(run) >= step else before)(completion)


def test_a_step_without_a_usable_group_moves_nothing(directory: Path) -> None:
    """Momentum from the steps before would still move the weights if the optimizer made a step."""
    path = directory / "no signal"
    reward = from_step(path, 3, digit_share, lambda completion: 0.25)
    run = train_digits(directory, path.name, reward=reward, num_steps=4, checkpoint__every=1, checkpoint__keep=9)
    updates, versions = ([row[key] for row in run.metrics] for key in ("optimizer/num_updates", "policy/version"))
    assert (updates, versions) == ([1, 2, 2, 2], [1, 2, 2, 2])
    assert [row["group/num_used"] for row in run.metrics[2:]] == [0, 0]
    assert weights_after(path, 1) != weights_after(path, 2) == weights_after(path, 3) == weights_after(path, 4)
    assert "loss/value" not in run.metrics[2]


def test_a_run_without_any_signal_keeps_the_base_weights(directory: Path) -> None:
    run = train_digits(directory, "flat", reward=lambda completion: 1.0, num_steps=2)
    before, after = load_file(directory / "model" / "model.safetensors"), load_file(run.model_path / "model.safetensors")
    assert all(bool((before[name] == after[name]).all()) for name in after)
    remembered = load_file(run.model_path / "optimizer.safetensors")
    assert remembered
    assert not any(bool(tensor.any()) for tensor in remembered.values())
    assert [row["group/all_correct_frac"] for row in run.metrics] == [1.0, 1.0]


def test_learning_goes_on_after_a_step_without_a_signal(directory: Path) -> None:
    path = directory / "signal returns"
    late = from_step(path, 2, lambda completion: 0.0, digit_share)
    run = train_digits(directory, path.name, reward=late, num_steps=2, checkpoint__every=1)
    assert [row["optimizer/num_updates"] for row in run.metrics] == [0, 1]
    assert run.metrics[1]["optimizer/lr"] == pytest.approx(SMALL["learning_rate"] / SMALL["warmup_steps"])
    assert weights_after(path, 1) != weights_after(path, 2)


def test_kept_flat_groups_make_no_step_either(directory: Path) -> None:
    """`drop_flat_groups=false` leaves flat groups in the denominators; alone they still have nothing to say."""
    run = train_digits(directory, "kept", reward=lambda completion: 0.0, num_steps=2, drop_flat_groups=False)
    assert [row["optimizer/num_updates"] for row in run.metrics] == [0, 0]
    assert [row["policy/version"] for row in run.metrics] == [0, 0]


def test_kept_flat_groups_stand_in_the_denominators(directory: Path) -> None:
    changes: dict[str, Any] = {"num_steps": 1, "group_size": 3, "max_new_tokens": 4, "prompts_per_step": 8}
    dropped, kept = (
        train_digits(directory, f"drop {drop}", drop_flat_groups=drop, **changes).metrics[0] for drop in (True, False)
    )
    assert 0 < dropped["group/usable_frac"] == kept["group/usable_frac"] < 1
    assert (dropped["group/num_used"], kept["group/num_used"]) == (dropped["group/usable_frac"] * 8, 8)
    # The same sum of gradients, divided by the number of used or of sampled groups. The norm is that before clipping.
    assert kept["grad/norm"] == pytest.approx(dropped["grad/norm"] * dropped["group/num_used"] / 8, rel=1e-4)


def test_later_draws_replace_dropped_groups_with_fresh_prompts(directory: Path) -> None:
    changes: dict[str, Any] = {"num_steps": 2, "group_size": 2, "max_new_tokens": 3, "max_draws": 4}
    run = train_digits(directory, "draws", **changes)
    rows = [row for step in (1, 2) for row in rollouts_of(run, step)]
    assert sum(row["group/num_sampled"] for row in run.metrics) * 2 == len(rows) > 2 * 2 * SMALL["prompts_per_step"]
    assert {row["draw"] for row in rows} > {0}
    assert len({row["prompt_id"] for row in rows}) == len(rows) // 2  # 20 prompts last for both steps: none comes twice


def test_the_same_prompt_is_answered_anew_in_each_step_and_sample(directory: Path) -> None:
    """Random numbers that depended on the prompt alone would show the policy the same completions again and again."""
    run = train_digits(directory, "anew", prompts=["Say digits"], prompts_per_step=1, num_steps=3, learning_rate=1e-12)
    completions = [row["completion"] for row in rollouts_of(run, 1) + rollouts_of(run, 2) + rollouts_of(run, 3)]
    assert len(set(completions)) == len(completions) == 3 * SMALL["group_size"]


# What is logged


def rollouts_of(run: Run, step: int) -> list[dict[str, Any]]:
    return read_rows(run.path / "rollouts" / f"step-{step:06d}.parquet")


def documented_keys() -> set[str]:
    """Return the keys of the first column of the glossary."""
    rows = [line.split("|")[1] for line in GLOSSARY.read_text().splitlines() if line.startswith("| `")]
    return {key for row in rows for key in re.findall(r"`([^`]+)`", row)}


def logged_keys(run: Run) -> set[str]:
    """Return all keys of metrics.jsonl, each part of the reward under its documented name."""
    return {re.sub(r"^reward/(part|variance_frac)/.*", r"reward/\1/<name>", key) for row in run.metrics for key in row} - {
        "step"
    }


def test_every_documented_metric_is_logged_and_no_other(run: Run, directory: Path) -> None:
    everything: dict[str, Any] = {
        "algorithm__name": "remax",
        "algorithm__correction": "mask_token",
        "algorithm__entropy_target": 1.0,
        "token_filter": "top_entropy",
        "train__curriculum": "pass_rate",
        "guard__enabled": True,
    }
    only_of_failures = {f"reward/{kind}_frac" for kind in ERROR_KINDS}
    only_of_failures |= {"update/skipped", "update/spiked", "memory/halvings", "memory/sampling_halvings"}  # tests/faults
    with_a_critic = train_digits(directory, "critic", algorithm__name="ppo", num_steps=1)
    of_given = {f"held_out/{name}" for name in ("loss", "margin", "accuracy", "nll")}  # tests/unit/test_given.py
    with_pairs = train_digits(directory, "pairs", algorithm__name="dpo", num_steps=1)
    assert only_of_failures < documented_keys()
    logged = logged_keys(run) | logged_keys(train_digits(directory, "everything", **everything))
    logged |= logged_keys(with_a_critic) | logged_keys(with_pairs)
    assert logged == documented_keys() - only_of_failures - of_given


def test_without_a_reference_the_same_metrics_but_its_divergence_are_logged(run: Run, plain: Run) -> None:
    of_reference = {key for key in logged_keys(run) if key.startswith("kl/")}
    assert of_reference
    assert logged_keys(plain) == logged_keys(run) - of_reference - {"reward/part/<name>", "reward/variance_frac/<name>"}


def test_metrics_that_exist_are_numbers(run: Run) -> None:
    assert {
        (key, type(value)) for row in run.metrics for key, value in row.items() if not isinstance(value, int | float)
    } == set()
    assert [row["step"] for row in run.metrics] == [1, 2, 3, 4]


def test_without_gold_its_mean_does_not_exist(plain: Run) -> None:
    assert [row["gold/mean"] for row in plain.metrics] == [None, None]


def test_parts_of_the_reward_add_up(run: Run) -> None:
    for row in run.metrics:
        assert row["reward/part/sevens"] + row["reward/part/others"] == pytest.approx(row["reward/mean"], abs=1e-9)


def test_the_divergence_from_the_reference_starts_at_zero(run: Run) -> None:
    divergence = [row["kl/ref"] for row in run.metrics]
    assert abs(divergence[0]) < 1e-6 < divergence[-1]


def test_on_policy_ratios_are_exactly_one(run: Run) -> None:
    assert {(row["ratio/mean"], row["ratio/max"], row["clip/low_frac"], row["clip/high_frac"]) for row in run.metrics} == {
        (1.0, 1.0, 0.0, 0.0)
    }


def test_engine_and_trainer_agree(run: Run) -> None:
    assert max(row["mismatch/max"] for row in run.metrics) < 1e-4


def test_counters_count(run: Run) -> None:
    for step, row in enumerate(run.metrics, start=1):
        assert (row["optimizer/num_updates"], row["policy/version"]) == (step, step)
        assert row["tokens/trained"] <= row["tokens/generated"] <= SMALL["prompts_per_step"] * SMALL["group_size"] * 8
        assert row["optimizer/lr"] == pytest.approx(SMALL["learning_rate"] * min(1, step / SMALL["warmup_steps"]))


def test_metrics_are_those_of_the_recorded_rollouts(run: Run) -> None:
    for step, row in enumerate(run.metrics, start=1):
        rollouts = rollouts_of(run, step)
        rewards = [rollout["reward"] for rollout in rollouts]
        assert list(rollouts[0]) == list(ROLLOUT_COLUMNS)
        assert rewards == [digit_share(rollout["completion"]) for rollout in rollouts]
        assert row["reward/mean"] == pytest.approx(sum(rewards) / len(rewards), abs=1e-12)
        assert row["tokens/generated"] == sum(rollout["num_tokens"] for rollout in rollouts)
        assert {rollout["policy_version"] for rollout in rollouts} == {step - 1}


def test_timing_has_the_documented_keys_and_a_line_for_the_time_before_training(run: Run) -> None:
    timing = read_jsonl(run.path / "timing.jsonl")
    assert [row["step"] for row in timing] == [0, 1, 2, 3, 4]
    assert {tuple(row) for row in timing} == {TIMING_KEYS}
    assert timing[0]["evaluate_s"] > 0 == timing[0]["elapsed_s"]
    assert [row["evaluate_s"] > 0 for row in timing] == [True, False, True, False, True]
    assert [row["checkpoint_s"] > 0 for row in timing] == [False, False, False, True, False]  # saved after step 2


def test_evaluations_have_the_documented_keys(run: Run) -> None:
    evaluation = run.evaluation
    assert {frozenset(row) for row in evaluation} == {frozenset(EVAL_KEYS)}
    assert [(row["step"], row["part"], row["mode"]) for row in evaluation] == [
        (step, "choose", mode) for step in (0, 2, 4) for mode in ("greedy", "sampled")
    ]
    table = read_rows(run.path / "evals" / "choose-sampled-step-000004.parquet")
    assert list(table[0]) == list(EVAL_COLUMNS)


def test_env_json_has_the_documented_keys(run: Run, plain: Run) -> None:
    env, other = (json.loads((path / "env.json").read_text()) for path in (run.path, plain.path))
    assert set(env) == set(ENV_KEYS)
    assert env["reference"] == {"name": env["model"]["name"], "sha256": env["model"]["sha256"]}
    assert (env["has_gold"], env["num_threads"], env["task"]) == (True, 1, "python")
    assert (other["has_gold"], other["reference"]) == (False, None)


def test_the_self_checks_are_recorded(run: Run, plain: Run) -> None:
    checks, others = (
        [event["message"] for event in read_jsonl(path / "events.jsonl") if event["kind"] == "self_check"]
        for path in (run.path, plain.path)
    )
    assert re.match(r"engine agrees with trainer: log-probs of \d+ tokens differ", checks[0])
    assert checks[1:] == ["log-ratio on the first update is exactly 0", "KL to the reference starts at exactly 0"]
    assert others[1:] == checks[1:2]


def test_the_report_stands_at_the_end(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    run = train_digits(directory, "reported", num_steps=1)
    assert (run.path / "report.html").read_text().startswith("<!doctype html>")


# Small parts


@pytest.mark.parametrize("engine", [NativeEngine, TransformersEngine])
def test_the_engine_must_serve_what_was_trained(
    directory: Path, monkeypatch: pytest.MonkeyPatch, engine: type[NativeEngine | TransformersEngine]
) -> None:
    load_weights = engine.load_weights

    def load_the_first_only(self: Any, policy: Policy, version: int) -> None:
        if version == 0:
            load_weights(self, policy, version)

    monkeypatch.setattr(engine, "load_weights", load_the_first_only)
    name = "native" if engine is NativeEngine else "transformers"
    with pytest.raises(CoveyError, match="does not serve policy version 1"):
        train_digits(directory, f"stale-{name}", num_steps=2, engine__name=name)


@pytest.mark.parametrize(
    ("step", "every", "expected"), [(4, 2, True), (5, 2, False), (1, 1, True), (4, 0, False), (0, 2, True)]
)
def test_something_is_due_each_so_many_steps_and_never_for_zero(step: int, every: int, expected: bool) -> None:
    assert is_due(step, every) is expected


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The time, in a list so that tests can change it."""
    seconds = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: seconds[0])
    yield seconds
    monkeypatch.undo()


def test_a_lap_holds_the_seconds_of_each_phase_once(now: list[float]) -> None:
    clock = Clock(50.0)
    for seconds in (2.0, 3.0):
        with clock.phase("update_s"):
            now[0] += seconds
    clock.add("rollout_s", 4.0)
    lap = clock.lap(num_tokens=100)
    assert (lap["update_s"], lap["rollout_s"], lap["reward_s"]) == (5.0, 4.0, 0.0)
    assert lap["generated_tokens_per_s"] == 25.0
    assert lap["elapsed_s"] == 55.0
    assert clock.lap(num_tokens=0)["update_s"] == 0.0


def test_a_restarted_clock_keeps_what_was_before_it(now: list[float]) -> None:
    clock = Clock(50.0)
    now[0] += 7.0
    clock.restart()
    now[0] += 1.0
    assert clock.elapsed_s == 51.0
