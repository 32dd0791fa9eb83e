"""Covey's side of a workload: the steps of its own training loop, with everything that it writes into a run directory."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from covey.config import Recipe, load_recipe
from covey.engines.base import Engine
from covey.engines.registry import ENGINES
from covey.models.policy import Policy
from covey.monitor.console import open_console
from covey.monitor.run_directory import RunDirectory, read_jsonl
from covey.rewards.base import reward_from_function
from covey.self_checks import load_and_prove_weights
from covey.session import open_session
from covey.tasks.base import Task
from covey.train import Clock, train_step
from covey.types import Message, Prompt
from step_time.processes import emit, step_record
from step_time.workload import LEARNING_RATE, LORA_ALPHA, Workload, text_reward


def endless_engine(policy: Policy, **options: Any) -> Engine:
    """Return the native engine of a policy that has no end token."""
    return ENGINES["native"](dataclasses.replace(policy, stop_ids=frozenset()), **options)


ENGINES["endless"] = endless_engine


def recipe_of(workload: Workload, *, model: str, num_steps: int) -> Recipe:
    """Return the recipe of a workload; the rest are Covey's defaults."""
    options = {
        "model.name": model,
        "engine.name": "endless" if workload.is_forced else "native",
        "algorithm.beta": workload.beta,
        "lora.rank": workload.lora_rank,
        "lora.alpha": LORA_ALPHA,
        "sampling.max_new_tokens": workload.num_new_tokens,
        "train.num_steps": num_steps,
        "train.prompts_per_step": workload.num_prompts,
        "train.group_size": workload.group_size,
        "train.learning_rate": LEARNING_RATE,
        "train.warmup_steps": 0,
        "evaluation.every": 0,
        "checkpoint.every": 0,
    }
    return load_recipe(None, [f"{key}={value}" for key, value in options.items()])


def task_of(workload: Workload) -> Task:
    """Return the task whose only questions are the workload's, all of them in each step."""

    def reward(completion: str) -> float:
        return text_reward(completion)

    prompts = [
        Prompt(prompt_id=f"problem-{number}", messages=(Message(role="user", content=problem),))
        for number, problem in enumerate(workload.problems)
    ]
    return Task(name="word problems", train=prompts, held_out={}, proxy=reward_from_function(reward), gold=None, probes=[])


def main() -> None:
    job = json.loads(sys.argv[1])
    workload = Workload(**job["workload"])
    recipe = recipe_of(workload, model=job["model"], num_steps=job["num_steps"])
    with tempfile.TemporaryDirectory() as scratch:
        run = RunDirectory(Path(scratch) / "run")
        with open_session(recipe, run=run, console=open_console(quiet=True), task=task_of(workload)) as session:
            policy = session.state.policy
            lengths = [len(policy.encode(prompt.messages)) for prompt in session.task.train]
            workload.check_lengths(lengths)
            load_and_prove_weights(session.engine, policy, session.state.progress.policy_version, ranks=session.ranks)
            clock = Clock(0.0)
            ended = time.perf_counter()
            for _ in range(job["num_steps"]):
                train_step(session, clock)
                before, ended = ended, time.perf_counter()
                timing, metrics = read_jsonl(run.timing)[-1], read_jsonl(run.metrics)[-1]
                assert metrics["group/num_used"] == workload.num_prompts, "a group without a spread was left out"
                workload.check_num_tokens(int(metrics["tokens/generated"]))
                phases = {key: timing[key] for key in ("reward_s", "scoring_s", "load_weights_s")}
                step = step_record(
                    total_s=ended - before, sampling_s=timing["rollout_s"], num_tokens=int(metrics["tokens/generated"])
                )
                emit(step | {"prompt_tokens": sum(lengths), **phases})


if __name__ == "__main__":
    main()
