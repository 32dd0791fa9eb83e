"""What a MODEL on the command line stands for: a bundled name, a directory, a hub id, or a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from covey.api import open_run
from covey.config import Recipe, load_recipe
from covey.engines.base import Engine
from covey.engines.registry import fastest_engine
from covey.engines.within_memory import EngineWithinMemory
from covey.models.policy import Policy, load_policy


def open_model(name: str, *, say: Callable[[str], None]) -> tuple[Policy, Engine]:
    """Return policy and engine of a model name or of a run directory's newest checkpoint."""
    policy = load_policy(str(open_run(name).model_path) if is_run(name) else name, progress=say)
    if note := note_of(name, policy):
        say(f"{name}: {note}")
    return policy, EngineWithinMemory(fastest_engine(policy))


def is_run(name: str) -> bool:
    """Return whether this is a run directory and not a model."""
    return (Path(name) / "recipe.toml").is_file()


def recipe_of(name: str) -> Recipe:
    """Return the recipe of a run directory, the default one for a model."""
    return load_recipe(Path(name) / "recipe.toml" if is_run(name) else None)


def note_of(name: str, policy: Policy) -> str:
    """Return what must be said of the weights: of a run, what was said of those it started from."""
    if not is_run(name):
        return policy.identity.note
    note = json.loads((Path(name) / "env.json").read_text())["model"]["note"]
    return f"trained from: {note}" if note else ""
