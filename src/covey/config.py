"""The recipe: the only schema that users see. Read once, at the edge; below it functions take plain arguments."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import tomli_w
from pydantic import BaseModel, ValidationError, model_validator
from pydantic.fields import FieldInfo

from covey.algorithm_section import ROW_KEYS, AlgorithmSection, row_defaults
from covey.algos.filters import TOKEN_FILTERS
from covey.algos.registry import ALGORITHMS, DEFAULT_ALGORITHM, PAIR_ALGORITHMS
from covey.section import Section
from covey.sections import (
    CheckpointSection,
    EngineSection,
    EvaluationSection,
    GuardSection,
    LoraSection,
    ModelSection,
    RewardSection,
    RunSection,
    SamplingSection,
    SpikesSection,
    TrainSection,
)
from covey.task_section import TaskSection
from covey.types import CoveyError


class ConfigError(CoveyError):
    """A recipe or an override is wrong; the message names key, value and remedy."""


class Recipe(Section):
    """Everything a run depends on."""

    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    lora: LoraSection = LoraSection()
    engine: EngineSection = EngineSection()
    task: TaskSection = TaskSection()
    reward: RewardSection = RewardSection()
    algorithm: AlgorithmSection = AlgorithmSection()
    sampling: SamplingSection = SamplingSection()
    train: TrainSection = TrainSection()
    evaluation: EvaluationSection = EvaluationSection()
    guard: GuardSection = GuardSection()
    spikes: SpikesSection = SpikesSection()
    checkpoint: CheckpointSection = CheckpointSection()

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if problem := recipe_contradiction(self):
            raise ValueError(problem)
        return self

    def to_toml(self) -> str:
        """Return the resolved recipe as TOML; reading it back gives an equal recipe. Options a row lacks are absent."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def derived(self) -> dict[str, str]:
        """Return what follows from the two batch numbers, in words."""
        per_step = self.train.prompts_per_step * self.train.group_size
        return {
            "completions a step": f"{self.train.prompts_per_step} prompts x {self.train.group_size} = {per_step}"
            + (f", drawn up to {self.train.max_draws} times" if self.train.max_draws > 1 else ""),
            "completions in the run": f"{per_step * self.train.num_steps} in {self.train.num_steps} steps",
            "tokens a step": f"at most {per_step * self.sampling.max_new_tokens} a draw",
            "optimizer updates": (
                f"{self.train.num_iterations} x {self.train.num_minibatches} a step"
                if self.train.updates_per_step > 1
                else "one a step"
            )
            + "; none in a step without a usable group",
        }


def recipe_contradiction(recipe: Recipe) -> str | None:
    """Return in words which options of different sections exclude each other, None if none do."""
    return (
        _group_contradiction(recipe)
        or _update_contradiction(recipe)
        or _reward_contradiction(recipe)
        or _guard_contradiction(recipe)
        or _spikes_contradiction(recipe)
        or _adapter_contradiction(recipe)
    )


def _group_contradiction(recipe: Recipe) -> str | None:
    algorithm, train = recipe.algorithm, recipe.train
    spec = ALGORITHMS[algorithm.name]
    if train.group_size < spec.min_group_size:
        return (
            f"train.group_size={train.group_size}: group-relative advantages need at least {spec.min_group_size} completions "
            "a prompt"
        )
    if (algorithm.k or 0) >= train.group_size:
        return (
            f"algorithm.k={algorithm.k} with train.group_size={train.group_size}: a group tells nothing about pass@k unless it "
            "has more than k completions"
        )
    if train.max_draws > 1 and not train.drop_flat_groups:
        return (
            f"train.max_draws={train.max_draws} with train.drop_flat_groups=false: nothing would be drawn again, "
            "because nothing is dropped. Set one of them back"
        )
    if train.num_minibatches > train.prompts_per_step:
        return (
            f"train.num_minibatches={train.num_minibatches} with train.prompts_per_step={train.prompts_per_step}: an update "
            "needs at least one group"
        )
    return None


def _update_contradiction(recipe: Recipe) -> str | None:
    algorithm, train = recipe.algorithm, recipe.train
    if TOKEN_FILTERS[algorithm.token_filter].needs_later_updates and train.updates_per_step == 1:
        return (
            f"algorithm.token_filter={algorithm.token_filter!r} with one update a step: the ratio is 1 there, and the filter "
            "does nothing. Set train.num_iterations or train.num_minibatches"
        )
    if train.updates_per_step > 1 and not ALGORITHMS[algorithm.name].reuses_data:
        return (
            f"train.num_iterations={train.num_iterations}, train.num_minibatches={train.num_minibatches} with "
            f"algorithm.name={algorithm.name!r}: the row has no importance ratio, and later updates would train on stale data "
            "as if it were fresh. Make one update a step, or choose a row with a ratio"
        )
    if train.decay_tokens and not (train.decay and train.max_generated_tokens):
        return (
            f"train.decay_tokens={train.decay_tokens}: it belongs to train.decay and train.max_generated_tokens; set all "
            "three, or leave it out"
        )
    if algorithm.beta and algorithm.reference_every == 1 and algorithm.reference_mix == 1 and train.updates_per_step == 1:
        return (
            "algorithm.reference_every=1 with reference_mix=1 and one update a step: the reference is the policy at each "
            "update, and the KL term has no gradient. Refresh less often, or mix less"
        )
    return None


def _reward_contradiction(recipe: Recipe) -> str | None:
    algorithm, train, sampling = recipe.algorithm, recipe.train, recipe.sampling
    spec = ALGORITHMS[algorithm.name]
    if spec.reads_parts and recipe.reward.combine != "sum":
        return (
            f"reward.combine={recipe.reward.combine!r} with algorithm.name={algorithm.name!r}: the row combines the parts "
            "itself, as a weighted sum. Choose another row, or combine='sum'"
        )
    if spec.counts_successes and len(recipe.reward.parts) > 1 and recipe.reward.combine != "product":
        return (
            f"reward.parts with algorithm.name={algorithm.name!r}: the row reads the reward as a share of success, "
            "which a sum of parts is not. Name one reward, or combine='product'"
        )
    if recipe.reward.options and not (recipe.reward.name or recipe.reward.parts):
        return "reward.options belongs to reward.name or reward.parts, and neither is given; name the reward"
    if recipe.reward.parts and (
        loose := [name for name, value in recipe.reward.options.items() if not isinstance(value, dict)]
    ):
        return f"reward.options.{loose[0]}: with reward.parts, options are a table under the part's name"
    if recipe.reward.gold_options and recipe.reward.gold in ("", "none"):
        return "reward.gold_options belongs to reward.gold, which names no verifier; set both"
    if train.overlong_penalty != 1.0 and not train.overlong_buffer:
        return f"train.overlong_penalty={train.overlong_penalty} belongs to train.overlong_buffer, which is 0; set both"
    if recipe.reward.tie_break != 0.1 and recipe.reward.combine != "lexicographic":
        return f"reward.tie_break={recipe.reward.tie_break} belongs to reward.combine='lexicographic'; set both"
    if train.overlong_buffer and spec.counts_successes:
        return (
            f"train.overlong_buffer={train.overlong_buffer} with algorithm.name={algorithm.name!r}: the row reads rewards as "
            "shares of success, and a penalty for length would change what counts as one. Leave one of them out"
        )
    if train.overlong_buffer >= sampling.max_new_tokens:
        return (
            f"train.overlong_buffer={train.overlong_buffer} must be smaller than "
            f"sampling.max_new_tokens={sampling.max_new_tokens}"
        )
    return None


def _guard_contradiction(recipe: Recipe) -> str | None:
    guard = recipe.guard
    if "raise_beta" in guard.actions.values() and not recipe.algorithm.beta:
        return (
            "guard.actions has raise_beta with algorithm.beta=0: there is no KL term to make heavier. Set algorithm.beta, or "
            "choose another action"
        )
    if guard.enabled and not recipe.evaluation.before:
        return (
            "evaluation.before=false with guard.enabled=true: the guard compares with the model before training. Measure "
            "it, or switch the guard off"
        )
    if not guard.enabled and (guard.actions or guard.beta_factor != GuardSection().beta_factor):
        return "guard.actions and guard.beta_factor belong to guard.enabled, which is false; set it true, or leave them out"
    return None


def _spikes_contradiction(recipe: Recipe) -> str | None:
    spikes = recipe.spikes
    if spikes.max_kl and not recipe.algorithm.has_reference:
        return f"spikes.max_kl={spikes.max_kl}: the run has no reference model; set algorithm.beta or track_kl, or leave it out"
    if spikes.max_ratio and recipe.train.updates_per_step == 1:
        return (
            f"spikes.max_ratio={spikes.max_ratio} with one update a step: the ratio is 1 there. Set train.num_iterations or "
            "train.num_minibatches, or leave it out"
        )
    if spikes.action == "go_back" and not recipe.checkpoint.every:
        return "spikes.action='go_back' with checkpoint.every=0: there is nothing to go back to. Set one of them otherwise"
    return None


def _adapter_contradiction(recipe: Recipe) -> str | None:
    lora, algorithm = recipe.lora, recipe.algorithm
    if lora.rank and algorithm.reference_every:
        return (
            f"algorithm.reference_every={algorithm.reference_every} with lora.rank={lora.rank}: the reference of a run with "
            "adapters stays where it is. Set one of them to 0"
        )
    if lora.reference == "base" and not algorithm.has_reference:
        return "lora.reference='base': the run has no reference model; set algorithm.beta or track_kl, or leave it out"
    if lora.sampling == "unmerged" and recipe.engine.name == "native":
        return (
            "lora.sampling='unmerged' with engine.name='native': that engine serves adapters merged into the weights only. "
            "Leave it merged, or set engine.name='transformers'"
        )
    return None


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
        except (OSError, ValueError) as error:  # No permission, or a name that no file can have.
            raise ConfigError(f"recipe {str(path)[:80]!r} cannot be read: {error}") from error
    return make_recipe(with_changes(values, [parse_override(override) for override in overrides]))


def parse_override(override: str) -> tuple[str, str, Any]:
    """Return (section, key, value) of "section.key=value". The value is read as TOML, and as plain text if it is none.

    Raises:
        ConfigError: it is not of that form.
    """
    dotted, separator, text = override.partition("=")
    section, dot, key = dotted.strip().partition(".")
    if not separator or not dot:
        raise ConfigError(f"override {override!r} is not of the form section.key=value, such as train.num_steps=20")
    try:
        return section, key, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return section, key, text


def with_changes(values: Mapping[str, Any], changes: Sequence[tuple[str, str, Any]]) -> dict[str, Any]:
    """Return the recipe's values with (section, key, value) changes.

    When another row is asked for, what the recipe says only because its row did is forgotten first, so that a resolved
    recipe with another `algorithm.name` gets that row's numbers and not those of the row before.
    """
    changed = {section: dict(options) if isinstance(options, Mapping) else options for section, options in values.items()}
    if rows := {key for section, key, _ in changes if section == "algorithm" and key in ROW_KEYS}:
        algorithm = changed.get("algorithm")
        if isinstance(algorithm, dict) and rows & set(algorithm) and algorithm.get("name", DEFAULT_ALGORITHM) in ALGORITHMS:
            for key, value in row_defaults(algorithm).items():
                if key not in ROW_KEYS and algorithm.get(key) == value:
                    del algorithm[key]
    for section, key, value in changes:
        if not isinstance(changed.setdefault(section, {}), dict):
            raise ConfigError(f"{section}={changed[section]!r} is a plain value in the recipe, but [{section}] is a section")
        changed[section][key] = value
    return changed


def refuse_rows_of_pairs(values: Mapping[str, Any]) -> None:
    """Raise if the recipe is one of a row that learns from pairs: those have another schema, and one command knows it."""
    algorithm = values.get("algorithm")
    row = algorithm.get("name") if isinstance(algorithm, Mapping) else None
    if isinstance(row, str) and row in PAIR_ALGORITHMS:
        raise ConfigError(
            f"algorithm.name={row!r}: the row learns from {PAIR_ALGORITHMS[row].data}; its recipes and runs are for "
            "`covey train` on the command line alone"
        )


def make_recipe(values: Mapping[str, Any]) -> Recipe:
    """Return the validated recipe.

    Raises:
        ConfigError: one line for each wrong key, with its value and what to do.
    """
    refuse_rows_of_pairs(values)
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
    if len(location) == 1 and kind == "value_error" and isinstance(value, Mapping):
        return f"{key}.{message}"  # Options of one section that exclude each other: the message names the first.
    return f"{key}={value!r}: {message}" if key else message


def _fields_at(location: tuple[int | str, ...]) -> Mapping[str, FieldInfo]:
    if not location:
        return Recipe.model_fields
    section = Recipe.model_fields[str(location[0])].annotation
    return section.model_fields if isinstance(section, type) and issubclass(section, BaseModel) else {}
