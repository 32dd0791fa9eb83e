"""The sections of a recipe: every option that users have, with its type, its bounds and its meaning.

The sections of algorithm and task have files of their own, `algorithm_section.py` and `task_section.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from covey.curriculum import CURRICULA
from covey.engines.registry import ENGINES
from covey.guard.table import DETECTORS
from covey.guard.watch import ACTIONS, Action
from covey.monitor.sinks import SINKS
from covey.rewards.combine import COMBINATIONS, How
from covey.section import Section

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]


MAX_NAME_BYTES = 200
"""Of a run: file systems take 255, and Covey appends a number where a name is taken."""


class RunSection(Section):
    name: str = Field("", description="name of the run directory; empty = the recipe's file name")
    directory: str = Field("runs", description="where run directories are made")
    seed: int = Field(0, description="of sampling, of the order of prompts and of fresh adapters")
    num_threads: NotNegative = Field(
        0, description="processor threads; 0 = one for each core, shared by the processes on a machine"
    )
    watchdog_s: NotNegative = Field(
        3600, description="a step that takes longer than this writes where each thread stands to stalled.txt; 0 = never"
    )
    accept_reward_code: str = Field(
        "", description="of a run that goes on: the mark of changed reward functions to go on with; the refusal names it"
    )
    sinks: tuple[str, ...] = Field((), description=f"trackers to copy the metrics to: {', '.join(SINKS)}")

    @field_validator("name")
    @classmethod
    def _is_one_name(cls, name: str) -> str:
        if name in (".", "..") or "/" in name or "\0" in name or len(name.encode()) > MAX_NAME_BYTES:
            raise ValueError(
                f"{name[:60]!r} is no name of a directory: give one of at most {MAX_NAME_BYTES} bytes without '/'; where runs "
                "are made is run.directory"
            )
        return name

    @field_validator("sinks")
    @classmethod
    def _are_rows(cls, sinks: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := set(sinks) - set(SINKS):
            raise ValueError(f"no such tracker: {', '.join(sorted(unknown))}; choose among {', '.join(SINKS)}")
        return sinks


class ModelSection(Section):
    name: str = Field("smollm2-135m", description="bundled name, local directory or hub id")
    revision: str = Field("", description="of a hub id; empty = the newest")
    trust_remote_code: bool = Field(False, description="run Python code that the model brings along")
    compute_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of matrix products; weights stay float32"
    )


class LoraSection(Section):
    rank: NotNegative = Field(0, description="of the adapters; 0 = no adapters, every weight is trained")
    alpha: float = Field(32.0, gt=0, description="an adapter's output is multiplied by alpha / rank")
    targets: tuple[str, ...] = Field(
        ("all-linear",), description="names of the layers that get an adapter; all-linear = all but the output head"
    )
    dropout: float = Field(0.0, description="0; with any other, sampler and trainer would differ")
    adapter: str = Field("", description="directory or hub id of an adapter to start from; empty = a fresh one")
    sampling: Literal["merged", "unmerged"] = Field(
        "merged", description="engines serve adapters as part of the weights, or beside them as the trainer computes them"
    )
    reference: Literal["start", "base"] = Field(
        "start", description="the reference model: the policy as training finds it, or the model with adapters off"
    )

    @field_validator("dropout")
    @classmethod
    def _is_off(cls, dropout: float) -> float:
        if dropout:
            raise ValueError(
                "completions are sampled without dropout, and scored with it they would seem off policy; leave it 0"
            )
        return dropout

    @field_validator("targets")
    @classmethod
    def _are_names(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        if not targets or "" in targets:
            raise ValueError("name at least one kind of layer, such as q_proj, or all-linear")
        return targets

    @model_validator(mode="after")
    def _belongs_to_a_rank(self) -> Self:
        for key, field in type(self).model_fields.items():
            if not self.rank and getattr(self, key) != field.default:
                raise ValueError(f"{key}={getattr(self, key)!r}: it belongs to rank, which is 0; set both")
        return self

    @property
    def starts_at_reference(self) -> bool:
        """Whether the reference is the policy as training finds it."""
        return self.reference == "start" or not self.adapter


class EngineSection(Section):
    name: str = Field("auto", description=f"what samples completions: {', '.join(ENGINES)}; auto = native where it can")

    @field_validator("name")
    @classmethod
    def _is_an_engine(cls, name: str) -> str:
        if name not in ENGINES:
            raise ValueError(f"no such engine; choose one of {', '.join(ENGINES)}")
        return name


class RewardSection(Section):
    name: str = Field("", description="what is optimised: a row of the reward table or module:function; empty = the task's own")
    parts: dict[str, float] = Field({}, description="instead of a name: rewards with their weights")
    options: dict[str, Any] = Field({}, description="of the named reward; of parts, a table for each part that has any")
    combine: How = Field("sum", description=f"how parts become one reward: {', '.join(COMBINATIONS)}")
    tie_break: float = Field(0.1, gt=0, lt=1, description="share of a later part in a lexicographic reward")
    gold: str = Field("", description="verifier that is never optimised; empty = the task's own, 'none' = fly blind")
    gold_options: dict[str, Any] = Field({}, description="options of the gold verifier")
    audit: bool = Field(True, description="attack the reward for some seconds before training, and say what was found")
    max_error_frac: float = Field(0.1, ge=0, le=1, description="stop if more completions than this cannot be scored")
    num_workers: NotNegative = Field(
        2, description="processes that reward functions run in; 0 = the training process, without a deadline"
    )
    timeout_s: float = Field(10.0, gt=0, description="deadline of a call for one completion")
    batch_timeout_s: float = Field(60.0, gt=0, description="deadline of a call for a whole batch, of rewards that take batches")
    max_memory_mb: NotNegative = Field(0, description="address space of a reward process; 0 = no limit")
    sandbox: Literal["auto", "bubblewrap", "bubblewrap-each", "landlock", "wasm", "remote", "unprotected"] = Field(
        "auto", description="how candidates' code is confined: auto = the first way that holds; unprotected = not at all"
    )
    sandbox_command: tuple[str, ...] = Field(
        (), description="of sandbox = 'remote': the command that reaches a Python elsewhere, such as ssh or docker run"
    )
    sandbox_cpu_s: Positive = Field(3, description="processor time of a candidate for all its tests")
    sandbox_memory_mb: Positive = Field(512, description="address space of a candidate")

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.name and self.parts:
            raise ValueError(f"name={self.name!r} and parts={self.parts} are both given; give one of them")
        if self.combine != "sum" and len(self.parts) < 2:
            raise ValueError(f"combine={self.combine!r} needs at least two parts to combine")
        return self

    @model_validator(mode="after")
    def _command_has_its_sandbox(self) -> Self:
        if self.sandbox_command and self.sandbox != "remote":
            raise ValueError(f"sandbox_command is for sandbox='remote', and sandbox={self.sandbox!r}; give one or the other")
        if self.sandbox == "remote" and not self.sandbox_command:
            raise ValueError("sandbox='remote' needs sandbox_command, the command that reaches a Python elsewhere")
        return self


class SamplingSection(Section):
    temperature: float = Field(1.0, gt=0, le=10, description="of training completions")
    max_new_tokens: Positive = Field(24, description="token limit of a completion")
    top_k: NotNegative = Field(0, description="sample among the k likeliest tokens; 0 = all")
    top_p: float = Field(1.0, gt=0, le=1, description="sample among the likeliest tokens that hold this probability; 1 = all")
    min_p: float = Field(0.0, ge=0, lt=1, description="sample among tokens this likely compared with the likeliest; 0 = all")
    repetition_penalty: float = Field(1.0, gt=0, description="logits of tokens seen before are divided by it; 1 = off")
    stop: tuple[str, ...] = Field((), description="a completion ends when its text holds one of these")

    @field_validator("stop")
    @classmethod
    def _are_texts(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if any(not text for text in stop):
            raise ValueError("an empty stop string would end every completion at once; remove it")
        return stop


class TrainSection(Section):
    num_steps: Positive = Field(60, description="training steps")
    prompts_per_step: Positive = Field(8, description="prompts, and so groups, in a step")
    group_size: Positive = Field(8, description="completions of each prompt")
    num_iterations: Positive = Field(1, description="passes over each step's completions")
    num_minibatches: Positive = Field(1, description="optimizer updates in a pass, each on its own groups")
    max_draws: Positive = Field(
        1, description="how often a step may sample: later draws replace dropped groups with fresh prompts"
    )
    drop_flat_groups: bool = Field(True, description="leave groups without any signal out of the update")
    truncated: Literal["keep", "mask"] = Field(
        "keep", description="completions that hit the token limit: train on them, or leave them out of group and loss"
    )
    overlong_buffer: NotNegative = Field(0, description="tokens before the limit in which length is penalised; 0 = none")
    overlong_penalty: float = Field(1.0, gt=0, description="what a completion at the token limit loses")
    max_generated_tokens: NotNegative = Field(
        0, description="the run ends when training has generated so many tokens, dropped groups included; 0 = no limit"
    )
    curriculum: str = Field("none", description=f"which prompts are drawn: {', '.join(CURRICULA)}")
    learning_rate: float = Field(2e-5, gt=0, description="of AdamW")
    warmup_steps: NotNegative = Field(5, description="updates with a linearly rising learning rate")
    decay: bool = Field(
        False,
        description="let the learning rate fall linearly, to 0 at the last update, or where max_generated_tokens ends the run",
    )
    decay_tokens: NotNegative = Field(
        0, description="with max_generated_tokens: tokens at which the rate is 0; 0 = where the run ends"
    )
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    max_tokens_per_micro_batch: Positive = Field(
        2048, description="bound of what the update holds at once, lowered where memory is short; changes no gradient"
    )
    gradient_checkpointing: bool = Field(
        False,
        description="compute each layer again in the backward pass: less memory for one more forward pass; changes no gradient",
    )
    max_shared_tokens: NotNegative = Field(
        1024, description="completions laid out behind one copy of their prompt; 0 = one by one, for models that need it"
    )

    @field_validator("curriculum")
    @classmethod
    def _is_a_curriculum(cls, name: str) -> str:
        if name not in CURRICULA:
            raise ValueError(f"no such curriculum; choose one of {', '.join(CURRICULA)}")
        return name

    @property
    def updates_per_step(self) -> int:
        return self.num_iterations * self.num_minibatches


class EvaluationSection(Section):
    every: NotNegative = Field(20, description="steps between held-out evaluations; 0 = only before and after")
    before: bool = Field(True, description="measure before training, too; without it nobody knows what training has changed")
    num_prompts: Positive = Field(200, description="held-out prompts of each part, at most as many as the task has")
    samples_per_prompt: Positive = Field(1, description="completions a prompt at the training temperature")


class GuardSection(Section):
    enabled: bool = Field(True, description="watch over the run: detectors over proxy and gold, and what they ask for")
    actions: dict[str, Action] = Field(
        {}, description=f"what a detector's alarm does, by its name: {', '.join(ACTIONS)}; absent = the table's default"
    )
    beta_factor: float = Field(2.0, gt=1, description="algorithm.beta is multiplied by it when a detector asks for raise_beta")

    @field_validator("actions")
    @classmethod
    def _are_detectors(cls, actions: dict[str, Action]) -> dict[str, Action]:
        if unknown := set(actions) - set(DETECTORS):
            raise ValueError(f"no such detector: {', '.join(sorted(unknown))}; there are {', '.join(DETECTORS)}")
        return actions


class SpikesSection(Section):
    grad_norm_factor: float = Field(
        0.0,
        ge=0,
        description="an update is a spike if its gradient's norm is above so many medians of the last ones; 0 = no limit",
    )
    num_norms: Positive = Field(10, description="updates that the median is of; there is no limit before as many were made")
    max_kl: float = Field(
        0.0, ge=0, description="an update is a spike if its mean KL from the reference is above this; 0 = no limit"
    )
    max_ratio: float = Field(
        0.0, ge=0, description="an update is a spike if one of its importance ratios is above this; 0 = no limit"
    )
    action: Literal["skip", "go_back"] = Field(
        "skip", description="what a spike does: it is left out, or the run goes back to its last checkpoint as well"
    )

    @field_validator("grad_norm_factor", "max_ratio")
    @classmethod
    def _is_above_the_usual(cls, limit: float) -> float:
        if 0 < limit <= 1:
            raise ValueError("ordinary updates are above 1, too; give a larger limit, or 0 for none")
        return limit

    @model_validator(mode="after")
    def _belongs_to_a_limit(self) -> Self:
        if self.num_norms != type(self).model_fields["num_norms"].default and not self.grad_norm_factor:
            raise ValueError(f"num_norms={self.num_norms}: it belongs to grad_norm_factor, which is 0; set both")
        if self.action != "skip" and not self.has_limits:
            raise ValueError(f"action={self.action!r} without a limit: set grad_norm_factor, max_kl or max_ratio")
        return self

    @property
    def has_limits(self) -> bool:
        """Whether any update can be a spike."""
        return bool(self.grad_norm_factor or self.max_kl or self.max_ratio)


class CheckpointSection(Section):
    every: NotNegative = Field(20, description="steps between checkpoints; 0 = only at the end")
    keep: int = Field(2, ge=2, description="newest checkpoints that are kept; with fewer than 2 a damaged file ends the run")
    rollouts_every: NotNegative = Field(1, description="steps between saved training completions; 0 = none")
    in_background: bool = Field(
        True, description="whether training goes on while a checkpoint is written, from a copy; without memory for one it waits"
    )
