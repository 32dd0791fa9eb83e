"""A process that measures one model on held-out questions of some levels: `python -m covey.compare_runs.measure REQUEST.json`.

A process of its own, so that its memory is not an arm's, and so that a model that was trained is measured from what is on the
disk. The request names the model, the recipe and what is wanted; each answer is a Parquet file with a row for a completion.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from covey.api import open_run
from covey.assembly import isolated, make_rewarder, sampling_of
from covey.config import make_recipe
from covey.engines.registry import ENGINES
from covey.engines.within_memory import EngineWithinMemory
from covey.evaluate import EvaluationSpec, Mode, evaluate
from covey.model_argument import is_run
from covey.models.policy import load_policy
from covey.monitor.environment import num_usable_cores
from covey.monitor.run_directory import write_rows
from covey.tasks.base import Part
from covey.tasks.registry import find_task


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """One evaluation."""

    level: str
    part: Part
    mode: Mode
    samples: int
    file: str


def measure(model: str, values: dict[str, Any], wanted: list[Wanted]) -> None:
    """Write the rows of each evaluation."""
    recipe = make_recipe(values)
    torch.set_num_threads(recipe.run.num_threads or num_usable_cores())
    section = recipe.model
    policy = load_policy(
        str(open_run(model).model_path) if is_run(model) else model,
        revision=section.revision or None,
        trust_remote_code=section.trust_remote_code,
        compute_dtype=section.compute_dtype,
    )
    engine = EngineWithinMemory(ENGINES[recipe.engine.name](policy))
    with ExitStack() as closing:
        for each in wanted:
            task = find_task(recipe.task.name, level=each.level, options=recipe.task.options)
            rows = evaluate(
                task.held_out[each.part][: recipe.evaluation.num_prompts],
                EvaluationSpec(sampling=sampling_of(recipe), samples_per_prompt=each.samples, seed=recipe.run.seed),
                mode=each.mode,
                policy=policy,
                engine=engine,
                rewarder=isolated(make_rewarder(recipe, task), recipe, closing),
            )
            write_rows(Path(each.file), rows)


def main(request: Path) -> None:
    """Do what a request asks for."""
    found = json.loads(request.read_text())
    measure(found["model"], found["recipe"], [Wanted(**each) for each in found["wanted"]])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
