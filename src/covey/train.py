"""The loop. It knows no algorithm, task, model family or engine by name."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress

from covey.batch import make_tokens
from covey.budgets import count_tokens, end_if_budget_is_spent, rollouts_within_budget
from covey.costs import write_costs
from covey.credit import held_out_metrics
from covey.distance import RowDistance, row_distances
from covey.evaluate import evaluate
from covey.given import given_groups
from covey.interrupts import stop_on_signals, watchdog
from covey.metrics import Metric, Sum, metric_values
from covey.mishaps import (
    follow_skipped,
    is_left_out,
    record_spikes,
    sampling_memory_metrics,
    short_memory_recorded,
)
from covey.models.neutral_text import neutral_nll
from covey.models.reference import refresh_reference
from covey.monitor.profile import CLIPPING, OPTIMIZER, Profile
from covey.oversight import (
    audit_reward,
    is_best_so_far,
    is_due,
    judge,
    modes_of,
    oversee_step,
    parts_to_measure,
    questions_of,
    show_look,
)
from covey.rollout import SampledGroups, gold_problem, refuse_failing_reward, rollout_metrics, sample_step
from covey.saving import save_session, settle
from covey.self_checks import check_before_training, disagreement, load_and_prove_weights
from covey.session import Session
from covey.tasks.files import NO_VERIFIER
from covey.types import CoveyError


def train(session: Session, profile: Profile | None = None) -> bool:
    """Train from where the session stands to its last step. Return False if a signal stopped it before, at a saved step.

    `profile`: what collects the seconds in detail; None = nothing does.
    """
    recipe, progress, ranks = session.recipe, session.state.progress, session.ranks
    clock = Clock(progress.elapsed_s, profile)
    if progress.is_checked:
        left = 0 if progress.is_over else recipe.train.num_steps - progress.step
        done = "the run was ended early, events.jsonl says why," if progress.is_over else "all steps are done"
        message = f"going on after step {progress.step}, {left} to go" if left else f"{done} and nothing is left to train"
        session.recorder.event(progress.step, "resumed", message)
    with (
        stop_on_signals() as stop,
        errors_recorded(session),
        watchdog(session.run.stalled, recipe.run.watchdog_s) as watch,
    ):
        load_and_prove_weights(session.engine, session.state.policy, progress.policy_version, ranks=ranks)
        if not progress.is_checked:
            with short_memory_recorded(session):
                prepare(session, clock)
        if profile is not None:
            start_profile(profile, session)
        is_stopped = ranks.any(stop.is_requested)
        while not is_finished(session) and not is_stopped:
            with short_memory_recorded(session):
                train_step(session, clock)
            watch.move()
            session.background.check()
            is_stopped = ranks.any(stop.is_requested)
            is_asked = ranks.any(stop.take_save())
            if is_asked:
                session.recorder.event(progress.step, "saving", f"SIGUSR1: saving after step {progress.step}")
            is_saved = is_asked or is_due(progress.step, recipe.checkpoint.every) or is_best_so_far(session)
            if is_saved and not is_finished(session):
                with clock.phase("checkpoint_s"):
                    save_session(session)
            if profile is not None:
                profile.end_step(progress.step)
        if not is_finished(session):
            session.recorder.event(
                progress.step,
                "interrupted",
                f"{stop.signal_name or 'another process was stopped'}: stopped after step {progress.step}",
            )
        with clock.phase("checkpoint_s"):
            save_session(session)
            settle(session)
        if is_finished(session):
            session.rewarder.journal.clear()
        if ranks.is_main:
            write_costs(session)
        if profile is not None:
            profile.finish()
    return is_finished(session)


def start_profile(profile: Profile, session: Session) -> None:
    """Let the optimizer mark its steps, and forget what came before the first one of the run."""
    optimizer = session.state.learner.optimizer
    optimizer.register_step_pre_hook(lambda *_: profile.mark(CLIPPING))
    optimizer.register_step_post_hook(lambda *_: profile.mark(OPTIMIZER))
    profile.start()


def is_finished(session: Session) -> bool:
    """Return whether no step is left to do."""
    return session.state.progress.is_over or session.state.progress.step >= session.recipe.train.num_steps


def train_step(session: Session, clock: Clock) -> None:
    """Sample, score, update, measure, record: one step of the algorithm."""
    recipe, progress, prompts = session.recipe, session.state.progress, session.state.prompts
    step = progress.step + 1
    rollouts = rollouts_within_budget(session)
    sampled = sample_step(
        prompts.draw,
        rollouts,
        step=step,
        policy=session.state.policy,
        engine=session.sampler,
        rewarder=session.rewarder,
        ranks=session.ranks,
    )
    clock.add("rollout_s", sampled.rollout_s)
    clock.add("reward_s", sampled.reward_s)
    refuse_failing_reward(sampled, max_error_frac=recipe.reward.max_error_frac)
    if problem := gold_problem(sampled, max_error_frac=recipe.reward.max_error_frac):
        session.recorder.event(step, "warning", problem)
    show_pass_rates(session, sampled)
    metrics = rollout_metrics(
        sampled,
        reward_low=session.success[0],
        reward_high=session.success[1],
        part_weights=session.stats.part_weights,
        has_signal=rollouts.has_signal,
        is_given=rollouts.is_given,
    )
    distances: list[RowDistance | None] = []
    if sampled.used:
        update_metrics, distances = update_policy(session, clock, sampled)
        metrics |= update_metrics
    progress.step = step
    follow_skipped(session, metrics)
    reference, algorithm = session.state.reference, recipe.algorithm
    if reference is not None and is_due(step, algorithm.reference_every):
        refresh_reference(reference, session.state.policy.model, mix=algorithm.reference_mix)
    metrics |= prompts.curriculum_metrics() | {
        "optimizer/num_updates": Sum(session.state.learner.num_updates),
        "policy/version": Sum(progress.policy_version),
    }
    count_tokens(session, metrics, num_prompts=rollouts.prompts_per_step)
    end_if_budget_is_spent(session, metrics)
    metrics |= measure_step(session, clock)
    oversee_step(session, sampled, metrics)
    if is_finished(session):
        evaluate_parts(session, clock, ("test",))
    progress.elapsed_s = clock.elapsed_s
    num_tokens = metrics["tokens/generated"].value
    timing = clock.lap(num_tokens=num_tokens)
    if clock.profile is not None:
        trained = metrics.get("tokens/trained")
        clock.profile.count(num_sampled=num_tokens, num_trained=trained.value if trained else 0.0)
    metrics |= sampling_memory_metrics(session)
    save_rollouts = is_left_out(metrics) or is_due(step, recipe.checkpoint.rollouts_every)
    session.recorder.step(
        step, sampled=sampled, metrics=metrics, timing=timing, save_rollouts=save_rollouts, distances=distances
    )


def measure_step(session: Session, clock: Clock) -> dict[str, Metric]:
    """Evaluate the step that has just been made if it is due, and return what else is measured then."""
    step = session.state.progress.step
    found: dict[str, Metric] = {}
    is_evaluated = is_due(step, session.recipe.evaluation.every) or is_finished(session)
    if is_evaluated:
        found |= given_metrics(session)
        evaluate_parts(session, clock, parts_to_measure(session))
    if session.guard is not None and (is_evaluated or step == 1):
        with clock.phase("evaluate_s"):
            found["damage/nll"] = neutral_nll(session.state.policy)
    return found


def show_pass_rates(session: Session, sampled: SampledGroups) -> None:
    """Tell the curriculum how many completions of each prompt earned more than half of the reward's range."""
    middle = sum(session.success) / 2
    for group in sampled.all:
        rewards = group.scored_rewards
        session.state.prompts.observe(group.prompt.prompt_id, sum(reward > middle for reward in rewards), len(rewards))


def update_policy(session: Session, clock: Clock, sampled: SampledGroups) -> tuple[dict[str, Metric], list[RowDistance | None]]:
    """Turn groups into the step's updates and give the engine the new weights; nothing at all if no group has a gradient.

    Return the metrics, and each completion's distance from the reference if there is one.
    """
    learner, progress, policy = session.state.learner, session.state.progress, session.state.policy
    reference, step = session.state.reference, progress.step + 1
    is_on_policy = session.sampler is session.engine and not session.rollouts.is_given
    tokens = make_tokens(sampled.used, sampled.dropped, session.stats, is_on_policy=is_on_policy)
    halvings = learner.num_halvings
    with clock.phase("scoring_s"):
        batch = learner.make_batch(tokens, learner.make_scores(tokens, reference), step=step)
    with clock.phase("update_s"):
        show = session.recorder.console.phase
        update = learner.train_on(batch, step=step, progress=lambda done, total: show("update", done, total))
    if "mismatch/abs_mean" in update.metrics and (problem := disagreement(metric_values(update.metrics), policy.compute_dtype)):
        session.recorder.event(step, "warning", problem)
    if learner.num_halvings > halvings:
        tokens_left = learner.scoring.max_tokens_per_micro_batch
        session.recorder.event(step, "warning", f"memory ran out: micro-batches have at most {tokens_left} tokens from now on")
    record_spikes(session, update.exceeded)
    if update.num_updates:
        with clock.phase("load_weights_s"):
            progress.policy_version += 1
            load_and_prove_weights(session.engine, policy, progress.policy_version, ranks=session.ranks)
    ref_logprobs = batch.scores.ref_logprobs
    if ref_logprobs is None or update.logprobs is None or update.is_scored is None:
        return update.metrics, []
    return update.metrics, row_distances(tokens, update.logprobs, ref_logprobs, update.is_scored, policy.token_text)


def given_metrics(session: Session) -> dict[str, Metric]:
    """Return how well held-out given completions are learnt; nothing if completions are sampled."""
    prompts = session.task.held_out.get("choose", ())[: session.recipe.evaluation.num_prompts]
    if not session.rollouts.is_given or not prompts:
        return {}
    learner = session.state.learner
    tokens = make_tokens(given_groups(prompts, policy=session.state.policy), spec=session.stats, is_on_policy=False)
    batch = learner.make_batch(tokens, learner.make_scores(tokens, session.state.reference))
    found = held_out_metrics(learner.objective, batch)
    return {f"held_out/{name.removeprefix('pair/')}": metric for name, metric in found.items()}


def prepare(session: Session, clock: Clock) -> None:
    """Run the self-checks and measure the model before it is trained."""
    checked = check_before_training(
        session.task.train,
        session.rollouts.sampling,
        policy=session.state.policy,
        # Away from the policy's start, KL to it is not 0, and there is nothing to check.
        reference=session.state.reference if session.recipe.lora.starts_at_reference else None,
        engine=session.engine,
        learner=session.state.learner,
        ranks=session.ranks,
    )
    for line in checked:
        session.recorder.event(0, "self_check", line)
    audit_reward(session)
    clock.restart()  # The checks and the measurement before training are not training time.
    if session.recipe.evaluation.before:
        evaluate_parts(session, clock, (*parts_to_measure(session), "test"))
    judge(session)
    session.recorder.time(0, clock.lap(num_tokens=0) | {"elapsed_s": 0.0})
    clock.restart()
    session.state.progress.is_checked = True
    if is_best_so_far(session):
        save_session(session)


def evaluate_parts(session: Session, clock: Clock, parts: Sequence[str]) -> None:
    """Measure the present policy on held-out parts."""
    if session.rewarder.proxy.name == NO_VERIFIER:
        return  # Given completions without answers: nothing says whether a sampled one is right.
    with clock.phase("evaluate_s"):
        for part in parts:
            prompts = questions_of(session, part)
            for mode in modes_of(part) if prompts else ():
                rows = evaluate(
                    prompts,
                    session.evaluation,
                    mode=mode,
                    policy=session.state.policy,
                    engine=session.engine,
                    rewarder=session.rewarder,
                    ranks=session.ranks,
                )
                session.recorder.evaluation(session.state.progress.step, part=part, mode=mode, rows=rows)
                show_look(session, part=part, mode=mode, rows=rows)


@contextmanager
def errors_recorded(session: Session) -> Generator[None]:
    """Write an error that ends the run among its events, too."""
    try:
        yield
    except CoveyError as error:
        with suppress(OSError):  # A full disk takes no event, and its own error says more.
            session.recorder.event(session.state.progress.step, "error", str(error))
        raise


class Clock:
    """Seconds by phase since the last lap, and seconds in the loop altogether. Monotonic: wall-clock jumps do not show."""

    def __init__(self, elapsed_s: float, profile: Profile | None = None):
        self._before_s = elapsed_s
        self._started = time.monotonic()
        self._phases: dict[str, float] = {}
        self.profile = profile
        """Told of everything that is measured here."""

    @property
    def elapsed_s(self) -> float:
        return self._before_s + time.monotonic() - self._started

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        started = time.monotonic()
        if self.profile is not None:
            self.profile.begin()
        yield
        self.add(name, time.monotonic() - started)

    def add(self, name: str, seconds: float) -> None:
        self._phases[name] = self._phases.get(name, 0.0) + seconds
        if self.profile is not None:
            self.profile.add(name, seconds)

    def lap(self, *, num_tokens: float) -> dict[str, float]:
        """Return the fields of `timing.jsonl` and begin a new lap."""
        names = ("rollout_s", "reward_s", "scoring_s", "update_s", "load_weights_s", "evaluate_s", "checkpoint_s")
        phases = {name: self._phases.get(name, 0.0) for name in names}
        self._phases = {}
        rate = num_tokens / phases["rollout_s"] if phases["rollout_s"] else 0.0
        return {"elapsed_s": self.elapsed_s, **phases, "generated_tokens_per_s": rate}

    def restart(self) -> None:
        """Forget the time since the clock was made."""
        self._started = time.monotonic()
