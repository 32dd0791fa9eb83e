"""Covey from Python: train on one's own prompts with one's own reward function."""

from __future__ import annotations

import os
import resource
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covey.algos.registry import ALGORITHMS
from covey.assembly import describe_objective
from covey.checkpoint import newest_valid_checkpoint
from covey.config import ConfigError, Recipe, load_recipe, make_recipe, parse_override, with_changes
from covey.distributed import open_ranks
from covey.export import export_model
from covey.monitor.console import Console, open_console
from covey.monitor.disk import disk_failures_told
from covey.monitor.profile import Profile, ProfiledConsole, profile_lines, write_profile
from covey.monitor.run_directory import RunDirectory, free_run_name, read_jsonl, refuse_occupied
from covey.report import write_report
from covey.report.load import load_run
from covey.report.stats import verdict
from covey.rewards.base import Rewarder
from covey.session import open_session
from covey.tasks.base import Task
from covey.tasks.from_python import CUSTOM_TASK, PromptLike, RewardLike, task_of_prompts
from covey.train import train as run_loop
from covey.types import CoveyError


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run directory, finished or not."""

    path: Path

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One dictionary a step; the keys are those of docs/metrics.md."""
        return read_jsonl(RunDirectory.open(self.path).metrics)

    @property
    def evaluation(self) -> list[dict[str, Any]]:
        """One dictionary for each held-out evaluation; the keys are those of `eval.jsonl`."""
        return read_jsonl(RunDirectory.open(self.path).eval)

    @property
    def model_path(self) -> Path:
        """The newest checkpoint, a directory that transformers loads."""
        path, _ = newest_valid_checkpoint(RunDirectory.open(self.path).checkpoints)
        if path is None:
            raise CoveyError(f"{self.path} has no checkpoint yet")
        return path

    @property
    def report(self) -> Path:
        """The report; written now if it is not there."""
        report = RunDirectory.open(self.path).report
        return report if report.exists() else write_report(self.path)

    @property
    def summary(self) -> str:
        """How held-out accuracy changed, in one sentence."""
        return verdict(load_run(self.path)).headline

    def export(self, directory: Path | str) -> Path:
        """Write the trained model as a plain Hugging Face directory."""
        return export_model(self.path, Path(directory))


def open_run(path: Path | str) -> Run:
    """Return the run of a directory.

    Raises:
        CoveyError: it is none.
    """
    return Run(path=RunDirectory.open(Path(path)).path)


def train(
    recipe: Recipe | str | Path | None = None,
    *,
    model: str | None = None,
    prompts: Iterable[PromptLike] | None = None,
    held_out: Iterable[PromptLike] | None = None,
    reward: RewardLike | None = None,
    reward_weights: Sequence[float] | None = None,
    gold: RewardLike | None = None,
    reward_range: tuple[float, float] = (0.0, 1.0),
    resume: Path | str | None = None,
    quiet: bool = False,
    profile: bool = False,
    **overrides: Any,
) -> Run:
    """Train a model and return the run.

    `prompts` are questions of your own; `reward` scores completions (any of the parameters completion, answer, prompt,
    sample; see `covey.rewards.base.reward_from_function`) with numbers in `reward_range`, or None for "could not be
    scored". It may also be a reward function written for TRL, or a list of functions, summed with `reward_weights`.
    `gold` is a stricter verifier that is never optimised, with numbers from 0 to 1: its mean is an accuracy.
    Without `held_out`, a fifth of the prompts, chosen by a hash of the question, is kept from training and measured.
    `overrides` are recipe options: `num_steps=20` where the name is unique, `train__num_steps=20` always. `resume` goes
    on with an unfinished run; give the same prompts and rewards again. `profile`: write where the time goes, in detail,
    to `profile.json` and the report.

    Raises:
        CoveyError: an option, a prompt, a reward or the model cannot be used; the message says what to do.
    """
    task = (
        task_of_prompts(prompts, held_out, reward, gold, reward_range, reward_weights=reward_weights)
        if prompts is not None
        else None
    )
    if task is None and held_out is not None:
        raise ConfigError("held_out was given without prompts; give both, or neither to use the recipe's task")
    run, resolved = prepare_run(recipe, model=model, overrides=overrides, resume=resume, is_custom=task is not None)
    if task is not None and (resolved.reward.name or resolved.reward.parts or resolved.reward.gold):
        raise ConfigError("the recipe's [reward] is for built-in tasks; with prompts, give functions instead")
    rewarder = Rewarder(proxy=task.proxy, gold=task.gold) if task else None
    if task is None and (reward is not None or gold is not None or reward_weights is not None):
        raise ConfigError("reward and gold functions go with prompts; for a built-in task name them in the recipe's [reward]")
    run_session(resolved, run, task=task, rewarder=rewarder, quiet=quiet, is_profiled=profile)
    return Run(path=run.path)


def run_session(
    recipe: Recipe,
    run: RunDirectory,
    *,
    task: Task | None = None,
    rewarder: Rewarder | None = None,
    quiet: bool = False,
    is_profiled: bool = False,
) -> bool:
    """Train to the end or to an interruption, write the report and say how it went. Return whether the run is finished."""
    with open_ranks() as ranks:
        console: Console = open_console(quiet or not ranks.is_main)
        profile = Profile() if is_profiled else None
        if profile is not None:
            console = ProfiledConsole(console, profile)
        run = ranks.gather([run] if ranks.is_main else [])[0]  # The main rank's choice of a name holds for all.
        try:
            console.plan(plan_lines(recipe, run))
            with disk_failures_told(run.path):
                with open_session(recipe, run=run, console=console, task=task, rewarder=rewarder, ranks=ranks) as session:
                    is_finished = run_loop(session, profile)
                if ranks.is_main:
                    table = written_profile(run, profile) if profile is not None else []
                    console.finish([*table, *closing_lines(recipe, run, is_finished=is_finished)])
        finally:
            console.close()
    return is_finished


def written_profile(run: RunDirectory, profile: Profile) -> list[str]:
    """Write where the time went, and return it as lines."""
    unit = 1 if sys.platform == "darwin" else 1024
    summary = profile.summary(peak_rss_bytes=unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    write_profile(run, summary)
    return profile_lines(summary)


def closing_lines(recipe: Recipe, run: RunDirectory, *, is_finished: bool) -> list[str]:
    """Write the report, and return how the run went and where to go on."""
    report = write_report(run.path)
    if is_finished:
        return [verdict(load_run(run.path)).headline, f"report: {report}"]
    command = f"covey train --resume {shlex.quote(str(run.path))}"
    if recipe.task.name == CUSTOM_TASK:
        command = f"covey.train(resume={str(run.path)!r}, prompts=..., reward=...) with the same prompts and functions"
    return [f"stopped and saved. To go on: {command}", f"report so far: {report}"]


def plan_lines(recipe: Recipe, run: RunDirectory) -> list[str]:
    """Return what is going to be done, in words."""
    from covey.models.bundled import BUNDLED

    name = recipe.model.name
    note = f" ({BUNDLED[name].note})" if name in BUNDLED else ""
    task = recipe.task.name if recipe.task.name == CUSTOM_TASK else f"{recipe.task.name}, level {recipe.task.level}"
    spec = ALGORITHMS[recipe.algorithm.name]
    return [
        f"run: {run.path}",
        f"model: {name}{note}",
        f"task: {task}",
        f"algorithm: {spec.title} ({spec.paper})",
        *(f"  {line}" for line in describe_objective(recipe)),
        *(f"{key}: {value}" for key, value in recipe.derived().items()),
    ]


# What may differ between a run and its resumption, because it changes no number that was computed before.
RESUMABLE_KEYS = {
    "run.accept_reward_code",
    "run.num_threads",
    "run.watchdog_s",
    "run.sinks",
    "train.num_steps",
    "evaluation.every",
    "checkpoint.every",
    "checkpoint.keep",
    "checkpoint.rollouts_every",
    "checkpoint.in_background",
    "guard.enabled",
    "guard.actions",
    "guard.beta_factor",
}


def prepare_run(
    recipe: Recipe | str | Path | None,
    *,
    model: str | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    resume: Path | str | None = None,
    is_custom: bool = False,
) -> tuple[RunDirectory, Recipe]:
    """Return the run directory, to be made or to be resumed, and its resolved recipe.

    Raises:
        CoveyError: the recipe is wrong, or a resumed run would change what it has computed.
    """
    if resume is not None:
        if recipe is not None:
            raise ConfigError(
                f"recipe {str(recipe)!r} with resume: a run goes on with the recipe it was started with; leave it out"
            )
        run = RunDirectory.open(Path(resume))
        saved = load_recipe(run.recipe)
        resolved = override_recipe(saved, overrides, model)
        refuse_changes(saved, resolved)
        if (saved.task.name == CUSTOM_TASK) != is_custom:
            raise ConfigError(
                f"{run.path} was started from Python with its own prompts; resume it with covey.train(resume=..., prompts=..., "
                "reward=...)"
                if not is_custom
                else f"{run.path} was started with task {saved.task.name!r}; resume it without prompts"
            )
        return run, resolved
    base = recipe if isinstance(recipe, Recipe) else load_recipe(find_recipe(recipe))
    resolved = override_recipe(base, overrides, model)
    parent = Path(resolved.run.directory)
    name = free_name(parent, resolved.run.name, recipe)
    values = resolved.model_dump()
    values["run"]["name"] = name
    if is_custom:
        values["task"]["name"], values["task"]["level"] = CUSTOM_TASK, ""
    return RunDirectory(parent / name), make_recipe(values)


def free_name(parent: Path, name: str, recipe: Recipe | str | Path | None) -> str:
    """Return the name of a new run in `parent`: the given one, or the recipe's file name, numbered if it is taken.

    Raises:
        CoveyError: a name was given, and its directory is not empty.
    """
    name = name or free_run_name(parent, Path(recipe).stem if isinstance(recipe, str | Path) else "run")
    refuse_occupied(parent / name)
    return name


def find_recipe(name: str | Path | None) -> Path | None:
    """Return the recipe file: a path, or the name of one that comes with Covey; None for the defaults."""
    if name is None or Path(name).suffix == ".toml":
        return None if name is None else Path(name)
    here = Path(__file__).parent
    for folder in (here / "recipes", here.parent.parent / "recipes"):  # installed; in a source tree
        if os.path.isfile(folder / f"{name}.toml"):
            return folder / f"{name}.toml"
    raise ConfigError(f"recipe {str(name)!r} is neither a .toml file nor one that comes with Covey")


def override_recipe(recipe: Recipe, overrides: Mapping[str, Any] | Sequence[str], model: str | None) -> Recipe:
    """Return the recipe with overrides from Python (`num_steps=20`) or from the command line ("train.num_steps=20")."""
    if isinstance(overrides, Mapping):
        changes = [(*place_option(key), value) for key, value in overrides.items()]
    else:
        changes = [parse_override(override) for override in overrides]
    if model is not None:
        changes.append(("model", "name", model))
    return make_recipe(with_changes(recipe.model_dump(), changes))


def place_option(key: str) -> tuple[str, str]:
    """Return (section, option) of a keyword: "train__num_steps", or "num_steps" if only one section has it.

    Raises:
        ConfigError: no section has it, or several have.
    """
    section, separator, option = key.partition("__")
    if separator:
        return section, option
    owners = [name for name, options in Recipe().model_dump().items() if key in options]
    if len(owners) != 1:
        places = ", ".join(f"{owner}__{key}" for owner in owners)
        raise ConfigError(f"option {key!r}: " + (f"say which: {places}" if owners else "no section of the recipe has it"))
    return owners[0], key


def refuse_changes(saved: Recipe, wanted: Recipe) -> None:
    """Raise if the resumed run would differ in more than RESUMABLE_KEYS."""
    before, after = saved.model_dump(), wanted.model_dump()
    if saved.train.decay and saved.train.num_steps != wanted.train.num_steps:
        raise ConfigError(
            f"train.num_steps={wanted.train.num_steps}: with train.decay=true the learning rate has been falling towards its "
            f"end at step {saved.train.num_steps}; another end would make it jump. Start a new run, or leave num_steps as it is"
        )
    changes = [
        f"{section}.{option}={after[section][option]!r}: the run was started with {value!r}"
        for section, options in before.items()
        for option, value in options.items()
        if after[section][option] != value and f"{section}.{option}" not in RESUMABLE_KEYS
    ]
    if changes:
        raise ConfigError(
            f"{'; '.join(changes)}. A resumed run may change {', '.join(sorted(RESUMABLE_KEYS))} only; start a new run for "
            "anything else"
        )
