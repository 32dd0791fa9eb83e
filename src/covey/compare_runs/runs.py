"""Carrying a plan out, piece by piece: each run is a process of its own, and what is finished is never done again."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from covey.compare_runs.base_arms import base_result
from covey.compare_runs.plan import BASE, RESULTS, Piece, Plan
from covey.compare_runs.results import Json, collect, last_gold, made_of, read_result, recipe_values, write_result
from covey.config import Recipe, load_recipe, make_recipe
from covey.interrupts import StopRequest, stop_on_signals
from covey.monitor.run_directory import JsonlLog, RunDirectory, read_rows, write_text_atomic
from covey.tuning import missing_settings
from covey.types import CoveyError

Say = Callable[[str], None]
POLL_S = 0.2


class StoppedError(Exception):
    """A signal has stopped the comparison; what is finished is on the disk."""


@dataclass(kw_only=True, slots=True)
class Workshop:
    """The directory of a comparison, and how its processes are started."""

    plan: Plan
    directory: Path
    say: Say
    stop: StopRequest
    keeps_models: bool = False

    def result_of(self, name: str) -> Path:
        return self.directory / RESULTS / f"{name}.json"

    def log(self, kind: str, name: str, **fields: Any) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        JsonlLog(self.directory / "log.jsonl").append({"at": at, "kind": kind, "piece": name, **fields})


def run_comparison(plan: Plan, directory: Path, *, say: Say, keeps_models: bool = False) -> list[Json]:
    """Do whatever of the plan is not done yet, and return all results.

    Raises:
        StoppedError: a signal came; the run that was going on is saved, and the same call goes on with it.
        CoveyError: a run failed; its message is that run's own.
    """
    with stop_on_signals() as stop:
        shop = Workshop(plan=plan, directory=directory, say=say, stop=stop, keeps_models=keeps_models)
        results = [measured_base(shop)]
        trials = [finished(shop, piece, number, len(plan.trials())) for number, piece in enumerate(plan.trials(), start=1)]
        rates = chosen_rates(plan, trials)
        for arm, rate in rates.items():
            if trials:
                say(f"{arm}: learning rate {rate:g}, the best of {len(plan.learning_rates)} by held-out gold")
        finals = plan.finals(rates)
        results += trials
        results += [finished(shop, piece, number, len(finals)) for number, piece in enumerate(finals, start=1)]
    return results


def chosen_rates(plan: Plan, trials: Sequence[Json]) -> dict[str, float]:
    """Return the learning rate of each arm: that of its best trial by gold on `choose`, the smaller one of equals."""
    if plan.keeps_one_rate:
        return {arm.name: plan.learning_rates[0] for arm in plan.trained}
    rates: dict[str, float] = {}
    for arm in plan.trained:
        reached = {trial["learning_rate"]: last_gold(trial) for trial in trials if trial["arm"] == arm.name}
        known = {rate: -math.inf if gold is None else gold for rate, gold in reached.items()}
        rates[arm.name] = max(sorted(known), key=known.__getitem__)
    return rates


def measured_base(shop: Workshop) -> Json:
    """Return the result of the untrained arms, measured now unless it has been."""
    recipe = make_recipe(shop.plan.recipe)
    path, made = shop.result_of(BASE), made_of(recipe, shop.plan)
    if (found := read_result(path, wanted=made)) is not None:
        return found
    shop.say(f"base: {shop.plan.best_of} samples of each test question")
    own = recipe.task.level
    wanted = [(own, "test", "greedy", 1), (own, "choose", "sampled", shop.plan.samples)]
    wanted += [(level, "test", "sampled", shop.plan.best_of) for level in (own, *shop.plan.harder)]
    started = time.monotonic()
    tables = measure(shop, recipe.model.name, recipe, wanted, name=BASE)
    keys = ["test/greedy", "choose/sampled", "test/sampled", *(f"{level}/sampled" for level in shop.plan.harder)]
    result = base_result(dict(zip(keys, tables, strict=True)), best_of=shop.plan.best_of)
    write_result(path, result | made | {"elapsed_s": round(time.monotonic() - started, 1)})
    return json.loads(path.read_text())


def finished(shop: Workshop, piece: Piece, number: int, count: int) -> Json:
    """Return the result of a run: read if it is there, else made, after going on with what there is of the run."""
    recipe = shop.plan.recipe_of(piece, shop.directory)
    path = shop.result_of(piece.name)
    made = made_of(recipe, shop.plan)
    found = read_result(path, wanted=made)
    run = RunDirectory(shop.directory / "runs" / piece.name)
    if found is not None:
        drop_weights(shop, run)  # They are still there if the process was killed when it had just written the result.
        return found
    if shop.stop.is_requested:
        raise StoppedError
    is_begun = run.recipe.is_file() and run.checkpoints.is_dir()
    shop.say(f"{'trial' if piece.is_trial else 'run'} {number} of {count}: {piece.name}{', going on' if is_begun else ''}")
    shop.log("resumed" if is_begun else "started", piece.name)
    if is_begun:
        if recipe_values(load_recipe(run.recipe)) != recipe_values(recipe):
            raise CoveyError(f"{run.path} was begun with another recipe; give the comparison another --name, or remove it")
        words = ["train", "--resume", str(run.path)]
    else:
        if run.path.exists():
            shutil.rmtree(run.path)  # It was stopped before its first checkpoint: nothing of it can be gone on with.
        recipes = shop.directory / "recipes"
        recipes.mkdir(exist_ok=True)
        write_text_atomic(recipes / f"{piece.name}.toml", recipe.to_toml())
        words = ["train", str(recipes / f"{piece.name}.toml")]
    started = time.monotonic()
    with keeping_peak(run):
        run_covey(shop, [*words, "--quiet"], name=piece.name)
    levels = () if piece.is_trial else shop.plan.harder
    wanted = [(level, "test", "sampled", shop.plan.samples) for level in levels]
    tables = measure(shop, str(run.path), recipe, wanted, name=piece.name) if wanted else []
    result = collect(piece, recipe, run, dict(zip(levels, tables, strict=True)))
    write_result(path, result | made)
    shop.log("finished", piece.name, seconds=round(time.monotonic() - started, 1))
    drop_weights(shop, run)
    shop.say(result_line(result))
    return json.loads(path.read_text())


def drop_weights(shop: Workshop, run: RunDirectory) -> None:
    """Delete the checkpoints of a run that is measured, unless models are kept."""
    if not shop.keeps_models and run.checkpoints.is_dir():
        shutil.rmtree(run.checkpoints)


@contextmanager
def keeping_peak(run: RunDirectory) -> Generator[None]:
    """Keep the peak of memory of the process that reached the highest one, where a run took several.

    `costs.json` is that of the last process, and one that only found the run finished has never trained.
    """
    before = json.loads(run.costs.read_text()) if run.costs.is_file() else None
    try:
        yield
    finally:
        now = json.loads(run.costs.read_text()) if run.costs.is_file() else None
        if before is not None and now is not None and before["peak_rss_bytes"] > now["peak_rss_bytes"]:
            kept = {key: before[key] for key in ("memory_bytes", "peak_rss_bytes")}
            write_text_atomic(run.costs, json.dumps(now | kept, indent=1) + "\n")


def result_line(result: Json) -> str:
    """Return what came of a run, in a line."""
    scores = result["scores"].get("test/sampled") or {}
    known = [value for value in scores.values() if value is not None]
    gold = sum(known) / len(known) if known else last_gold(result)
    on = "test" if known else "choose"
    shown = "unknown" if gold is None else f"{gold:.3f}"
    return (
        f"  gold {shown} on {on}, {result['tokens']['generated']} tokens, {result['elapsed_s']:.0f} s of training, "
        f"{result['peak_rss_bytes'] / 1e9:.1f} GB"
    )


def measure(
    shop: Workshop, model: str, recipe: Recipe, wanted: Sequence[tuple[str, str, str, int]], *, name: str
) -> list[list[Json]]:
    """Return the rows of each evaluation (level, part, mode, samples), made by a process of its own."""
    folder = shop.directory / "measured" / name
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{level}-{part}-{mode}.parquet" for level, part, mode, _ in wanted]
    asked = [
        {"level": level, "part": part, "mode": mode, "samples": samples, "file": str(file)}
        for (level, part, mode, samples), file in zip(wanted, files, strict=True)
    ]
    request = folder / "request.json"
    write_text_atomic(request, json.dumps({"model": model, "recipe": recipe.model_dump(mode="json"), "wanted": asked}))
    run_process(shop, [sys.executable, "-m", "covey.compare_runs.measure", str(request)], name=f"{name}-measure")
    return [read_rows(file) for file in files]


def run_covey(shop: Workshop, words: Sequence[str], *, name: str) -> None:
    """Run a command of Covey to its end."""
    run_process(shop, [sys.executable, "-m", "covey", *words], name=name)


def run_process(shop: Workshop, command: Sequence[str], *, name: str) -> None:
    """Run a process to its end; a signal to this one is passed on, and waited for.

    Raises:
        StoppedError: the signal came.
        CoveyError: the process failed, with the end of what it said.
    """
    output = shop.directory / "output" / f"{name}.log"
    output.parent.mkdir(exist_ok=True)
    environment: Mapping[str, str] = {**os.environ, **missing_settings(os.environ)}
    with output.open("ab") as log:
        # In a group of its own: a Ctrl-C reaches this process alone, which then asks the other one to stop, once.
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        is_told = False
        while process.poll() is None:
            if shop.stop.is_requested and not is_told:
                process.send_signal(signal.SIGTERM)
                is_told = True
            time.sleep(POLL_S)
    if is_told or shop.stop.is_requested:
        shop.log("interrupted", name)
        raise StoppedError
    if process.returncode != 0:
        last = output.read_text(errors="replace").strip()[-2000:]
        shop.log("failed", name, code=process.returncode)
        raise CoveyError(f"{name} ended with code {process.returncode}. The end of {output}:\n{last}")
