"""How much of a run's gain is the reward's doing: the recipe beside arms whose reward teaches nothing about the task.

Random rewards, the true rewards shuffled within groups, and rewards for any answer that can be read are trained on like the
true one. Where such an arm gains half as much or more, the true arm's gain is not attributable to its reward.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from covey.api import Run, run_session
from covey.assembly import make_rewarder
from covey.config import Recipe, make_recipe, with_changes
from covey.evaluate import prompt_means
from covey.monitor.run_directory import RunDirectory, read_rows, write_text_atomic
from covey.report.stats import comparison
from covey.rewards.base import Rewarder
from covey.rewards.control import CONTROLS, control_reward
from covey.stats import Interval, mean_interval
from covey.tasks.base import Task
from covey.tasks.registry import find_task
from covey.types import CoveyError

TRUE = "true"
"""The arm that trains on the recipe's own reward."""

ATTRIBUTABLE_SHARE = 0.5
"""A control that gains this share of the true arm's gain, or more, explains it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One finished run of the comparison."""

    name: str
    path: str
    before: float
    after: float
    gain: Interval
    """Of gold over the same held-out questions, with its 95 % interval."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the arms say together."""

    arms: Sequence[Arm]
    explained: Mapping[str, float]
    """By control: its gain over the true arm's. Empty where the true arm has no gain to explain."""
    sentences: Sequence[str]


def run_controls(recipe: Recipe, directory: Path, *, arms: Sequence[str], quiet: bool = False) -> Verdict:
    """Train the recipe and its control arms under `directory`, those that are finished left as they are, and compare them.

    Raises:
        CoveyError: the task has no gold verifier, an arm has no such name, or a run was made from another recipe.
    """
    if unknown := set(arms) - set(CONTROLS):
        raise CoveyError(f"no such control: {', '.join(sorted(unknown))}; choose among {', '.join(CONTROLS)}")
    task = find_task(recipe.task.name, level=recipe.task.level, options=recipe.task.options)
    rewarder = make_rewarder(recipe, task)
    if rewarder.gold is None:
        raise CoveyError("control arms are compared by gold, and this recipe has no gold verifier: name one in reward.gold")
    # Its alarms are what a control arm is about; and one that stops an arm early would spoil the comparison.
    quiet_guard = with_changes(
        recipe.model_dump(), [("guard", "enabled", False), ("guard", "actions", {}), ("reward", "audit", False)]
    )
    recipe = make_recipe(quiet_guard)
    finished = [train_arm(recipe, name, directory, task=task, rewarder=rewarder, quiet=quiet) for name in (TRUE, *arms)]
    verdict = compare_arms(finished)
    write_text_atomic(directory / "control.json", json.dumps(verdict_json(verdict), indent=1) + "\n")
    return verdict


def train_arm(recipe: Recipe, name: str, directory: Path, *, task: Task, rewarder: Rewarder, quiet: bool) -> Arm:
    """Return a finished arm; one that was begun goes on, one that is done is read."""
    run = RunDirectory(directory / name)
    values = with_changes(recipe.model_dump(), [("run", "name", name), ("run", "directory", str(directory))])
    own = make_recipe(values)
    if run.recipe.is_file() and run.recipe.read_text(encoding="utf-8") != own.to_toml():
        raise CoveyError(f"{run.path} was made from another recipe; name another directory, or remove it")
    proxy = rewarder.proxy if name == TRUE else control_reward(name, rewarder.proxy, seed=recipe.run.seed)
    is_finished = run_session(own, run, task=task, rewarder=Rewarder(proxy=proxy, gold=rewarder.gold), quiet=quiet)
    if not is_finished:
        raise CoveyError(f"{run.path} was stopped and saved; give the same command again to go on")
    return read_arm(run, name)


def read_arm(run: RunDirectory, name: str) -> Arm:
    """Return what a finished run says of itself.

    Raises:
        CoveyError: no held-out questions were measured before and after.
    """
    pair = comparison(Run(path=run.path).evaluation)
    if pair is None:
        raise CoveyError(f"{run.path} has no evaluation before and after training; hold some questions out")
    means = [
        prompt_means(read_rows(run.evals_of(row["step"], part=row["part"], mode=row["mode"])), "gold")
        for row in (pair.before, pair.after)
    ]
    gains = [means[1][prompt_id] - means[0][prompt_id] for prompt_id in means[1] if prompt_id in means[0]]
    return Arm(
        name=name,
        path=str(run.path),
        before=pair.before["gold_mean"],
        after=pair.after["gold_mean"],
        gain=mean_interval(gains),
    )


def compare_arms(arms: Sequence[Arm]) -> Verdict:
    """Return which share of the true arm's gain each control makes, and what that means."""
    true, controls = arms[0], arms[1:]
    sentences = [
        f"{arm.name}: gold {arm.before:.3f} -> {arm.after:.3f}, "
        f"{arm.gain.mean:+.3f} [{arm.gain.low:+.3f}, {arm.gain.high:+.3f}]"
        for arm in arms
    ]
    if not true.gain.low > 0:
        sentences.append("The true reward's own gain is not above 0 beyond doubt: there is nothing to attribute.")
        return Verdict(arms=arms, explained={}, sentences=sentences)
    explained = {arm.name: arm.gain.mean / true.gain.mean for arm in controls}
    rivals = [name for name, share in explained.items() if share >= ATTRIBUTABLE_SHARE]
    if rivals:
        shares = ", ".join(f"{name} {explained[name]:.0%}" for name in rivals)
        sentences.append(f"The gain is not attributable to the reward: of it, {shares} came without the reward's doing.")
    else:
        most = max(explained, key=explained.__getitem__)
        sentences.append(
            f"The gain is attributable to the reward: the best control, {most}, makes {explained[most]:.0%} of it."
        )
    sentences.append("One seed each: a difference between arms of less than their intervals is no difference.")
    return Verdict(arms=arms, explained=explained, sentences=sentences)


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """Return the verdict as JSON can hold it."""
    return {
        "arms": [asdict(arm) for arm in verdict.arms],
        "explained": dict(verdict.explained),
        "sentences": list(verdict.sentences),
    }
