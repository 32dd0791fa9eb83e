"""TRL's side: its own trainers do all but the sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset  # ty: ignore[import-not-found]
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer  # ty: ignore[import-not-found]
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer  # ty: ignore[import-not-found]
from trl.trainer.utils import split_tensor_dict  # ty: ignore[import-not-found]

from parity.case import Case, Outcome
from parity.fixture import MAX_LENGTH
from parity.models import exact, load_model, load_tokenizer, moved_weights, sampler_logprobs, set_weights


class FixedSampling:
    """Replaces what TRL's trainers do to sample, and in float64 their log-prob kernel, which works in float32."""

    completions: list[list[int]]
    sampling_logprobs: list[list[float]] | None
    temperature: float

    def _generate_single_turn(self, *_: Any) -> Any:
        return self.completions if isinstance(self, RLOOTrainer) else (self.completions, self.sampling_logprobs)

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **options) -> Any:
        if model.dtype == torch.float32:
            return super()._get_per_token_logps_and_entropies(  # ty: ignore[missing-attribute]
                model, input_ids, attention_mask, logits_to_keep, *args, **options
            )
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, -logits_to_keep - 1 : -1]
        logprobs = (logits / self.temperature).log_softmax(dim=-1)
        chosen = logprobs.gather(2, input_ids[:, -logits_to_keep:, None])[..., 0]
        return chosen, -(logprobs.exp() * logprobs).sum(dim=-1), None


TRAINERS = {
    "grpo": (type("FixedGRPO", (FixedSampling, GRPOTrainer), {}), GRPOConfig),
    "gmpo": (type("FixedGMPO", (FixedSampling, GMPOTrainer), {}), GMPOConfig),
    "rloo": (type("FixedRLOO", (FixedSampling, RLOOTrainer), {}), RLOOConfig),
}


def make_trainer(case: Case, directory: Path, dtype: torch.dtype) -> Any:
    """Return TRL's trainer for the case, with the completions that it will sample."""
    theirs, data = case.theirs, case.data
    trainer_class, config_class = TRAINERS[theirs.trainer]
    num_pieces = theirs.num_micro_batches * theirs.steps_per_generation
    config = config_class(
        output_dir=str(directory / "trl"),
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        per_device_train_batch_size=len(data.completions) // num_pieces,
        gradient_accumulation_steps=theirs.num_micro_batches,
        steps_per_generation=num_pieces,
        num_generations=data.group_size,
        max_completion_length=MAX_LENGTH,
        num_iterations=1 if case.is_on_policy else 2,  # From 2 on, TRL scores the batch before the first update.
        reward_weights=list(data.part_weights),
        **theirs.options,
    )
    rewards = [lambda completions, *, k=k, parts, **_: [row[k] for row in parts] for k in range(len(data.part_weights))]
    for k, reward in enumerate(rewards):
        reward.__name__ = f"part_{k}"
    trainer = trainer_class(
        load_model(directory, dtype),
        reward_funcs=rewards,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in data.prompts]),
        processing_class=load_tokenizer(directory),
    )
    trainer.completions = [list(ids) for ids in data.completions]
    trainer.sampling_logprobs = sampler_logprobs(case, directory) if theirs.sampler_noise else None
    if theirs.sampler_noise:  # TRL corrects for vLLM only. Nothing else asks for it once the sampling is replaced.
        trainer.use_vllm = True
    trainer.current_gradient_accumulation_steps = theirs.num_micro_batches
    return trainer


def their_outcome(case: Case, directory: Path, dtype: torch.dtype) -> Outcome:
    """Return what TRL makes of the case."""
    trainer = make_trainer(case, directory, dtype)
    model, data = trainer.model, case.data
    policy = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    if trainer.ref_model is not None:
        if dtype == torch.float64:
            exact(trainer.ref_model)
        set_weights(trainer.ref_model, moved_weights(model, seed=2))
    if not case.is_on_policy:
        set_weights(model, moved_weights(model, seed=1))
    rows = [{"prompt": data.prompts[row // data.group_size], "parts": list(parts)} for row, parts in enumerate(data.parts)]
    inputs = trainer._generate_and_score_completions(rows)
    set_weights(model, policy)
    if data.old_shift:
        inputs["old_per_token_logps"][3, 0] += data.old_shift
    pieces = split_tensor_dict(inputs, case.theirs.num_micro_batches * case.theirs.steps_per_generation)
    loss = 0.0
    for piece in pieces[: case.theirs.num_micro_batches]:
        share = trainer.compute_loss(model, piece)
        # RLOO leaves the division by the number of micro-batches to the training loop.
        share = share / (case.theirs.num_micro_batches if case.theirs.trainer == "rloo" else 1)
        share.backward()
        loss += share.item()
    names = {"old": "old_per_token_logps", "ref": "ref_per_token_logps"}
    mask = inputs["completion_mask"].bool()
    return Outcome(
        advantages=inputs["advantages"].double(),
        loss=loss * case.theirs.scale,
        gradient={name: weight.grad.double() * case.theirs.scale for name, weight in model.named_parameters()},
        logprobs={name: torch.where(mask, inputs[key], 0.0) for name, key in names.items() if key in inputs},
    )
