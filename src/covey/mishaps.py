"""What follows when updates have to be left out, again and again: back to the last checkpoint, and in the end a stop."""

from __future__ import annotations

from collections.abc import Mapping

from covey.checkpoint import load_checkpoint, newest_valid_checkpoint
from covey.metrics import Metric
from covey.persistence import restore_weights
from covey.self_checks import load_and_prove_weights
from covey.session import Session
from covey.types import CoveyError

SKIPPED = "update/skipped"
MAX_SKIPPED = 3
"""Updates in a row that may be left out before the run goes back."""
MAX_RETURNS = 2
"""How often a run goes back before it is ended."""


def follow_skipped(session: Session, metrics: Mapping[str, Metric]) -> None:
    """Count the updates that were left out because their gradient was not finite, and go back if there are too many.

    The prompts go on: those that led here are not asked again before the next epoch.

    Raises:
        CoveyError: going back has not helped, or there is nothing to go back to.
    """
    progress = session.state.progress
    if SKIPPED not in metrics:
        progress.num_skipped = 0 if "grad/norm" in metrics else progress.num_skipped
        return
    progress.num_skipped += int(metrics[SKIPPED].value)
    message = "a gradient was not finite: its update was left out, weights and optimizer are as before"
    where = session.run.rollouts_of(progress.step)
    session.recorder.event(progress.step, "skipped", f"{message}; its completions are in {where.name}")
    if progress.num_skipped >= MAX_SKIPPED:
        go_back(session)


def go_back(session: Session) -> None:
    """Put weights and optimizer back to the newest checkpoint, and go on from there with the next prompts.

    Raises:
        CoveyError: the run has gone back as often as it may, or has no checkpoint.
    """
    progress = session.state.progress
    diverged = f"{progress.num_skipped} updates in a row had a gradient that is not finite: training has diverged"
    path, _ = newest_valid_checkpoint(session.shared.checkpoints)
    if path is None or progress.num_returns >= MAX_RETURNS:
        why = "there is no checkpoint yet" if path is None else f"going back {progress.num_returns} times has not helped"
        raise CoveyError(f"{diverged}, and {why}. Start again with a lower train.learning_rate")
    checkpoint = load_checkpoint(path)
    restore_weights(checkpoint, session.state)
    progress.num_returns += 1
    progress.num_skipped = 0
    progress.policy_version += 1
    load_and_prove_weights(session.engine, session.state.policy, progress.policy_version, ranks=session.ranks)
    message = f"{diverged}; weights and optimizer are those of step {checkpoint.step} again"
    session.recorder.event(progress.step, "went_back", message)
