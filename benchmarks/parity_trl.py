"""Parity with TRL 1.16: the same tokens, rewards and weights through TRL's trainers and through Covey's learner.

    pip install trl==1.16.0
    python benchmarks/parity_trl.py

The model is tiny and random, so it runs on a CPU in about a minute. TRL's own code computes the old and the reference
log-probs, the advantages and the loss; only its sampling is replaced, by fixed completions. Each case is compared in
float32 and in float64. A case that differs by design is compared twice, as it is and adjusted. Writes
benchmarks/results/parity_trl.json and ends with an error if a case does not do what it says.

It is one file, longer than others for its table of cases, so that it can be read and run by itself.
"""

from __future__ import annotations

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import logging
import math
import random
import shlex
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from datasets import Dataset  # ty: ignore[import-not-found]
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.utils import logging as transformers_logging
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer  # ty: ignore[import-not-found]
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer  # ty: ignore[import-not-found]
from trl.trainer.utils import split_tensor_dict  # ty: ignore[import-not-found]

from covey.algos.kl import k1
from covey.algos.objective import Coefficients, Objective
from covey.algos.ratios import sequence_log_ratio
from covey.algos.registry import ALGORITHMS
from covey.batch import StatsSpec, make_tokens, select_groups
from covey.learner import Learner, LearnerSpec, ScoringSpec
from covey.models.tiny import write_tiny_model
from covey.monitor.environment import describe_machine, describe_versions
from covey.monitor.run_directory import write_text_atomic
from covey.sampling import Sampling
from covey.tensors import Scores, Tokens
from covey.token_choice import TokenChoice
from covey.types import Completion, Group, Message, Prompt, Rollout, Score

RESULTS = Path(__file__).parent / "results" / "parity_trl.json"
TOLERANCES = {"float32": 1e-5, "float64": 1e-12}
END_ID = 257
MAX_LENGTH = 12
WEIGHT_NOISE = 0.01  # Moves a token's log-prob by 0.3 on average, up to 1.4: beyond the clip ranges.
QUANTITIES = ("advantages", "loss", "gradient")
NO_COEFFICIENTS, NO_CHOICE = Coefficients(), TokenChoice()


# The fixture.


@dataclass(frozen=True, kw_only=True)
class Data:
    """Prompts, completions and rewards of one step. A reward of None could not be computed."""

    prompts: tuple[str, ...]
    completions: tuple[tuple[int, ...], ...]  # [B]
    parts: tuple[tuple[float | None, ...], ...]  # [B, K]
    part_weights: tuple[float, ...] = (1.0,)
    old_shift: float = 0.0
    """Added to the old log-prob of token 0 of completion 3."""

    @property
    def group_size(self) -> int:
        return len(self.completions) // len(self.prompts)

    def reward(self, row: int) -> float | None:
        parts = [weight * part for weight, part in zip(self.part_weights, self.parts[row], strict=True) if part is not None]
        return sum(parts) if parts else None

    def is_truncated(self, row: int) -> bool:
        return self.completions[row][-1] != END_ID


def fixed_completions() -> tuple[tuple[int, ...], ...]:
    """Return 16 completions of random bytes, 2 to 12 long; three run into the limit, the others end with the end token."""
    numbers = random.Random(0)
    completions = []
    for row in range(16):
        is_truncated = row % 5 == 2
        length = MAX_LENGTH if is_truncated else numbers.randint(2, MAX_LENGTH - 1)
        ids = [numbers.randrange(256) for _ in range(length)]
        completions.append(tuple(ids if is_truncated else [*ids[:-1], END_ID]))
    return tuple(completions)


# Rewards of several sizes, right-or-wrong ones, a group in which all are equal. TRL keeps rewards in float32, which holds
# these exactly.
REWARDS = (1.0, 0.0, 0.5, 0.25, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.875, 0.3125, 0.0, 0.625)
FORMAT = (1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0)
STANDARD = Data(
    prompts=("2+3=", "Name a colour: ", "The answer to everything is", "a b c "),
    completions=fixed_completions(),
    parts=tuple((reward,) for reward in REWARDS),
)


def with_rewards(rewards: tuple[float | None, ...], **changes: Any) -> Data:
    return dataclasses.replace(STANDARD, parts=tuple((reward,) for reward in rewards), **changes)


TWO_PARTS = dataclasses.replace(STANDARD, parts=tuple(zip(REWARDS, FORMAT, strict=True)), part_weights=(1.0, 0.5))
ONE_TOKEN = dataclasses.replace(STANDARD, completions=tuple(ids[:1] for ids in STANDARD.completions))
UNSCORED = with_rewards((*REWARDS[:13], None, *REWARDS[14:]))
CRUMBS = with_rewards((0.5, 0.501953125, 0.498046875, 0.5, *REWARDS[4:]))
FLAT = with_rewards((0.9,) * 8 + REWARDS[:8], prompts=STANDARD.prompts[:2])
FLAT_EXACT = with_rewards((0.5,) * 8 + REWARDS[:8], prompts=STANDARD.prompts[:2])
SHIFTED = dataclasses.replace(STANDARD, old_shift=-25.0)
B = len(STANDARD.completions)
NUM_TOKENS = sum(len(ids) for ids in STANDARD.completions)
NUM_WHOLE = sum(not STANDARD.is_truncated(row) for row in range(B))


# What is compared.


@dataclass(frozen=True, kw_only=True)
class Theirs:
    """A setting of TRL."""

    trainer: str = "grpo"
    options: Mapping[str, Any] = field(default_factory=dict)
    num_micro_batches: int = 1
    steps_per_generation: int = 1
    """Above 1, only the first of that many optimizer steps is compared."""
    sampler_noise: float = 0.0
    """How far the engine's log-probs are from the trainer's; above 0, TRL corrects for it."""
    scale: float = 1.0
    """What loss and gradient are multiplied by, to undo another denominator."""


@dataclass(frozen=True, kw_only=True)
class Ours:
    """A setting of Covey."""

    row: str = "grpo"
    options: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Of the objective: aggregation, kl."""
    coefficients: Coefficients = NO_COEFFICIENTS
    choice: TokenChoice = NO_CHOICE
    temperature: float = 1.0
    is_sequence_ratio: bool = False
    """Whether the row's ratio is replaced by GSPO's."""
    masks_truncated: bool = False
    num_groups: int | None = None
    """The update is made on the first groups alone; None = all."""
    kl_in_rewards: float = 0.0
    """What a completion's KL is weighted with and taken from its reward, before the advantages."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Two settings that agree, or that differ by design and agree after an adjustment."""

    table: str
    name: str
    theirs: Theirs = Theirs()
    ours: Ours = Ours()
    data: Data = STANDARD
    is_on_policy: bool = False
    why: str = ""
    """Set iff the two differ by design."""
    differs: tuple[str, ...] = ("loss", "gradient")
    """The quantities that differ then; the others agree without the adjustment."""
    adjustment: str = ""
    adjusted: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the case that the adjustment replaces."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one of the two makes of a case."""

    advantages: Tensor  # [B] or [B, T]
    loss: float
    gradient: dict[str, Tensor]
    logprobs: dict[str, Tensor]  # name -> [B, T]
    clipped_frac: float = 0.0
    log_ratios: Tensor | None = None
    """Of the tokens that have a gradient; None = the policy is the old one."""


# Weights.


def load_model(directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).train()
    return exact(model) if dtype == torch.float64 else model


def exact(model: PreTrainedModel) -> PreTrainedModel:
    """Compute norms and rotary angles in float64. Transformers has them in float32, whatever the weights are."""
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = MethodType(exact_norm, module)
        elif isinstance(module, LlamaRotaryEmbedding):
            module.forward = MethodType(exact_rotation, module)
    return model


def exact_norm(self: LlamaRMSNorm, hidden: Tensor) -> Tensor:
    return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(dim=-1, keepdim=True) + self.variance_epsilon)


def exact_rotation(self: LlamaRotaryEmbedding, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    angles = position_ids[..., None].double() * self.inv_freq.double()
    both = torch.cat([angles, angles], dim=-1)
    return both.cos() * self.attention_scaling, both.sin() * self.attention_scaling


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(directory)


def set_weights(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def moved_weights(model: PreTrainedModel, seed: int) -> dict[str, Tensor]:
    """Return the weights of another policy nearby."""
    numbers = torch.Generator().manual_seed(seed)
    return {
        name: weight.detach() + WEIGHT_NOISE * torch.randn(weight.shape, generator=numbers, dtype=torch.float32)
        for name, weight in sorted(model.named_parameters())
    }


# TRL's side.


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


def sampler_noise(data: Data, std: float) -> list[list[float]]:
    """Return by how much the engine's log-prob of each token is above the trainer's."""
    numbers = random.Random(1)
    return [[numbers.gauss(0.0, std) for _ in ids] for ids in data.completions]


def sampler_logprobs(case: Case, directory: Path) -> list[list[float]]:
    """Return the old policy's log-probs, one completion at a time, moved as by an engine in another precision."""
    model, tokenizer = load_model(directory, torch.float64), load_tokenizer(directory)
    set_weights(model, moved_weights(model, seed=1))
    values = []
    for row, (ids, noise) in enumerate(
        zip(case.data.completions, sampler_noise(case.data, case.theirs.sampler_noise), strict=True)
    ):
        prompt = tokenizer(case.data.prompts[row // case.data.group_size])["input_ids"]
        with torch.no_grad():
            logprobs = model(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(dim=-1)
        places = enumerate(zip(ids, noise, strict=True), start=len(prompt) - 1)
        values.append([float(logprobs[place, token]) + extra for place, (token, extra) in places])
    return values


# Covey's side.


def make_groups(case: Case, directory: Path) -> list[Group]:
    """Return the case's data as rollouts."""
    data, tokenizer = case.data, load_tokenizer(directory)
    if case.theirs.sampler_noise:
        logprobs = sampler_logprobs(case, directory)
    else:
        logprobs = [[0.0] * len(ids) for ids in data.completions]

    def rollout(row: int) -> Rollout:
        return Rollout(
            prompt_ids=tokenizer(data.prompts[row // data.group_size])["input_ids"],
            completion=Completion(
                token_ids=list(data.completions[row]),
                logprobs=logprobs[row],
                finish_reason="length" if data.is_truncated(row) else "stop",
                policy_version=0,
            ),
            text="",
            reward=Score(value=data.reward(row), parts={f"part_{k}": part or 0.0 for k, part in enumerate(data.parts[row])}),
            gold=None,
        )

    return [
        Group(
            prompt=Prompt(prompt_id=str(index), messages=(Message(role="user", content=prompt),)),
            rollouts=tuple(rollout(index * data.group_size + sample) for sample in range(data.group_size)),
        )
        for index, prompt in enumerate(data.prompts)
    ]


def make_learner(case: Case, model: PreTrainedModel) -> Learner:
    """Return Covey's learner for the case. It cuts the step into micro-batches, and lays out groups behind one prompt."""
    ours, spec = case.ours, ALGORITHMS[case.ours.row]
    if ours.is_sequence_ratio:
        spec = dataclasses.replace(spec, log_ratio=sequence_log_ratio)
    # TRL has no such floor; it has a case of its own.
    no_floor = {"min_group_std": 0.0} if "min_group_std" in spec.options else {}
    return Learner(
        model,
        dataclasses.replace(Objective.of_row(spec, **(no_floor | dict(ours.options))), **ours.fields),
        ScoringSpec(
            sampling=Sampling(temperature=ours.temperature, max_new_tokens=MAX_LENGTH),
            compute_dtype=torch.float32,
            max_tokens_per_micro_batch=128,
            max_shared_tokens=48,
        ),
        LearnerSpec(
            learning_rate=1e-3,
            warmup_steps=0,
            num_steps=1,
            decay=False,
            max_grad_norm=1.0,
            weight_decay=0.0,
            max_new_tokens=MAX_LENGTH,
        ),
        coefficients=ours.coefficients,
        choice=ours.choice,
    )


def make_scores(case: Case, learner: Learner, tokens: Tokens, directory: Path) -> Scores:
    """Return the old and the reference log-probs, under the same moved weights as on TRL's side."""
    dtype = learner.model.dtype
    reference, old = load_model(directory, dtype), load_model(directory, dtype)
    set_weights(reference, moved_weights(reference, seed=2))
    if case.is_on_policy:
        return learner.make_scores(tokens, reference)
    set_weights(old, moved_weights(old, seed=1))
    scored = learner.score(old, tokens)
    scored.logprobs[3, 0] += case.data.old_shift
    ref_logprobs = learner.score(reference, tokens).logprobs
    return Scores(old_logprobs=scored.logprobs, ref_logprobs=ref_logprobs, entropy=scored.entropy)


def our_outcome(case: Case, directory: Path, dtype: torch.dtype) -> Outcome:
    """Return what Covey makes of the case."""
    ours, data = case.ours, case.data
    model = load_model(directory, dtype)
    learner = make_learner(case, model)
    weights = {f"part_{k}": weight for k, weight in enumerate(data.part_weights)}
    spec = StatsSpec(part_weights=weights, masks_truncated=ours.masks_truncated)
    tokens = make_tokens(make_groups(case, directory), spec=spec)
    scores = make_scores(case, learner, tokens, directory)
    if ours.kl_in_rewards:
        assert scores.old_logprobs is not None
        assert scores.ref_logprobs is not None
        kl = torch.where(tokens.completion_mask, k1(scores.old_logprobs, scores.ref_logprobs), 0.0).sum(dim=1)
        rewards = tokens.stats.rewards - ours.kl_in_rewards * kl.reshape(tokens.stats.rewards.shape)
        tokens = dataclasses.replace(tokens, stats=dataclasses.replace(tokens.stats, rewards=rewards))
    batch = learner.make_batch(tokens, scores)
    if dtype == torch.float64 and not learner.acts_through_reward:
        # Credit is float32, whatever the model is. Exact advantages show whether the formulas agree beyond that.
        exact = learner.objective.advantages(tokens.stats).reshape(-1, 1)
        batch = dataclasses.replace(batch, advantages=torch.where(tokens.completion_mask, exact, 0.0))
    part = batch if ours.num_groups is None else select_groups(batch, range(ours.num_groups))
    update = learner.accumulate_gradient(part)
    assert update.logprobs is not None
    log_ratios = None
    if scores.old_logprobs is not None and ours.num_groups is None:
        log_ratios = (update.logprobs - scores.old_logprobs)[update.is_scored]
    logprobs = {"old": scores.old_logprobs, "ref": scores.ref_logprobs}
    return Outcome(
        advantages=batch.advantages.double(),
        loss=update.metrics["loss/value"].value,
        gradient={name: weight.grad.double() for name, weight in model.named_parameters() if weight.grad is not None},
        logprobs={name: values for name, values in logprobs.items() if values is not None},
        log_ratios=log_ratios,
        clipped_frac=update.metrics["clip/low_frac"].value + update.metrics["clip/high_frac"].value,
    )


# The comparison.


def differences(case: Case, directory: Path, dtype: torch.dtype) -> dict[str, float]:
    """Return the largest absolute differences between the two, and the largest element of TRL's gradient."""
    earlier = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        theirs, ours = their_outcome(case, directory, dtype), our_outcome(case, directory, dtype)
    finally:
        torch.set_default_dtype(earlier)
    lengths = torch.tensor([len(ids) for ids in case.data.completions])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    # Covey does not score a completion that it leaves out.
    seen = mask & torch.tensor([case.data.reward(row) is not None for row in range(len(lengths))])[:, None]
    found = {
        "advantages": largest((ours.advantages - theirs.advantages[:, None])[mask]),
        "loss": abs(ours.loss - theirs.loss),
        "gradient": max(largest(ours.gradient[name] - value) for name, value in theirs.gradient.items()),
        "logprobs": max((largest((ours.logprobs[name] - value)[seen]) for name, value in theirs.logprobs.items()), default=0.0),
        "largest_gradient": max(largest(value) for value in theirs.gradient.values()),
        "clipped_frac": ours.clipped_frac,
    }
    if ours.log_ratios is not None:
        found |= {"log_ratio_mean": float(ours.log_ratios.abs().mean()), "log_ratio_max": largest(ours.log_ratios)}
    return {name: float(f"{value:.2e}") for name, value in found.items()}


def largest(values: Tensor) -> float:
    return float(values.abs().max())


def examine(case: Case, directory: Path) -> dict[str, Any]:
    """Return the case's record: its differences, adjusted and not, and whether they are as it says."""
    record: dict[str, Any] = {"table": case.table, "name": case.name}
    agreeing = case
    if case.why:
        agreeing = dataclasses.replace(case, **case.adjusted)
        found = differences(case, directory, torch.float32)
        record |= {"why": case.why, "adjustment": case.adjustment, "unadjusted": found, "differs": case.differs}
        as_told = all((found[name] > TOLERANCES["float32"]) == (name in case.differs) for name in QUANTITIES)
    else:
        as_told = True
    record["float32"] = differences(agreeing, directory, torch.float32)
    record["float64"] = differences(agreeing, directory, torch.float64)
    agrees = all(record[dtype][name] < bound for dtype, bound in TOLERANCES.items() for name in (*QUANTITIES, "logprobs"))
    return record | {"result": "PASS" if agrees and as_told else "FAIL"}


# The cases.


def loss_type_cases() -> Iterator[Case]:
    """Yield every loss of TRL that Covey has, with both importance ratios, without and with both of TRL's KL terms."""
    rows = {
        "grpo": Ours(row="grpo"),
        "dr_grpo": Ours(row="dr_grpo"),
        "dapo": Ours(row="dapo"),
        "bnpo": Ours(row="grpo", fields={"aggregation": "token-mean"}),
        "cispo": Ours(row="cispo"),
        "sapo": Ours(row="sapo"),
        "luspo": Ours(row="grpo", fields={"aggregation": "seq-mean-token-sum"}),
    }
    extra = {"dr_grpo": {"scale_rewards": "none"}, "dapo": {"epsilon_high": 0.28}, "cispo": {"epsilon_high": 1.28}}
    variants: list[tuple[str, bool, dict[str, Any], str]] = [
        ("token ratio", False, {}, "k3_loss"),
        ("token ratio, KL", False, {"beta": 0.1, "use_bias_correction_kl": False}, "k3_loss"),
        ("token ratio, weighted KL", False, {"beta": 0.1, "use_bias_correction_kl": True}, "weighted_k3_loss"),
        ("sequence ratio", True, {}, "k3_loss"),
        ("sequence ratio, KL", True, {"beta": 0.1, "use_bias_correction_kl": False}, "k3_loss"),
    ]
    # A completion's ratio is nearer to 1 than a token's, so its clip range is narrower, to clip some.
    narrow = {"cispo": {"epsilon_high": 1.05}, "sapo": {}}
    our_narrow = {"cispo": {"epsilon_high": 0.05}, "sapo": {}}
    for loss_type, ours in rows.items():
        for name, is_sequence, options, kl in variants:
            level: dict[str, Any] = {"importance_sampling_level": "sequence" if is_sequence else "token"}
            if is_sequence:
                level |= narrow.get(loss_type, {"epsilon": 0.05, "epsilon_high": 0.05})
            yield Case(
                table="loss types",
                name=f"{loss_type}: {name}",
                theirs=Theirs(options={"loss_type": loss_type} | extra.get(loss_type, {}) | level | options),
                ours=dataclasses.replace(
                    ours,
                    is_sequence_ratio=is_sequence,
                    options=our_narrow.get(loss_type, {"epsilon_low": 0.05, "epsilon_high": 0.05}) if is_sequence else {},
                    fields=dict(ours.fields) | {"kl": kl},
                    coefficients=Coefficients(beta=options.get("beta", 0.0)),
                ),
            )
    for name, beta in (("gmpo (trl.experimental)", 0.0), ("gmpo (trl.experimental): KL", 0.1)):
        yield Case(
            table="loss types",
            name=name,
            theirs=Theirs(trainer="gmpo", options={"beta": beta}),
            ours=Ours(row="gmpo", coefficients=Coefficients(beta=beta)),
        )


GRPO = {"loss_type": "grpo"}
DAPO = {"loss_type": "dapo"}
TOKEN_MEAN = {"aggregation": "token-mean"}
QUANTILE = GRPO | {"top_entropy_quantile": 0.2}
TOP_ENTROPY = TokenChoice(token_filter="top_entropy", filter_share=0.2)
SAMPLER_NOISE = 0.2
KEPT = (0.8, 1.25)  # The engine's ratios that are not rejected.


def option_cases() -> Iterator[Case]:
    """Yield TRL's other options that Covey has."""
    sequence, batch_scale = {"importance_sampling_level": "sequence"}, {"scale_rewards": "batch"}
    plain_kl = {"beta": 0.1, "use_bias_correction_kl": False}
    decoupled = {"multi_objective_aggregation": "normalize_then_sum"}
    seq_mean = {"aggregation": "seq-mean-token-mean"}
    both_sides = Ours(options={"epsilon_low": 0.1, "epsilon_high": 0.3})
    sapo = {"loss_type": "sapo", "sapo_temperature_pos": 0.8, "sapo_temperature_neg": 1.4}
    entropy_and_kl = Ours(choice=TOP_ENTROPY, coefficients=Coefficients(beta=0.1))
    cases: list[tuple[str, dict[str, Any], Ours, dict[str, Any]]] = [
        ("one update a batch (the ratio is 1)", GRPO, Ours(), {"is_on_policy": True}),
        ("epsilon 0.1, epsilon_high 0.3", GRPO | {"epsilon": 0.1, "epsilon_high": 0.3}, both_sides, {}),
        ("GSPO's epsilon 3e-4, 4e-4", GRPO | sequence | {"epsilon": 3e-4, "epsilon_high": 4e-4}, Ours(row="gspo"), {}),
        ("delta 1.5", GRPO | {"delta": 1.5}, Ours(options={"delta": 1.5}), {}),
        ("sapo_temperature 0.8, 1.4", sapo, Ours(row="sapo", options={"tau_positive": 0.8, "tau_negative": 1.4}), {}),
        ("scale_rewards batch", DAPO | batch_scale, Ours(row="batch_std"), {}),
        ("scale_rewards none", GRPO | {"scale_rewards": "none"}, Ours(row="dr_grpo", fields=seq_mean), {}),
        ("two rewards, sum_then_normalize", GRPO, Ours(), {"data": TWO_PARTS}),
        ("two rewards, normalize_then_sum (GDPO)", GRPO | decoupled, Ours(row="gdpo"), {"data": TWO_PARTS}),
        ("temperature 0.7", GRPO | {"temperature": 0.7}, Ours(temperature=0.7), {}),
        ("top_entropy_quantile 0.2, KL", QUANTILE | plain_kl, entropy_and_kl, {"is_on_policy": True}),
        ("entropy_coef 0.05", GRPO | {"entropy_coef": 0.05}, Ours(coefficients=Coefficients(entropy=0.05)), {}),
    ]
    for name, options, ours, fields in cases:
        yield Case(table="options", name=name, theirs=Theirs(options=options), ours=ours, **fields)
    for loss_type in ("grpo", "dr_grpo", "dapo"):
        row = Ours(row=loss_type, options={"epsilon_high": 0.2})
        scaling = {"scale_rewards": "none" if loss_type == "dr_grpo" else "group"}
        theirs = Theirs(options={"loss_type": loss_type} | scaling, num_micro_batches=4)
        yield Case(table="options", name=f"{loss_type} in 4 micro-batches", theirs=theirs, ours=row)
    for mode, correction in (("token_truncate", "tis_token"), ("sequence_truncate", "tis_sequence")):
        options = DAPO | {"vllm_importance_sampling_mode": mode, "vllm_importance_sampling_clip_max": 1.2}
        yield Case(
            table="options",
            name=f"vllm_importance_sampling_mode {mode}",
            theirs=Theirs(options=options, sampler_noise=SAMPLER_NOISE),
            ours=Ours(fields=TOKEN_MEAN, choice=TokenChoice(correction=correction, correction_high=1.2)),
        )
    # TRL standardises r_i minus the mean of the others, which is G/(G - 1) (r_i - mean r); Covey r_i - mean r.
    yield Case(
        table="options",
        name="RLOO, normalize_advantages, completions of one token",
        theirs=Theirs(trainer="rloo", options={"normalize_advantages": True, "beta": 0.0}),
        ours=Ours(row="reinforce_pp_baseline", options={"eps": 1e-4 * 3 / 4}),
        data=ONE_TOKEN,
    )


def kept_after_correction(rho_of: Any) -> int:
    """Return how many of the engine's ratios, one for each item that `rho_of` yields, are within KEPT."""
    noise = sampler_noise(STANDARD, SAMPLER_NOISE)
    return sum(KEPT[0] <= math.exp(-value) <= KEPT[1] for row in noise for value in rho_of(row))


def by_design(name: str, **fields: Any) -> Case:
    return Case(table="by design", name=name, **fields)


def span_cases() -> Iterator[Case]:
    """Yield cases that differ by whether a micro-batch, a step or a generation is divided by or chosen from."""

    bnpo, entropy = {"loss_type": "bnpo"}, GRPO | {"entropy_coef": 0.05}
    yield by_design(
        "bnpo in 4 micro-batches",
        theirs=Theirs(options=bnpo, num_micro_batches=4),
        ours=Ours(fields=TOKEN_MEAN),
        why="TRL divides each micro-batch by its own tokens; Covey every one by the step's",
        adjustment="TRL with one micro-batch",
        adjusted={"theirs": Theirs(options=bnpo)},
    )
    yield by_design(
        "entropy_coef in 4 micro-batches",
        theirs=Theirs(options=entropy, num_micro_batches=4),
        ours=Ours(coefficients=Coefficients(entropy=0.05)),
        why="TRL's bonus is a mean of each micro-batch's token mean; Covey's is the step's token mean",
        adjustment="TRL with one micro-batch",
        adjusted={"theirs": Theirs(options=entropy)},
    )
    yield by_design(
        "top_entropy_quantile in 4 micro-batches",
        theirs=Theirs(options=QUANTILE, num_micro_batches=4),
        ours=Ours(choice=TOP_ENTROPY),
        is_on_policy=True,
        why="TRL takes the quantile over each micro-batch; Covey over the step",
        adjustment="TRL with one micro-batch",
        adjusted={"theirs": Theirs(options=QUANTILE)},
    )
    yield by_design(
        "top_entropy_quantile after an update",
        theirs=Theirs(options=QUANTILE),
        ours=Ours(choice=TOP_ENTROPY),
        why="TRL takes the entropy of the policy that is updated; Covey of the policy that sampled, once for all updates",
        adjustment="before the first update, where the two are one",
        adjusted={"is_on_policy": True},
    )
    finer = TokenChoice(token_filter="top_entropy", filter_share=0.35)
    yield by_design(
        "top_entropy_quantile 0.35",
        theirs=Theirs(options=GRPO | {"top_entropy_quantile": 0.35}),
        ours=Ours(choice=finer),
        is_on_policy=True,
        why=f"35% of {NUM_TOKENS} tokens are {0.35 * NUM_TOKENS:.1f}: TRL's interpolated quantile keeps 44, Covey rounds up",
        adjustment="Covey's filter_share 0.349",
        adjusted={"ours": Ours(choice=dataclasses.replace(finer, filter_share=0.349))},
    )
    first = sum(len(ids) for ids in STANDARD.completions[: B // 2])
    halves = Theirs(options=DAPO, steps_per_generation=2)
    yield by_design(
        "dapo, 2 optimizer steps a generation",
        theirs=halves,
        ours=Ours(fields=TOKEN_MEAN, num_groups=2),
        why=f"TRL divides by the mean tokens of a step, {NUM_TOKENS / 2:g}; Covey by the step's own, {first}",
        adjustment=f"TRL's loss times {NUM_TOKENS / 2:g}/{first}",
        adjusted={"theirs": dataclasses.replace(halves, scale=NUM_TOKENS / 2 / first)},
    )


def left_out_cases() -> Iterator[Case]:
    """Yield cases that differ by whether what is left out is counted."""
    yield by_design(
        "mask_truncated_completions",
        theirs=Theirs(options=GRPO | {"mask_truncated_completions": True}),
        ours=Ours(masks_truncated=True),
        differs=QUANTITIES,
        why="TRL counts the rewards of masked completions in their group, and the completions in N; Covey leaves them out",
        adjustment=f"their rewards None in TRL, too, and its loss times N = {B}/{NUM_WHOLE}",
        adjusted={
            "data": with_rewards(tuple(None if STANDARD.is_truncated(row) else REWARDS[row] for row in range(B))),
            "theirs": Theirs(options=GRPO | {"mask_truncated_completions": True}, scale=B / NUM_WHOLE),
        },
    )
    yield by_design(
        "a reward that could not be computed",
        theirs=Theirs(options=GRPO),
        ours=Ours(),
        data=UNSCORED,
        why="the completion has no advantage in either; TRL counts it in N, Covey does not",
        adjustment=f"TRL's loss times N = {B}/{B - 1}",
        adjusted={"theirs": Theirs(options=GRPO, scale=B / (B - 1))},
    )
    tokens = kept_after_correction(lambda row: row)
    sequences = kept_after_correction(lambda row: [sum(row)])
    for mode, correction, theirs, fields, kept, total in (
        ("token_mask", "mask_token", DAPO, TOKEN_MEAN, tokens, NUM_TOKENS),
        ("sequence_mask", "mask_sequence", GRPO, {}, sequences, B),
    ):
        options = theirs | {
            "vllm_importance_sampling_mode": mode,
            "vllm_importance_sampling_clip_min": KEPT[0],
            "vllm_importance_sampling_clip_max": KEPT[1],
        }
        corrected = Theirs(options=options, sampler_noise=SAMPLER_NOISE)
        yield by_design(
            f"vllm_importance_sampling_mode {mode}",
            theirs=corrected,
            ours=Ours(
                fields=fields, choice=TokenChoice(correction=correction, correction_low=KEPT[0], correction_high=KEPT[1])
            ),
            why="what the correction rejects stays in TRL's denominator and leaves Covey's",
            adjustment=f"TRL's loss times {total}/{kept}",
            adjusted={"theirs": dataclasses.replace(corrected, scale=total / kept)},
        )


def convention_cases() -> Iterator[Case]:
    """Yield cases that differ by what an option means, or by how numbers are guarded."""

    yield by_design(
        "cispo, epsilon_high 1.28 in both",
        theirs=Theirs(options={"loss_type": "cispo", "epsilon_high": 1.28}),
        ours=Ours(row="cispo", options={"epsilon_high": 1.28}),
        why="TRL's epsilon_high is the cap itself; Covey's cap is 1 + epsilon_high, as in the paper",
        adjustment="Covey's epsilon_high 0.28",
        adjusted={"ours": Ours(row="cispo", options={"epsilon_high": 0.28})},
    )
    yield by_design(
        "beta 0.1 and no word on the term",
        theirs=Theirs(options=GRPO | {"beta": 0.1}),
        ours=Ours(coefficients=Coefficients(beta=0.1)),
        why="by default TRL weighs the KL term by the ratio (use_bias_correction_kl); Covey's row grpo does not",
        adjustment='Covey\'s kl = "weighted_k3_loss"',
        adjusted={"ours": Ours(coefficients=Coefficients(beta=0.1), fields={"kl": "weighted_k3_loss"})},
    )
    yield by_design(
        "bnpo by name",
        theirs=Theirs(options={"loss_type": "bnpo"}),
        ours=Ours(row="bnpo"),
        differs=QUANTITIES,
        why="TRL's bnpo is an aggregation, the token mean; Covey's row is the paper's, with Beta-normalised advantages",
        adjustment='Covey\'s row grpo with aggregation "token-mean"',
        adjusted={"ours": Ours(fields=TOKEN_MEAN)},
    )
    yield by_design(
        "a group with rewards 0.498 to 0.502",
        theirs=Theirs(options=GRPO),
        ours=Ours(options={"min_group_std": 0.01}),
        data=CRUMBS,
        differs=QUANTITIES,
        why="Covey's default min_group_std = 0.01 keeps crumbs of reward from being scaled to full size",
        adjustment="min_group_std = 0",
        adjusted={"ours": Ours()},
    )
    yield by_design(
        "a group of 8 equal rewards, 0.9",
        theirs=Theirs(options=GRPO),
        ours=Ours(),
        data=FLAT,
        differs=QUANTITIES,
        why="the mean of 8 times 0.9 is not 0.9 in float32, and TRL divides the rest by 1e-4; Covey gives exactly 0",
        adjustment="8 equal rewards of 0.5, whose mean is exact",
        adjusted={"data": FLAT_EXACT},
    )
    yield by_design(
        "an old log-prob 25 too low",
        theirs=Theirs(options=GRPO),
        ours=Ours(),
        data=SHIFTED,
        why="Covey clamps the log-ratio to [-20, 20] before the exponential; TRL does not",
        adjustment="delta = 4 in both, which bounds the ratio before it matters",
        adjusted={"theirs": Theirs(options=GRPO | {"delta": 4.0}), "ours": Ours(options={"delta": 4.0})},
    )


def sequence_cases() -> Iterator[Case]:
    """Yield cases that differ by whether a token or its completion carries a ratio or a penalty."""
    corrected = GRPO | {"importance_sampling_level": "sequence", "beta": 0.1, "use_bias_correction_kl": True}
    yield by_design(
        "sequence ratio, weighted KL",
        theirs=Theirs(options=corrected),
        ours=Ours(is_sequence_ratio=True, fields={"kl": "weighted_k3_loss"}, coefficients=Coefficients(beta=0.1)),
        why="TRL weighs the KL of a token by the completion's ratio; Covey by the token's own",
        adjustment="completions of one token, where the two ratios are one",
        adjusted={"data": ONE_TOKEN},
    )
    one_token = "completions of one token, where the two are one"
    yield by_design(
        "RLOO after an update",
        theirs=Theirs(trainer="rloo", options={"beta": 0.0}),
        ours=Ours(row="rloo"),
        why="TRL's ratio and clip are of the whole completion (the product over its tokens); Covey's of each token",
        adjustment=one_token,
        adjusted={"data": ONE_TOKEN},
    )
    yield by_design(
        "RLOO before the first update",
        theirs=Theirs(trainer="rloo", options={"beta": 0.0}),
        ours=Ours(row="rloo"),
        is_on_policy=True,
        differs=("loss",),
        why="the gradient is the same; the value is not: sum over t of A in Covey, A once in TRL",
        adjustment=one_token,
        adjusted={"data": ONE_TOKEN},
    )
    penalty = {"beta": 0.05}
    yield by_design(
        "RLOO, KL in the reward",
        theirs=Theirs(trainer="rloo", options=penalty),
        ours=Ours(row="rloo", coefficients=Coefficients(**penalty)),
        data=ONE_TOKEN,
        differs=QUANTITIES,
        why="TRL takes the completion's whole KL from its reward, so that the others' KL is in the baseline; Covey takes from "
        "each token the KL from it to the end, without a baseline",
        adjustment="Covey with the completion's KL taken from its reward by hand",
        adjusted={"ours": Ours(row="rloo", kl_in_rewards=0.05)},
    )


# The report.


def print_record(record: Mapping[str, Any]) -> None:
    """Print one line for a case, and three for one that differs by design."""
    if "why" in record:
        before = record["unadjusted"]
        print(f"      {record['name']}: {record['why']}")
        print("        as it is    " + "  ".join(f"{name} {before[name]:.1e}" for name in QUANTITIES))
        print(f"        adjusted: {record['adjustment']}")
    label = "" if "why" in record else record["name"]
    numbers = "  ".join(
        f"{dtype}: " + " ".join(f"{name} {record[dtype][name]:.1e}" for name in QUANTITIES) for dtype in TOLERANCES
    )
    print(f"{record['result']}  {label:44s} {numbers}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name holds this text; nothing is written then")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    cases = [*loss_type_cases(), *option_cases(), *span_cases(), *left_out_cases(), *convention_cases(), *sequence_cases()]
    with tempfile.TemporaryDirectory() as scratch:
        directory = write_tiny_model(Path(scratch) / "tiny")
        records = []
        for case in cases:
            if arguments.only in case.name:
                records.append(examine(case, directory))
                print_record(records[-1])
    failed = [record["name"] for record in records if record["result"] == "FAIL"]
    print(f"{len(records) - len(failed)} of {len(records)} cases pass (largest absolute differences below {TOLERANCES})")
    if not arguments.only:
        report = {
            "command": shlex.join(["python", "benchmarks/parity_trl.py"]),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "cpu": describe_machine()["cpu"],
            "versions": describe_versions() | {"trl": importlib.metadata.version("trl")},
            "tolerances": TOLERANCES,
            "cases": records,
        }
        RESULTS.parent.mkdir(exist_ok=True)
        write_text_atomic(RESULTS, json.dumps(report, indent=1) + "\n")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
