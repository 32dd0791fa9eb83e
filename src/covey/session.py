"""From a recipe to the objects that the loop works with."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from collections.abc import Sequence
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
from covey.config import Recipe
from covey.engines.base import Engine
from covey.engines.transformers import TransformersEngine
from covey.evaluate import EvaluationSpec
from covey.learner import Learner, LearnerSpec, ScoringSpec
from covey.models.policy import Policy, load_policy
from covey.monitor.console import Console
from covey.monitor.environment import describe_machine, describe_versions, num_usable_cores
from covey.monitor.run_directory import (
    SCHEMA_VERSION,
    RunDirectory,
    refuse_occupied,
    write_text_atomic,
)
from covey.monitor.sinks import SinkSet, open_sinks
from covey.persistence import Progress, find_checkpoint, restart, restore, save_state
from covey.recorder import Recorder
from covey.rewards.base import Rewarder
from covey.rewards.registry import find_reward
from covey.rollout import RolloutSpec
from covey.sampling import Sampling
from covey.tasks.base import Task
from covey.tasks.registry import find_task
from covey.types import CoveyError


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
    is_new = not run.recipe.exists()
    with ExitStack() as closing:
        closing.callback(console.close)
        torch.set_num_threads(recipe.run.num_threads or num_usable_cores())
        task = task or find_task(recipe.task.name, level=recipe.task.level)
        task.check()
        rewarder = rewarder or make_rewarder(recipe, task)
        policy = open_policy(recipe, task, console)
        reference = copy.deepcopy(policy.model).requires_grad_(False) if recipe.algorithm.beta else None
        learner = make_learner(recipe, policy, rewarder)
        if is_new:
            RunDirectory.create(run.path)
        closing.enter_context(run.lock())
        if is_new:
            refuse_occupied(run.path)  # Somebody else may have used the name while the model was being loaded.
        checkpoint, passed_over = find_checkpoint(run, recipe, task, policy)
        write_text_atomic(run.recipe, recipe.to_toml())
        if run.env.exists():
            warn_of_other_threads(run, console)
        else:
            environment = describe_run(recipe, policy, task, rewarder)
            write_text_atomic(run.env, json.dumps(environment, indent=1) + "\n")
        sinks = SinkSet(open_sinks(recipe.run.sinks, run.path.name, run.path, recipe.model_dump()), console.warn)
        closing.callback(sinks.close)
        progress = restore(checkpoint, policy, learner, run) if checkpoint else restart(run)
        engine = TransformersEngine(policy, progress=lambda done, total: console.phase("sampling", done, total))
        closing.callback(engine.close)
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
            rollouts=rollout_spec(recipe),
            evaluation=evaluation_spec(recipe),
            run=run,
            recorder=recorder,
            progress=progress,
            closing=closing.pop_all(),
        )


def open_policy(recipe: Recipe, task: Task, console: Console) -> Policy:
    """Return the model that the recipe names, after checking that the task's prompts fit it."""
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
        console.warn("no question is held out: nothing will show whether the model got better. Give more prompts, or held_out")
    refuse_long_prompts(policy, task, max_new_tokens=recipe.sampling.max_new_tokens)
    return policy


def sampling_of(recipe: Recipe) -> Sampling:
    """Return the distribution that training completions are drawn from."""
    return Sampling(temperature=recipe.sampling.temperature, max_new_tokens=recipe.sampling.max_new_tokens)


def rollout_spec(recipe: Recipe) -> RolloutSpec:
    """Return how the groups of a step are sampled."""
    return RolloutSpec(
        sampling=sampling_of(recipe),
        prompts_per_step=recipe.train.prompts_per_step,
        group_size=recipe.train.group_size,
        max_draws=recipe.train.max_draws,
        drop_flat_groups=recipe.train.drop_flat_groups,
        seed=recipe.run.seed,
    )


def evaluation_spec(recipe: Recipe) -> EvaluationSpec:
    """Return how held-out prompts are sampled."""
    return EvaluationSpec(
        sampling=sampling_of(recipe), samples_per_prompt=recipe.evaluation.samples_per_prompt, seed=recipe.run.seed
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
            min_group_std=algorithm.min_group_std,
            reward_range=float(rewarder.proxy.high - rewarder.proxy.low),
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


def warn_of_other_threads(run: RunDirectory, console: Console) -> None:
    """Say so if a resumed run computes with another number of threads, which changes the last bits of its numbers."""
    before, now = json.loads(run.env.read_text())["num_threads"], torch.get_num_threads()
    if before != now:
        console.warn(f"the run was started with {before} threads and goes on with {now}: its bits will not be the same")


def command_line(words: Sequence[str]) -> list[str]:
    """Return Covey's own command line. Of a user's script only the name: its arguments are none of ours to publish."""
    program = Path(words[0]).name
    return [program, *words[1:]] if program == "covey" else [program]


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
        "command": command_line(sys.argv),
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


def save_session(session: Session) -> Path:
    """Save everything that a resumed session needs, as a directory that transformers can load too."""
    return save_state(
        session.run,
        session.recipe,
        progress=session.progress,
        policy=session.policy,
        learner=session.learner,
        task=session.task,
    )
