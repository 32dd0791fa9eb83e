"""What TRL's workers share: its trainer with the time of sampling noted, and a record of each step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback
from trl import GRPOTrainer  # ty: ignore[import-not-found]

from step_time.processes import emit, step_record

QUIET = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "output_dir": "trl"}
"""No trackers, no checkpoints, no progress bar."""


def tuned_options(configuration: Mapping[str, Any], *, num_rows: int) -> dict[str, Any]:
    """Return TRL's options for one update over `num_rows` completions in micro-batches of `configuration["rows"]`."""
    rows = min(configuration["rows"], num_rows)
    return {
        "use_cpu": True,
        "bf16": configuration["dtype"] == "bf16",
        "gradient_checkpointing": False,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": num_rows // rows,
        "dataloader_pin_memory": False,
    }


class TimedTrainer(GRPOTrainer):
    """TRL's trainer. It notes how long it samples, and how many tokens."""

    sampling_s = 0.0
    num_tokens = 0

    def _generate(self, prompts: list) -> Any:
        started = time.perf_counter()
        generated = super()._generate(prompts)
        self.sampling_s += time.perf_counter() - started
        self.num_tokens += sum(len(token_ids) for token_ids in generated[1])
        return generated


class StepRecords(TrainerCallback):
    """Emits a record at the end of each step. A step lasts from the end of the one before."""

    def __init__(self) -> None:
        self.trainer: TimedTrainer | None = None
        """Set as soon as there is one: it is made with its callbacks."""
        self.trained_s = 0.0
        self.ended = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.ended = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        assert self.trainer is not None
        before, self.ended = self.ended, time.perf_counter()
        total_s = self.ended - before
        self.trained_s += total_s
        emit(step_record(total_s=total_s, sampling_s=self.trainer.sampling_s, num_tokens=self.trainer.num_tokens))
        self.trainer.sampling_s, self.trainer.num_tokens = 0.0, 0
