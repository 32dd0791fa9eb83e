"""What follows when updates are left out, back to a checkpoint and in the end a stop, and when memory runs out in sampling."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from covey.checkpoint import checkpoint_steps, load_checkpoint, newest_valid_checkpoint, verify_checkpoint
from covey.learner_specs import SKIPPED, SPIKED
from covey.metrics import Mean, Metric
from covey.persistence import restore_weights
from covey.saving import settle
from covey.self_checks import load_and_prove_weights
from covey.session import Session
from covey.types import CoveyError

MAX_SKIPPED = 3
"""Updates in a row that may be left out before the run goes back."""
MAX_RETURNS = 2
"""How often a run goes back before it is ended."""


def record_spikes(session: Session, exceeded: Sequence[str]) -> None:
    """Record what limits the updates of the present step have exceeded, if any."""
    if exceeded:
        step = session.state.progress.step + 1
        message = f"an update was a spike: {'; '.join(exceeded)}. It was left out, weights and optimizer are as before"
        session.recorder.event(step, "spiked", f"{message}; its completions are in {session.run.rollouts_of(step).name}")


def follow_skipped(session: Session, metrics: Mapping[str, Metric]) -> None:
    """Count the updates that were left out, and go back if there are too many, or if that is the recipe's rule for spikes.

    The prompts go on: those that led here are not asked again before the next epoch.

    Raises:
        CoveyError: going back has not helped, or there is nothing to go back to.
    """
    progress = session.state.progress
    if not is_left_out(metrics):
        progress.num_skipped = 0 if "grad/norm" in metrics else progress.num_skipped
        return
    progress.num_skipped += sum(int(metrics[key].value) for key in (SKIPPED, SPIKED) if key in metrics)
    if SKIPPED in metrics:
        message = "a gradient was not finite: its update was left out, weights and optimizer are as before"
        where = session.run.rollouts_of(progress.step)
        session.recorder.event(progress.step, "skipped", f"{message}; its completions are in {where.name}")
    has_diverged = progress.num_skipped >= MAX_SKIPPED
    is_rule = SPIKED in metrics and session.recipe.spikes.action == "go_back"
    if not (has_diverged or is_rule):
        return
    path = checkpoint_to_go_back_to(session)
    # Before the first checkpoint there is nothing to go back to, and leaving the spike out has to do.
    if has_diverged or path is not None:
        go_back(session, path)


def is_left_out(metrics: Mapping[str, Metric]) -> bool:
    """Return whether any update of the step was left out."""
    return SKIPPED in metrics or SPIKED in metrics


def checkpoint_to_go_back_to(session: Session) -> Path | None:
    """Return the newest valid checkpoint of those that are due every so many steps, any other if there is none of them.

    A stop makes one more, which a run that was left alone does not have: both go back to the same.
    """
    settle(session)
    every = session.recipe.checkpoint.every
    for step in checkpoint_steps(session.shared.checkpoints):
        path = session.shared.checkpoint_of(step)
        if every and step % every == 0 and not verify_checkpoint(path):
            return path
    return newest_valid_checkpoint(session.shared.checkpoints)[0]


def go_back(session: Session, path: Path | None) -> None:
    """Put weights and optimizer back to a checkpoint (None: there is none), and go on from there with the next prompts.

    Raises:
        CoveyError: the run has gone back as often as it may, or has no checkpoint.
    """
    progress = session.state.progress
    if progress.num_skipped >= MAX_SKIPPED:
        diverged = f"{progress.num_skipped} updates in a row were left out: training has diverged"
    else:
        diverged = "an update was a spike"
    if path is None or progress.num_returns >= MAX_RETURNS:
        why = "there is no checkpoint yet" if path is None else f"going back {progress.num_returns} times has not helped"
        or_limits = ", or with higher limits in [spikes]" if session.recipe.spikes.has_limits else ""
        raise CoveyError(f"{diverged}, and {why}. Start again with a lower train.learning_rate{or_limits}")
    checkpoint = load_checkpoint(path)
    restore_weights(checkpoint, session.state)
    progress.num_returns += 1
    progress.num_skipped = 0
    progress.policy_version += 1
    load_and_prove_weights(session.engine, session.state.policy, progress.policy_version, ranks=session.ranks)
    message = f"{diverged}; weights and optimizer are those of step {checkpoint.step} again"
    session.recorder.event(progress.step, "went_back", message)


@contextmanager
def short_memory_recorded(session: Session) -> Generator[None]:
    """Record it if memory runs out while completions are sampled inside."""
    progress = session.state.progress
    before = progress.num_sampling_halvings
    yield
    if progress.num_sampling_halvings > before:
        message = f"memory ran out while sampling: at most {progress.max_sampled_rows} completions at once from now on"
        session.recorder.event(progress.step, "warning", message)


def sampling_memory_metrics(session: Session) -> dict[str, Metric]:
    """Return how often memory has run out while completions were sampled, if it ever has."""
    num_halvings = session.state.progress.num_sampling_halvings
    return {"memory/sampling_halvings": Mean(num_halvings, 1)} if num_halvings else {}
