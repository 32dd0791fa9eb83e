"""The command that compares algorithms at an equal budget."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from covey.cli_common import EXIT_STOPPED, AsJson, Quiet, print_json, say, split_arguments
from covey.types import CoveyError

if TYPE_CHECKING:
    from covey.compare_runs.plan import Plan


def compare(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="Recipe (a .toml file or a name that comes with Covey), then overrides for all arms."),
    ] = None,
    arms: Annotated[str, typer.Option(help="Rows of the algorithm table, and best_of_n, majority; base is always there.")] = "",
    arm: Annotated[
        list[str] | None, typer.Option(help="An arm of your own: 'name: algorithm.name=grpo algorithm.beta=0.04'.")
    ] = None,
    budget: Annotated[str, typer.Option(help="What each run may generate: tokens=200000.")] = "tokens=200000",
    seeds: Annotated[int, typer.Option(min=1, help="Training seeds of each arm.")] = 3,
    seeds_of: Annotated[str, typer.Option(help="More or fewer for some arms: grpo=5,raft=5.")] = "",
    learning_rates: Annotated[
        str, typer.Option(help="Tried by every arm with one seed: 1e-5,3e-5,1e-4; absent = the recipe's, and no trials.")
    ] = "",
    trial_budget_frac: Annotated[float, typer.Option(help="A trial's share of the budget.")] = 0.333,
    primary: Annotated[
        str | None, typer.Option(help="The contrast that is declared before, arm:reference; absent = the first two arms.")
    ] = None,
    margin: Annotated[float | None, typer.Option(help="The smallest difference in gold that matters, such as 0.02.")] = None,
    best_of: Annotated[int, typer.Option(min=1, help="Samples of a question, for best_of_n and majority.")] = 8,
    samples: Annotated[int, typer.Option(min=1, help="Completions of each held-out question.")] = 4,
    harder: Annotated[str, typer.Option(help="Levels of the task that nothing is trained on, measured too: hard.")] = "",
    name: Annotated[str, typer.Option(help="Of the comparison's directory; absent = the recipe's.")] = "",
    directory: Annotated[Path, typer.Option(help="Where comparisons are made.")] = Path("comparisons"),
    keep_models: Annotated[bool, typer.Option("--keep-models", help="Keep the weights of every run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compare algorithms at an equal budget of generated tokens. Given again, the command goes on where it was stopped."""
    from covey.api import find_recipe
    from covey.compare_runs.plan import make_plan, plan_lines
    from covey.config import load_recipe

    given, overrides = one_recipe(arguments)
    recipe = load_recipe(find_recipe(given), overrides)
    plan = make_plan(
        recipe,
        arms=names_in(arms),
        custom=arm or (),
        num_seeds=seeds,
        seeds_of=dict(count_of(item) for item in names_in(seeds_of)),
        primary=primary,
        budget_tokens=tokens_in(budget),
        learning_rates=tuple(map(rate_of, names_in(learning_rates))) or (recipe.train.learning_rate,),
        trial_frac=trial_budget_frac,
        margin=margin,
        best_of=best_of,
        samples=samples,
        harder=tuple(names_in(harder)),
    )
    place = directory / (name or Path(given or "comparison").stem)
    tell = (lambda message: None) if quiet or as_json else say
    for line in [f"comparison: {place}", *plan_lines(plan)]:
        tell(line)
    if not dry_run:
        carry_out(plan, place, tell=tell, keep_models=keep_models, as_json=as_json)
    elif as_json:
        print_json({"comparison": str(place), "plan": json.loads(plan.to_json()), "lines": plan_lines(plan)})


def carry_out(plan: Plan, place: Path, *, tell: Callable[[str], None], keep_models: bool, as_json: bool) -> None:
    """Do what is left of the plan, write summary and report, and print the verdicts."""
    from covey.compare_runs.plan import keep_plan
    from covey.compare_runs.runs import StoppedError, run_comparison
    from covey.compare_runs.summary import summarise
    from covey.monitor.run_directory import write_text_atomic
    from covey.report.compare.page import write_comparison

    keep_plan(plan, place)
    try:
        results = run_comparison(plan, place, say=tell, keeps_models=keep_models)
    except StoppedError:
        say(f"stopped and saved: {place}. Give the same command again to go on")
        raise typer.Exit(EXIT_STOPPED) from None
    summary = summarise(plan, results)
    write_text_atomic(place / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    report = write_comparison(place)
    found = summary["verdicts"][summary["primary_key"]]
    if as_json:
        print_json({"comparison": str(place), "report": str(report), "verdicts": found, "claims": summary["claims"]})
    else:
        typer.echo("\n".join([*(verdict["sentence"] for verdict in found), *summary["claims"], f"report: {report}"]))


def one_recipe(arguments: list[str] | None) -> tuple[str | None, list[str]]:
    """Return the recipe, None for the defaults, and the overrides.

    Raises:
        CoveyError: there are several recipes.
    """
    recipes, overrides = split_arguments(arguments or [])
    if len(recipes) > 1:
        raise CoveyError(f"{', '.join(recipes)}: one recipe at a time. Overrides look like train.group_size=16")
    return (recipes[0] if recipes else None), overrides


def names_in(text: str) -> list[str]:
    """Return the items of a list with commas."""
    return [item.strip() for item in text.split(",") if item.strip()]


def tokens_in(text: str) -> int:
    """Return the number of "tokens=200000".

    Raises:
        CoveyError: it is not of that form.
    """
    key, _, number = text.partition("=")
    if key.strip() != "tokens" or not number.strip().replace("_", "").isdigit():
        raise CoveyError(f"--budget {text!r}: give generated tokens, as tokens=200000; time is compared from the same runs")
    return int(number)


def count_of(item: str) -> tuple[str, int]:
    """Return (arm, number) of "grpo=5".

    Raises:
        CoveyError: it is not of that form.
    """
    arm, _, number = item.partition("=")
    if not number.strip().isdigit():
        raise CoveyError(f"--seeds-of {item!r} is not of the form grpo=5")
    return arm.strip(), int(number)


def rate_of(text: str) -> float:
    """Return a learning rate.

    Raises:
        CoveyError: it is no number.
    """
    try:
        return float(text)
    except ValueError:
        raise CoveyError(f"--learning-rates {text!r} is no number") from None
