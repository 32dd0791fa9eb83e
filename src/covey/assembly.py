"""From the numbers of a recipe to the specs and objects that take them: the only place that knows both."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from covey.algos.describe import formula_lines
from covey.algos.filters import TOKEN_FILTERS
from covey.algos.mismatch import CORRECTIONS
from covey.algos.objective import Coefficients, Objective
from covey.algos.registry import ALGORITHMS
from covey.batch import StatsSpec, group_stats, is_scored
from covey.config import Recipe
from covey.critic import Critic, CriticSpec, new_critic
from covey.distributed import ALONE, Ranks
from covey.evaluate import EvaluationSpec
from covey.learner import ControllerSpec, Learner, LearnerSpec, ScoringSpec
from covey.learner_specs import SpikeLimits
from covey.model_rewards import RECIPE_REWARDS
from covey.models.lora import AdapterSpec
from covey.models.policy import Policy
from covey.rewards.base import Reward, Rewarder
from covey.rewards.code import CodeReward, SandboxSpec
from covey.rewards.failures import COSTS_THE_GROUP, error_kind
from covey.rewards.length import with_overlong_penalty
from covey.rewards.registry import find_reward, find_rewards
from covey.rewards.sandbox.inside.limits import Limits
from covey.rewards.workers import RewardWorkers, WorkerSpec
from covey.rollout import RolloutSpec
from covey.sampling import Sampling
from covey.sections import RewardSection
from covey.tasks.base import Task
from covey.tasks.files import NO_VERIFIER
from covey.token_choice import TokenChoice
from covey.types import CoveyError, Group


def sampling_of(recipe: Recipe) -> Sampling:
    """Return the distribution that training completions are drawn from."""
    return Sampling(**recipe.sampling.model_dump())


def objective_of(recipe: Recipe) -> Objective:
    """Return the recipe's row of the algorithm table with the recipe's numbers."""
    algorithm = recipe.algorithm
    spec = ALGORITHMS[algorithm.name]
    return Objective(
        spec=spec,
        options={option: getattr(algorithm, option) for option in spec.options},
        aggregation=algorithm.aggregation,
        kl=algorithm.kl,
        kl_cov_coefficient=algorithm.kl_cov_coefficient,
    )


def adapter_spec(recipe: Recipe) -> AdapterSpec:
    """Return which adapters the model gets, in a recipe that has some."""
    lora = recipe.lora
    return AdapterSpec(rank=lora.rank, alpha=lora.alpha, targets=lora.targets, is_merged=lora.sampling == "merged")


def describe_objective(recipe: Recipe) -> list[str]:
    """Return the formula of the recipe's loss with the recipe's numbers in it, line by line."""
    algorithm = recipe.algorithm
    lines = formula_lines(objective_of(recipe), beta=algorithm.beta, max_new_tokens=recipe.sampling.max_new_tokens)
    if algorithm.correction != "none":
        bounds = f"low = {algorithm.correction_low}, high = {algorithm.correction_high}"
        lines.append(f"l_t times {CORRECTIONS[algorithm.correction].formula}; {bounds}; rho = pi_old / pi_engine")
    if algorithm.token_filter != "none":
        share = f"filter_share = {algorithm.filter_share}"
        lines.append(f"token filter: {TOKEN_FILTERS[algorithm.token_filter].formula}; {share}")
    if algorithm.entropy_coefficient or algorithm.entropy_target:
        lines.append(f"entropy bonus: - {algorithm.entropy_coefficient} times the mean entropy of a token")
    return lines


def stats_spec(recipe: Recipe, reward: Reward) -> StatsSpec:
    """Return what estimators need to know of the reward."""
    names, weights = getattr(reward, "part_names", ()), getattr(reward, "part_weights", ())
    return StatsSpec(
        reward_low=float(reward.low),
        reward_high=float(reward.high),
        part_weights=dict(zip(names, weights, strict=True)),
        masks_truncated=recipe.train.truncated == "mask",
    )


def rollout_spec(recipe: Recipe, reward: Reward, *, is_given: bool = False) -> RolloutSpec:
    """Return how the groups of a step are sampled, or that the task brings them along."""
    counts, has_signal = group_tests(recipe, reward)
    return RolloutSpec(
        sampling=sampling_of(recipe),
        prompts_per_step=recipe.train.prompts_per_step,
        group_size=recipe.train.group_size,
        max_draws=recipe.train.max_draws,
        keeps=has_signal if recipe.train.drop_flat_groups else counts,
        has_signal=has_signal,
        needs_baseline=ALGORITHMS[recipe.algorithm.name].needs_baseline,
        seed=recipe.run.seed,
        is_given=is_given,
    )


def group_tests(recipe: Recipe, reward: Reward) -> tuple[Callable[[Group], bool], Callable[[Group], bool]]:
    """Return two tests of a group: whether any of its rollouts counts, and whether it can move the weights.

    A group in which something failed that has nothing to do with its completions does neither.
    """
    objective, spec = objective_of(recipe), stats_spec(recipe, reward)

    def is_broken(group: Group) -> bool:
        return any(error_kind(rollout.reward) in COSTS_THE_GROUP for rollout in group.rollouts)

    def counts(group: Group) -> bool:
        return any(is_scored(rollout, spec) for rollout in group.rollouts) and not is_broken(group)

    def has_signal(group: Group) -> bool:
        return bool(objective.has_signal(group_stats([group], spec))) and not is_broken(group)

    return counts, has_signal


def evaluation_spec(recipe: Recipe) -> EvaluationSpec:
    """Return how held-out prompts are sampled."""
    return EvaluationSpec(
        sampling=sampling_of(recipe), samples_per_prompt=recipe.evaluation.samples_per_prompt, seed=recipe.run.seed
    )


def make_rewarder(recipe: Recipe, task: Task) -> Rewarder:
    """Return the reward and the gold verifier that the recipe names, the task's own where it names none."""
    section = recipe.reward
    proxy = task.proxy
    if section.name:
        proxy = find_reward(section.name, key="reward.name", options=section.options, rows=RECIPE_REWARDS)
    if section.parts:
        proxy = find_rewards(
            section.parts,
            section.combine,
            key="reward.parts",
            options=section.options,
            tie_break=section.tie_break,
            rows=RECIPE_REWARDS,
        )
    if proxy.name == NO_VERIFIER and not task.brings_completions:
        raise CoveyError(f"task.verifier={NO_VERIFIER!r} with no reward.name: nothing says what is optimised. Set one of them")
    gold = None if section.gold == "none" else named_gold(section) if section.gold else task.gold
    return Rewarder(proxy=proxy, gold=gold)


def named_gold(section: RewardSection) -> Reward:
    """Return the gold verifier that the recipe names.

    Raises:
        CoveyError: there is no such verifier, or its mean could not be read as an accuracy.
    """
    gold = find_reward(section.gold, key="reward.gold", options=section.gold_options, rows=RECIPE_REWARDS)
    if (gold.low, gold.high) != (0.0, 1.0):
        raise CoveyError(f"reward.gold={section.gold!r} has the range [{gold.low}, {gold.high}]; give a verifier from 0 to 1")
    if getattr(gold, "is_relative", False):
        raise CoveyError(
            f"reward.gold={section.gold!r} compares the completions of a group with each other, so that its mean is near 1/2 "
            "whatever they are worth; give it a fixed opponent with reward.gold_options.reference_column"
        )
    return gold


def worker_spec(recipe: Recipe) -> WorkerSpec:
    """Return how reward functions run in processes of their own."""
    reward = recipe.reward
    return WorkerSpec(
        num_workers=reward.num_workers,
        timeout_s=reward.timeout_s,
        batch_timeout_s=reward.batch_timeout_s,
        max_memory_mb=reward.max_memory_mb,
        sandbox=sandbox_spec(recipe),
    )


def sandbox_spec(recipe: Recipe) -> SandboxSpec:
    """Return where and within which limits candidates' code runs."""
    reward = recipe.reward
    limits = Limits(cpu_s=reward.sandbox_cpu_s, memory_mb=reward.sandbox_memory_mb)
    return SandboxSpec(
        tier=reward.sandbox, command=reward.sandbox_command, num_zygotes=max(1, reward.num_workers), limits=limits
    )


def with_sandbox(task: Task, recipe: Recipe) -> Task:
    """Return the task with its own rewards for code in the recipe's sandbox: its self-check runs code before anything else.

    Raises:
        NoSandboxError: none holds on this machine.
    """
    found = {
        side: replace(reward, sandbox=sandbox_spec(recipe))
        for side, reward in (("proxy", task.proxy), ("gold", task.gold))
        if isinstance(reward, CodeReward)
    }
    for reward in found.values():
        reward.prepare()
    return replace(task, **found) if found else task


def isolated(rewarder: Rewarder, recipe: Recipe, closing: ExitStack, *, log: Path | None = None) -> Rewarder:
    """Return the rewarder with its functions in worker processes until `closing` ends: a pool for the proxy and one for gold,
    which so cannot touch each other. What the functions print goes to `log`; None = nowhere.

    Raises:
        CoveyError: a function cannot be sent to another process, or not be loaded there.
    """
    pools = [closing.enter_context(RewardWorkers(worker_spec(recipe), log=log)) for _ in range(2)]
    proxy = pools[0].isolated(rewarder.proxy)
    gold = None if rewarder.gold is None else pools[1].isolated(rewarder.gold)
    for pool in pools:
        pool.start()
    return Rewarder(proxy=proxy, gold=gold)


def with_length_penalty(rewarder: Rewarder, recipe: Recipe) -> Rewarder:
    """Return the rewarder with the recipe's penalty for completions near the token limit, if it has one."""
    buffer = recipe.train.overlong_buffer
    if not buffer:
        return rewarder
    proxy = with_overlong_penalty(
        rewarder.proxy,
        max_tokens=recipe.sampling.max_new_tokens,
        buffer=buffer,
        factor=recipe.train.overlong_penalty,
    )
    return Rewarder(proxy=proxy, gold=rewarder.gold)


def make_learner(recipe: Recipe, policy: Policy, *, ranks: Ranks = ALONE, micro_batch_tokens: int | None = None) -> Learner:
    """Return the learner of the recipe's algorithm.

    `micro_batch_tokens`: what memory allows, if that is less than the recipe's bound.
    """
    algorithm, train = recipe.algorithm, recipe.train
    scoring = ScoringSpec(
        sampling=sampling_of(recipe),
        compute_dtype=policy.compute_dtype,
        max_tokens_per_micro_batch=micro_batch_tokens or train.max_tokens_per_micro_batch,
        max_shared_tokens=train.max_shared_tokens,
        checkpoints_layers=train.gradient_checkpointing,
    )
    return Learner(
        policy.model,
        objective_of(recipe),
        scoring,
        LearnerSpec(
            learning_rate=train.learning_rate,
            warmup_steps=train.warmup_steps,
            num_steps=train.num_steps,
            decay=train.decay,
            max_grad_norm=train.max_grad_norm,
            weight_decay=train.weight_decay,
            max_new_tokens=recipe.sampling.max_new_tokens,
            num_iterations=train.num_iterations,
            num_minibatches=train.num_minibatches,
            seed=recipe.run.seed,
            limits=SpikeLimits(**recipe.spikes.model_dump(exclude={"action"})),
        ),
        coefficients=Coefficients(beta=algorithm.beta, entropy=algorithm.entropy_coefficient),
        controllers=ControllerSpec(
            kl_target=algorithm.kl_target, kl_horizon=algorithm.kl_horizon, entropy_target=algorithm.entropy_target
        ),
        choice=TokenChoice(
            correction=algorithm.correction,
            correction_low=algorithm.correction_low or 0.0,
            correction_high=algorithm.correction_high or 0.0,
            token_filter=algorithm.token_filter,
            filter_share=algorithm.filter_share or 0.0,
        ),
        critic=make_critic(recipe, policy, scoring, ranks=ranks),
        ranks=ranks,
    )


def make_critic(recipe: Recipe, policy: Policy, scoring: ScoringSpec, *, ranks: Ranks) -> Critic | None:
    """Return the value model of the recipe's row; None if the row has none."""
    algorithm, train = recipe.algorithm, recipe.train
    if ALGORITHMS[algorithm.name].critic_credit is None:
        return None
    assert algorithm.critic is not None
    spec = CriticSpec(
        learning_rate=algorithm.critic_learning_rate or 0.0,
        warmup_steps=train.warmup_steps,
        max_grad_norm=train.max_grad_norm,
        value_epsilon=algorithm.value_epsilon or 0.0,
    )
    return new_critic(policy.model, algorithm.critic, spec, scoring, ranks=ranks)
