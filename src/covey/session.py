"""From a recipe to the objects that the loop works with, and from a checkpoint back to where it stood."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from covey.algos.objective import Objective
from covey.algos.registry import ALGORITHMS
from covey.algos.surrogates import Clip
from covey.checkpoint import Checkpoint, load_checkpoint, newest_valid_checkpoint, save_checkpoint
from covey.config import Recipe
from covey.engines.base import Engine
from covey.engines.transformers import TransformersEngine
from covey.evaluate import EvaluationSpec
from covey.learner import Learner, LearnerSpec, ScoringSpec
from covey.models.policy import Policy, load_policy
from covey.monitor.console import Console
from covey.monitor.run_directory import (
    SCHEMA_VERSION,
    RunDirectory,
    describe_machine,
    describe_versions,
    write_text_atomic,
)
from covey.monitor.sinks import SinkSet, open_sinks
from covey.recorder import Recorder
from covey.rewards.base import Rewarder
from covey.rewards.registry import find_reward
from covey.rollout import RolloutSpec
from covey.sampling import Sampling
from covey.tasks.base import Task
from covey.tasks.registry import find_task
from covey.types import CoveyError


@dataclass(kw_only=True, slots=True)
class Progress:
    """Where the loop stands: all the state there is besides weights, optimizer and logs."""

    step: int = 0
    """Steps finished."""
    num_prompts_drawn: int = 0
    """Position in the endless stream of training prompts."""
    policy_version: int = 0
    elapsed_s: float = 0.0
    """Seconds in the loop, summed over resumes."""
    is_checked: bool = False
    """Whether the checks and the evaluation before training are done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A run that is open for writing."""

    recipe: Recipe
    task: Task
    policy: Policy
    reference: PreTrainedModel | None
    """The frozen initial policy; None iff algorithm.beta is 0."""
    engine: Engine
    rewarder: Rewarder
    learner: Learner
    rollouts: RolloutSpec
    evaluation: EvaluationSpec
    run: RunDirectory
    recorder: Recorder
    progress: Progress
    closing: ExitStack
    """Lock, engine, trackers and console, to be closed in reverse order."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *failure: Any) -> None:
        self.closing.__exit__(*failure)


def open_session(
    recipe: Recipe, *, run: RunDirectory, console: Console, task: Task | None = None, rewarder: Rewarder | None = None
) -> Session:
    """Return the session of a run directory that is new, or that holds an unfinished run of this recipe.

    Nothing is written before everything that a user can get wrong has been checked.

    Raises:
        CoveyError: saying which option, model, task or file is wrong, and what to do.
    """
    with ExitStack() as closing:
        closing.callback(console.close)
        torch.set_num_threads(recipe.run.num_threads or os.cpu_count() or 1)
        task = task or find_task(recipe.task.name, level=recipe.task.level)
        task.check()
        rewarder = rewarder or make_rewarder(recipe, task)
        policy = load_policy(
            recipe.model.name,
            revision=recipe.model.revision or None,
            trust_remote_code=recipe.model.trust_remote_code,
            compute_dtype=recipe.model.compute_dtype,
            progress=console.note,
        )
        if policy.uses_plain_template:
            console.note(f"{recipe.model.name} has no chat template; prompts look like this: {show_prompt(policy, task)!r}")
        if not any(task.held_out.values()):
            console.warn(
                "no question is held out: nothing will show whether the model got better. Give more prompts, or held_out"
            )
        refuse_long_prompts(policy, task, max_new_tokens=recipe.sampling.max_new_tokens)
        reference = copy.deepcopy(policy.model).requires_grad_(False) if recipe.algorithm.beta else None
        learner = make_learner(recipe, policy, rewarder)
        if not run.recipe.exists():
            RunDirectory.create(run.path)
        closing.enter_context(run.lock())
        sinks = SinkSet(open_sinks(recipe.run.sinks, run.path.name, run.path, recipe.model_dump()), console.warn)
        closing.callback(sinks.close)
        checkpoint, passed_over = find_checkpoint(run, recipe, task, policy)
        write_text_atomic(run.recipe, recipe.to_toml())
        if not run.env.exists():
            environment = describe_run(recipe, policy, task, rewarder)
            write_text_atomic(run.env, json.dumps(environment, indent=1) + "\n")
        progress = restore(checkpoint, policy, learner, run) if checkpoint else restart(run)
        engine = TransformersEngine(policy, progress=lambda done, total: console.phase("sampling", done, total))
        closing.callback(engine.close)
        sampling = Sampling(temperature=recipe.sampling.temperature, max_new_tokens=recipe.sampling.max_new_tokens)
        recorder = Recorder(run=run, console=console, sinks=sinks, num_steps=recipe.train.num_steps)
        for message in passed_over:
            recorder.event(progress.step, "fallback", message)
        return Session(
            recipe=recipe,
            task=task,
            policy=policy,
            reference=reference,
            engine=engine,
            rewarder=rewarder,
            learner=learner,
            rollouts=RolloutSpec(
                sampling=sampling,
                prompts_per_step=recipe.train.prompts_per_step,
                group_size=recipe.train.group_size,
                max_draws=recipe.train.max_draws,
                drop_flat_groups=recipe.train.drop_flat_groups,
                seed=recipe.run.seed,
            ),
            evaluation=EvaluationSpec(
                sampling=sampling, samples_per_prompt=recipe.evaluation.samples_per_prompt, seed=recipe.run.seed
            ),
            run=run,
            recorder=recorder,
            progress=progress,
            closing=closing.pop_all(),
        )


def make_rewarder(recipe: Recipe, task: Task) -> Rewarder:
    """Return the reward and the gold verifier that the recipe names, the task's own where it names none."""
    proxy = find_reward(recipe.reward.name, key="reward.name") if recipe.reward.name else task.proxy
    named = recipe.reward.gold
    gold = None if named == "none" else find_reward(named, key="reward.gold") if named else task.gold
    return Rewarder(proxy=proxy, gold=gold)


def make_learner(recipe: Recipe, policy: Policy, rewarder: Rewarder) -> Learner:
    """Return the learner of the recipe's algorithm."""
    algorithm, train = recipe.algorithm, recipe.train
    return Learner(
        policy.model,
        Objective(
            spec=ALGORITHMS[algorithm.name],
            clip=Clip(low=algorithm.epsilon_low, high=algorithm.epsilon_high),
            beta=algorithm.beta,
            min_group_std=algorithm.min_group_std * (rewarder.proxy.high - rewarder.proxy.low),
        ),
        ScoringSpec(
            temperature=recipe.sampling.temperature,
            compute_dtype=policy.compute_dtype,
            max_tokens_per_micro_batch=train.max_tokens_per_micro_batch,
            max_shared_tokens=train.max_shared_tokens,
        ),
        LearnerSpec(
            learning_rate=train.learning_rate,
            warmup_steps=train.warmup_steps,
            num_steps=train.num_steps,
            decay=train.decay,
            max_grad_norm=train.max_grad_norm,
            weight_decay=train.weight_decay,
            max_new_tokens=recipe.sampling.max_new_tokens,
        ),
    )


def show_prompt(policy: Policy, task: Task) -> str:
    """Return the first training prompt exactly as the model sees it."""
    return str(policy.tokenizer.decode(policy.encode(task.train[0].messages)))


def refuse_long_prompts(policy: Policy, task: Task, *, max_new_tokens: int) -> None:
    """Raise if a prompt would not fit: it is never cut silently.

    Raises:
        CoveyError: naming the prompt.
    """
    room = policy.max_sequence_tokens - max_new_tokens
    prompts = [*task.train, *(prompt for part in task.held_out.values() for prompt in part)]
    # A token covers at least one byte, so a text with fewer bytes than `room` fits without being encoded.
    for prompt in prompts:
        if sum(len(message.content.encode()) + 64 for message in prompt.messages) > room:
            length = len(policy.encode(prompt.messages))
            if length > room:
                raise CoveyError(
                    f"prompt {prompt.prompt_id!r} has {length} tokens; with sampling.max_new_tokens={max_new_tokens} the model "
                    f"takes at most {room}. Shorten or remove it, or lower max_new_tokens"
                )


def task_hash(task: Task) -> str:
    """Return a hash of all questions: a resumed run must see the data that it started with."""
    digest = hashlib.sha256()
    for part, prompts in {"train": task.train, **task.held_out}.items():
        for prompt in prompts:
            turns = [[message.role, message.content] for message in prompt.messages]
            digest.update(json.dumps([part, prompt.prompt_id, turns, str(prompt.answer)]).encode())
    return digest.hexdigest()


def describe_run(recipe: Recipe, policy: Policy, task: Task, rewarder: Rewarder) -> dict[str, Any]:
    """Return what goes into `env.json`."""
    spec = ALGORITHMS[recipe.algorithm.name]
    identity = dataclasses.asdict(policy.identity)
    versions = describe_versions()
    return {
        "schema_version": SCHEMA_VERSION,
        "covey_version": versions["covey"],
        "name": recipe.run.name,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "machine": describe_machine(),
        "versions": versions,
        "num_threads": torch.get_num_threads(),
        "compute_dtype": str(policy.compute_dtype).removeprefix("torch."),
        "model": identity,
        "reference": {key: identity[key] for key in ("name", "sha256")} if recipe.algorithm.beta else None,
        "has_gold": rewarder.gold is not None,
        "task": task.name,
        "algorithm": recipe.algorithm.name,
        "formula": spec.formula,
    }


def find_checkpoint(run: RunDirectory, recipe: Recipe, task: Task, policy: Policy) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest valid checkpoint of the run (None if it has none yet) and why newer ones were passed over.

    Raises:
        CoveyError: all checkpoints are damaged, or the task's questions or the base model's weights have changed.
    """
    path, passed_over = newest_valid_checkpoint(run.checkpoints)
    if path is None:
        return None, passed_over
    checkpoint = load_checkpoint(path)
    if checkpoint.state["base_sha256"] != policy.identity.sha256:
        raise CoveyError(
            f"the weights of {recipe.model.name!r} are not those that {run.path} was started from. Start a new run, or restore "
            "the weights"
        )
    if checkpoint.state["task_hash"] != task_hash(task):
        raise CoveyError(
            f"the questions of task {task.name!r} are not those that {run.path} was started with; a resumed run must see the "
            "same data. Start a new run, or restore the data"
        )
    if checkpoint.step > recipe.train.num_steps:
        raise CoveyError(
            f"{run.path} is at step {checkpoint.step} already, train.num_steps={recipe.train.num_steps}. Give a larger number"
        )
    return checkpoint, passed_over


def restart(run: RunDirectory) -> Progress:
    """Return the progress of a run without checkpoint, its logs emptied of what an earlier start has left."""
    for log in run.logs().values():
        log.truncate(0)
    return Progress()


def restore(checkpoint: Checkpoint, policy: Policy, learner: Learner, run: RunDirectory) -> Progress:
    """Put weights, optimizer and logs back to the checkpoint, bit for bit, and return its progress."""
    weights = checkpoint.tensors("model.safetensors")
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            parameter.copy_(weights[name])
    saved = checkpoint.tensors("optimizer.safetensors")
    state = learner.optimizer.state_dict()
    state["state"] = {}
    for name, tensor in saved.items():
        index, _, field = name.partition(".")
        state["state"].setdefault(int(index), {})[field] = tensor
    learner.optimizer.load_state_dict(state)
    learner.num_updates = checkpoint.state["num_updates"]
    for name, log in run.logs().items():
        log.truncate(checkpoint.log_sizes[name])
    return Progress(**checkpoint.state["progress"])


def save_session(session: Session) -> Path:
    """Save everything that `restore` needs, as a directory that transformers can load too."""
    optimizer_state = session.learner.optimizer.state_dict()["state"]
    logs = session.run.logs()
    for log in logs.values():
        log.sync()
    return save_checkpoint(
        session.run.checkpoints,
        session.progress.step,
        tensors={
            "model.safetensors": dict(session.policy.model.named_parameters()),
            "optimizer.safetensors": {
                f"{index}.{field}": value for index, fields in optimizer_state.items() for field, value in fields.items()
            },
        },
        texts=session.policy.describing_files(),
        state={
            "progress": dataclasses.asdict(session.progress),
            "num_updates": session.learner.num_updates,
            "task_hash": task_hash(session.task),
            "base_sha256": session.policy.identity.sha256,
            "config_hash": hashlib.sha256(session.recipe.to_toml().encode()).hexdigest(),
        },
        log_sizes={name: log.size for name, log in logs.items()},
        keep=session.recipe.checkpoint.keep,
    )
