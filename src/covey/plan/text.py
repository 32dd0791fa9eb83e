"""A plan in words, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from covey.monitor.progress import duration
from covey.plan.predict import Forecast, Plan

PHASE_NAMES = {
    "rollout_s": "sampling",
    "scoring_s": "scoring (frozen models)",
    "update_s": "update",
    "load_weights_s": "load weights",
}
ACCURACY_FRAC = 0.25
"""What is asked of a plan on a quiet machine, with completions of known length: benchmarks/plan_accuracy.py."""
QUIET_PROCESSOR_FRAC = 0.8
"""Bare products keep all threads busy but for their starts and ends."""

_WIDTH = 28


def plan_lines(plan: Plan) -> list[str]:
    """Return the plan as a table and what has to be said about it."""
    model, measured = plan.recipe.model.name, plan.measured
    lines = [
        f"{model}, {size_of(measured.sizes.num_parameters)} parameters, {plan.compute_dtype}, {plan.num_threads} threads, "
        f"{plan.recipe.engine.name} engine; probed for {measured.probe_s:.1f} s",
        *plan.notes,
        f"lengths: {plan.lengths.describe(plan.recipe.sampling.max_new_tokens)}",
        "",
        f"{'seconds':{_WIDTH}}{'expected':>10}{'at most':>10}",
    ]
    for key, name in PHASE_NAMES.items():
        lines.append(f"{name:{_WIDTH}}{plan.expected.step[key]:10.2f}{plan.at_most.step[key]:10.2f}")
    lines.append(f"{'a step':{_WIDTH}}{plan.expected.step_s:10.2f}{plan.at_most.step_s:10.2f}")
    lines.append(f"{'evaluations, altogether':{_WIDTH}}{plan.expected.evaluations_s:10.1f}{plan.at_most.evaluations_s:10.1f}")
    run = f"{plan.recipe.train.num_steps} steps and evaluations"
    lines.append(f"{run:{_WIDTH}}{duration(plan.expected.run_s):>10}{duration(plan.at_most.run_s):>10}")
    lines += ["", f"{'memory, GB':{_WIDTH}}"]
    lines += [f"{name:{_WIDTH}}{size / 1e9:10.2f}" for name, size in plan.memory.items() if size >= 5e6]
    lines.append(f"{'at most at once':{_WIDTH}}{plan.peak_bytes / 1e9:10.2f} of {plan.available_bytes / 1e9:.2f} available")
    return [*lines, "", *remarks(plan)]


def remarks(plan: Plan) -> Iterator[str]:
    """Yield what the numbers do not say themselves."""
    train = plan.recipe.train
    draws = f", {train.max_draws} draws" if train.max_draws > 1 else ""
    yield (
        f"Every group is taken to be usable; at most: all completions at the token limit{draws}. Rewards, checkpoints and the "
        "model's loading are not in it."
    )
    measured = plan.measured
    share = min(1.0, measured.processor_frac)
    yield (
        f"The probe is short: on a quiet machine expect a step within {ACCURACY_FRAC:.0%}. While it ran, repeated decoding "
        f"steps differed by {measured.spread_frac:.0%}, and matrix products got {share:.0%} of the processor."
    )
    if is_busy(plan):
        yield "warning: the machine was busy, and the times are those of a busy machine. Plan again when it is quiet"
    if not plan.fits:
        yield f"warning: it does not fit. {remedy(plan)}"


def is_busy(plan: Plan) -> bool:
    """Return whether something else was running on the processor."""
    return plan.measured.processor_frac < QUIET_PROCESSOR_FRAC


def size_of(num_parameters: int) -> str:
    """Return a model's size in the unit that is used for it."""
    return f"{num_parameters / 1e6:.0f} M" if num_parameters >= 1e7 else f"{num_parameters:,}"


def remedy(plan: Plan) -> str:
    """Return what to lower, by what takes most among the parts that a recipe can choose."""
    advice = {
        "update: activations": "Lower train.max_tokens_per_micro_batch: it changes no gradient",
        "sampling: keys and values": "Lower sampling.max_new_tokens or train.group_size",
        "reference model": "Do without the reference (algorithm.beta=0), or train adapters (lora.rank)",
        "moments of AdamW": "Train adapters (lora.rank), or choose a smaller model",
    }
    largest = max(advice, key=lambda part: plan.memory[part])
    return f"{advice[largest]}. {largest.capitalize()}: {plan.memory[largest] / 1e9:.2f} GB"


def plan_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as one JSON document: seconds and bytes."""
    limit, rates = plan.recipe.sampling.max_new_tokens, plan.measured.rates
    expected = plan.lengths.expected(limit)
    return {
        "model": plan.recipe.model.name,
        "engine": plan.recipe.engine.name,
        "compute_dtype": plan.compute_dtype,
        "num_threads": plan.num_threads,
        "expected": _forecast_json(plan.expected),
        "at_most": _forecast_json(plan.at_most),
        "lengths": {
            "expected": sum(expected) / len(expected),
            "at_most": limit,
            "num_sampled": len(plan.lengths.lengths),
            "num_ended": plan.lengths.num_ended,
            "num_tokens": plan.lengths.num_tokens,
        },
        "memory": {
            "parts": {name: round(size) for name, size in plan.memory.items()},
            "peak": round(plan.peak_bytes),
            "available": plan.available_bytes,
            "fits": plan.fits,
        },
        "probe": {
            "seconds": plan.measured.probe_s,
            "spread_frac": plan.measured.spread_frac,
            "processor_frac": plan.measured.processor_frac,
            "is_busy": is_busy(plan),
            "prefill_tokens_per_s": 1 / rates.decoding.prefill_token_s,
            "decoding_steps": [{"rows": rows, "seconds": step_s} for rows, step_s in rates.decoding.steps],
            "body_token_s": rates.training.body_token_s,
            "head_token_s": rates.training.head_token_s,
            "pair_s": rates.training.pair_s,
            "micro_batch_s": rates.training.micro_batch_s,
            "forward_frac": rates.training.forward_frac,
        },
        "notes": list(plan.notes),
    }


def _forecast_json(forecast: Forecast) -> dict[str, Any]:
    return {
        "phases": forecast.step,
        "step_s": forecast.step_s,
        "evaluations_s": forecast.evaluations_s,
        "run_s": forecast.run_s,
    }
