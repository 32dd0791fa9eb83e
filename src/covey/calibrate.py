"""Which task and level a model can learn from: how often it is right now, and how many groups would teach it something."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from covey.engines.base import Engine
from covey.metrics import mean_of
from covey.models.policy import Policy
from covey.rewards.base import Rewarder
from covey.rollout import sample_groups
from covey.sampling import Sampling, rollout_keys
from covey.stats import Interval, mean_interval
from covey.tasks.base import Task, training_prompts
from covey.types import Group, Prompt

GROUP_SIZES = (4, 8, 16, 32)

Estimator = Literal["U-statistic", "beta-binomial"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationSpec:
    """How much is sampled, and what counts as learnable."""

    sampling: Sampling
    """That of training: the pass rate of a colder model is another one."""
    num_prompts: int = 100
    """Training questions, the first of the stream of `seed`."""
    samples_per_prompt: int = 8
    seed: int = 0
    group_size: int = 8
    """Of training: its share of usable groups decides."""
    lowest_pass_rate: float = 0.1
    highest_pass_rate: float = 0.7
    min_usable_frac: float = 0.4
    max_majority_frac: float = 0.3


@dataclass(frozen=True, kw_only=True, slots=True)
class Usable:
    """The share of groups of one size that hold both a right and a wrong completion."""

    group_size: int
    frac: float
    estimator: Estimator


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What was found for one task and level."""

    task: str
    num_prompts: int
    samples_per_prompt: int
    pass_rate: Interval
    """Of the proxy, over prompts: the share of completions that earn all it pays."""
    gold_rate: float | None
    """None: the task has no gold verifier."""
    majority_frac: float
    """What always giving the commonest answer of the training questions would be right at."""
    truncated_frac: float
    error_frac: float
    length_mean: float
    usable: tuple[Usable, ...]
    reasons: tuple[str, ...]
    """Why it is not learnable; empty if it is."""

    @property
    def is_learnable(self) -> bool:
        return not self.reasons


def calibrate(task: Task, spec: CalibrationSpec, *, policy: Policy, engine: Engine) -> Calibration:
    """Sample the model on training questions of the task, and return what it could learn from them."""
    prompts = training_prompts(task.train, seed=spec.seed, start=0, count=min(spec.num_prompts, len(task.train)))
    keys = [
        rollout_keys(spec.seed, "calibrate", step=0, draw=0, prompt_id=prompt.prompt_id, group_size=spec.samples_per_prompt)
        for prompt in prompts
    ]
    rewarder = Rewarder(proxy=task.proxy, gold=task.gold)
    groups, _, _ = sample_groups(prompts, policy=policy, engine=engine, rewarder=rewarder, sampling=spec.sampling, keys=keys)
    return calibration_of(groups, task, spec)


def calibration_of(groups: Sequence[Group], task: Task, spec: CalibrationSpec) -> Calibration:
    """Return what the sampled groups say."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    counts = [
        (sum(value >= task.proxy.high for value in group.scored_rewards), len(group.scored_rewards))
        for group in groups
        if group.scored_rewards
    ]
    golds = [rollout.gold.value for rollout in rollouts if rollout.gold is not None and rollout.gold.value is not None]
    sizes = sorted({*GROUP_SIZES, spec.group_size})
    usable = tuple(usable_groups(counts, size) for size in sizes)
    found = Calibration(
        task=task.name,
        num_prompts=len(groups),
        samples_per_prompt=spec.samples_per_prompt,
        pass_rate=mean_interval([num_right / num_scored for num_right, num_scored in counts]),
        gold_rate=mean_of(golds).value if golds else None,
        majority_frac=majority_frac(task.train),
        truncated_frac=mean_of(float(rollout.completion.finish_reason == "length") for rollout in rollouts).value,
        error_frac=mean_of(float(rollout.reward.value is None) for rollout in rollouts).value,
        length_mean=mean_of(len(rollout.completion.token_ids) for rollout in rollouts).value,
        usable=usable,
        reasons=(),
    )
    return replace(found, reasons=tuple(reasons(found, spec)))


def majority_frac(prompts: Sequence[Prompt]) -> float:
    """Return the share of the commonest answer."""
    answers = Counter(str(prompt.answer) for prompt in prompts)
    return max(answers.values()) / answers.total()


def reasons(found: Calibration, spec: CalibrationSpec) -> list[str]:
    """Return why the task is not learnable for the model; nothing if it is."""
    rate = found.pass_rate.mean
    usable = next(each.frac for each in found.usable if each.group_size == spec.group_size)
    if math.isnan(rate):
        return ["the reward could score no completion"]
    checks = {
        f"too hard: {rate:.1%} pass, below {spec.lowest_pass_rate:.0%}": rate < spec.lowest_pass_rate,
        f"too easy: {rate:.1%} pass, above {spec.highest_pass_rate:.0%}": rate > spec.highest_pass_rate,
        f"{usable:.1%} of groups of {spec.group_size} would be usable, below {spec.min_usable_frac:.0%}": usable
        < spec.min_usable_frac,
        f"one answer is right for {found.majority_frac:.1%} of the questions, {spec.max_majority_frac:.0%} or more": (
            found.majority_frac >= spec.max_majority_frac
        ),
    }
    return [reason for reason, is_so in checks.items() if is_so]


def usable_groups(counts: Sequence[tuple[int, int]], group_size: int) -> Usable:
    """Return the expected share of groups with both a right and a wrong completion, 1 - E[p^G + (1 - p)^G] over prompts.

    `counts` holds (right, scored) of each prompt. With at least G scored everywhere it is the mean of the unbiased
    estimates of each prompt, and otherwise that of a beta distribution fitted to all prompts.
    """
    if not counts:
        return Usable(group_size=group_size, frac=math.nan, estimator="U-statistic")
    if min(num_scored for _, num_scored in counts) >= group_size:
        flat = [flat_chance(num_right, num_scored, group_size) for num_right, num_scored in counts]
        return Usable(group_size=group_size, frac=1.0 - math.fsum(flat) / len(flat), estimator="U-statistic")
    return Usable(group_size=group_size, frac=fitted_usable_frac(counts, group_size), estimator="beta-binomial")


def flat_chance(num_right: int, num_scored: int, group_size: int) -> float:
    """Return the unbiased estimate of p^G + (1 - p)^G: the chance that G drawn without replacement are all alike.

    [C(c, G) + C(n - c, G)] / C(n, G) with c right of n: the U-statistic of the event, unbiased for G <= n. The plain
    (c / n)^G + (1 - c / n)^G is too high, for the same completions are drawn again and again.
    """
    ways = math.comb(num_right, group_size) + math.comb(num_scored - num_right, group_size)
    return ways / math.comb(num_scored, group_size)


def fitted_usable_frac(counts: Sequence[tuple[int, int]], group_size: int) -> float:
    """Return 1 - E[p^G + (1 - p)^G] for p ~ Beta(a, b), with a and b fitted to the counts by maximum likelihood.

    E[p^G] = B(a + G, b) / B(a, b). Where every completion is right, or every one wrong, nothing can be fitted, and the
    share is 0.
    """
    if all(num_right == 0 for num_right, _ in counts) or all(num_right == num_scored for num_right, num_scored in counts):
        return 0.0
    from scipy.special import betaln

    a, b = beta_fit(counts)
    all_right, all_wrong = (math.exp(betaln(*ends) - betaln(a, b)) for ends in ((a + group_size, b), (a, b + group_size)))
    return 1.0 - all_right - all_wrong


def beta_fit(counts: Sequence[tuple[int, int]], *, largest_log: float = 9.0) -> tuple[float, float]:
    """Return (a, b) of the beta-binomial distribution under which the counts are likeliest.

    log L = sum of log C(n, c) + log B(a + c, b + n - c) - log B(a, b). Log a and log b are kept within +- `largest_log`:
    prompts that are all alike would drive them to infinity, where the distribution is binomial.
    """
    import numpy as np
    from scipy.optimize import minimize
    from scipy.special import betaln

    right, scored = np.array(counts, dtype=float).T
    mean = (right.sum() + 0.5) / (scored.sum() + 1.0)

    def cost(logs: Any) -> float:
        a, b = np.exp(logs)
        return -float(np.sum(betaln(a + right, b + scored - right) - betaln(a, b)))

    bounds = [(-largest_log, largest_log)] * 2
    # From a flat and from a steep start: near a pass rate of 0 or 1 the likelihood has a long ridge.
    starts = [np.log([mean * size, (1.0 - mean) * size]) for size in (1.0, 10.0)]
    best = min((minimize(cost, start, bounds=bounds, method="L-BFGS-B") for start in starts), key=lambda found: found.fun)
    a, b = np.exp(best.x)
    return float(a), float(b)


def calibration_row(found: Calibration) -> dict[str, Any]:
    """Return the calibration as plain data, for JSON."""
    row = asdict(found)
    row["pass_rate"] = {name: _finite(value) for name, value in row["pass_rate"].items()}
    row["usable"] = [{**each, "frac": _finite(each["frac"])} for each in row["usable"]]
    return row | {"is_learnable": found.is_learnable, "reasons": list(found.reasons)}


def calibration_lines(rows: Sequence[Calibration]) -> list[str]:
    """Return a table for people: a line for each task and level, what is wrong with it, and how the shares were estimated."""
    if not rows:
        return []
    sizes = [each.group_size for each in rows[0].usable]
    width = max(4, *(len(row.task) for row in rows))
    head = f"{'task':<{width}}   pass   [95 %]         gold  majority   cut  tokens   usable groups, G ="
    lines = [f"{head} {'  '.join(f'{size:>4}' for size in sizes)}   learnable"]
    for row in rows:
        rate = row.pass_rate
        gold = f"{row.gold_rate:5.1%}" if row.gold_rate is not None else "    -"
        usable = "  ".join(f"{each.frac:4.0%}" for each in row.usable)
        lines.append(
            f"{row.task:<{width}}  {rate.mean:5.1%}  [{rate.low:5.1%}, {rate.high:5.1%}]  {gold}    {row.majority_frac:5.1%}"
            f"  {row.truncated_frac:4.0%}  {row.length_mean:6.1f}   {'':18} {usable}   {'yes' if row.is_learnable else 'no'}"
        )
        lines += [f"{'':<{width}}  {reason}" for reason in row.reasons]
    fitted = [str(each.group_size) for each in rows[0].usable if each.estimator == "beta-binomial"]
    drawn = [str(each.group_size) for each in rows[0].usable if each.estimator == "U-statistic"]
    if drawn:
        lines.append(f"G = {', '.join(drawn)}: unbiased for each prompt, from {rows[0].samples_per_prompt} samples")
    if fitted:
        lines.append(f"G = {', '.join(fitted)}: from a beta distribution fitted to all prompts, for want of that many samples")
    return lines


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
