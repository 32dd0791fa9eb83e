"""What the commands do for rows that learn from pairs."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from covey.cli_common import print_json
from covey.types import CoveyError

if TYPE_CHECKING:
    from covey.monitor.run_directory import RunDirectory
    from covey.pairs_recipe import PairsRecipe


def train_pairs(run: RunDirectory, recipe: PairsRecipe, *, quiet: bool, as_json: bool, profile: bool) -> None:
    """Train as the recipe says, and print the result."""
    from covey.monitor.console import open_console
    from covey.monitor.run_directory import read_jsonl
    from covey.pairs_train import model_of, train_on_pairs

    if profile:
        raise CoveyError(f"--profile: a run of {recipe.algorithm.name!r} has no phases to measure; leave it out")
    summary = train_on_pairs(recipe, run, open_console(quiet or as_json))
    if as_json:
        result = {"run": str(run.path), "summary": summary, "model": str(model_of(run))}
        print_json({**result, "evaluation": read_jsonl(run.eval)})


def print_row(name: str, recipe: Path | None, overrides: Sequence[str], *, as_json: bool) -> None:
    """Print what the row minimises, and its options with the numbers of a recipe or else the defaults."""
    from covey.algos.registry import PAIR_ALGORITHMS
    from covey.pairs_recipe import explain_row

    row = explain_row(name, recipe, overrides)
    if as_json:
        print_json(row)
        return
    spec, options = PAIR_ALGORITHMS[name], [f"{key} = {value}" for key, value in row["options"].items()]
    typer.echo("\n".join([f"{spec.title} ({spec.paper})", "", *(f"  {line}" for line in row["formula"]), "", *options]))


def refuse_pairs_run(run: Path, what: str) -> None:
    """Raise if the run has learnt from pairs. Without torch, which the report does not load."""
    if (run / "recipe.toml").is_file() and "pairs" in tomllib.loads((run / "recipe.toml").read_text()):
        raise CoveyError(
            f"{run} has learnt from pairs and has no {what}: its model is {run / 'model'}, and eval.jsonl says how good it is"
        )
