"""Recipes of rows that learn from preference pairs: a schema of their own, because nothing is sampled and nothing rewarded."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from covey.algos.registry import PAIR_ALGORITHMS, PairSpec
from covey.config import ConfigError, Recipe, parse_override, with_changes
from covey.models.reward_model_fit import FitSpec
from covey.section import Section
from covey.sections import NotNegative, Positive

_FIT = FitSpec()


class PairsRunSection(Section):
    name: str = Field("", description="name of the run directory; empty = the recipe's file name")
    directory: str = Field("runs", description="where run directories are made")
    seed: int = Field(_FIT.seed, description="of the split and of the order of pairs")
    num_threads: NotNegative = Field(0, description="processor threads; 0 = one for each core")


class PairsModelSection(Section):
    name: str = Field("smollm2-135m", description="bundled name, local directory or hub id of the language model to start from")
    revision: str = Field("", description="of a hub id; empty = the newest")
    compute_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "float32", description="of matrix products; weights stay float32"
    )


class PairsAlgorithmSection(Section):
    name: str = Field(description="a row that learns from pairs; `covey algorithms` lists them")

    @field_validator("name")
    @classmethod
    def _is_a_row(cls, name: str) -> str:
        if name not in PAIR_ALGORITHMS:
            raise ValueError(f"no such row learns from pairs; choose one of {', '.join(PAIR_ALGORITHMS)}")
        return name


class PairsSection(Section):
    path: str = Field(min_length=1, description="JSONL file with prompt, chosen and rejected; it has to be named")
    held_out_frac: float = Field(
        _FIT.held_out_frac, ge=0, lt=1, description="share of the prompts that is measured on; 0 = none, and no accuracy"
    )


class PairsTrainSection(Section):
    num_epochs: Positive = Field(_FIT.num_epochs, description="passes over the pairs; more than one mostly memorises")
    batch_size: Positive = Field(_FIT.batch_size, description="pairs of an optimizer step")
    micro_batch_size: Positive = Field(_FIT.micro_batch_size, description="pairs in memory at a time; changes no gradient")
    learning_rate: float = Field(_FIT.learning_rate, gt=0, description="of AdamW, at its highest; it falls to 0 at the end")
    warmup_frac: float = Field(_FIT.warmup_frac, ge=0, le=1, description="share of the steps over which it rises")
    weight_decay: float = Field(_FIT.weight_decay, ge=0, description="of AdamW")
    max_grad_norm: float = Field(_FIT.max_grad_norm, gt=0, description="gradients are clipped to this norm")


class PairsRecipe(Section):
    """Everything that a run on preference pairs depends on."""

    run: PairsRunSection = PairsRunSection()
    model: PairsModelSection = PairsModelSection()
    algorithm: PairsAlgorithmSection
    pairs: PairsSection
    train: PairsTrainSection = PairsTrainSection()

    def to_toml(self) -> str:
        """Return the resolved recipe as TOML; reading it back gives an equal recipe."""
        return tomli_w.dumps(self.model_dump(mode="json"))

    @property
    def spec(self) -> PairSpec:
        """The row."""
        return PAIR_ALGORITHMS[self.algorithm.name]

    @property
    def fit(self) -> FitSpec:
        """How a reward model is trained."""
        return FitSpec(**self.train.model_dump(), held_out_frac=self.pairs.held_out_frac, seed=self.run.seed)

    def formula(self) -> list[str]:
        """Return what is minimised, line by line."""
        return [self.spec.loss_formula, f"L = mean of l over the {self.train.batch_size} pairs of a step"]


def pair_row(path: Path | None, overrides: Sequence[str] = ()) -> str | None:
    """Return the row that learns from pairs and that the recipe asks for, None if it asks for another.

    A file that cannot be read asks for none: whoever reads it next says what is wrong with it.
    """
    names = [value for section, key, value in map(parse_override, overrides) if (section, key) == ("algorithm", "name")]
    if not names and path is not None:
        try:
            algorithm = tomllib.loads(path.read_text()).get("algorithm")
        except (OSError, ValueError):  # tomllib's and the decoder's errors are ValueErrors
            return None
        names = [algorithm.get("name")] if isinstance(algorithm, dict) else []
    return names[-1] if names and names[-1] in tuple(PAIR_ALGORITHMS) else None


def load_pairs_recipe(path: Path | None, overrides: Sequence[str] = ()) -> PairsRecipe:
    """Return the recipe of a TOML file (or the defaults) with "section.key=value" overrides applied.

    Raises:
        ConfigError: the file cannot be read, or an option is wrong or belongs to recipes of other rows.
    """
    try:
        values = tomllib.loads(path.read_text()) if path is not None else {}
    except FileNotFoundError as error:
        raise ConfigError(f"recipe {path} does not exist. Recipes that come with Covey lie in recipes/") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"recipe {path} is not valid TOML: {error}") from error
    return make_pairs_recipe(with_changes(values, [parse_override(override) for override in overrides]))


def make_pairs_recipe(values: Mapping[str, Any]) -> PairsRecipe:
    """Return the validated recipe.

    Raises:
        ConfigError: one line for each wrong key, with its value and what to do, and one for all that other rows have.
    """
    try:
        return PairsRecipe.model_validate({"algorithm": {}, "pairs": {}} | dict(values))
    except ValidationError as error:
        problems = error.errors()
    foreign = [problem["loc"] for problem in problems if problem["type"] == "extra_forbidden" and _is_foreign(problem["loc"])]
    lines = [_explain(problem) for problem in problems if problem["loc"] not in foreign]
    if foreign:
        said = f"rows that learn from pairs ({', '.join(PAIR_ALGORITHMS)}) sample nothing, so their recipes have no such option"
        lines.insert(0, f"{', '.join(map(_key, foreign))}: {said}. `covey algorithms NAME` lists what they have")
    raise ConfigError("\n".join(lines))


def explain_row(name: str, path: Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return name, formula and options of a row, with the numbers of a recipe or else the defaults.

    Raises:
        ConfigError: an option is wrong, or belongs to recipes of other rows.
    """
    placeholder = [] if path is not None else ["pairs.path=pairs.jsonl"]
    recipe = load_pairs_recipe(path, [*placeholder, *overrides, f"algorithm.name={name}"])
    values = recipe.model_dump(exclude={"run", "model", "algorithm"})
    options = {f"{section}.{key}": value for section, fields in values.items() for key, value in fields.items()}
    return {"name": name, "formula": recipe.formula(), "options": options}


def _explain(problem: Mapping[str, Any]) -> str:
    location, key = problem["loc"], _key(problem["loc"])
    if problem["type"] == "missing":
        return f"{key} is missing: {_options(PairsRecipe, location[:-1])[str(location[-1])].description}"
    if problem["type"] != "extra_forbidden":
        return f"{key}={problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}"
    known = list(_options(PairsRecipe, location[:-1]))
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"{key}: there is no such option; {f'did you mean {close[0]!r}?' if close else 'known here: ' + ', '.join(known)}"


def _key(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)


def _is_foreign(location: tuple[int | str, ...]) -> bool:
    """Return whether recipes of rows that sample completions have the option."""
    return str(location[-1]) in _options(Recipe, location[:-1])


def _options(recipe: type[Section], location: tuple[int | str, ...]) -> Mapping[str, FieldInfo]:
    """Return the fields of a recipe, or of the section at the location."""
    if not location:
        return dict(recipe.model_fields)
    section = recipe.model_fields[str(location[0])].annotation
    return dict(section.model_fields) if isinstance(section, type) and issubclass(section, Section) else {}
