"""The table of tasks that recipes can name."""

from __future__ import annotations

from collections.abc import Callable

from covey.tasks.arithmetic import LEVELS, arithmetic
from covey.tasks.base import Task
from covey.types import CoveyError

TASKS: dict[str, Callable[..., Task]] = {
    "arithmetic": arithmetic,
}

TASK_LEVELS: dict[str, tuple[str, ...]] = {
    "arithmetic": tuple(LEVELS),
}


def find_task(name: str, *, level: str) -> Task:
    """Return the task that the recipe names.

    Raises:
        CoveyError: there is no such task or level.
    """
    if name not in TASKS:
        raise CoveyError(f"task.name={name!r} is not a task; choose one of {', '.join(TASKS)}")
    return TASKS[name](level=level)
