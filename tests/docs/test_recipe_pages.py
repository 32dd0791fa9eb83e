"""`docs/guide/recipes.md` lists every key of a recipe as the schema has it, and its pieces are valid."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from covey.api import find_recipe
from covey.config import ConfigError, Recipe, load_recipe, make_recipe
from covey.pairs_recipe import PairsRecipe, load_pairs_recipe, pair_row

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guide" / "recipes.md").read_text()
SECTIONS: dict[str, Any] = {name: field.annotation for name, field in Recipe.model_fields.items()}
PAIRS_SECTIONS: dict[str, Any] = {name: field.annotation for name, field in PairsRecipe.model_fields.items()}
NOT_DESCRIBED = {"weight_decay"}

every_section = pytest.mark.parametrize("name", list(SECTIONS))


def section(text: str, title: str) -> str:
    return re.split(r"^#{2,3} ", text.split(f"\n{title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def rows_of(text: str) -> list[list[str]]:
    """Return the cells of all table rows but the first, without the lines that only draw a table."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("| ---")]
    return [[cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines][1:]


def documented(name: str) -> dict[str, tuple[Any, str]]:
    """Return default and meaning of each key of a section's table."""
    keys: dict[str, tuple[Any, str]] = {}
    for key, default, meaning in rows_of(section(PAGE, f"### [{name}]")):
        text = default.strip("`")
        keys[key.strip("`")] = (None if text == "None" else tomllib.loads(f"value = {text}")["value"], meaning)
    return keys


def test_every_section_has_its_table() -> None:
    assert re.findall(r"^### \[(.*)\]$", PAGE, flags=re.MULTILINE) == list(SECTIONS)


@every_section
def test_a_table_has_the_keys_of_its_section_in_their_order(name: str) -> None:
    assert list(documented(name)) == list(SECTIONS[name].model_fields)


@every_section
def test_a_table_has_the_defaults_of_the_schema(name: str) -> None:
    defaults = {key: field.default for key, field in SECTIONS[name].model_fields.items()}
    told = {key: tuple(default) if isinstance(default, list) else default for key, (default, _) in documented(name).items()}
    assert told == defaults


@every_section
def test_a_table_says_what_the_schema_says(name: str) -> None:
    meanings = {key: field.description for key, field in SECTIONS[name].model_fields.items() if key not in NOT_DESCRIBED}
    assert {key: meaning for key, (_, meaning) in documented(name).items() if key not in NOT_DESCRIBED} == meanings


def test_the_table_of_rows_that_learn_from_pairs_is_their_schema() -> None:
    fields = {f"{name}.{key}": field for name, schema in PAIRS_SECTIONS.items() for key, field in schema.model_fields.items()}
    rows = rows_of(section(PAGE, "## Recipes of rows that learn from pairs"))
    assert [row[0].strip("`") for row in rows] == list(fields)
    for key, default, meaning in rows:
        field = fields[key.strip("`")]
        told = None if default == "needed" else tomllib.loads(f"value = {default.strip('`')}")["value"]
        assert (told, meaning) == (None if field.is_required() else field.default, field.description), key


def test_the_recipe_at_the_top_is_valid() -> None:
    [block] = re.findall(r"^```toml\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    assert make_recipe(tomllib.loads(block)).task.level == "medium"


def test_the_recipes_that_come_with_covey_are_the_listed_ones() -> None:
    listed = [row[0].strip("`") for row in rows_of(section(PAGE, "## Recipes that come with Covey"))]
    assert sorted(listed) == sorted(path.stem for path in (ROOT / "recipes").glob("*.toml"))
    for name in listed:
        file = find_recipe(name)
        assert load_pairs_recipe(file) if pair_row(file) else load_recipe(file)


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.group_size=1"],
        ["algorithm.name=passk", "train.group_size=4"],
        ["train.max_draws=2", "train.drop_flat_groups=false"],
        ["train.num_minibatches=9"],
        ["train.overlong_buffer=24"],
        ["algorithm.name=gspo", "algorithm.aggregation=token-mean"],
        ["algorithm.name=gmpo", "algorithm.aggregation=group-mean-token-mean"],
        ["algorithm.token_filter=kl_cov"],
        ["algorithm.kl_target=0.1"],
        ["algorithm.reference_every=5"],
        ["algorithm.correction_high=3"],
        ["algorithm.correction=mask_token", "algorithm.correction_low=6"],
        ["algorithm.filter_share=0.5"],
        ["algorithm.dual_clip=1"],
        ["algorithm.delta=1.1"],
        ["algorithm.name=cispo", "algorithm.delta=4"],
        ["reward.name=last_number", "reward.parts={asserted_number = 1.0}"],
        ["reward.parts={asserted_number = 1.0}", "reward.combine=product"],
        ["checkpoint.keep=1"],
        ["algorithm.token_filter=clip_cov", "algorithm.name=gspo"],
        ["train.num_iterations=2", "algorithm.name=opo"],
        ["train.num_minibatches=2", "algorithm.name=remax"],
        ["algorithm.kl_horizon=100"],
        ["algorithm.kl_budget=1", "algorithm.reference_every=5"],
        ["algorithm.reference_mix=0.5"],
        ["algorithm.reference_mix=1.0", "algorithm.reference_every=1", "algorithm.beta=0.1"],
        ["algorithm.kl_cov_coefficient=2.0"],
        ["algorithm.correction_low=0.5", "algorithm.correction=tis_sequence"],
        ["reward.combine=product", "algorithm.name=gdpo", "reward.parts={last_number = 1.0, asserted_number = 1.0}"],
        ["reward.parts={last_number = 1.0, asserted_number = 1.0}", "algorithm.name=passk"],
        ["reward.tie_break=0.2"],
        ["train.overlong_penalty=0.5"],
    ],
    ids=" ".join,
)
def test_keys_that_must_agree_are_refused_where_they_do_not(overrides: list[str]) -> None:
    rules = section(PAGE, "## Keys that must agree")
    assert any(override.partition("=")[0] in rules for override in overrides)
    with pytest.raises(ConfigError):
        load_recipe(None, overrides)


@pytest.mark.parametrize("name", ["reinforce", "reinforce_pp", "remax"])
def test_one_completion_a_prompt_is_enough_for_the_rows_that_the_page_names(name: str) -> None:
    assert load_recipe(None, [f"algorithm.name={name}", "train.group_size=1"]).train.group_size == 1
