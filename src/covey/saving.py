"""When and how a session is saved: beside training if memory allows, and waited for where somebody reads what was saved."""

from __future__ import annotations

from covey.checkpoint import checkpoint_steps
from covey.models.memory import available_bytes
from covey.persistence import changing_tensors, save_snapshot, take_snapshot
from covey.session import Session

SPARE_MEMORY = 2.0
"""A snapshot is held only where this many times its size is free."""


def save_session(session: Session) -> None:
    """Save everything that a resumed session needs, as a directory that transformers can load too.

    What changes is copied, and written in the background; a save that has not ended yet is waited for first. Without the
    memory for a copy, or if the recipe says so, training waits until everything is written.

    Raises:
        SaveError: this save, or the one before, has failed.
    """
    recipe, state = session.recipe, session.state
    session.background.wait()
    session.rewarder.journal.begin(state.progress.step, checkpoint_steps(session.shared.checkpoints))
    if not session.ranks.is_main:
        return
    is_copied = recipe.checkpoint.in_background and has_memory_for_snapshot(session)
    snapshot = take_snapshot(session.run, recipe, state, buffers=session.buffers if is_copied else None)
    best = session.guard.best_step() if session.guard is not None and session.guard.may_roll_back else None

    def save() -> None:
        keep = recipe.checkpoint.keep
        save_snapshot(session.run, snapshot, policy=state.policy, task=session.task, keep=keep, kept_step=best)

    if is_copied:
        session.background.start(save)
    else:
        save()


def has_memory_for_snapshot(session: Session) -> bool:
    """Return whether a copy of all that changes is there already, or fits into the free memory with room to spare."""
    if session.buffers:
        return True
    files = changing_tensors(session.recipe, session.state)
    size = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
    return available_bytes() > SPARE_MEMORY * size


def settle(session: Session) -> None:
    """Return when everything that has been saved is on the disk, for all ranks to read.

    Raises:
        SaveError: the save has failed.
    """
    session.background.wait()
    session.ranks.barrier()
