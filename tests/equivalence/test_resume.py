"""A run that was stopped, killed or damaged and then resumed ends with the very bits of a run that was left alone."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import processes
from tests.digits import (
    HELD_OUT,
    PROMPTS,
    SMALL,
    bits_of,
    digest,
    leave_out_slow_parts,
    newest,
    resume_digits,
    stop_at,
    train_digits,
    train_killed,
    weights_of,
)

from covey.api import Run
from covey.monitor.run_directory import read_jsonl
from covey.types import CoveyError

NUM_STEPS = SMALL["num_steps"]

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "with a reference": {"beta": 0.1},
    "with several draws": {"max_draws": 3, "group_size": 2, "max_new_tokens": 3},
    "with a moving reference and controllers": {
        "beta": 0.1,
        "kl_target": 0.01,
        "kl_horizon": 20,
        "reference_every": 2,
        "reference_mix": 0.5,
        "entropy_target": 5.0,
    },
    "with a curriculum and several updates a step": {
        "curriculum": "pass_rate",
        "num_iterations": 2,
        "num_minibatches": 3,
        "token_filter": "clip_cov",
        "algorithm__correction": "tis_token",
    },
    "with a greedy baseline and shaped sampling": {
        "algorithm__name": "remax",
        "top_p": 0.9,
        "repetition_penalty": 1.2,
        "stop": ["7"],
    },
    "with a value model": {"algorithm__name": "ppo", "num_iterations": 2, "num_minibatches": 2, "algorithm__beta": 0.05},
    "with a value head": {"algorithm__name": "ppo", "algorithm__critic": "head"},
    "with pairs of the initial policy": {"algorithm__name": "dpo"},
    "with selected completions and a budget of tokens": {
        "algorithm__name": "raft",
        "algorithm__threshold": 0.05,
        "max_generated_tokens": 520,
        "decay": True,
        "num_steps": 6,
    },
    "with decay, in bfloat16": {"decay": True, "weight_decay": 0.1, "compute_dtype": "bfloat16", "algorithm__name": "dr_grpo"},
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module", autouse=True)
def _no_slow_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        leave_out_slow_parts(patch)
        yield


@pytest.fixture(scope="module")
def left_alone(directory: Path) -> Callable[[str], Run]:
    """Return the uninterrupted run of a variant."""
    runs: dict[str, Run] = {}

    def run(variant: str) -> Run:
        if variant not in runs:
            runs[variant] = train_digits(directory, f"alone {variant}", **VARIANTS[variant])
        return runs[variant]

    return run


@pytest.fixture
def alone(left_alone: Callable[[str], Run]) -> Run:
    return left_alone("plain")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return request.node.name


def stop_and_resume(directory: Path, name: str, steps: list[int], **changes: Any) -> Path:
    """Train with a stop in the midst of each of the steps, and return the finished run's path."""
    path = directory / name
    for index, step in enumerate(steps):
        reward = stop_at(path, step)
        if index == 0:
            train_digits(directory, name, reward=reward, **changes)
        else:
            resume_digits(directory, name, reward=reward)
        assert newest(path).name == f"step-{step:06d}"
    resume_digits(directory, name)
    return path


# Stopped between steps


@pytest.mark.parametrize("step", [0, 2, NUM_STEPS])
def test_a_run_stopped_after_a_step_resumes_to_the_same_bits(directory: Path, name: str, alone: Run, step: int) -> None:
    assert bits_of(stop_and_resume(directory, name, [step])) == bits_of(alone.path)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_stopped_after_each_step_resumes_to_the_same_bits(
    directory: Path, name: str, left_alone: Callable[[str], Run], variant: str
) -> None:
    path = stop_and_resume(directory, name, [1, 2, 3, 4], **VARIANTS[variant])
    assert bits_of(path) == bits_of(left_alone(variant).path)


def test_the_variants_are_what_their_names_say(left_alone: Callable[[str], Run]) -> None:
    last = {variant: left_alone(variant).metrics[-1] for variant in VARIANTS}
    drawn = [row["group/num_sampled"] for row in left_alone("with several draws").metrics]
    assert min(metrics["optimizer/num_updates"] for metrics in last.values()) > NUM_STEPS // 2
    assert last["with a reference"]["kl/ref"] > 1e-6
    assert max(drawn) > min(drawn) >= SMALL["prompts_per_step"]
    assert last["with decay, in bfloat16"]["optimizer/lr"] < last["plain"]["optimizer/lr"]
    assert len({weights_of(left_alone(variant).path) for variant in VARIANTS}) == len(VARIANTS)


def test_another_seed_ends_with_other_bits(directory: Path, name: str, alone: Run) -> None:
    assert weights_of(train_digits(directory, name, seed=1).path) != weights_of(alone.path)


def test_a_run_without_checkpoints_in_between_resumes_to_the_same_bits(directory: Path, name: str, alone: Run) -> None:
    path = stop_and_resume(directory, name, [4], checkpoint__every=0)
    assert bits_of(path) == bits_of(alone.path)


def test_resuming_a_finished_run_changes_nothing(directory: Path, name: str, alone: Run) -> None:
    path = train_digits(directory, name).path
    resume_digits(directory, name)
    assert bits_of(path) == bits_of(alone.path)


def test_a_run_may_be_made_longer(directory: Path, name: str, alone: Run) -> None:
    path = train_digits(directory, name, num_steps=4).path
    resume_digits(directory, name, num_steps=NUM_STEPS)
    found, expected = bits_of(path), bits_of(alone.path)
    assert [found[part] for part in ("model", "optimizer", "metrics")] == [
        expected[part] for part in ("model", "optimizer", "metrics")
    ]


def test_training_time_does_not_run_backwards_over_a_resume(directory: Path, name: str) -> None:
    path = stop_and_resume(directory, name, [3])
    elapsed = [row["elapsed_s"] for row in read_jsonl(path / "timing.jsonl")]
    assert len(elapsed) == 1 + NUM_STEPS
    assert elapsed == sorted(elapsed)


def test_the_events_tell_of_the_interruption_and_of_the_resume(directory: Path, name: str) -> None:
    path = stop_and_resume(directory, name, [3])
    kinds = [event["kind"] for event in read_jsonl(path / "events.jsonl")]
    # The warning: the reward that sends a signal is another function than the one that the run goes on with.
    assert [kind for kind in kinds if kind != "self_check"] == ["interrupted", "warning", "resumed"]


# Killed anywhere


@pytest.mark.parametrize("variant", ["plain", "with a reference"])
def test_a_run_killed_at_random_points_resumes_to_the_same_bits(
    directory: Path, name: str, left_alone: Callable[[str], Run], variant: str
) -> None:
    """Each process is killed at a random change of the disk, often in the midst of a save, or in the midst of sampling."""
    choose = random.Random(variant)
    changes = VARIANTS[variant] | {"checkpoint__every": 1}
    codes: list[int] = []
    while 0 not in codes:
        num_events = choose.randrange(60, 200)
        finished = processes.call(train_killed, directory, name, num_events, changes, directory=directory / "processes")
        codes.append(finished.code)
        assert finished.code in (0, -signal.SIGKILL), finished.err
    assert len(codes) > 3
    assert bits_of(directory / name) == bits_of(left_alone(variant).path)


def test_a_run_killed_before_its_first_checkpoint_begins_anew(directory: Path, name: str, alone: Run) -> None:
    changes = {"checkpoint__every": 0}
    killed = processes.call(train_killed, directory, name, 150, changes, directory=directory / "processes")
    assert killed.code == -signal.SIGKILL
    assert (directory / name / "metrics.jsonl").stat().st_size > 0
    assert not (directory / name / "checkpoints").exists()
    resume_digits(directory, name)
    assert bits_of(directory / name) == bits_of(alone.path)


def test_lines_logged_after_the_checkpoint_are_written_again(directory: Path, name: str, alone: Run) -> None:
    path = directory / name
    train_digits(directory, name, reward=stop_at(path, 4))
    for log in ("metrics.jsonl", "eval.jsonl", "timing.jsonl", "events.jsonl"):
        with open(path / log, "a") as file:
            file.write('{"step":5,"reward/mean":0.5}\n{"step":6,"rew')
    resume_digits(directory, name)
    assert bits_of(path) == bits_of(alone.path)
    assert [row["step"] for row in read_jsonl(path / "timing.jsonl")] == list(range(NUM_STEPS + 1))


# Damaged


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["optimizer.safetensors", "MANIFEST.json"])
def test_a_damaged_newest_checkpoint_falls_back_loudly_to_the_same_bits(
    directory: Path, name: str, alone: Run, capfd: pytest.CaptureFixture[str], file: str
) -> None:
    path = directory / name
    train_digits(directory, name, reward=stop_at(path, 5))
    damage(newest(path) / file)
    resume_digits(directory, name)
    assert f"step-000005 is damaged and passed over: {file}" in capfd.readouterr().err
    assert bits_of(path) == bits_of(alone.path)


def test_a_fallback_is_recorded_as_an_event(directory: Path, name: str) -> None:
    path = directory / name
    train_digits(directory, name, reward=stop_at(path, 5))
    damage(newest(path) / "model.safetensors")
    resume_digits(directory, name)
    [message] = [event["message"] for event in read_jsonl(path / "events.jsonl") if event["kind"] == "fallback"]
    assert "step-000005" in message


def test_a_run_without_a_valid_checkpoint_is_not_begun_anew(directory: Path, name: str) -> None:
    path = train_digits(directory, name, num_steps=3).path
    for checkpoint in path.glob("checkpoints/*"):
        damage(checkpoint / "model.safetensors")
    before = (path / "metrics.jsonl").read_bytes()
    with pytest.raises(CoveyError, match="no valid checkpoint"):
        resume_digits(directory, name, num_steps=NUM_STEPS)
    assert (path / "metrics.jsonl").read_bytes() == before


# Refused


@pytest.fixture(scope="module")
def stopped(directory: Path) -> str:
    """The name of a run that was stopped after step 3."""
    train_digits(directory, "stopped", reward=stop_at(directory / "stopped", 3))
    return "stopped"


def prompt(number: int, *, question: str = "", answer: str = "", role: str = "user") -> Any:
    content = question or PROMPTS[number]
    return {"messages": [{"role": role, "content": content}], "answer": answer, "id": str(number)}


CHANGED_QUESTIONS: dict[str, dict[str, Any]] = {
    "a question added": {"prompts": [*PROMPTS, "Say more digits"]},
    "a question removed": {"prompts": PROMPTS[:-1]},
    "the order changed": {"prompts": PROMPTS[::-1]},
    "a word changed": {"prompts": [*PROMPTS[:-1], "Say digits, please"]},
    "an answer added": {"prompts": [{"prompt": text, "answer": 1} for text in PROMPTS]},
    "a held-out question changed": {"held_out": [*HELD_OUT[:-1], "Say digits, 99"]},
    "the first held-out question moved to training": {"prompts": [*PROMPTS, HELD_OUT[0]], "held_out": HELD_OUT[1:]},
}


@pytest.mark.parametrize("change", CHANGED_QUESTIONS)
def test_changed_questions_are_refused(directory: Path, stopped: str, change: str) -> None:
    before = digest(directory / stopped / "metrics.jsonl")
    with pytest.raises(CoveyError, match="questions of task 'python' are not those"):
        resume_digits(directory, stopped, num_steps=3, **CHANGED_QUESTIONS[change])
    assert digest(directory / stopped / "metrics.jsonl") == before


def test_a_changed_role_is_refused(directory: Path, name: str) -> None:
    ids = [prompt(number) for number in range(len(PROMPTS))]
    train_digits(directory, name, prompts=ids, num_steps=1)
    changed = [prompt(number, role="system") for number in range(len(PROMPTS))]
    with pytest.raises(CoveyError, match="questions of task 'python' are not those"):
        resume_digits(directory, name, prompts=changed, num_steps=1)


@pytest.mark.parametrize(
    ("key", "value"),
    [("learning_rate", 1e-3), ("group_size", 8), ("seed", 1), ("beta", 0.1), ("temperature", 0.7), ("warmup_steps", 3)],
)
def test_an_option_that_would_change_the_numbers_is_refused_by_name(
    directory: Path, stopped: str, key: str, value: float
) -> None:
    with pytest.raises(CoveyError, match=rf"\.{key}={value}: the run was started with .*train\.num_steps") as refusal:
        resume_digits(directory, stopped, **{key: value})
    assert "\n" not in str(refusal.value)


def test_fewer_steps_than_are_done_are_refused(directory: Path, stopped: str) -> None:
    with pytest.raises(CoveyError, match=r"at step 3 already, train\.num_steps=2"):
        resume_digits(directory, stopped, num_steps=2)


def test_changed_base_weights_are_refused(directory: Path, name: str) -> None:
    """The frozen reference is read from the base model again: other weights there would change what beta pulls towards."""
    from covey.models.tiny import write_tiny_model

    base = write_tiny_model(directory / f"{name} base")
    train_digits(directory, name, model=str(base), beta=0.1, num_steps=1)
    write_tiny_model(base, seed=1)
    with pytest.raises(CoveyError, match="weights"):
        resume_digits(directory, name, num_steps=2)


def test_prompts_are_needed_again(directory: Path, stopped: str) -> None:
    with pytest.raises(CoveyError, match="was started from Python with its own prompts"):
        resume_digits(directory, stopped, prompts=None, held_out=None, reward=None, gold=None)


# What must not matter


def scrambled(completion: str) -> bool:
    """A gold verifier without sense."""
    return sum(completion.encode()) % 2 == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation__every": 0},
        {"evaluation__every": 1, "evaluation__samples_per_prompt": 3},
        {"evaluation__num_prompts": 2},
        {"gold": None},
        {"gold": scrambled},
        {"rollouts_every": 0},
        {"rollouts_every": 3},
        {"checkpoint__every": 1},
    ],
    ids=str,
)
def test_what_only_watches_leaves_the_weights_identical(directory: Path, alone: Run, changes: dict[str, Any]) -> None:
    run = train_digits(directory, f"watched {sorted(changes)} {len(list(directory.iterdir()))}", **changes)
    assert weights_of(run.path) == weights_of(alone.path)
    without_gold = [{key: value for key, value in row.items() if not key.startswith("gold/")} for row in run.metrics]
    assert without_gold == [{key: value for key, value in row.items() if not key.startswith("gold/")} for row in alone.metrics]


def test_a_reference_that_only_watches_leaves_the_weights_identical(directory: Path, name: str, alone: Run) -> None:
    assert weights_of(train_digits(directory, name, track_kl=True).path) == weights_of(alone.path)


def test_scrambled_gold_is_really_another_verifier(directory: Path, name: str, alone: Run) -> None:
    run = train_digits(directory, name, gold=scrambled)
    assert [row["gold/mean"] for row in run.metrics] != [row["gold/mean"] for row in alone.metrics]


def test_rollouts_are_saved_as_often_as_asked(directory: Path, name: str) -> None:
    run = train_digits(directory, name, rollouts_every=3)
    assert sorted(table.name for table in run.path.glob("rollouts/*")) == ["step-000003.parquet", "step-000006.parquet"]
