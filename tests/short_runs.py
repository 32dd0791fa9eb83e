"""Short runs on one's own prompts: the working directory has the tiny model in `model` and gets the runs in `runs`."""

from __future__ import annotations

from typing import Any

from tests.digits import SMALL

import covey
from covey.api import Run

QUESTIONS = [f"Say digits, {number}" for number in range(30)]


def train(**arguments: Any) -> Run:
    """Train for one step on the tiny model, in ./runs."""
    given: dict[str, Any] = {"model": "model", "quiet": True} | options(**arguments)
    return covey.train(**given)


def options(**changes: Any) -> dict[str, Any]:
    """Return the options of a short run, with changes."""
    return SMALL | {"num_steps": 1} | changes
