"""The recipe: the only schema that users see. Read once, at the edge; below it functions take plain arguments."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo

from covey.algos.registry import ALGORITHMS
from covey.monitor.sinks import SINKS
from covey.types import CoveyError


class ConfigError(CoveyError):
    """A recipe or an override is wrong; the message names key, value and remedy."""


Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A frozen part of the recipe in which an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        wanted = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and wanted in (int, float):
            raise ValueError("true and false are no numbers; give a number")
        return value


class RunSection(Section):
    name: str = Field("", description="name of the run directory; empty = the recipe's file name")
    directory: str = Field("runs", description="where run directories are made")
    seed: int = Field(0, description="of sampling and of the order of prompts")
    num_threads: NotNegative = Field(0, description="processor threads; 0 = one for each core")
    sinks: tuple[str, ...] = Field((), description=f"trackers to copy the metrics to: {', '.join(SINKS)}")

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


class TaskSection(Section):
    name: str = Field("arithmetic", description="a row of the task table")
    level: str = Field("easy", description="difficulty")


class RewardSection(Section):
    name: str = Field("", description="what is optimised: a row of the reward table or module:function; empty = the task's own")
    gold: str = Field("", description="verifier that is never optimised; empty = the task's own, 'none' = fly blind")
    max_error_frac: float = Field(0.1, ge=0, le=1, description="stop if more completions than this cannot be scored")


class AlgorithmSection(Section):
    name: str = Field("grpo", description="a row of the algorithm table")
    epsilon_low: float = Field(0.2, gt=0, lt=1, description="the ratio is clipped at 1 - epsilon_low")
    epsilon_high: float = Field(0.2, gt=0, description="the ratio is clipped at 1 + epsilon_high")
    beta: float = Field(0.0, ge=0, description="weight of the KL term; 0 = no reference model is held")
    min_group_std: float = Field(
        0.01, ge=0, description="groups with a smaller deviation are not scaled up, as a share of the reward's range"
    )

    @field_validator("name")
    @classmethod
    def _is_a_row(cls, name: str) -> str:
        if name not in ALGORITHMS:
            raise ValueError(f"no such algorithm; choose one of {', '.join(ALGORITHMS)}")
        return name


class SamplingSection(Section):
    temperature: float = Field(1.0, gt=0, le=10, description="of training completions")
    max_new_tokens: Positive = Field(24, description="token limit of a completion")


class TrainSection(Section):
    num_steps: Positive = Field(60, description="training steps")
    prompts_per_step: Positive = Field(8, description="prompts, and so groups, in a step")
    group_size: int = Field(8, description="completions of each prompt")
    max_draws: Positive = Field(
        1, description="how often a step may sample: later draws replace dropped groups with fresh prompts"
    )
    drop_flat_groups: bool = Field(True, description="leave groups whose rewards are all equal out of the update")
    learning_rate: float = Field(2e-5, gt=0, description="of AdamW")
    warmup_steps: NotNegative = Field(5, description="updates with a linearly rising learning rate")
    decay: bool = Field(False, description="let the learning rate fall linearly with the updates, to 0 after one in each step")
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    max_tokens_per_micro_batch: Positive = Field(4096, description="memory bound of the update; changes no gradient")
    max_shared_tokens: NotNegative = Field(
        1024, description="completions laid out behind one copy of their prompt; 0 = one by one, for models that need it"
    )

    @field_validator("group_size")
    @classmethod
    def _has_a_group(cls, size: int) -> int:
        if size < 2:
            raise ValueError("group-relative advantages need at least 2 completions a prompt")
        return size


class EvaluationSection(Section):
    every: NotNegative = Field(20, description="steps between held-out evaluations; 0 = only before and after")
    num_prompts: Positive = Field(200, description="held-out prompts of each part, at most as many as the task has")
    samples_per_prompt: Positive = Field(1, description="completions a prompt at the training temperature")


class CheckpointSection(Section):
    every: NotNegative = Field(20, description="steps between checkpoints; 0 = only at the end")
    keep: int = Field(2, ge=2, description="newest checkpoints that are kept; with fewer than 2 a damaged file ends the run")
    rollouts_every: NotNegative = Field(1, description="steps between saved training completions; 0 = none")


class Recipe(Section):
    """Everything a run depends on."""

    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    task: TaskSection = TaskSection()
    reward: RewardSection = RewardSection()
    algorithm: AlgorithmSection = AlgorithmSection()
    sampling: SamplingSection = SamplingSection()
    train: TrainSection = TrainSection()
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()

    @model_validator(mode="after")
    def _options_agree(self) -> Self:
        if self.train.max_draws > 1 and not self.train.drop_flat_groups:
            raise ValueError(
                f"train.max_draws={self.train.max_draws} with train.drop_flat_groups=false: nothing would be drawn again, "
                "because nothing is dropped. Set one of them back"
            )
        return self

    def to_toml(self) -> str:
        """Return the resolved recipe as TOML; reading it back gives an equal recipe."""
        return tomli_w.dumps(self.model_dump(mode="json"))

    def derived(self) -> dict[str, str]:
        """Return what follows from the two batch numbers, in words."""
        per_step = self.train.prompts_per_step * self.train.group_size
        return {
            "completions a step": f"{self.train.prompts_per_step} prompts x {self.train.group_size} = {per_step}"
            + (f", drawn up to {self.train.max_draws} times" if self.train.max_draws > 1 else ""),
            "completions in the run": f"{per_step * self.train.num_steps} in {self.train.num_steps} steps",
            "tokens a step": f"at most {per_step * self.sampling.max_new_tokens} a draw",
            "optimizer updates": "one a step; none in a step without a usable group",
        }


def load_recipe(path: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a TOML file (or the defaults) with "section.key=value" overrides applied.

    Raises:
        ConfigError: the file or an override cannot be used.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text())
        except FileNotFoundError as error:
            raise ConfigError(f"recipe {path} does not exist. Recipes that come with Covey lie in recipes/") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
            raise ConfigError(f"recipe {path} is not valid TOML: {error}") from error
    for override in overrides:
        apply_override(values, override)
    return make_recipe(values)


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one "section.key=value" in nested `values`. The value is read as TOML, and as plain text if it is none."""
    dotted, separator, text = override.partition("=")
    section, dot, key = dotted.strip().partition(".")
    if not separator or not dot:
        raise ConfigError(f"override {override!r} is not of the form section.key=value, such as train.num_steps=20")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    if not isinstance(values.setdefault(section, {}), dict):
        raise ConfigError(f"{section}={values[section]!r} is a plain value in the recipe, but [{section}] is a section")
    values[section][key] = value


def make_recipe(values: Mapping[str, Any]) -> Recipe:
    """Return the validated recipe.

    Raises:
        ConfigError: one line for each wrong key, with its value and what to do.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        lines = [_explain(problem["loc"], problem["type"], problem["msg"], problem["input"]) for problem in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def _explain(location: tuple[int | str, ...], kind: str, message: str, value: object) -> str:
    key = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        known = list(_fields_at(location[:-1]))
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        return f"{key}: there is no such option; {remedy}"
    message = message.removeprefix("Value error, ")
    return f"{key}={value!r}: {message}" if key else message


def _fields_at(location: tuple[int | str, ...]) -> Mapping[str, FieldInfo]:
    if not location:
        return Recipe.model_fields
    section = Recipe.model_fields[str(location[0])].annotation
    return section.model_fields if isinstance(section, type) and issubclass(section, BaseModel) else {}
