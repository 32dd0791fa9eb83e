"""The state of a run between two processes: what a checkpoint holds, and how it is put back bit for bit."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from covey.checkpoint import Checkpoint, load_checkpoint, newest_valid_checkpoint, save_checkpoint
from covey.config import Recipe
from covey.learner import Learner
from covey.models.policy import Policy
from covey.monitor.run_directory import RunDirectory
from covey.tasks.base import Task
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


def task_hash(task: Task) -> str:
    """Return a hash of all questions: a resumed run must see the data that it started with."""
    digest = hashlib.sha256()
    for part, prompts in {"train": task.train, **task.held_out}.items():
        for prompt in prompts:
            turns = [[message.role, message.content] for message in prompt.messages]
            digest.update(json.dumps([part, prompt.prompt_id, turns, str(prompt.answer)]).encode())
    return digest.hexdigest()


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
    run.forget_after(-1)
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
    run.forget_after(checkpoint.step)
    return Progress(**checkpoint.state["progress"])


def save_state(run: RunDirectory, recipe: Recipe, *, progress: Progress, policy: Policy, learner: Learner, task: Task) -> Path:
    """Save everything that `restore` needs, as a directory that transformers can load too."""
    optimizer_state = learner.optimizer.state_dict()["state"]
    logs = run.logs()
    for log in logs.values():
        log.sync()
    return save_checkpoint(
        run.checkpoints,
        progress.step,
        tensors={
            "model.safetensors": dict(policy.model.named_parameters()),
            "optimizer.safetensors": {
                f"{index}.{field}": value for index, fields in optimizer_state.items() for field, value in fields.items()
            },
        },
        texts=policy.describing_files(),
        state={
            "progress": dataclasses.asdict(progress),
            "num_updates": learner.num_updates,
            "task_hash": task_hash(task),
            "base_sha256": policy.identity.sha256,
            "config_hash": hashlib.sha256(recipe.to_toml().encode()).hexdigest(),
        },
        log_sizes={name: log.size for name, log in logs.items()},
        keep=recipe.checkpoint.keep,
    )
