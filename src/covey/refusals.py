"""What a run is refused for before anything is written: ranks, data and prompts that do not fit together."""

from __future__ import annotations

import json

from covey.algos.registry import ALGORITHMS
from covey.config import Recipe
from covey.distributed import Ranks
from covey.models.policy import Policy
from covey.monitor.run_directory import RunDirectory
from covey.persistence import task_hash
from covey.rewards.base import Rewarder, refuse_missing_columns
from covey.rewards.code_mark import code_mark, is_other_code
from covey.tasks.base import Task
from covey.tasks.from_python import CUSTOM_TASK
from covey.types import CoveyError


def refuse_different_ranks(recipe: Recipe, task: Task, policy: Policy, ranks: Ranks) -> None:
    """Raise unless all ranks are about to do the same: each has read recipe, data and model by itself.

    Raises:
        CoveyError: naming what differs.
    """
    facts = {
        "recipes": recipe.to_toml(),
        "questions": task_hash(task),
        "model's weights": policy.identity.sha256,
        "number formats": str(policy.compute_dtype),
    }
    for what, values in zip(facts, zip(*ranks.gather([tuple(facts.values())]), strict=True), strict=True):
        if len(set(values)) > 1:
            raise CoveyError(
                f"the {what} of the {ranks.count} processes differ; start all of them with the same command, files and kind of "
                "machine"
            )


def refuse_other_reward(recipe: Recipe, run: RunDirectory, rewarder: Rewarder) -> list[str]:
    """Raise if a run goes on with reward functions whose code has changed, unless the recipe accepts that code.

    Functions that were handed over from Python are the caller's to answer for: of those it is told in the messages returned.

    Raises:
        CoveyError: they have changed; it says how to go on all the same.
    """
    before = json.loads(run.env.read_text()).get("reward_code") if run.env.exists() else None
    now = code_mark(rewarder.proxy, rewarder.gold)
    if before is None or now == recipe.run.accept_reward_code or not is_other_code(before, now):
        return []
    what = f"the code of the reward functions is not what {run.path} was started with ({before or 'none'} -> {now or 'none'})"
    if recipe.task.name == CUSTOM_TASK:
        return [f"{what}: from here on the run is trained for something else"]
    raise CoveyError(
        f"{what}: it would be trained for something else from here on. Start a new run, restore the code, or go on with "
        f"run.accept_reward_code={now}"
    )


def refuse_other_model_code(run: RunDirectory, policy: Policy) -> None:
    """Raise if a run goes on with other code of the model than it was started with.

    Raises:
        CoveyError: naming the files.
    """
    before = json.loads(run.env.read_text())["model"].get("code", {}) if run.env.exists() else policy.identity.code
    changed = sorted(name for name in {**before, **policy.identity.code} if before.get(name) != policy.identity.code.get(name))
    if changed:
        raise CoveyError(
            f"the code of {policy.identity.name!r} is not what {run.path} was started with: {', '.join(changed)}. Look at what "
            "has changed, and restore it or start a new run"
        )


def refuse_unusable_task(recipe: Recipe, task: Task, rewarder: Rewarder) -> None:
    """Raise unless the task is sound, has the columns that rewards ask for, and suits the recipe's row.

    Raises:
        CoveyError: naming the first question, column or row that is wrong.
    """
    task.check()
    refuse_columns_without_data(rewarder, task)
    refuse_foreign_completions(recipe, task)


def refuse_columns_without_data(rewarder: Rewarder, task: Task) -> None:
    """Raise if a reward asks for a column of the data that some question does not have.

    Raises:
        CoveyError: naming the column and the question.
    """
    prompts = [*task.train, *(prompt for part in task.held_out.values() for prompt in part)]
    for reward in (rewarder.proxy, rewarder.gold):
        if reward is not None:
            refuse_missing_columns(reward, prompts)


def refuse_foreign_completions(recipe: Recipe, task: Task) -> None:
    """Raise if the task brings completions along and the recipe's row has to sample its own, or counts sampled tokens.

    Raises:
        CoveyError: naming the rows that learn from given completions.
    """
    if not task.brings_completions:
        return
    rows = [name for name, spec in ALGORITHMS.items() if spec.samples_from == "reference"]
    if recipe.algorithm.name not in rows:
        raise CoveyError(
            f"task.name={task.name!r} brings its completions along, and algorithm.name={recipe.algorithm.name!r} learns from "
            f"completions of its own. Choose one of {', '.join(rows)}, or a task that is only questions"
        )
    if recipe.train.max_generated_tokens:
        raise CoveyError(
            f"train.max_generated_tokens={recipe.train.max_generated_tokens} with task.name={task.name!r}: nothing is "
            "generated, and the run would never end by it. Set train.num_steps alone"
        )


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
