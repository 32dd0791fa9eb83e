"""From a recipe to its plan: load the model, probe the machine, apply the cost model. Nothing is trained or written."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from covey.algos.registry import ALGORITHMS
from covey.assembly import make_learner
from covey.config import Recipe
from covey.engines.base import Engine
from covey.engines.native.engine import NativeEngine
from covey.models.memory import available_bytes, layer_token_bytes, resident_bytes
from covey.models.policy import Policy
from covey.monitor.environment import num_usable_cores
from covey.plan.cost import Rates, Workload, sampling_s, step_seconds
from covey.plan.lengths import SampledLengths
from covey.plan.memory import (
    SAVED_COPY,
    Demand,
    ModelSizes,
    kept_bytes,
    memory_parts,
    model_sizes,
    peak_bytes,
    saved_copy_bytes,
)
from covey.plan.probe import Measured, Shape, Ticks, probe
from covey.saving import SPARE_MEMORY
from covey.session import open_engine, open_policy, tokens_within_memory
from covey.tasks.base import Task
from covey.tasks.registry import find_task

_NUM_PROMPTS_READ = 64
"""Prompts whose mean length stands for all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """Seconds, for one assumption about lengths and draws."""

    step: dict[str, float]
    """By phase; the keys are those of `timing.jsonl`."""
    evaluations_s: float
    """Of the whole run."""
    num_steps: int

    @property
    def step_s(self) -> float:
        return sum(self.step.values())

    @property
    def run_s(self) -> float:
        return self.num_steps * self.step_s + self.evaluations_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a recipe will need on this machine."""

    recipe: Recipe
    expected: Forecast
    """Completions as long as a few sampled ones suggest, one draw a step."""
    at_most: Forecast
    """Completions up to the limit, all draws."""
    lengths: SampledLengths
    memory: dict[str, float]
    """Bytes by part, with completions up to the limit."""
    available_bytes: int
    measured: Measured
    num_threads: int
    compute_dtype: str
    notes: tuple[str, ...]

    @property
    def peak_bytes(self) -> float:
        return peak_bytes(self.memory)

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.available_bytes


def plan_recipe(recipe: Recipe, *, task: Task | None = None) -> Plan:
    """Return what the recipe needs. `task`: of prompts from Python; None = the recipe's own.

    Raises:
        CoveyError: the recipe's task or model cannot be used.
    """
    num_threads = recipe.run.num_threads or num_usable_cores()
    torch.set_num_threads(num_threads)
    free, interpreter = available_bytes(), resident_bytes()
    task = task or find_task(recipe.task.name, level=recipe.task.level, options=recipe.task.options)
    ticks = Ticks()
    policy = open_policy(recipe, task, ticks)
    recipe = as_a_run_would_cut_it(recipe, policy, ticks)
    prompts = [policy.encode(prompt.messages) for prompt in task.train[:_NUM_PROMPTS_READ]]
    # The engine of a policy that never stops: every row is there in every step, and the ends are found afterwards.
    engine = open_engine(recipe, dataclasses.replace(policy, stop_ids=frozenset()), ticks)
    num_rows = rows_decoded_together(recipe, engine, model_sizes(policy), prompts)
    shape = Shape(prompts=prompts, num_rows=num_rows, max_new_tokens=recipe.sampling.max_new_tokens)
    measured = probe(recipe, policy, engine, ticks, shape)
    engine.close()
    limit = recipe.sampling.max_new_tokens
    num_frozen = frozen_passes(recipe, policy)
    likely, most = (
        workload(recipe, prompts, lengths, num_draws=num_draws, num_frozen_passes=num_frozen)
        for lengths, num_draws in ((measured.lengths.expected(limit), 1), ((limit,), recipe.train.max_draws))
    )
    demand = memory_demand(recipe, engine, prompts, most, measured)
    if recipe.train.gradient_checkpointing:
        # The probe counts what is kept; a layer that is computed again is there besides.
        again = layer_token_bytes(policy.model, policy.compute_dtype)
        demand = dataclasses.replace(demand, activation_token_bytes=demand.activation_token_bytes + again)
    memory = memory_parts(measured.sizes, demand, interpreter_bytes=interpreter)
    memory[SAVED_COPY] = saved_copy(recipe, measured.sizes, free=free + interpreter - kept_bytes(memory))
    return Plan(
        recipe=recipe,
        expected=forecast(recipe, task, likely, measured.rates),
        at_most=forecast(recipe, task, most, measured.rates),
        lengths=measured.lengths,
        memory=memory,
        available_bytes=free + interpreter,
        measured=measured,
        num_threads=num_threads,
        compute_dtype=str(policy.compute_dtype).removeprefix("torch."),
        notes=(*ticks.notes, *beyond_the_plan(recipe)),
    )


def as_a_run_would_cut_it(recipe: Recipe, policy: Policy, ticks: Ticks) -> Recipe:
    """Return the recipe with the bound of a micro-batch that a run would choose here and now, and say if it is lower."""
    train = recipe.train
    allowed = tokens_within_memory(recipe, policy, available=available_bytes())
    if allowed == train.max_tokens_per_micro_batch:
        return recipe
    ticks.note(
        f"a micro-batch has {allowed} tokens and not {train.max_tokens_per_micro_batch}: the free memory holds no more. It "
        "changes no gradient"
    )
    lowered = train.model_copy(update={"max_tokens_per_micro_batch": allowed})
    return recipe.model_copy(update={"train": lowered})


def saved_copy(recipe: Recipe, sizes: ModelSizes, *, free: float) -> float:
    """Return the bytes of the copy that checkpoints are written from; 0 if a run would not make one with `free` bytes left."""
    size = saved_copy_bytes(sizes)
    is_asked = bool(recipe.checkpoint.every) and recipe.checkpoint.in_background
    return float(size) if is_asked and free > SPARE_MEMORY * size else 0.0


def beyond_the_plan(recipe: Recipe) -> list[str]:
    """Return what the recipe's row needs or saves that the plan does not know of."""
    spec, name = ALGORITHMS[recipe.algorithm.name], recipe.algorithm.name
    notes = []
    if spec.critic_credit is not None and recipe.algorithm.critic == "separate":
        notes.append(f"not in this plan: the value model of {name!r}: weights, gradient, moments, an update like the policy's")
    if spec.samples_from == "reference":
        notes.append(f"not in this plan: the second engine of {name!r}, with a copy of the weights that it serves")
    if spec.selects:
        notes.append(f"{name!r} trains on some of a step's completions: its update takes less than is said here")
    return notes


def workload(
    recipe: Recipe, prompts: Sequence[list[int]], lengths: tuple[int, ...], *, num_draws: int, num_frozen_passes: int
) -> Workload:
    """Return a step of the recipe in numbers, all its groups usable."""
    train = recipe.train
    return Workload(
        num_prompts=train.prompts_per_step,
        group_size=train.group_size,
        prompt_tokens=sum(len(prompt) for prompt in prompts) / len(prompts),
        lengths=lengths,
        num_draws=num_draws,
        has_baseline=ALGORITHMS[recipe.algorithm.name].needs_baseline,
        num_iterations=train.num_iterations,
        num_minibatches=train.num_minibatches,
        num_frozen_passes=num_frozen_passes,
        max_tokens_per_micro_batch=train.max_tokens_per_micro_batch,
    )


def frozen_passes(recipe: Recipe, policy: Policy) -> int:
    """Return how often a step scores its batch before the first update: by the reference, by the policy itself."""
    has_reference = recipe.algorithm.has_reference
    needs_old = make_learner(recipe, policy).needs_old_scores(has_reference=has_reference)
    return int(has_reference) + int(needs_old)


def forecast(recipe: Recipe, task: Task, work: Workload, rates: Rates) -> Forecast:
    """Return the seconds of a step and of the run's evaluations."""
    return Forecast(
        step=step_seconds(work, rates),
        evaluations_s=sum(
            sampling_s(
                rates.decoding,
                num_prompts=num_prompts,
                prompt_tokens=work.prompt_tokens,
                row_lengths=dataclasses.replace(work, num_prompts=num_prompts, group_size=num_samples).row_lengths,
            )
            for num_prompts, num_samples in evaluation_calls(recipe, task)
        ),
        num_steps=recipe.train.num_steps,
    )


def evaluation_calls(recipe: Recipe, task: Task) -> list[tuple[int, int]]:
    """Return (prompts, samples) of each call that the run's evaluations make: greedy and sampled, of each part measured."""
    spec, num_steps = recipe.evaluation, recipe.train.num_steps
    sizes = {part: min(spec.num_prompts, len(task.held_out.get(part, ()))) for part in ("choose", "test")}
    between = (num_steps - 1) // spec.every if spec.every else 0
    parts = [*("choose", "test") * 2, *("choose",) * between]
    return [(sizes[part], samples) for part in parts if sizes[part] for samples in (1, spec.samples_per_prompt)]


def rows_decoded_together(recipe: Recipe, engine: Engine, sizes: ModelSizes, prompts: Sequence[list[int]]) -> int:
    """Return how many completions of a step the engine decodes at once."""
    train, limit = recipe.train, recipe.sampling.max_new_tokens
    num_rows = train.prompts_per_step * train.group_size
    if not isinstance(engine, NativeEngine):
        return num_rows
    bounds = {name: parameter.default for name, parameter in inspect.signature(NativeEngine).parameters.items()}
    longest = max(len(prompt) for prompt in prompts)
    row_bytes = sizes.cache_values * sizes.compute_bytes * (limit + 2 * longest / train.group_size)
    return max(1, min(num_rows, bounds["max_rows"], int(bounds["max_cache_bytes"] / row_bytes)))


def memory_demand(recipe: Recipe, engine: Engine, prompts: Sequence[list[int]], work: Workload, measured: Measured) -> Demand:
    """Return what the recipe holds in memory besides the weights."""
    is_native = isinstance(engine, NativeEngine)
    rows, train = measured.rates.decoding.max_rows, recipe.train
    longest = max(len(prompt) for prompt in prompts)
    group_tokens = longest + min(train.group_size * max(work.lengths), max(train.max_shared_tokens, max(work.lengths)))
    update_tokens = work.num_prompts / work.num_minibatches * (longest + work.group_size * max(work.lengths))
    return Demand(
        # Elsewhere each row has a copy of its prompt.
        prompt_slots=min(len(prompts), 2 * -(-rows // train.group_size)) if is_native else rows,
        prompt_tokens=longest,
        num_rows=rows,
        row_tokens=max(work.lengths),
        micro_batch_tokens=round(min(update_tokens, max(train.max_tokens_per_micro_batch, group_tokens))),
        activation_token_bytes=measured.activation_token_bytes,
        # With adapters the reference is the same model with other adapters, or with none.
        has_reference=recipe.algorithm.has_reference and not recipe.lora.rank,
        has_packed_head=is_native,
    )
