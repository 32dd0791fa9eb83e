"""What a run says of itself before it starts: the resolved recipe, and env.json."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from covey.assembly import describe_objective
from covey.config import Recipe
from covey.distributed import Ranks
from covey.models.policy import Policy
from covey.monitor.console import Console
from covey.monitor.environment import describe_machine, describe_versions
from covey.monitor.run_directory import SCHEMA_VERSION, RunDirectory, write_text_atomic
from covey.rewards.base import Reward, Rewarder
from covey.rewards.code_mark import code_mark
from covey.tasks.base import Task
from covey.tuning import settings_in_force


def write_description(run: RunDirectory, recipe: Recipe, facts: Mapping[str, Any]) -> None:
    """Write the resolved recipe, and of a new run what it runs on."""
    write_text_atomic(run.recipe, recipe.to_toml())
    if not run.env.exists():
        write_text_atomic(run.env, json.dumps(facts, indent=1) + "\n")


def command_line(words: Sequence[str]) -> list[str]:
    """Return Covey's own command line. Of a user's script only the name: its arguments are none of ours to publish."""
    program = Path(words[0]).name
    return [program, *words[1:]] if program == "covey" else [program]


def describe_process(name: str, compute_dtype: torch.dtype) -> dict[str, Any]:
    """Return what any run's `env.json` says of the process: who began it, when, where and with what."""
    versions = describe_versions()
    return {
        "schema_version": SCHEMA_VERSION,
        "covey_version": versions["covey"],
        "name": name,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(sys.argv),
        "machine": describe_machine(),
        "versions": versions,
        "num_threads": torch.get_num_threads(),
        "settings": settings_in_force(os.environ),
        "compute_dtype": str(compute_dtype).removeprefix("torch."),
    }


def describe_run(recipe: Recipe, policy: Policy, task: Task, plain_rewarder: Rewarder, ranks: Ranks) -> dict[str, Any]:
    """Return what goes into `env.json`."""
    identity = dataclasses.asdict(policy.identity)
    return {
        **describe_process(recipe.run.name, policy.compute_dtype),
        "num_ranks": ranks.count,
        "model": identity,
        "reward_range": list(success_range(plain_rewarder.proxy)),
        "reference": {key: identity[key] for key in ("name", "sha256")} if recipe.algorithm.has_reference else None,
        "has_gold": plain_rewarder.gold is not None,
        "reward_code": code_mark(plain_rewarder.proxy, plain_rewarder.gold),
        "task": task.name,
        "algorithm": recipe.algorithm.name,
        "formula": "; ".join(describe_objective(recipe)),
    }


def warn_of_small_micro_batches(recipe: Recipe, num_tokens: int, console: Console) -> None:
    """Say so if memory allows smaller micro-batches than the recipe does: the update takes longer."""
    if num_tokens < recipe.train.max_tokens_per_micro_batch:
        console.note(
            f"memory is short: micro-batches of {num_tokens} tokens instead of {recipe.train.max_tokens_per_micro_batch}"
        )


def warn_of_other_numbers(run: RunDirectory, console: Console, ranks: Ranks) -> None:
    """Say so if a resumed run computes with another number of threads or ranks, which changes its numbers' last bits."""
    environment = json.loads(run.env.read_text())
    for key, now in (("num_threads", torch.get_num_threads()), ("num_ranks", ranks.count)):
        before = environment.get(key, now)
        if before != now:
            what = key.removeprefix("num_")
            console.warn(f"the run was started with {before} {what} and goes on with {now}: its bits will not be the same")


def success_range(reward: Reward) -> tuple[float, float]:
    """Return what the reward gives to a wrong and to a right completion."""
    return reward.low, reward.high
