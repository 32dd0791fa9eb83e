"""Covey: GRPO for everyone, that can be trusted.

    import covey
    run = covey.train(model="smollm2-135m", prompts=[...], reward=my_reward, gold=my_verifier)

Names are loaded when they are first used, so that `import covey` costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from covey.api import Run, open_run, train
    from covey.rewards.base import Sample
    from covey.types import CoveyError, Message, Prompt, Score

__version__ = "0.1.0"

__all__ = ["CoveyError", "Message", "Prompt", "Run", "Sample", "Score", "__version__", "open_run", "train"]

_HOMES = {
    "CoveyError": "covey.types",
    "Message": "covey.types",
    "Prompt": "covey.types",
    "Run": "covey.api",
    "Sample": "covey.rewards.base",
    "Score": "covey.types",
    "open_run": "covey.api",
    "train": "covey.api",
}


class _Package(ModuleType):
    """Keeps public names what they are when a submodule of the same name is imported: `covey.train` is the function."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'covey' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    setattr(sys.modules[__name__], name, value)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


sys.modules[__name__].__class__ = _Package
