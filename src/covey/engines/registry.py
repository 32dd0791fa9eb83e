"""The table of engines that recipes can name."""

from __future__ import annotations

from collections.abc import Callable

from covey.engines.base import Engine
from covey.engines.native.engine import NativeEngine
from covey.engines.transformers import TransformersEngine

ENGINES: dict[str, Callable[..., Engine]] = {
    "transformers": TransformersEngine,
    "native": NativeEngine,
}
"""(policy, *, progress) -> engine. An engine that cannot serve the policy's model raises a CoveyError."""
