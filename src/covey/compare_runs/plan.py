"""What a comparison is going to do, all of it settled before the first run: arms, seeds, budget, rates, the question asked."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from covey.algos.registry import ALGORITHMS
from covey.assembly import make_rewarder
from covey.compare.power import resolution
from covey.config import Recipe, make_recipe, parse_override, with_changes
from covey.monitor.run_directory import write_text_atomic
from covey.sections import GuardSection
from covey.tasks.base import Task
from covey.tasks.registry import TASK_LEVELS, find_task
from covey.types import CoveyError

MIN_QUESTIONS = 2
BASE, BEST_OF_N, MAJORITY = "base", "best_of_n", "majority"
UNTRAINED = (BASE, BEST_OF_N, MAJORITY)
"""Arms of the model as it is: one answer, the one of several that the reward likes best, the most frequent one."""

PLAN, RESULTS = "compare.json", "results"
SETTLED = ("run", "model", "task", "evaluation", "guard", "checkpoint")
"""Sections that are the same for all arms: otherwise it would be no comparison of algorithms."""
SETTLED_KEYS = ("train.learning_rate", "train.num_steps", "train.max_generated_tokens", "reward.gold", "reward.audit")


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One algorithm with its options."""

    name: str
    overrides: tuple[str, ...]
    """Of the recipe; empty for an arm that is not trained."""
    seeds: tuple[int, ...]
    """Of training; empty for an arm that is not trained."""

    @property
    def is_trained(self) -> bool:
        return bool(self.seeds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """One run."""

    arm: Arm
    seed: int
    learning_rate: float
    budget_tokens: int
    is_trial: bool

    @property
    def name(self) -> str:
        return f"trial-{self.arm.name}-{self.learning_rate:g}" if self.is_trial else f"{self.arm.name}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A comparison before its first run."""

    recipe: Mapping[str, Any]
    """The values that all arms share."""
    arms: tuple[Arm, ...]
    """The first three are `base`, `best_of_n` and `majority`, as far as they were asked for."""
    budget_tokens: int
    """Generated for training by each run, dropped groups included."""
    learning_rates: tuple[float, ...]
    """Tried by every arm; one = nothing is tried."""
    trial_frac: float
    """A trial's share of the budget."""
    primary: tuple[str, str]
    """The contrast that was declared before: is the first better than the second?"""
    margin: float | None
    """The smallest difference that matters; None = nothing was declared."""
    best_of: int
    """Samples of a question for the untrained arms."""
    samples: int
    """Completions of a held-out question of a trained arm."""
    harder: tuple[str, ...]
    """Levels of the task that nothing is trained on."""

    @property
    def trained(self) -> tuple[Arm, ...]:
        return tuple(arm for arm in self.arms if arm.is_trained)

    @property
    def keeps_one_rate(self) -> bool:
        return len(self.learning_rates) == 1

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def trials(self) -> list[Piece]:
        """Return the runs that choose the learning rate of each arm: one seed, part of the budget, the same rates for all."""
        if self.keeps_one_rate:
            return []
        budget = round(self.trial_frac * self.budget_tokens)
        return [
            Piece(arm=arm, seed=arm.seeds[0], learning_rate=rate, budget_tokens=budget, is_trial=True)
            for arm in self.trained
            for rate in self.learning_rates
        ]

    def finals(self, rates: Mapping[str, float]) -> list[Piece]:
        """Return the runs that count, seed by seed, so that a comparison that is cut short has few seeds and not few arms."""
        seeds = max(len(arm.seeds) for arm in self.trained)
        return [
            Piece(
                arm=arm,
                seed=arm.seeds[index],
                learning_rate=rates[arm.name],
                budget_tokens=self.budget_tokens,
                is_trial=False,
            )
            for index in range(seeds)
            for arm in self.trained
            if index < len(arm.seeds)
        ]

    def recipe_of(self, piece: Piece, directory: Path) -> Recipe:
        """Return the recipe of a run: the shared one, the arm's overrides, and what the comparison settles for all.

        The guard is off, because whoever is stopped early has not had the budget; gold is what is compared anyway.
        """
        changes: list[tuple[str, str, Any]] = [parse_override(override) for override in piece.arm.overrides]
        train = with_changes(dict(self.recipe), changes).get("train", {})
        # Of a step at least one token a completion is generated, so that tokens end the run and not steps.
        per_step = int(train.get("prompts_per_step", 8)) * int(train.get("group_size", 8))
        changes += [
            ("train", "learning_rate", piece.learning_rate),
            ("train", "max_generated_tokens", piece.budget_tokens),
            ("train", "num_steps", piece.budget_tokens // per_step + 1),
            # A trial is the beginning of the run that counts. With a schedule of its own, too high a rate would look well.
            ("train", "decay_tokens", self.budget_tokens if train.get("decay") else 0),
            ("run", "seed", piece.seed),
            ("run", "name", piece.name),
            ("run", "directory", str(directory / "runs")),
            ("guard", "enabled", False),
            ("guard", "actions", {}),
            ("guard", "beta_factor", GuardSection().beta_factor),
            ("reward", "audit", False),
            ("checkpoint", "rollouts_every", 1),
            ("evaluation", "samples_per_prompt", self.samples),
            ("evaluation", "before", False),  # The base is measured once, for all.
        ]
        return make_recipe(with_changes(dict(self.recipe), changes))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


def make_plan(
    recipe: Recipe,
    *,
    arms: Sequence[str],
    custom: Sequence[str] = (),
    num_seeds: int = 3,
    seeds_of: Mapping[str, int] | None = None,
    primary: str | None = None,
    **settings: Any,
) -> Plan:
    """Return the plan. `custom` are arms of the form "name: section.key=value ..."; `primary` is "arm:reference".

    Raises:
        CoveyError: naming every arm that is unknown, and every arm whose recipe would be refused.
    """
    refuse_unknown([name for name in arms if name not in UNTRAINED])
    named: dict[str, tuple[str, ...]] = {name: (f"algorithm.name={name}",) for name in arms if name not in UNTRAINED}
    for name, overrides in map(parse_arm, custom):
        if name in named:
            raise CoveyError(f"two arms are called {name!r}; choose another name for the one of --arm")
        named[name] = overrides
    if not named:
        raise CoveyError("--arms names no algorithm to train; give at least one, such as grpo,raft")
    counts = {name: (seeds_of or {}).get(name, num_seeds) for name in named}
    if unknown := set(seeds_of or {}) - set(named):
        raise CoveyError(f"--seeds-of names {', '.join(sorted(unknown))}, and no such arm is trained")
    if min(counts.values()) < 1:
        raise CoveyError("every arm that is trained needs at least one seed")
    first = recipe.run.seed
    untrained = [Arm(name=name, overrides=(), seeds=()) for name in UNTRAINED if name == BASE or name in arms]
    trained = [
        Arm(name=name, overrides=overrides, seeds=tuple(range(first, first + counts[name])))
        for name, overrides in named.items()
    ]
    plan = Plan(
        recipe=recipe.model_dump(mode="json", exclude_none=True),
        arms=(*untrained, *trained),
        primary=primary_contrast(primary, [arm.name for arm in (*trained, *untrained)]),
        **settings,
    )
    check_plan(plan)
    return plan


def parse_arm(text: str) -> tuple[str, tuple[str, ...]]:
    """Return (name, overrides) of "name: section.key=value section.key=value".

    Raises:
        CoveyError: it is not of that form.
    """
    name, colon, rest = text.partition(":")
    overrides = tuple(rest.split())
    if not colon or not name.strip() or not overrides:
        raise CoveyError(f"--arm {text!r} is not of the form 'name: algorithm.name=grpo algorithm.beta=0.04'")
    if name.strip() in UNTRAINED or not name.strip().replace("_", "").replace("-", "").isalnum():
        raise CoveyError(f"--arm {text!r}: choose another name, of letters, digits, - and _")
    keys = [".".join(parse_override(override)[:2]) for override in overrides]
    if settled := [key for key in keys if key.partition(".")[0] in SETTLED or key in SETTLED_KEYS]:
        raise CoveyError(
            f"--arm {text!r}: {', '.join(settled)} must be the same for all arms; give it as an override of the recipe, and "
            "rates as --learning-rates"
        )
    return name.strip(), overrides


def refuse_unknown(names: Sequence[str]) -> None:
    """Raise if an arm is no row of the table."""
    known = [*UNTRAINED, *ALGORITHMS]
    lines = []
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            lines.append(f"no arm {name!r}; " + (f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"))
    if lines:
        raise CoveyError("\n".join(lines))


def primary_contrast(text: str | None, names: Sequence[str]) -> tuple[str, str]:
    """Return the contrast that is declared: as given, or the first trained arm against the second or, alone, the base.

    Raises:
        CoveyError: it is not of the form "arm:reference", or names an arm that is not there.
    """
    if text is None:
        return names[0], names[1]
    arm, colon, reference = text.partition(":")
    if not colon or arm == reference or not {arm, reference} <= set(names):
        raise CoveyError(f"--primary {text!r}: give two different arms as arm:reference, of {', '.join(names)}")
    return arm, reference


def check_plan(plan: Plan) -> None:
    """Raise for everything that would stop one of the runs later, all at once.

    Raises:
        CoveyError: one line for each problem.
    """
    problems = []
    if plan.budget_tokens < 1:
        problems.append(f"--budget tokens={plan.budget_tokens}: give a positive number of generated tokens")
    if not plan.learning_rates or min(plan.learning_rates) <= 0:
        problems.append("--learning-rates: give at least one rate above 0")
    if not 0 < plan.trial_frac <= 1:
        problems.append(f"--trial-budget-frac {plan.trial_frac}: give a share from above 0 to 1")
    if plan.margin is not None and plan.margin <= 0:
        problems.append(f"--margin {plan.margin}: give the smallest difference in gold that matters, above 0")
    for piece in plan.finals({arm.name: rate for arm in plan.trained for rate in plan.learning_rates[:1]}):
        if piece.seed == piece.arm.seeds[0]:
            try:
                plan.recipe_of(piece, Path())
            except CoveyError as error:
                problems.append(f"arm {piece.arm.name}: {error}")
    levels = TASK_LEVELS.get(str(plan.recipe["task"]["name"]), ())
    known = ", ".join(levels) or "none"
    problems += [f"--harder {level}: the task has the levels {known}" for level in plan.harder if level not in levels]
    if plan.recipe["task"]["level"] in plan.harder:
        problems.append(f"--harder {plan.recipe['task']['level']}: that is the level that is trained on")
    if not problems and num_questions(plan) < MIN_QUESTIONS:
        problems.append(
            f"{num_questions(plan)} test questions: intervals need at least {MIN_QUESTIONS}. Hold more questions out"
        )
    if not problems and make_rewarder(make_recipe(plan.recipe), task_of(plan)).gold is None:
        problems.append("arms are compared by gold, and this recipe has no gold verifier: name one in reward.gold")
    if problems:
        raise CoveyError("\n".join(problems))


def keep_plan(plan: Plan, directory: Path) -> None:
    """Write the plan of a new comparison; of one that goes on, make sure that it is the same.

    Results that lie there before the plan does, such as those of another machine, are taken if they fit it.

    Raises:
        CoveyError: the directory holds a comparison with another plan; the message names what differs.
    """
    file = directory / PLAN
    if file.is_file():
        saved, now = json.loads(file.read_text()), json.loads(plan.to_json())
        if differing := [key for key in now if saved.get(key) != now[key]]:
            raise CoveyError(
                f"{directory} holds a comparison with another plan ({', '.join(differing)} differ). Give the same command "
                "to go on, or another --name to begin anew"
            )
        return
    if directory.exists() and any(entry.name != RESULTS for entry in directory.iterdir()):
        raise CoveyError(f"{directory} is not empty and holds no comparison; give another --name")
    directory.mkdir(parents=True, exist_ok=True)
    write_text_atomic(file, plan.to_json())


def num_questions(plan: Plan) -> int:
    """Return how many test questions there are."""
    return min(len(task_of(plan).held_out.get("test", ())), plan.recipe["evaluation"]["num_prompts"])


def task_of(plan: Plan) -> Task:
    """Return the task that all arms are trained on."""
    section = make_recipe(plan.recipe).task
    return find_task(section.name, level=section.level, options=section.options)


def plan_lines(plan: Plan) -> list[str]:
    """Return what is going to be done, in words."""
    arms = ", ".join(f"{arm.name} ({len(arm.seeds)} seeds)" if arm.is_trained else arm.name for arm in plan.arms)
    num_trials, num_finals = len(plan.trials()), sum(len(arm.seeds) for arm in plan.trained)
    rates = ", ".join(f"{rate:g}" for rate in plan.learning_rates)
    tokens = num_finals * plan.budget_tokens + sum(piece.budget_tokens for piece in plan.trials())
    arm, reference = plan.primary
    seeds = min(len(plan.arm(name).seeds) or num_finals for name in plan.primary)
    return [
        f"arms: {arms}",
        f"budget: {plan.budget_tokens} generated tokens a run, dropped groups included; {num_finals} runs",
        f"learning rates: {rates}"
        + (f"; {num_trials} trials of {plan.trial_frac:.0%} of the budget, chosen by held-out gold" if num_trials else ""),
        f"tokens in all: {tokens}",
        f"the question, declared now: is {arm} better than {reference}?",
        resolution(num_seeds=seeds, num_prompts=num_questions(plan)).sentence,
        "guards and audits of the runs are off: gold is measured for every arm, and nobody is stopped before the budget",
    ]
