"""Training on preference pairs: from a recipe of such a row to a run directory with logs and a model.

These runs take minutes, hold no checkpoints and cannot be resumed. What is logged is on the disk at once; the model is written
at the end, whole or not at all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from covey.api import find_recipe, free_name
from covey.description import describe_process
from covey.interrupts import stop_on_signals
from covey.models.bundled import BUNDLED
from covey.models.reward_model import RewardModel, new_reward_model, save_reward_model
from covey.models.reward_model_fit import EncodedPair, fit_steps, held_out_accuracy, prepare_pairs
from covey.monitor.console import Console
from covey.monitor.environment import num_usable_cores
from covey.monitor.run_directory import RunDirectory, write_text_atomic
from covey.pairs_recipe import PairsRecipe, load_pairs_recipe, make_pairs_recipe, pair_row
from covey.rewards.preference_pairs import PreferencePair, read_preference_pairs
from covey.stats import Interval
from covey.types import CoveyError

__all__ = ["ACCURACY_KEYS", "STEP_KEYS", "model_of", "prepare_pairs_run", "train_on_pairs"]

STEP_KEYS = ("step", "loss/value", "optimizer/lr", "grad/norm")
"""Of `metrics.jsonl`, one line a step."""
ACCURACY_KEYS = ("step", "part", "num_pairs", "num_prompts", "accuracy_mean", "accuracy_low", "accuracy_high")
"""Of `eval.jsonl`: a line before training and one after it; none if nothing is held out."""

CHANCE = 0.5
NUM_LINES = 20
"""Steps that are shown, about, however many there are."""


def prepare_pairs_run(
    recipe: str | None, overrides: Sequence[str] = (), *, resume: Path | None = None
) -> tuple[RunDirectory, PairsRecipe] | None:
    """Return the directory of a new run and its resolved recipe; None if its row is not one that learns from pairs.

    Raises:
        CoveyError: the recipe is wrong, its directory is taken, or it is to be resumed.
    """
    file = find_recipe(recipe) if resume is None else RunDirectory(resume).recipe
    if (row := pair_row(file, overrides if resume is None else ())) is None:
        return None
    if resume is not None:
        raise CoveyError(
            f"{resume} is a run of {row!r}: such runs are short and keep no checkpoints to go on from. Start anew under "
            f"another name, covey train {resume}/recipe.toml --name NAME; {resume} stays as it is"
        )
    resolved = load_pairs_recipe(file, overrides)
    parent = Path(resolved.run.directory)
    name = free_name(parent, resolved.run.name, recipe)
    values = resolved.model_dump()
    values["run"]["name"] = name
    return RunDirectory(parent / name), make_pairs_recipe(values)


def train_on_pairs(recipe: PairsRecipe, run: RunDirectory, console: Console) -> str:
    """Train as the recipe says, and return what came of it in one sentence.

    Nothing is written before everything that a user can get wrong has been checked.

    Raises:
        CoveyError: the pairs or the model cannot be used, the directory is taken, or the run was stopped.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # Each of torchrun's processes says so; none waits for the others.
        raise CoveyError(f"algorithm.name={recipe.algorithm.name!r} trains in one process; start it without torchrun")
    try:
        console.note(f"run: {run.path}")
        console.note(f"model: {recipe.model.name}" + (f" ({note})" if (note := note_of(recipe)) else ""))
        console.note(f"algorithm: {recipe.spec.title} ({recipe.spec.paper})")
        for line in recipe.formula():
            console.note(f"  {line}")
        summary = LOOPS[recipe.spec.trains](recipe, run, console)
        console.finish([summary, f"model: {model_of(run)}"])
    finally:
        console.close()
    return summary


def train_reward_model(recipe: PairsRecipe, run: RunDirectory, console: Console) -> str:
    """Train a reward model on the recipe's pairs, log it, and return what came of it in one sentence."""
    torch.set_num_threads(recipe.run.num_threads or num_usable_cores())
    pairs = read_preference_pairs(recipe.pairs.path)
    reward_model = new_reward_model(
        recipe.model.name,
        revision=recipe.model.revision or None,
        compute_dtype=recipe.model.compute_dtype,
        progress=console.note,
    )
    train, held_out = prepare_pairs(reward_model, pairs, recipe.fit)
    run = RunDirectory.create(run.path)
    with run.lock():
        write_text_atomic(run.recipe, recipe.to_toml())
        counts = {"num_train_pairs": len(train), "num_held_out_pairs": len(held_out)}
        write_text_atomic(run.env, json.dumps(describe_pairs_run(recipe, reward_model, counts), indent=1) + "\n")
        console.note(f"pairs: {len(train)} to train on, {len(held_out)} held out")
        before = held_out_accuracy(reward_model, held_out)
        log_accuracy(run, 0, held_out, before)
        num_steps = run_steps(recipe, run, reward_model, train, console)
        after = held_out_accuracy(reward_model, held_out)
        log_accuracy(run, num_steps, held_out, after)
        write_model(reward_model, model_of(run))
    return summary_line(before, after, num_train=len(train), num_held_out=len(held_out))


def run_steps(
    recipe: PairsRecipe, run: RunDirectory, reward_model: RewardModel, pairs: Sequence[EncodedPair], console: Console
) -> int:
    """Train, log every step, and return how many there were.

    Raises:
        CoveyError: a signal has stopped it.
    """
    num_steps = 0
    with stop_on_signals() as stop:
        for done in fit_steps(reward_model, pairs, recipe.fit):
            num_steps = done.num_steps
            values = (done.step, done.loss, done.learning_rate, done.grad_norm)
            run.logs()["metrics"].append(dict(zip(STEP_KEYS, values, strict=True)))
            console.phase("training", done.step, num_steps)
            if done.step % max(1, num_steps // NUM_LINES) == 0 or done.step in (1, num_steps):
                console.note(f"step {done.step}/{num_steps}: loss {done.loss:.4f}, gradient {done.grad_norm:.3g}")
            if stop.signal_name is not None and done.step < num_steps:
                raise stopped(run, stop.signal_name, done.step, num_steps)
    return num_steps


LOOPS: Mapping[str, Callable[[PairsRecipe, RunDirectory, Console], str]] = {"reward model": train_reward_model}
"""By what a row trains: the loop that does it."""


def model_of(run: RunDirectory) -> Path:
    """Return where a finished run has its model, a directory that transformers loads."""
    return run.path / "model"


def stopped(run: RunDirectory, signal_name: str, step: int, num_steps: int) -> CoveyError:
    """Log that the run was stopped, and return the error that says so."""
    message = f"{signal_name}: stopped after step {step} of {num_steps}"
    at = datetime.now(UTC).isoformat(timespec="seconds")
    run.logs()["events"].append({"step": step, "at": at, "kind": "interrupted", "message": message})
    return CoveyError(
        f"{message}. No model was written, and the run cannot be resumed; {run.metrics} has the steps so far. Start anew under "
        "another name"
    )


def note_of(recipe: PairsRecipe) -> str:
    """Return what must be said of the weights that a bundled model starts from."""
    return BUNDLED[recipe.model.name].note if recipe.model.name in BUNDLED else ""


def describe_pairs_run(recipe: PairsRecipe, reward_model: RewardModel, counts: Mapping[str, int]) -> dict[str, Any]:
    """Return what goes into `env.json`."""
    file = Path(recipe.pairs.path).expanduser()
    return {
        **describe_process(recipe.run.name, reward_model.compute_dtype),
        "model": dataclasses.asdict(reward_model.identity) | {"note": note_of(recipe)},
        "pairs": {"path": recipe.pairs.path, "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), **counts},
        "algorithm": recipe.algorithm.name,
        "formula": "; ".join(recipe.formula()),
    }


def log_accuracy(run: RunDirectory, step: int, held_out: Sequence[PreferencePair], accuracy: Interval) -> None:
    """Append a held-out measurement to `eval.jsonl`, if anything is held out."""
    if held_out:
        num_prompts = len({pair.messages for pair in held_out})
        values = (step, "held_out", len(held_out), num_prompts, accuracy.mean, accuracy.low, accuracy.high)
        run.logs()["eval"].append(dict(zip(ACCURACY_KEYS, values, strict=True)))


def write_model(reward_model: RewardModel, directory: Path) -> None:
    """Write the model, for its owner alone as the rest of the run is; nobody sees a directory that is half full."""
    temporary = directory.with_name(f".{directory.name}.tmp-{os.getpid()}")
    shows_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # It would be the only thing that a quiet run says.
    try:
        save_reward_model(reward_model, temporary)
        temporary.chmod(0o700)
        for file in temporary.iterdir():
            file.chmod(0o600)
        temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if shows_bar:
            transformers_logging.enable_progress_bar()


def summary_line(before: Interval, after: Interval, *, num_train: int, num_held_out: int) -> str:
    """Return how often the model prefers what people preferred, on prompts that it was not trained on."""
    if num_held_out == 0:
        return f"trained on {num_train} pairs; none were held out, so nothing is known of the model's accuracy"
    line = (
        f"held-out accuracy {after.mean:.3f} [{after.low:.3f}, {after.high:.3f}], before {before.mean:.3f} "
        f"[{before.low:.3f}, {before.high:.3f}], on {num_held_out} pairs; trained on {num_train}"
    )
    if not after.excludes(CHANCE):
        return f"{line}. It is not distinguishable from chance, {CHANCE}"
    return line if after.mean > CHANCE else f"{line}. It is worse than chance, {CHANCE}: are chosen and rejected swapped?"
