"""Packages that some rewards need, and Covey does not."""

from __future__ import annotations

import importlib.util

from covey.types import CoveyError


def require(module: str, *, package: str, reward: str) -> None:
    """Raise if a module is not installed.

    Raises:
        CoveyError: it is not; the message says what to install.
    """
    if importlib.util.find_spec(module) is None:
        raise CoveyError(
            f"the reward {reward!r} needs the package {package}: pip install 'covey[rewards]', or pip install {package!r}"
        )
