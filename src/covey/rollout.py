"""Sampling groups of completions, scoring them, and keeping those that can teach something."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from covey.distance import RowDistance
from covey.distributed import ALONE, Ranks
from covey.engines.base import Engine
from covey.given import given_groups
from covey.metrics import Max, Mean, Metric, Sum, mean_of
from covey.models.policy import Policy
from covey.rewards.base import Rewarder, Sample
from covey.rewards.failures import error_kind
from covey.sampling import Sampling, rollout_keys
from covey.types import Completion, CoveyError, Group, Prompt, Rollout, Score


def rewards_differ(group: Group) -> bool:
    """Return whether a group-relative algorithm learns from the group."""
    return not group.is_flat


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutSpec:
    """How the groups of a step are sampled."""

    sampling: Sampling
    prompts_per_step: int
    group_size: int
    max_draws: int
    """How often a step may sample: draws after the first replace groups that were dropped with fresh prompts."""
    keeps: Callable[[Group], bool]
    """Whether a group is trained on. One that is not leaves the loss's denominators and may be replaced."""
    seed: int
    has_signal: Callable[[Group], bool] = rewards_differ
    """Whether it can move the weights."""
    needs_baseline: bool = False
    """Whether each prompt is answered greedily, too."""
    is_given: bool = False
    """Whether prompts bring their completions along, so that nothing is sampled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledGroups:
    """One step's groups, with where their time went."""

    used: list[Group]
    dropped: list[Group]
    draws: list[int]
    """Draw number of each group: first those of `used`, then those of `dropped`."""
    rollout_s: float
    reward_s: float

    @property
    def all(self) -> list[Group]:
        return self.used + self.dropped


def sample_groups(
    prompts: Sequence[Prompt],
    *,
    policy: Policy,
    engine: Engine,
    rewarder: Rewarder,
    sampling: Sampling,
    keys: Sequence[Sequence[int]],
    needs_baseline: bool = False,
    ranks: Ranks = ALONE,
) -> tuple[list[Group], float, float]:
    """Return one group for each prompt, with the seconds spent on sampling and on scoring. `keys` holds G for each prompt.

    The ranks share the prompts, and each gets all groups.
    """
    own = ranks.share(list(zip(prompts, keys, strict=True)))
    started = time.monotonic()
    prompt_ids = [policy.encode(prompt.messages) for prompt, _ in own]
    completions: list[list[Completion]] = []
    greedy: list[list[Completion]] = [[] for _ in own]
    if own:
        own_keys = [group_keys for _, group_keys in own]
        completions = engine.generate(prompt_ids, sampling, group_size=len(keys[0]), keys=own_keys)
        if needs_baseline:
            first_keys = [group_keys[:1] for group_keys in own_keys]
            greedy = engine.generate(prompt_ids, replace(sampling, temperature=0.0), group_size=1, keys=first_keys)
    sampled = time.monotonic()
    groups = score_groups(
        [prompt for prompt, _ in own],
        prompt_ids,
        [[*group, *baseline] for group, baseline in zip(completions, greedy, strict=True)],
        policy=policy,
        rewarder=rewarder,
        group_size=len(keys[0]),
    )
    scored = time.monotonic()  # Before waiting for the others: that is neither sampling nor scoring.
    return ranks.gather(groups), sampled - started, scored - sampled


def score_groups(
    prompts: Sequence[Prompt],
    prompt_ids: Sequence[list[int]],
    completions: Sequence[Sequence[Completion]],
    *,
    policy: Policy,
    rewarder: Rewarder,
    group_size: int,
) -> list[Group]:
    """Return the groups, scored in one call. What a prompt has beyond `group_size` completions is its greedy baseline."""
    samples = [
        Sample(
            prompt=prompt,
            completion=policy.decode(completion.token_ids),
            num_tokens=len(completion.token_ids),
            is_truncated=completion.finish_reason == "length",
            token_ids=completion.token_ids,
        )
        for prompt, group in zip(prompts, completions, strict=True)
        for completion in group
    ]
    scored = iter(zip(samples, rewarder.score_all(samples), strict=True))
    groups: list[Group] = []
    for prompt, ids, group in zip(prompts, prompt_ids, completions, strict=True):
        rollouts: list[Rollout] = []
        for completion in group:
            sample, (proxy, gold) = next(scored)
            rollouts.append(Rollout(prompt_ids=ids, completion=completion, text=sample.completion, reward=proxy, gold=gold))
        baseline = rollouts[group_size] if len(rollouts) > group_size else None
        groups.append(Group(prompt=prompt, rollouts=tuple(rollouts[:group_size]), baseline=baseline))
    return groups


def sample_step(
    next_prompts: Callable[[int], Sequence[Prompt]],
    spec: RolloutSpec,
    *,
    step: int,
    policy: Policy,
    engine: Engine,
    rewarder: Rewarder,
    ranks: Ranks = ALONE,
) -> SampledGroups:
    """Return the groups of a training step, drawing again while groups that are kept are missing and draws are left."""
    used: list[tuple[int, Group]] = []
    dropped: list[tuple[int, Group]] = []
    rollout_s = reward_s = 0.0
    for draw in range(spec.max_draws):
        missing = spec.prompts_per_step - len(used)
        if missing == 0:
            break
        prompts = next_prompts(missing)
        if spec.is_given:
            used += [(draw, group) for group in given_groups(prompts, policy=policy)]
            break
        keys = draw_keys(prompts, spec, step=step, draw=draw)
        groups, draw_rollout_s, draw_reward_s = sample_groups(
            prompts,
            policy=policy,
            engine=engine,
            rewarder=rewarder,
            sampling=spec.sampling,
            keys=keys,
            needs_baseline=spec.needs_baseline,
            ranks=ranks,
        )
        rollout_s, reward_s = rollout_s + draw_rollout_s, reward_s + draw_reward_s
        for group in groups:
            (used if spec.keeps(group) else dropped).append((draw, group))
    return SampledGroups(
        used=[group for _, group in used],
        dropped=[group for _, group in dropped],
        draws=[draw for draw, _ in used + dropped],
        rollout_s=rollout_s,
        reward_s=reward_s,
    )


def draw_keys(prompts: Sequence[Prompt], spec: RolloutSpec, *, step: int, draw: int) -> list[list[int]]:
    """Return the stream keys of one draw. A prompt that comes again in it gets other numbers, not the same completions."""
    seen: Counter[str] = Counter()
    keys: list[list[int]] = []
    for prompt in prompts:
        again = seen[prompt.prompt_id]
        seen[prompt.prompt_id] += 1
        name = f"{prompt.prompt_id}\x1f{again}" if again else prompt.prompt_id
        keys.append(rollout_keys(spec.seed, "rollout", step=step, draw=draw, prompt_id=name, group_size=spec.group_size))
    return keys


def rollout_metrics(
    sampled: SampledGroups,
    *,
    reward_low: float,
    reward_high: float,
    has_signal: Callable[[Group], bool] = rewards_differ,
    part_weights: Mapping[str, float] | None = None,
    is_given: bool = False,
) -> dict[str, Metric]:
    """Return what the step's completions look like, dropped groups included."""
    rollouts = [rollout for group in sampled.all for rollout in group.rollouts]
    rewards = [rollout.reward.value for rollout in rollouts if rollout.reward.value is not None]
    golds = [rollout.gold.value for rollout in rollouts if rollout.gold and rollout.gold.value is not None]
    lengths = [len(rollout.completion.token_ids) for rollout in rollouts]
    scored = [group.scored_rewards for group in sampled.all]
    baselines = [len(group.baseline.completion.token_ids) for group in sampled.all if group.baseline]
    num_groups = len(sampled.all)
    metrics: dict[str, Metric] = {
        "reward/mean": mean_of(rewards),
        "reward/std": mean_of([_std(rewards)] if len(rewards) > 1 else []),
        "reward/error_frac": mean_of(float(rollout.reward.value is None) for rollout in rollouts),
        **failure_metrics("reward", [rollout.reward for rollout in rollouts]),
        **failure_metrics("gold", [rollout.gold for rollout in rollouts if rollout.gold]),
        "gold/mean": mean_of(golds),
        "gold/error_frac": mean_of(float(rollout.gold.value is None) for rollout in rollouts if rollout.gold),
        "group/usable_frac": Mean(sum(map(has_signal, sampled.all)), num_groups),
        "group/all_correct_frac": Mean(sum(bool(values) and min(values) >= reward_high for values in scored), num_groups),
        "group/all_wrong_frac": Mean(sum(bool(values) and max(values) <= reward_low for values in scored), num_groups),
        "group/num_sampled": Sum(num_groups),
        "group/num_used": Sum(len(sampled.used)),
        "completion/length_mean": mean_of(lengths),
        "completion/length_max": Max(max(lengths)),
        "completion/truncated_frac": mean_of(float(rollout.completion.finish_reason == "length") for rollout in rollouts),
        "tokens/generated": Sum(0 if is_given else sum(lengths) + sum(baselines)),
    }
    if baselines:
        greedy = [group.baseline.reward.value for group in sampled.all if group.baseline]
        metrics["reward/greedy_mean"] = mean_of(value for value in greedy if value is not None)
    for name in sorted({name for rollout in rollouts for name in rollout.reward.parts}):
        metrics[f"reward/part/{name}"] = mean_of(
            rollout.reward.parts[name] for rollout in rollouts if name in rollout.reward.parts
        )
    return metrics | part_spreads(sampled.all, part_weights or {})


def failure_metrics(prefix: str, scores: Sequence[Score]) -> dict[str, Metric]:
    """Return the share of completions that could not be scored for each reason that there was."""
    kinds = Counter(kind for score in scores if (kind := error_kind(score)) is not None)
    return {f"{prefix}/{kind}_frac": Mean(count, len(scores)) for kind, count in sorted(kinds.items())}


def part_spreads(groups: Sequence[Group], part_weights: Mapping[str, float]) -> dict[str, Metric]:
    """Return each part's share of the variance within groups: which part the advantages really come from.

    sum over groups and scored rollouts of (w_k (r_k - its group's mean))^2, over the same sum for all parts: those with a
    weight, or all there are if none has.
    """
    spreads: dict[str, float] = {}
    for group in groups:
        scored = [rollout.reward.parts for rollout in group.rollouts if rollout.reward.value is not None]
        for name in part_weights or {name for parts in scored for name in parts}:
            values = [part_weights.get(name, 1.0) * parts.get(name, 0.0) for parts in scored]
            mean = sum(values) / len(values)
            spreads[name] = spreads.get(name, 0.0) + sum((value - mean) ** 2 for value in values)
    total = sum(spreads.values())
    return {f"reward/variance_frac/{name}": Mean(spread, total) for name, spread in sorted(spreads.items())}


def refuse_failing_reward(sampled: SampledGroups, *, max_error_frac: float) -> None:
    """Raise with the first traceback if more completions than the declared share could not be scored.

    Raises:
        CoveyError: the reward fails too often for its scores to mean anything.
    """
    scores = [rollout.reward for group in sampled.all for rollout in group.rollouts]
    scores += [group.baseline.reward for group in sampled.all if group.baseline]
    errors = [score.error for score in scores if score.value is None]
    if len(errors) > max_error_frac * len(scores):
        raise CoveyError(
            f"the reward could not score {len(errors)} of {len(scores)} completions, more than reward.max_error_frac="
            f"{max_error_frac}. The first failure:\n{errors[0]}"
        )


def gold_problem(sampled: SampledGroups, *, max_error_frac: float) -> str | None:
    """Return in words that gold fails too often for its figures to be complete, None if it does not."""
    scores = [rollout.gold for group in sampled.all for rollout in group.rollouts if rollout.gold]
    errors = [score.error for score in scores if score.value is None]
    if len(errors) <= max_error_frac * len(scores):
        return None
    return (
        f"gold could not score {len(errors)} of {len(scores)} completions, and its figures leave them out. "
        f"The first failure:\n{errors[0]}"
    )


def rollout_rows(sampled: SampledGroups, distances: Sequence[RowDistance | None] = ()) -> list[dict[str, Any]]:
    """Return the rows of `rollouts/step-NNNNNN.parquet`. `distances` are those of the used groups' completions, in order."""
    rows: list[dict[str, Any]] = []
    for index, (draw, group) in enumerate(zip(sampled.draws, sampled.all, strict=True)):
        for sample, rollout in enumerate(group.rollouts):
            distance = distances[len(rows)] if len(rows) < len(distances) else None
            rows.append(
                {
                    "prompt_id": group.prompt.prompt_id,
                    "question": group.prompt.text,
                    "answer": str(group.prompt.answer),
                    "draw": draw,
                    "sample": sample,
                    "completion": rollout.text,
                    "num_tokens": len(rollout.completion.token_ids),
                    "finish_reason": rollout.completion.finish_reason,
                    "policy_version": rollout.completion.policy_version,
                    "reward": rollout.reward.value,
                    "parts": json.dumps(dict(rollout.reward.parts)),
                    "extracted": rollout.reward.extracted,
                    "gold": rollout.gold.value if rollout.gold else None,
                    "error": rollout.reward.error or (rollout.gold.error if rollout.gold else None),
                    "used": index < len(sampled.used),
                    "kl": distance.kl if distance else None,
                    "kl_max": distance.kl_max if distance else None,
                    "kl_max_token": distance.kl_max_token if distance else None,
                }
            )
    return rows


def _std(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
