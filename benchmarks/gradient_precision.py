"""How far bfloat16 turns the gradient: the cosine between it and the float32 gradient of the same step of W, on SmolLM2.

    python benchmarks/gradient_precision.py

One step of workload W (see benchmarks/step_time.py) is sampled, and its gradient computed four times: with bfloat16 and
float32 products, by the packed path and by transformers' own modules. The result goes to
benchmarks/results/gradient_precision.json.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

import torch
from step_time.covey_worker import recipe_of, task_of
from step_time.processes import describe_commit
from step_time.workload import MODEL, WORKLOADS
from torch import Tensor

from covey.assembly import make_learner
from covey.batch import make_tokens
from covey.models.bundled import ensure_bundled
from covey.monitor.console import open_console
from covey.monitor.environment import describe_machine, describe_versions
from covey.monitor.run_directory import RunDirectory, write_text_atomic
from covey.rollout import sample_step
from covey.self_checks import load_and_prove_weights
from covey.session import Session, open_session
from covey.tensors import Batch

RESULT = Path(__file__).parent / "results" / "gradient_precision.json"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
REFERENCE = ("ordinary", "float32")


def sampled_batch(session: Session) -> Batch:
    """Return the first step's batch."""
    load_and_prove_weights(session.engine, session.state.policy, 0, ranks=session.ranks)
    sampled = sample_step(
        session.state.prompts.draw,
        session.rollouts,
        step=1,
        policy=session.state.policy,
        engine=session.engine,
        rewarder=session.rewarder,
    )
    tokens = make_tokens(sampled.used, sampled.dropped, session.stats)
    learner = session.state.learner
    return learner.make_batch(tokens, learner.make_scores(tokens, None))


def gradient(session: Session, batch: Batch, *, path: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the step's gradient by name, computed by one path in one precision."""
    policy = dataclasses.replace(session.state.policy, compute_dtype=dtype)
    learner = make_learner(session.recipe, policy)
    learner.optimizer.state.clear()
    # A model with a hook takes the ordinary path, which alone would call it.
    hooks = [policy.model.register_forward_hook(lambda *_: None)] if path == "ordinary" else []
    learner.accumulate_gradient(batch)
    for hook in hooks:
        hook.remove()
    found = {name: weight.grad for name, weight in policy.model.named_parameters() if weight.grad is not None}
    policy.model.zero_grad(set_to_none=True)
    return found


def compared(found: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, float | str]:
    """Return cosine, ratio of norms and the worst matrix."""
    cosines = {name: cosine([found[name]], [reference[name]]) for name in reference}
    worst = min(cosines, key=cosines.__getitem__)
    own, other = list(found.values()), list(reference.values())
    return {
        "cosine": round(cosine(own, other), 6),
        "norm_ratio": round(norm(own) / norm(other), 6),
        "lowest_cosine_of_a_weight": round(cosines[worst], 6),
        "of_weight": worst,
    }


def norm(tensors: list[Tensor]) -> float:
    return float(torch.stack([tensor.double().square().sum() for tensor in tensors]).sum().sqrt())


def cosine(first: list[Tensor], second: list[Tensor]) -> float:
    product = sum(float((a.double() * b.double()).sum()) for a, b in zip(first, second, strict=True))
    return product / (norm(first) * norm(second))


def main() -> None:
    workload = WORKLOADS["W"]
    ensure_bundled(MODEL, progress=print)
    recipe = recipe_of(workload, model=MODEL, num_steps=1)
    with (
        tempfile.TemporaryDirectory() as scratch,
        open_session(
            recipe, run=RunDirectory(Path(scratch) / "run"), console=open_console(quiet=True), task=task_of(workload)
        ) as session,
    ):
        batch = sampled_batch(session)
        reference = gradient(session, batch, path=REFERENCE[0], dtype=DTYPES[REFERENCE[1]])
        found = {}
        for path in ("packed", "ordinary"):
            for name, dtype in DTYPES.items():
                if (path, name) != REFERENCE:
                    found[f"{path}, {name}"] = compared(gradient(session, batch, path=path, dtype=dtype), reference)
                    print(path, name, found[f"{path}, {name}"], flush=True)
    result = {
        "command": "python benchmarks/gradient_precision.py",
        "commit": describe_commit(),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "model": MODEL,
        "workload": "W",
        "compared_with": ", ".join(REFERENCE),
        "gradients": found,
    }
    write_text_atomic(RESULT, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
