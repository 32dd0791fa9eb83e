"""From a recipe to the objects that the loop works with."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel

from covey.algos.registry import ALGORITHMS
from covey.assembly import (
    adapter_spec,
    evaluation_spec,
    isolated,
    make_learner,
    make_rewarder,
    rollout_spec,
    stats_spec,
    with_length_penalty,
    with_sandbox,
)
from covey.background import Background
from covey.batch import StatsSpec
from covey.checkpoint import Buffers, Checkpoint
from covey.config import Recipe
from covey.curriculum import CURRICULA
from covey.description import (
    describe_run,
    success_range,
    warn_of_other_numbers,
    warn_of_small_micro_batches,
    write_description,
)
from covey.distributed import ALONE, Ranks
from covey.engines.base import Engine
from covey.engines.registry import ENGINES
from covey.engines.within_memory import EngineWithinMemory
from covey.evaluate import EvaluationSpec
from covey.given import refuse_unfit_completions
from covey.guard.replay import num_planned_looks
from covey.guard.watch import Guard, open_guard
from covey.journal import Journal, JournaledRewarder, with_journal
from covey.models.lora import adapted_layers, frozen_copy
from covey.models.memory import affordable_tokens, available_bytes, resident_bytes
from covey.models.policy import Policy, load_policy, with_adapters
from covey.monitor.console import Console
from covey.monitor.environment import num_usable_cores
from covey.monitor.run_directory import RunDirectory, refuse_occupied
from covey.monitor.sinks import SinkSet, open_sinks
from covey.persistence import Progress, RunState, find_checkpoint, restore, rewind
from covey.recorder import Recorder
from covey.refusals import (
    refuse_different_ranks,
    refuse_long_prompts,
    refuse_other_model_code,
    refuse_other_reward,
    refuse_unusable_task,
)
from covey.rewards.base import Rewarder
from covey.rewards.code import sandbox_facts
from covey.rewards.sandbox.tiers import UNPROTECTED
from covey.rollout import RolloutSpec
from covey.tasks.base import Task
from covey.tasks.registry import find_task


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A run that is open for writing."""

    recipe: Recipe
    task: Task
    state: RunState
    engine: Engine
    sampler: Engine
    """What samples training completions: the engine, or one that keeps serving the policy that training starts from."""
    rewarder: JournaledRewarder
    success: tuple[float, float]
    """The lowest and the highest value of the reward before any penalty for length: wrong and right."""
    rollouts: RolloutSpec
    stats: StatsSpec
    evaluation: EvaluationSpec
    guard: Guard | None
    """What watches over the run; None iff the recipe has switched it off."""
    run: RunDirectory
    """Where this process writes: of several ranks, the main one's is the run's own."""
    shared: RunDirectory
    """The run's own directory, which holds its checkpoints."""
    recorder: Recorder
    ranks: Ranks
    background: Background
    """Where checkpoints are written while training goes on."""
    buffers: Buffers
    """What they are copied to before; empty until the first one is."""
    libraries_bytes: int
    """What the process held before the model was loaded."""
    closing: ExitStack
    """Lock, engine, trackers and console, to be closed in reverse order."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *failure: Any) -> None:
        self.closing.__exit__(*failure)


def open_session(
    recipe: Recipe,
    *,
    run: RunDirectory,
    console: Console,
    task: Task | None = None,
    rewarder: Rewarder | None = None,
    ranks: Ranks = ALONE,
) -> Session:
    """Return the session of a run directory that is new, or that holds an unfinished run of this recipe.

    Nothing is written before everything that a user can get wrong has been checked.

    Raises:
        CoveyError: saying which option, model, task or file is wrong, and what to do.
    """
    with ExitStack() as closing:
        closing.callback(console.close)
        libraries_bytes = resident_bytes()
        torch.set_num_threads(recipe.run.num_threads or max(1, num_usable_cores() // ranks.num_local))
        task = open_task(recipe, console) if task is None else task
        plain_rewarder = rewarder or make_rewarder(recipe, task)
        refuse_unusable_task(recipe, task, plain_rewarder)
        reward_changes = refuse_other_reward(recipe, run, plain_rewarder)
        log = run.reward_output if ranks.is_main else None
        rewarder = with_length_penalty(isolated(plain_rewarder, recipe, closing, log=log), recipe)
        state, num_tokens = open_state(recipe, task, run, console, ranks)
        own_run = closing.enter_context(open_run_directory(run, ranks))
        checkpoint, passed_over = find_checkpoint(run, recipe, task, state.policy)
        facts = describe_run(recipe, state.policy, task, plain_rewarder, ranks) | said_of_sandbox(rewarder, console)
        write_description(own_run, recipe, facts | {"micro_batch_tokens": num_tokens})
        warn_of_other_numbers(own_run, console, ranks)
        go_on_from(checkpoint, state, own_run, ranks)
        journal = Journal.opened(run.journal, after=None if checkpoint is None else checkpoint.step, rank=ranks.index)
        engine, sampler = open_engines(recipe, task, state, console, closing)
        recorder = open_recorder(recipe, own_run, console, ranks)
        closing.callback(recorder.sinks.close)
        for kind, message in [*(("fallback", each) for each in passed_over), *(("warning", each) for each in reward_changes)]:
            recorder.event(state.progress.step, kind, message)
        return Session(
            recipe=recipe,
            task=task,
            state=state,
            engine=engine,
            sampler=sampler,
            rewarder=with_journal(rewarder, journal, code=facts["reward_code"], max_error_frac=recipe.reward.max_error_frac),
            success=success_range(plain_rewarder.proxy),
            rollouts=rollout_spec(recipe, rewarder.proxy, is_given=task.brings_completions),
            stats=stats_spec(recipe, rewarder.proxy),
            evaluation=evaluation_spec(recipe),
            guard=guard_of(recipe, run),
            run=own_run,
            shared=run,
            recorder=recorder,
            ranks=ranks,
            background=closing.enter_context(Background()),
            buffers={},
            libraries_bytes=libraries_bytes,
            closing=closing.pop_all(),
        )


def open_state(recipe: Recipe, task: Task, run: RunDirectory, console: Console, ranks: Ranks) -> tuple[RunState, int]:
    """Return what a run starts from, and how many tokens a micro-batch of it may have."""
    policy = open_policy(recipe, task, console)
    refuse_other_model_code(run, policy)
    num_tokens = micro_batch_tokens(recipe, policy, run, ranks)
    warn_of_small_micro_batches(recipe, num_tokens, console)
    state = initial_state(recipe, task, policy, ranks, micro_batch_tokens=num_tokens)
    refuse_different_ranks(recipe, task, policy, ranks)
    return state, num_tokens


def open_task(recipe: Recipe, console: Console) -> Task:
    """Return the task that the recipe names, and say what it has to say."""
    task = with_sandbox(find_task(recipe.task.name, level=recipe.task.level, options=recipe.task.options), recipe)
    for note in task.notes:
        console.warn(note)
    return task


def said_of_sandbox(rewarder: Rewarder, console: Console) -> dict[str, Any]:
    """Return what `env.json` holds of the sandbox, and warn if there is none around the model's code."""
    facts = sandbox_facts(rewarder.proxy, rewarder.gold)
    if facts is not None and facts["tier"] == UNPROTECTED.name:
        console.warn("reward.sandbox='unprotected': what the model writes runs with all that you may do on this machine")
    return {"sandbox": facts}


def micro_batch_tokens(recipe: Recipe, policy: Policy, run: RunDirectory, ranks: Ranks) -> int:
    """Return the recipe's bound of a micro-batch, less if memory is short; of a run that goes on, what it began with.

    Chosen once: another cut would change the last bits.
    """
    if run.env.exists():
        before = json.loads(run.env.read_text()).get("micro_batch_tokens")
        if before:
            return int(before)
    return min(ranks.gather([tokens_within_memory(recipe, policy, available=available_bytes() // ranks.num_local)]))


def tokens_within_memory(recipe: Recipe, policy: Policy, *, available: int) -> int:
    """Return the recipe's bound of a micro-batch, less if `available` bytes hold less."""
    train = recipe.train
    allowed = affordable_tokens(
        policy.model, policy.compute_dtype, available=available, checkpoints_layers=train.gradient_checkpointing
    )
    return min(allowed, train.max_tokens_per_micro_batch)


def initial_state(
    recipe: Recipe, task: Task, policy: Policy, ranks: Ranks, *, micro_batch_tokens: int | None = None
) -> RunState:
    """Return what a run starts from: the reference is a copy of the policy that has not been trained yet."""
    if recipe.lora.rank:
        reference = adapted_reference(recipe, policy)
    else:
        reference = copy.deepcopy(policy.model).requires_grad_(False) if recipe.algorithm.has_reference else None
    return RunState(
        policy=policy,
        learner=make_learner(recipe, policy, ranks=ranks, micro_batch_tokens=micro_batch_tokens),
        prompts=CURRICULA[recipe.train.curriculum](task.train, seed=recipe.run.seed),
        reference=reference,
        progress=Progress(),
    )


def adapted_reference(recipe: Recipe, policy: Policy) -> PreTrainedModel | None:
    """Return the reference of a run with adapters. It shares all frozen weights with the policy: no second model is held."""
    if not recipe.algorithm.has_reference:
        return None
    # Fresh adapters do nothing yet, so that the policy's start is the model without them.
    return frozen_copy(policy.model, adapters_on=bool(recipe.lora.adapter) and recipe.lora.reference == "start")


def go_on_from(checkpoint: Checkpoint | None, state: RunState, own_run: RunDirectory, ranks: Ranks) -> None:
    """Put state and logs back to the checkpoint; without one, empty the logs of what an earlier start has left."""
    if checkpoint is None:
        rewind(own_run, -1, {})
    else:
        restore(checkpoint, state)
        rewind(own_run, checkpoint.step, checkpoint.log_sizes if ranks.is_main else {})
    ranks.barrier()  # Every rank then reads what the main one has put back.


def open_recorder(recipe: Recipe, own_run: RunDirectory, console: Console, ranks: Ranks) -> Recorder:
    """Return what writes the run's logs, and copies them to the trackers that the recipe names."""
    names = recipe.run.sinks if ranks.is_main else ()
    sinks = SinkSet(open_sinks(names, own_run.path.name, own_run.path, recipe.model_dump()), console.warn)
    return Recorder(run=own_run, console=console, sinks=sinks, num_steps=recipe.train.num_steps)


def open_engine(recipe: Recipe, policy: Policy, console: Console) -> Engine:
    """Return the engine that the recipe names, and say what it has to say."""
    engine = ENGINES[recipe.engine.name](policy, progress=lambda done, total: console.phase("sampling", done, total))
    if engine.note:
        console.note(engine.note)
    return engine


def open_engines(recipe: Recipe, task: Task, state: RunState, console: Console, closing: ExitStack) -> tuple[Engine, Engine]:
    """Return the policy's engine, and what samples training completions: the same, or one that keeps serving the reference."""
    engine = EngineWithinMemory(open_engine(recipe, state.policy, console), state.progress)
    closing.callback(engine.close)
    if ALGORITHMS[recipe.algorithm.name].samples_from == "policy" or task.brings_completions:
        return engine, engine
    assert state.reference is not None
    initial = dataclasses.replace(state.policy, model=state.reference)
    sampler = EngineWithinMemory(open_engine(recipe, initial, console), state.progress)
    closing.callback(sampler.close)
    sampler.load_weights(initial, 0)
    return engine, sampler


@contextmanager
def open_run_directory(run: RunDirectory, ranks: Ranks) -> Generator[RunDirectory]:
    """Yield the directory that this rank writes to: the run's own, locked, or one that is thrown away at the end.

    Every rank records what happens, so that none takes another path through the loop; only the main rank's is kept.
    """
    ranks.barrier()  # Nobody writes before all have read what was there.
    if not ranks.is_main:
        with TemporaryDirectory(prefix="covey-rank-") as scratch:
            yield RunDirectory.create(Path(scratch) / run.path.name)
        return
    is_new = not run.recipe.exists()
    if is_new:
        RunDirectory.create(run.path)
    with run.lock():
        if is_new:
            refuse_occupied(run.path)  # Somebody else may have used the name while the model was being loaded.
        yield run


def open_policy(recipe: Recipe, task: Task, console: Console) -> Policy:
    """Return the model that the recipe names, after checking that the task's prompts fit it."""
    policy = load_policy(
        recipe.model.name,
        revision=recipe.model.revision or None,
        trust_remote_code=recipe.model.trust_remote_code,
        compute_dtype=recipe.model.compute_dtype,
        progress=console.note,
    )
    if recipe.lora.rank:
        policy = with_adapters(policy, adapter_spec(recipe), start=recipe.lora.adapter, seed=recipe.run.seed)
        num_trained = sum(weight.numel() for weight in policy.model.parameters() if weight.requires_grad)
        console.note(
            f"adapters of rank {recipe.lora.rank} on {len(adapted_layers(policy.model))} layers: {num_trained:,} numbers are "
            f"trained, the {policy.identity.num_parameters:,} of the model stay as they are"
        )
    if policy.identity.code:
        console.warn(f"model.trust_remote_code=true: {', '.join(policy.identity.code)} runs with all that you may do here")
    if policy.uses_plain_template:
        console.note(f"{recipe.model.name} has no chat template; prompts look like this: {show_prompt(policy, task)!r}")
    if not any(task.held_out.values()):
        console.warn("no question is held out: nothing will show whether the model got better. Give more prompts, or held_out")
    refuse_long_prompts(policy, task, max_new_tokens=recipe.sampling.max_new_tokens)
    if task.brings_completions:
        limit = recipe.sampling.max_new_tokens
        refuse_unfit_completions(task.train, policy=policy, group_size=recipe.train.group_size, max_new_tokens=limit)
    return policy


def show_prompt(policy: Policy, task: Task) -> str:
    """Return the first training prompt exactly as the model sees it."""
    return str(policy.tokenizer.decode(policy.encode(task.train[0].messages)))


def guard_of(recipe: Recipe, run: RunDirectory) -> Guard | None:
    """Return the guard of the run; None if the recipe has switched it off."""
    if not recipe.guard.enabled:
        return None
    num_looks = num_planned_looks(num_steps=recipe.train.num_steps, every=recipe.evaluation.every)
    return open_guard(run, planned_looks=num_looks, group_size=recipe.train.group_size, actions=recipe.guard.actions)
