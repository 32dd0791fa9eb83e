"""The loop. It knows no algorithm, task, model family or engine by name."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

from covey.batch import make_tokens
from covey.evaluate import MODES, evaluate
from covey.interrupts import stop_on_signals
from covey.metrics import Metric, Sum, metric_values
from covey.rollout import gold_problem, refuse_failing_reward, rollout_metrics, sample_step
from covey.self_checks import check_before_training, disagreement, load_and_prove_weights
from covey.session import Session, save_session
from covey.tasks.base import Part, training_prompts
from covey.tensors import Scores
from covey.types import CoveyError, Group, Prompt


def train(session: Session) -> bool:
    """Train from where the session stands to its last step. Return False if a signal stopped it before, at a saved step."""
    recipe, progress, clock = session.recipe, session.progress, Clock(session.progress.elapsed_s)
    if progress.is_checked:
        left = recipe.train.num_steps - progress.step
        message = (
            f"going on after step {progress.step}, {left} to go" if left else "all steps are done: nothing is left to train"
        )
        session.recorder.event(progress.step, "resumed", message)
    with stop_on_signals() as stop, errors_recorded(session):
        load_and_prove_weights(session.engine, session.policy, progress.policy_version)
        if not progress.is_checked:
            prepare(session, clock)
        while progress.step < recipe.train.num_steps and not stop.is_requested:
            train_step(session, clock)
            if is_due(progress.step, recipe.checkpoint.every) and progress.step < recipe.train.num_steps:
                with clock.phase("checkpoint_s"):
                    save_session(session)
        is_finished = progress.step == recipe.train.num_steps
        if not is_finished:
            session.recorder.event(progress.step, "interrupted", f"{stop.signal_name}: stopped after step {progress.step}")
        save_session(session)
    return is_finished


def train_step(session: Session, clock: Clock) -> None:
    """Sample, score, update, measure, record: one step of the algorithm."""
    recipe, progress, learner = session.recipe, session.progress, session.learner
    step = progress.step + 1

    def next_prompts(count: int) -> list[Prompt]:
        start = progress.num_prompts_drawn
        progress.num_prompts_drawn += count
        return training_prompts(session.task.train, seed=recipe.run.seed, start=start, count=count)

    sampled = sample_step(
        next_prompts, session.rollouts, step=step, policy=session.policy, engine=session.engine, rewarder=session.rewarder
    )
    clock.add("rollout_s", sampled.rollout_s)
    clock.add("reward_s", sampled.reward_s)
    refuse_failing_reward(sampled, max_error_frac=recipe.reward.max_error_frac)
    if problem := gold_problem(sampled, max_error_frac=recipe.reward.max_error_frac):
        session.recorder.event(step, "warning", problem)
    proxy = session.rewarder.proxy
    metrics = rollout_metrics(sampled, reward_low=proxy.low, reward_high=proxy.high)
    if sampled.used:
        metrics |= update_policy(session, clock, sampled.used)
    progress.step = step
    if is_due(step, recipe.evaluation.every) or step == recipe.train.num_steps:
        evaluate_parts(session, clock, ("choose", "test") if step == recipe.train.num_steps else ("choose",))
    metrics |= {
        "optimizer/num_updates": Sum(learner.num_updates),
        "policy/version": Sum(progress.policy_version),
    }
    progress.elapsed_s = clock.elapsed_s
    timing = clock.lap(num_tokens=metrics["tokens/generated"].value)
    save_rollouts = is_due(step, recipe.checkpoint.rollouts_every)
    session.recorder.step(step, sampled=sampled, metrics=metrics, timing=timing, save_rollouts=save_rollouts)


def update_policy(session: Session, clock: Clock, groups: list[Group]) -> dict[str, Metric]:
    """Turn groups into one optimizer step and give the engine the new weights; nothing at all if no group has a gradient."""
    learner, progress, console = session.learner, session.progress, session.recorder.console
    tokens = make_tokens(groups)
    with clock.phase("scoring_s"):
        reference = session.reference
        ref_logprobs = learner.score(reference, tokens) if reference is not None else None
    # One update a batch: the update's own first forward is the old policy, so nothing is scored twice.
    batch = learner.make_batch(tokens, Scores(old_logprobs=None, ref_logprobs=ref_logprobs))
    with clock.phase("update_s"):
        metrics = learner.update(batch, progress=lambda done, total: console.phase("update", done, total))
    if not metrics:
        return metrics
    if problem := disagreement(metric_values(metrics), session.policy.compute_dtype):
        session.recorder.event(progress.step + 1, "warning", problem)
    with clock.phase("load_weights_s"):
        progress.policy_version += 1
        load_and_prove_weights(session.engine, session.policy, progress.policy_version)
    return metrics


def prepare(session: Session, clock: Clock) -> None:
    """Run the self-checks and measure the model before it is trained."""
    checked = check_before_training(
        session.task.train,
        session.rollouts.sampling,
        policy=session.policy,
        reference=session.reference,
        engine=session.engine,
        learner=session.learner,
    )
    for line in checked:
        session.recorder.event(0, "self_check", line)
    clock.restart()  # The checks and the measurement before training are not training time.
    evaluate_parts(session, clock, ("choose", "test"))
    session.recorder.time(0, clock.lap(num_tokens=0) | {"elapsed_s": 0.0})
    clock.restart()
    session.progress.is_checked = True


def evaluate_parts(session: Session, clock: Clock, parts: tuple[Part, ...]) -> None:
    """Measure the present policy on held-out parts, greedily and at the training temperature."""
    with clock.phase("evaluate_s"):
        for part in parts:
            prompts = session.task.held_out.get(part, ())[: session.recipe.evaluation.num_prompts]
            for mode in MODES if prompts else ():
                rows = evaluate(
                    prompts,
                    session.evaluation,
                    mode=mode,
                    policy=session.policy,
                    engine=session.engine,
                    rewarder=session.rewarder,
                )
                session.recorder.evaluation(session.progress.step, part=part, mode=mode, rows=rows)


@contextmanager
def errors_recorded(session: Session) -> Generator[None]:
    """Write an error that ends the run among its events, too."""
    try:
        yield
    except CoveyError as error:
        session.recorder.event(session.progress.step, "error", str(error))
        raise


def is_due(step: int, every: int) -> bool:
    """Return whether something that happens each `every` steps happens after `step`; never for 0."""
    return every > 0 and step % every == 0


class Clock:
    """Seconds by phase since the last lap, and seconds in the loop altogether. Monotonic: wall-clock jumps do not show."""

    def __init__(self, elapsed_s: float):
        self._before_s = elapsed_s
        self._started = self._lap_started = time.monotonic()
        self._phases: dict[str, float] = {}

    @property
    def elapsed_s(self) -> float:
        return self._before_s + time.monotonic() - self._started

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        started = time.monotonic()
        yield
        self.add(name, time.monotonic() - started)

    def add(self, name: str, seconds: float) -> None:
        self._phases[name] = self._phases.get(name, 0.0) + seconds

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
