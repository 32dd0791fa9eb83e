"""What a run has cost: parameters, memory by what holds it, seconds by phase and tokens, as `costs.json` of its directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from covey.models.memory import peak_resident_bytes
from covey.monitor.run_directory import RunDirectory, read_jsonl, write_text_atomic
from covey.session import Session

_MASTER_BYTES = 4  # float32
SECONDS = {
    "rollout_s": "sampling",
    "reward_s": "rewards",
    "scoring_s": "scoring",
    "update_s": "update",
    "load_weights_s": "load_weights",
    "evaluate_s": "evaluation",
    "checkpoint_s": "checkpoint",
}


def write_costs(session: Session) -> None:
    """Write what the run has cost until now; the peak of memory is that of this process, not of one before a resumption."""
    write_text_atomic(session.run.costs, json.dumps(costs(session), indent=1) + "\n")


def costs(session: Session) -> dict[str, Any]:
    """Return the figures of `costs.json`."""
    learner, reference, run = session.state.learner, session.state.reference, session.run
    peak = peak_resident_bytes()
    memory = memory_by_holder(session)
    steps = read_jsonl(run.metrics)
    return {
        "parameters": {
            "policy": _count(learner.model),
            "trained": _count(learner.model, trained=True),
            "reference": 0 if reference is None else _count(reference),
            "critic": 0 if learner.critic is None else learner.critic.num_parameters,
        },
        "memory_bytes": {**memory, "activations and cache": max(0, peak - sum(memory.values()))},
        "peak_rss_bytes": peak,
        "seconds": phase_seconds(run),
        "tokens": {name: int(sum(step.get(f"tokens/{name}") or 0 for step in steps)) for name in ("generated", "trained")},
        "num_updates": learner.num_updates,
    }


def memory_by_holder(session: Session) -> Mapping[str, int]:
    """Return the bytes of what is there from the first step to the last.

    The policy with its gradient and, of a model that computes in bfloat16, its rounded copy; the reference likewise without a
    gradient, and nothing for one that shares its weights with the policy; the value model with its gradient and moments; the
    moments of the policy's optimizer; the copies of weights that engines serve. "libraries" is what the process held before
    the model was loaded.
    """
    learner, reference, policy = session.state.learner, session.state.reference, session.state.policy
    compute_bytes = policy.compute_dtype.itemsize
    rounded = compute_bytes if compute_bytes < _MASTER_BYTES else 0
    num, num_trained = _count(learner.model), _count(learner.model, trained=True)
    own_reference = 0 if reference is None or policy.adapters is not None else _count(reference)
    num_engines = 1 if session.sampler is session.engine else 2
    return {
        "policy": num * (_MASTER_BYTES + rounded) + num_trained * _MASTER_BYTES,
        "reference": own_reference * (_MASTER_BYTES + rounded),
        "critic": 0 if learner.critic is None else learner.critic.num_bytes,
        "optimizer": 2 * num_trained * _MASTER_BYTES,
        "engine": num_engines * num * compute_bytes,
        "libraries": session.libraries_bytes,
    }


def phase_seconds(run: RunDirectory) -> dict[str, float]:
    """Return the seconds of each phase, summed over the run."""
    rows = read_jsonl(run.timing)
    return {name: round(sum(row.get(key) or 0.0 for row in rows), 3) for key, name in SECONDS.items()}


def _count(model: nn.Module, *, trained: bool = False) -> int:
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad or not trained)
