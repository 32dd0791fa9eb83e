"""The table of engines that recipes can name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from covey.engines.base import Engine
from covey.engines.native.engine import NativeEngine, refusal
from covey.engines.transformers import TransformersEngine
from covey.models.policy import Policy


def fastest_engine(policy: Policy, **options: Any) -> Engine:
    """Return the native engine if it can serve the policy's model, else the transformers engine, which says why."""
    reason = refusal(policy)
    if reason is None:
        return NativeEngine(policy, **options)
    engine = TransformersEngine(policy, **options)
    engine.note = (
        f"transformers engine, because the native one cannot serve this model: {reason}. Sampling takes 2 to 3 times as long"
    )
    return engine


ENGINES: dict[str, Callable[..., Engine]] = {
    "auto": fastest_engine,
    "transformers": TransformersEngine,
    "native": NativeEngine,
}
"""(policy, *, progress) -> engine. An engine that cannot serve the policy's model raises a CoveyError."""
