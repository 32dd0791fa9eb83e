"""A learned proxy, optimised until gold falls: the one real test of the curve over sqrt(KL).

    python benchmarks/bt_proxy.py [--steps 40] [--keep DIRECTORY]

SmolLM2-135M writes short sentences about 64 topics. Gold likes about sixteen words that do not repeat. Of four completions of
each training prompt pairs are made, labelled by the model of Bradley and Terry on gold, and a reward model is trained on them.
The policy is then trained on the probability that the reward model prefers its completion to the base model's first one,
without a KL penalty and with a guard that only warns.

Pairs, reward model and run are stages, kept in the directory: given --keep again, the script goes on where it was stopped, and
with more --steps it goes on training. The result goes to benchmarks/results/bt_proxy.json, the picture to
docs/images/bt-proxy.svg.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bt_proxy_parts.gold import sentence_score, words_of
from bt_proxy_parts.looks import record_of, without_nan
from bt_proxy_parts.pairs import agreement, drawn_pairs
from bt_proxy_parts.picture import picture
from bt_proxy_parts.prompts import split_prompts, with_references
from step_time.processes import BENCHMARKS, describe_commit, git

from covey.api import prepare_run, run_session
from covey.config import Recipe
from covey.engines.native.engine import NativeEngine
from covey.guard.table import DETECTORS
from covey.models.policy import load_policy
from covey.models.reward_model import load_reward_model, new_reward_model, save_reward_model
from covey.models.reward_model_fit import FitSpec, fit_reward_model
from covey.monitor.environment import describe_machine, describe_versions
from covey.monitor.run_directory import RunDirectory, write_text_atomic
from covey.rewards.base import Rewarder, reward_from_function
from covey.rewards.preference import preference_reward
from covey.rewards.preference_pairs import read_preference_pairs
from covey.rollout import sample_groups
from covey.sampling import Sampling, rollout_keys
from covey.tasks.base import Task
from covey.tasks.from_python import CUSTOM_TASK
from covey.tuning import start_tuned
from covey.types import CoveyError, Prompt

RESULT = BENCHMARKS / "results" / "bt_proxy.json"
PICTURE = BENCHMARKS.parent / "docs" / "images" / "bt-proxy.svg"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What sets one such experiment apart. What is kept of one cannot be used for another."""

    model: str = "smollm2-135m"
    """Of the policy, and of the reward model's body."""
    seed: int = 0
    max_new_tokens: int = 48
    samples_per_prompt: int = 4
    """Of the base model, for pairs."""
    num_pairs: int = 500
    sharpness: float = 12.0
    """P(a is preferred to b) = sigmoid(sharpness (gold_a - gold_b))."""
    reward_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the reward model's matrix products, in its training and after it."""
    fit_batch_size: int = 16
    fit_learning_rate: float = 1e-4
    prompts_per_step: int = 8
    group_size: int = 8
    learning_rate: float = 3e-5
    evaluate_every: int = 5


GOLD = reward_from_function(sentence_score)


def run_all(setting: Setting, directory: Path, *, num_steps: int) -> dict[str, Any]:
    """Return the record of the whole experiment. Stages that the directory holds are not made again.

    Raises:
        CoveyError: the directory holds another experiment, or the run was stopped and saved.
    """
    directory.mkdir(parents=True, exist_ok=True)
    claim(setting, directory)
    parts = split_prompts(seed=setting.seed)
    completions = base_completions(setting, parts, directory / "completions.json")
    pairs = labelled_pairs(setting, parts["train"], completions, directory / "pairs.jsonl")
    fit = fitted_reward_model(setting, directory)
    held = {part: with_references(prompts, completions) for part, prompts in parts.items()}
    task = task_of(setting, held, directory / "reward-model")
    run = trained_run(setting, task, directory, num_steps=num_steps)
    return {
        "setting": asdict(setting),
        "num_prompts": {part: len(prompts) for part, prompts in parts.items()},
        "num_pairs": len(pairs),
        "labels_that_follow_gold": round(agreement(pairs), 4),
        "reward_model": fit,
        **record_of(run, words_of),
    }


def claim(setting: Setting, directory: Path) -> None:
    """Write down which experiment the directory is of.

    Raises:
        CoveyError: of another one.
    """
    path, text = directory / "setting.json", json.dumps(asdict(setting), indent=1) + "\n"
    if path.exists() and path.read_text() != text:
        raise CoveyError(f"{directory} holds an experiment with another setting; name another directory, or remove it")
    write_text_atomic(path, text)


def base_completions(setting: Setting, parts: Mapping[str, Sequence[Prompt]], path: Path) -> dict[str, list[str]]:
    """Return completions of the base model by prompt: several of each training prompt, one of each other."""
    if not path.exists():
        policy = load_policy(setting.model, progress=say)
        engine = NativeEngine(policy)
        sampling = Sampling(temperature=1.0, max_new_tokens=setting.max_new_tokens)
        found: dict[str, list[str]] = {}
        for part, prompts in parts.items():
            size = setting.samples_per_prompt if part == "train" else 1
            say(f"sampling {size} completions of {len(prompts)} prompts, part {part}")
            keys = [
                rollout_keys(setting.seed, "pairs", step=0, draw=0, prompt_id=prompt.prompt_id, group_size=size)
                for prompt in prompts
            ]
            groups, _, _ = sample_groups(
                prompts, policy=policy, engine=engine, rewarder=Rewarder(proxy=GOLD, gold=None), sampling=sampling, keys=keys
            )
            found |= {group.prompt.prompt_id: [rollout.text for rollout in group.rollouts] for group in groups}
        engine.close()
        write_text_atomic(path, json.dumps(found, indent=1) + "\n")
    return json.loads(path.read_text())


def labelled_pairs(
    setting: Setting, prompts: Sequence[Prompt], completions: Mapping[str, Sequence[str]], path: Path
) -> list[dict[str, Any]]:
    """Return the pairs, and write them as `read_preference_pairs` takes them."""
    pairs = drawn_pairs(
        {prompt.text: completions[prompt.prompt_id] for prompt in prompts},
        sentence_score,
        num_pairs=setting.num_pairs,
        sharpness=setting.sharpness,
        seed=setting.seed,
    )
    write_text_atomic(path, "".join(json.dumps(pair) + "\n" for pair in pairs))
    return pairs


def fitted_reward_model(setting: Setting, directory: Path) -> dict[str, Any]:
    """Return how good the reward model is on held-out prompts; it is trained unless the directory holds it."""
    record = directory / "reward-model.json"
    if not record.exists():
        model = new_reward_model(setting.model, compute_dtype=setting.reward_dtype, progress=say)
        spec = FitSpec(
            num_epochs=1, batch_size=setting.fit_batch_size, learning_rate=setting.fit_learning_rate, seed=setting.seed
        )
        report = fit_reward_model(model, read_preference_pairs(directory / "pairs.jsonl"), spec, progress=say)
        shutil.rmtree(directory / "reward-model", ignore_errors=True)  # Of a stage that was cut off while it was saved.
        save_reward_model(model, directory / "reward-model")
        found = {
            "num_train_pairs": report.num_train_pairs,
            "num_held_out_pairs": report.num_held_out_pairs,
            "accuracy_before": without_nan(asdict(report.accuracy_before)),
            "accuracy": without_nan(asdict(report.accuracy)),
            "losses": [round(loss, 5) for loss in report.losses],
            "commit": describe_commit(),
        }
        write_text_atomic(record, json.dumps(found, indent=1) + "\n")
    return json.loads(record.read_text())


def task_of(setting: Setting, parts: Mapping[str, Sequence[Prompt]], reward_model: Path) -> Task:
    """Return the task: what is optimised is the probability of beating the base model's completion."""
    model = load_reward_model(str(reward_model), compute_dtype=setting.reward_dtype)
    return Task(
        name=CUSTOM_TASK,
        train=parts["train"],
        held_out={"choose": parts["choose"], "guard": parts["guard"], "test": []},
        proxy=preference_reward(model.score, bound="sigmoid", reference_column="reference"),
        gold=GOLD,
        probes=(),
    )


def trained_run(setting: Setting, task: Task, directory: Path, *, num_steps: int) -> RunDirectory:
    """Return the finished run; one that was begun goes on.

    Raises:
        CoveyError: it was stopped and saved.
    """
    path = directory / "run"
    if (path / "recipe.toml").exists():
        run, recipe = prepare_run(None, resume=path, overrides={"num_steps": num_steps}, is_custom=True)
    else:
        options = options_of(setting, directory, num_steps=num_steps)
        run, recipe = prepare_run(Recipe(), model=setting.model, overrides=options, is_custom=True)
    if not run_session(recipe, run, task=task, rewarder=Rewarder(proxy=task.proxy, gold=task.gold)):
        raise CoveyError(f"{run.path} was stopped and saved; give the same command again to go on")
    return run


def options_of(setting: Setting, directory: Path, *, num_steps: int) -> dict[str, Any]:
    """Return what the recipe of the run has beside the defaults. No alarm changes anything, so that gold can fall."""
    return {
        "run__name": "run",
        "run__directory": str(directory),
        "run__seed": setting.seed,
        "num_steps": num_steps,
        "max_new_tokens": setting.max_new_tokens,
        "prompts_per_step": setting.prompts_per_step,
        "group_size": setting.group_size,
        "learning_rate": setting.learning_rate,
        "algorithm__beta": 0.0,
        "algorithm__track_kl": True,
        "evaluation__every": setting.evaluate_every,
        "evaluation__num_prompts": 60,
        "guard__actions": dict.fromkeys(DETECTORS, "warn"),
        "reward__num_workers": 0,  # Gold is a few lines, and the reward model lives in this process anyway.
    }


def say(message: str) -> None:
    print(message, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="training steps (40)")
    parser.add_argument("--keep", type=Path, help="directory to keep the stages in, and to go on from")
    arguments = parser.parse_args()
    start_tuned()
    command = ["python", "benchmarks/bt_proxy.py", "--steps", str(arguments.steps)]
    with tempfile.TemporaryDirectory() as scratch:
        record = run_all(Setting(), (arguments.keep or Path(scratch)).resolve(), num_steps=arguments.steps)
    result = {
        "command": shlex.join(command),
        "commit": describe_commit(),
        "detectors_last_changed_in": git("log", "-1", "--format=%h %cs", "--", "../src/covey/guard"),
        "machine": describe_machine(),
        "versions": describe_versions(),
        **record,
    }
    write_text_atomic(RESULT, json.dumps(result, indent=1, allow_nan=False) + "\n")
    PICTURE.write_text(picture(result))
    for name, moment in record["summary"].items():
        print(f"{name}: step {moment['step']}, gold {moment['gold_mean']:.3f}, proxy {moment['proxy_mean']:.3f}")


if __name__ == "__main__":
    main()
