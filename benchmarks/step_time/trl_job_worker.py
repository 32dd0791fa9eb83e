"""TRL's side of the main job: the recipe's questions, reward and numbers, and Covey's measurement of what it has learned.

As far as TRL has them, the options are the recipe's. It has no second draw for groups without a spread, and leaves such
groups in the loss. The learning rate stays where the recipe lets it fall: the run has no end that is known beforehand.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from typing import Any

import torch
from datasets import Dataset  # ty: ignore[import-not-found]
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig  # ty: ignore[import-not-found]

from covey.api import find_recipe
from covey.assembly import evaluation_spec, make_rewarder
from covey.config import Recipe, load_recipe
from covey.engines.registry import ENGINES
from covey.evaluate import evaluate, summarise
from covey.models.policy import load_policy
from covey.rewards.base import Sample, score_all
from covey.tasks.base import Task
from covey.tasks.registry import find_task
from step_time.processes import emit
from step_time.trl_side import QUIET, StepRecords, TimedTrainer, tuned_options

ADAM_BETAS = (0.9, 0.95)


class HeldOut:
    """Covey's own evaluation of the held-out questions, at the training temperature, of whatever weights it is given."""

    def __init__(self, recipe: Recipe, task: Task):
        self._policy = load_policy(recipe.model.name, compute_dtype=recipe.model.compute_dtype)
        self._engine = ENGINES["native"](self._policy)
        self._prompts = task.held_out["choose"][: recipe.evaluation.num_prompts]
        self._spec = evaluation_spec(recipe)
        self._rewarder = make_rewarder(recipe, task)

    def accuracy(self, model: torch.nn.Module) -> float:
        self._policy.model.load_state_dict(model.state_dict())
        self._engine.load_weights(self._policy, 0)
        rows = evaluate(
            self._prompts, self._spec, mode="sampled", policy=self._policy, engine=self._engine, rewarder=self._rewarder
        )
        return summarise(rows, None)["gold_mean"]


class JobRecords(StepRecords):
    """Measures accuracy every few steps, and stops at the target or at the end of the time. Measuring counts for nothing."""

    def __init__(self, held_out: HeldOut, *, every: int, target: float, max_s: float):
        super().__init__()
        self._held_out = held_out
        self._every, self._target, self._max_s = every, target, max_s
        self._num_reached = 0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._measure(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **__: Any) -> Any:
        super().on_step_end()
        if state.global_step % self._every == 0:
            self._measure(state.global_step)
            if self._num_reached == 2 or self.trained_s > self._max_s:
                control.should_training_stop = True  # And never False: the trainer may have set it.
        return control

    def _measure(self, step: int) -> None:
        assert self.trainer is not None
        accuracy = self._held_out.accuracy(self.trainer.model)
        self._num_reached = self._num_reached + 1 if accuracy >= self._target else 0
        emit({"step": step, "trained_s": round(self.trained_s, 2), "accuracy": accuracy})
        self.ended = time.perf_counter()


def job_config(recipe: Recipe, configuration: dict[str, Any], *, max_steps: int) -> GRPOConfig:
    """Return TRL's configuration of the recipe."""
    train, algorithm = recipe.train, recipe.algorithm
    return GRPOConfig(
        num_generations=train.group_size,
        max_completion_length=recipe.sampling.max_new_tokens,
        temperature=recipe.sampling.temperature,
        beta=algorithm.beta,
        loss_type="grpo",
        epsilon=algorithm.epsilon_low,
        epsilon_high=algorithm.epsilon_high,
        max_grad_norm=train.max_grad_norm,
        max_steps=max_steps,
        seed=recipe.run.seed,
        **tuned_options(configuration, num_rows=train.prompts_per_step * train.group_size),
        **QUIET,
    )


def optimizer_of(model: torch.nn.Module, recipe: Recipe) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """Return Covey's optimizer and warm-up: TRL's own first update would have a learning rate of 0."""
    train = recipe.train
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=train.learning_rate, betas=ADAM_BETAS, weight_decay=train.weight_decay, fused=True
    )
    warmup = max(1, train.warmup_steps)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: min(1.0, (update + 1) / warmup))


def main() -> None:
    job = json.loads(sys.argv[1])
    recipe = load_recipe(find_recipe(job["recipe"]), job["overrides"])
    task = find_task(recipe.task.name, level=recipe.task.level)
    questions = {prompt.prompt_id: prompt for prompt in task.train}

    def reward(completions: list, completion_ids: list, prompt_id: list[str], **_: Any) -> list[float | None]:
        samples = [
            Sample(
                prompt=questions[name],
                completion=messages[0]["content"],
                num_tokens=len(token_ids),
                is_truncated=len(token_ids) == recipe.sampling.max_new_tokens,
                token_ids=token_ids,
            )
            for messages, token_ids, name in zip(completions, completion_ids, prompt_id, strict=True)
        ]
        return [score.value for score in score_all(task.proxy, samples)]

    rows = [
        {"prompt": [dataclasses.asdict(message) for message in prompt.messages], "prompt_id": prompt.prompt_id}
        for prompt in task.train
    ]
    model = AutoModelForCausalLM.from_pretrained(job["directory"], dtype=torch.float32)
    records = JobRecords(
        HeldOut(recipe, task), every=recipe.evaluation.every, target=job["target"], max_s=60 * job["max_minutes"]
    )
    trainer = TimedTrainer(
        model=model,
        reward_funcs=reward,
        args=job_config(recipe, job["configuration"], max_steps=job["max_steps"]),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job["directory"]),
        callbacks=[records],
        optimizers=optimizer_of(model, recipe),
    )
    records.trainer = trainer
    trainer.train()


if __name__ == "__main__":
    main()
