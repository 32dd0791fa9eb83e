"""The state of a run between two processes: what a checkpoint holds, and how it is put back bit for bit."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from covey.algos.objective import Coefficients
from covey.checkpoint import (
    Buffers,
    Checkpoint,
    Tensors,
    copy_tensors,
    load_checkpoint,
    newest_valid_checkpoint,
    save_checkpoint,
)
from covey.config import Recipe
from covey.curriculum import PromptSource
from covey.learner import Learner
from covey.models.lora import ADAPTER_WEIGHTS, adapter_state, load_adapter_state
from covey.models.policy import Policy
from covey.monitor.run_directory import JsonlLog, RunDirectory
from covey.tasks.base import Task
from covey.types import CoveyError


@dataclass(kw_only=True, slots=True)
class Progress:
    """Where the loop stands: all the state there is besides weights, optimizer and logs."""

    step: int = 0
    """Steps finished."""
    policy_version: int = 0
    num_generated_tokens: int = 0
    """Sampled for training, dropped groups and greedy baselines included."""
    tokens_per_prompt: float = 0.0
    """Of the last step; see `covey.token_budget`."""
    elapsed_s: float = 0.0
    """Seconds in the loop, summed over resumes."""
    is_checked: bool = False
    """Whether the checks and the evaluation before training are done."""
    num_skipped: int = 0
    """Updates in a row that were not made, because their gradient was not finite or they exceeded a limit."""
    num_returns: int = 0
    """How often the run has gone back to a checkpoint because of them."""
    max_sampled_rows: int = 0
    """Completions that are sampled at once, at most, since memory ran out; 0 = it has not."""
    num_sampling_halvings: int = 0
    """How often that was halved."""
    is_over: bool = False
    """Whether the run has ended before its last step, because a budget was used up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """All that changes while a run goes on, besides its logs: what a checkpoint holds."""

    policy: Policy
    learner: Learner
    prompts: PromptSource
    reference: PreTrainedModel | None
    """None iff nothing asks for it."""
    progress: Progress


def task_hash(task: Task) -> str:
    """Return a hash of all questions: a resumed run must see the data that it started with."""
    digest = hashlib.sha256()
    for part, prompts in {"train": task.train, **task.held_out}.items():
        for prompt in prompts:
            turns = [[message.role, message.content] for message in prompt.messages]
            columns = {name: str(value) for name, value in sorted(prompt.columns.items())}
            digest.update(json.dumps([part, prompt.prompt_id, turns, str(prompt.answer), columns]).encode())
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
    if policy.adapters is not None and checkpoint.state["adapter_sha256"] != policy.adapters.start_sha256:
        raise CoveyError(
            f"the adapter {recipe.lora.adapter!r} is not the one that {run.path} was started from. Start a new run, or restore "
            "the adapter"
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


def rewind(run: RunDirectory, step: int, log_sizes: Mapping[str, int]) -> None:
    """Put the run's logs back to where they were after `step`; what an earlier start has left beyond it is made again."""
    for name, log in run.logs().items():
        log.truncate(log_sizes.get(name, 0))
    run.forget_after(step)


def restore(checkpoint: Checkpoint, state: RunState) -> None:
    """Put weights, optimizer and everything else that changes back to the checkpoint, bit for bit."""
    restore_weights(checkpoint, state)
    for _ in range(checkpoint.state.get("num_halvings", 0)):
        state.learner.halve_micro_batches()
    state.prompts.restore(checkpoint.state["prompts"])
    for field, value in checkpoint.state["progress"].items():
        setattr(state.progress, field, value)


def restore_weights(checkpoint: Checkpoint, state: RunState) -> None:
    """Put weights, reference, optimizer and coefficients back to the checkpoint; the run stands where it stood."""
    if state.policy.adapters is not None:
        load_adapter_state(state.policy.model, checkpoint.tensors(ADAPTER_WEIGHTS))
    else:
        load_parameters(state.policy.model, checkpoint.tensors("model.safetensors"))
    if state.reference is not None and checkpoint.has("reference.safetensors"):
        load_parameters(state.reference, checkpoint.tensors("reference.safetensors"))
    saved = checkpoint.tensors("optimizer.safetensors")
    learner = state.learner
    optimizer_state = learner.optimizer.state_dict()
    optimizer_state["state"] = {}
    for name, tensor in saved.items():
        index, _, field = name.partition(".")
        optimizer_state["state"].setdefault(int(index), {})[field] = tensor
    learner.optimizer.load_state_dict(optimizer_state)
    learner.num_updates = checkpoint.state["num_updates"]
    learner.spikes.restore(checkpoint.state.get("norms", []))
    if learner.critic is not None:
        learner.critic.restore(checkpoint.tensors("critic.safetensors"))
    learner.coefficients = Coefficients(**checkpoint.state["coefficients"])


def load_parameters(model: PreTrainedModel, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy the weights into the model."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The state of a run at one moment, apart from what goes on changing."""

    step: int
    tensors: Tensors
    state: Mapping[str, Any]
    logs: Mapping[str, JsonlLog]
    log_sizes: Mapping[str, int]
    """Bytes of each log at that moment."""


def take_snapshot(run: RunDirectory, recipe: Recipe, state: RunState, *, buffers: Buffers | None = None) -> Snapshot:
    """Return everything that `restore` needs.

    `buffers`: what the tensors are copied to, so that training may go on before they are saved; None = they are not copied.
    """
    learner, policy = state.learner, state.policy
    logs = run.logs()
    tensors = changing_tensors(recipe, state)
    if buffers is not None:
        tensors = copy_tensors(tensors, buffers)
    return Snapshot(
        step=state.progress.step,
        tensors=tensors,
        state={
            "progress": dataclasses.asdict(state.progress),
            "prompts": copy.deepcopy(state.prompts.state()),  # Written later, when a curriculum may have gone on.
            "num_updates": learner.num_updates,
            "num_halvings": learner.num_halvings,
            "norms": list(learner.spikes.norms),
            "coefficients": dataclasses.asdict(learner.coefficients),
            "base_sha256": policy.identity.sha256,
            "adapter_sha256": policy.adapters.start_sha256 if policy.adapters else "",
            "config_hash": hashlib.sha256(recipe.to_toml().encode()).hexdigest(),
        },
        logs=logs,
        log_sizes={name: log.size for name, log in logs.items()},
    )


def changing_tensors(recipe: Recipe, state: RunState) -> Tensors:
    """Return the weights and moments that a checkpoint holds, by the name of their file."""
    learner, policy = state.learner, state.policy
    weights = {"model.safetensors": dict(policy.model.named_parameters())}
    if policy.adapters is not None:
        weights = {ADAPTER_WEIGHTS: adapter_state(policy.model)}  # The base is loaded anyway, and does not change.
    moments = learner.optimizer.state_dict()["state"]
    tensors: dict[str, Mapping[str, torch.Tensor]] = {
        **weights,
        "optimizer.safetensors": {
            f"{index}.{field}": value for index, fields in moments.items() for field, value in fields.items()
        },
    }
    if learner.critic is not None:
        tensors["critic.safetensors"] = learner.critic.state()
    if state.reference is not None and recipe.algorithm.reference_every:
        # A reference that never moves is the initial policy, which is loaded anyway.
        tensors["reference.safetensors"] = dict(state.reference.named_parameters())
    return tensors


def save_snapshot(
    run: RunDirectory,
    snapshot: Snapshot,
    *,
    policy: Policy,
    task: Task,
    keep: int,
    kept_step: int | None = None,
) -> Path:
    """Save a snapshot as a directory that transformers can load too.

    `keep`: how many of the newest checkpoints stay; `kept_step`: that of this step stays, however old it is.
    """
    for log in snapshot.logs.values():
        log.sync()
    return save_checkpoint(
        run.checkpoints,
        snapshot.step,
        tensors=snapshot.tensors,
        texts=policy.describing_files(),
        state=dict(snapshot.state) | {"task_hash": task_hash(task)},
        log_sizes=snapshot.log_sizes,
        keep=keep,
        kept_step=kept_step,
    )
