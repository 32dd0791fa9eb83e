"""TRL's side of a workload, in a given configuration or as it is installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from datasets import Dataset  # ty: ignore[import-not-found]
from transformers import AutoTokenizer
from trl import GRPOConfig  # ty: ignore[import-not-found]

from step_time.trl_side import QUIET, StepRecords, TimedTrainer, tuned_options
from step_time.workload import LEARNING_RATE, LORA_ALPHA, Workload, text_reward


def reward(completions: list, **_: Any) -> list[float]:
    """Return the same numbers that Covey's side gives to these texts."""
    return [text_reward(messages[0]["content"]) for messages in completions]


def config_of(workload: Workload, configuration: Mapping[str, Any] | None, *, num_steps: int) -> GRPOConfig:
    """Return TRL's configuration of the workload.

    None = as installed: its own precision, micro-batch and gradient checkpointing. Asked for are the workload, and the CPU,
    without which it refuses to start.
    """
    if configuration is None:
        rows = min(GRPOConfig.per_device_train_batch_size, workload.num_rows)
        options = {
            "use_cpu": True,
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": workload.num_rows // rows,
        }
    else:
        options = tuned_options(configuration, num_rows=workload.num_rows)
        options |= {"model_init_kwargs": {"dtype": "float32"}}
    return GRPOConfig(
        num_generations=workload.group_size,
        max_completion_length=workload.num_new_tokens,
        generation_kwargs={"min_new_tokens": workload.num_new_tokens} if workload.is_forced else None,
        beta=workload.beta,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_steps=num_steps,
        **options,
        **QUIET,
    )


def adapters_of(workload: Workload) -> Any:
    """Return peft's configuration of the adapters that Covey trains on this workload, None if all weights are trained."""
    if not workload.lora_rank:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=workload.lora_rank,
        lora_alpha=LORA_ALPHA,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


class CheckedTrainer(TimedTrainer):
    """TRL's trainer, which fails if it samples something other than the workload."""

    workload: Workload

    def _generate(self, prompts: list) -> Any:
        generated = super()._generate(prompts)
        self.workload.check_lengths([len(token_ids) for token_ids in generated[0]])
        self.workload.check_num_tokens(sum(len(token_ids) for token_ids in generated[1]))
        return generated


def main() -> None:
    job = json.loads(sys.argv[1])
    workload = Workload(**job["workload"])
    records = StepRecords()
    trainer = CheckedTrainer(
        model=job["directory"],
        reward_funcs=reward,
        args=config_of(workload, job["configuration"], num_steps=job["num_steps"]),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in workload.problems]),
        processing_class=AutoTokenizer.from_pretrained(job["directory"]),
        callbacks=[records],
        peft_config=adapters_of(workload),
    )
    trainer.workload = workload
    records.trainer = trainer
    trainer.train()


if __name__ == "__main__":
    main()
