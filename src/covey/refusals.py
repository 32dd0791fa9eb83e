"""What a run is refused for before anything is written: ranks, data and prompts that do not fit together."""

from __future__ import annotations

from covey.algos.registry import ALGORITHMS
from covey.config import Recipe
from covey.distributed import Ranks
from covey.models.policy import Policy
from covey.persistence import task_hash
from covey.rewards.base import Rewarder, refuse_missing_columns
from covey.tasks.base import Task
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
