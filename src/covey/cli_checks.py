"""Commands that judge rewards and runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from covey.cli_common import AsJson, ModelArgument, Quiet, print_json, say, split_arguments
from covey.types import CoveyError

if TYPE_CHECKING:
    from covey.config import Recipe

EXIT_ALARM = 3
"""The guard would have ended the run, or a reward has failed its audit."""

OWN_LOG = "covey"


def guard(
    run: Annotated[Path, typer.Argument(help="A run directory, or the directory that another trainer logged completions to.")],
    trainer: Annotated[str, typer.Option(help="What wrote it: covey, trl or verl.")] = OWN_LOG,
    proxy: Annotated[str | None, typer.Option(help="Column of the optimised reward, in another trainer's log.")] = None,
    gold: Annotated[
        str | None, typer.Option(help="Column of a verifier that was not optimised, in another trainer's log.")
    ] = None,
    low: Annotated[float | None, typer.Option(help="Lowest value of the proxy; absent = the lowest that was logged.")] = None,
    high: Annotated[
        float | None, typer.Option(help="Highest value of the proxy; absent = the highest that was logged.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Replay the guard over a recorded run: what it finds, when, and what it would have done."""
    from covey.config import load_recipe
    from covey.guard.foreign import LOGS, read_log
    from covey.guard.replay import read_history
    from covey.guard.table import DETECTORS
    from covey.guard.watch import replay
    from covey.monitor.run_directory import RunDirectory

    if trainer not in (OWN_LOG, *LOGS):
        raise CoveyError(f"--trainer {trainer!r}: choose one of {', '.join((OWN_LOG, *LOGS))}")
    if (low is None) != (high is None):
        raise CoveyError("give both --low and --high, or neither")
    if trainer == OWN_LOG:
        if proxy or gold or low is not None:
            raise CoveyError("--proxy, --gold, --low and --high belong to another trainer's log; give --trainer, too")
        directory = RunDirectory.open(run)
        history, actions = read_history(directory), load_recipe(directory.recipe).guard.actions
    elif gold is None:
        raise CoveyError("say which column stands for gold, with --gold: without one the guard is blind")
    else:
        given = None if low is None or high is None else (low, high)
        history, actions = read_log(run, trainer=trainer, gold=gold, proxy=proxy, reward_range=given), {}
    judgements = replay(history, actions)
    ends = any(judgement.action in ("stop", "roll_back") for judgement in judgements)
    found = [
        {
            "step": judgement.finding.step,
            "detector": judgement.finding.detector,
            "level": judgement.finding.level,
            "action": judgement.action,
            "message": judgement.finding.message,
            "figures": dict(judgement.finding.figures),
        }
        for judgement in judgements
    ]
    if as_json:
        print_json({"num_steps": len(history.steps), "num_looks": len(history.looks), "findings": found})
    else:
        typer.echo(f"{len(history.steps)} steps and {len(history.looks)} evaluations, {len(DETECTORS)} detectors")
        for row in found:
            typer.echo(f"step {row['step']}: {row['detector']} ({row['level']}, {row['action']}): {row['message']}")
        if not found:
            typer.echo("nothing was found")
    if ends:
        raise typer.Exit(EXIT_ALARM)


def recipe_of_arguments(arguments: list[str]) -> Recipe:
    """Return the recipe that a command line names, with its overrides."""
    from covey.api import find_recipe, override_recipe
    from covey.config import load_recipe

    recipes, overrides = split_arguments(arguments)
    if len(recipes) > 1:
        raise CoveyError(f"{', '.join(recipes)}: one recipe at a time. Overrides look like train.num_steps=20")
    return override_recipe(load_recipe(find_recipe(recipes[0] if recipes else None)), overrides, None)


def control(
    arguments: Annotated[list[str] | None, typer.Argument(help="Recipe, then overrides: train.num_steps=20")] = None,
    arms: Annotated[str, typer.Option(help="Comma-separated: random, shuffled, format.")] = "random,shuffled,format",
    directory: Annotated[Path, typer.Option(help="Where the arms' run directories are made; finished ones are kept.")] = Path(
        "runs/control"
    ),
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe beside arms whose reward teaches nothing, and say how much of the gain is the reward's doing."""
    from covey.control import run_controls, verdict_json

    recipe = recipe_of_arguments(arguments or [])
    names = [name.strip() for name in arms.split(",") if name.strip()]
    verdict = run_controls(recipe, directory, arms=names, quiet=quiet or as_json)
    if as_json:
        print_json(verdict_json(verdict))
    else:
        typer.echo("\n".join(verdict.sentences))


def audit(
    arguments: Annotated[list[str] | None, typer.Argument(help="Recipe, then overrides: reward.name=exact")] = None,
    model: Annotated[str | None, typer.Option(help="Judge what this model writes as well; absent = load none.")] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Training questions to try it on.")] = 24,
    search_calls: Annotated[int, typer.Option(min=0, help="Calls of the reward that the search may make; 0 = none.")] = 2000,
    output: Annotated[Path, typer.Option(help="Where audit.html and audit.json are written.")] = Path("audit"),
    as_json: AsJson = False,
) -> None:
    """Attack a recipe's reward before anything is trained on it: who is paid for nothing, and who is refused."""
    from covey.assembly import isolated, make_rewarder, sampling_of
    from covey.audit import AuditSpec, model_samples
    from covey.audit import audit as audit_reward
    from covey.guard.findings import audit_lines, audit_row
    from covey.guard.search import SearchSpec
    from covey.model_argument import open_model
    from covey.report.audit_page import write_audit
    from covey.tasks.registry import find_task

    recipe = recipe_of_arguments(arguments or [])
    task, seed = find_task(recipe.task.name, level=recipe.task.level, options=recipe.task.options), recipe.run.seed
    own = []
    if model is not None:
        policy, engine = open_model(model, say=say)
        own = model_samples(task, policy=policy, engine=engine, sampling=sampling_of(recipe), seed=seed)
    search = SearchSpec(budget=search_calls, seed=seed) if search_calls else None
    with ExitStack() as closing:
        rewarder = isolated(make_rewarder(recipe, task), recipe, closing)
        result = audit_reward(task, rewarder, samples=own, spec=AuditSpec(num_prompts=prompts, search=search, seed=seed))
    page, data = write_audit(result, output)
    if as_json:
        print_json(audit_row(result))
    else:
        typer.echo("\n".join([*audit_lines(result), f"report: {page}", f"data: {data}"]))
    if result.verdict == "fail":
        raise typer.Exit(EXIT_ALARM)


def tasks(as_json: AsJson = False) -> None:
    """List the tasks that recipes can name, with an example of each level."""
    from covey.tasks.registry import task_lines, task_rows

    rows = task_rows()
    if as_json:
        print_json(rows)
    else:
        typer.echo("\n".join(task_lines(rows)))


def calibrate(
    model: ModelArgument,
    task: Annotated[list[str] | None, typer.Option(help="A row of the task table; may be given several times.")] = None,
    num_prompts: Annotated[int, typer.Option(min=1, help="Training questions of each task and level.")] = 100,
    samples: Annotated[int, typer.Option(min=1, help="Completions of each question.")] = 8,
    group_size: Annotated[int, typer.Option(min=2, help="Of training.")] = 8,
    temperature: Annotated[float, typer.Option(min=0.01)] = 1.0,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Token limit; of a run, its own.")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    as_json: AsJson = False,
) -> None:
    """Say which task and level a model can learn from now: its pass rate, and the share of groups that would teach it."""
    import dataclasses

    from covey.assembly import sampling_of
    from covey.calibrate import CalibrationSpec, calibration_lines, calibration_row
    from covey.calibrate import calibrate as calibrate_task
    from covey.model_argument import open_model, recipe_of
    from covey.tasks.registry import TASK_LEVELS, find_task

    names = task or list(TASK_LEVELS)
    if unknown := [name for name in names if name not in TASK_LEVELS]:
        raise CoveyError(f"--task {unknown[0]!r}: choose among {', '.join(TASK_LEVELS)}")
    policy, engine = open_model(model, say=say)
    own = sampling_of(recipe_of(model))
    limit = max_new_tokens or own.max_new_tokens
    spec = CalibrationSpec(
        sampling=dataclasses.replace(own, temperature=temperature, max_new_tokens=limit),
        num_prompts=num_prompts,
        samples_per_prompt=samples,
        group_size=group_size,
        seed=seed,
    )
    found = []
    for name in names:
        for level in TASK_LEVELS[name]:
            say(f"{name}, {level}")
            found.append(calibrate_task(find_task(name, level=level), spec, policy=policy, engine=engine))
    if as_json:
        print_json([calibration_row(row) for row in found])
    else:
        typer.echo("\n".join(calibration_lines(found)))


CHECKS: dict[str, Callable[..., Any]] = {
    "guard": guard,
    "control": control,
    "audit": audit,
    "tasks": tasks,
    "calibrate": calibrate,
}
"""By the name of the command."""
