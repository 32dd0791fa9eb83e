"""The engines that the contract tests run on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from covey.engines.base import Engine
from covey.engines.native.engine import NativeEngine
from covey.engines.scripted import ScriptedEngine
from covey.engines.transformers import TransformersEngine
from covey.models.policy import Policy
from covey.types import Completion


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    make: Callable[[Policy], Engine]
    samples: bool
    """Whether its tokens come from the policy's weights."""


def scripted(policy: Policy) -> ScriptedEngine:
    """Answer with tokens that depend on prompt and sample, some ending by themselves and some not."""
    ends = sorted(policy.stop_ids)
    inner = next(token for token in range(256) if token not in policy.stop_ids)

    def script(prompt: list[int], sample: int) -> list[int]:
        return [inner] * (1 + 5 * sample) + [ends[(len(prompt) + sample) % len(ends)]]

    return ScriptedEngine(script, stop_ids=policy.stop_ids, decode=policy.decode)


ENGINES = {
    "transformers": Row(make=TransformersEngine, samples=True),
    "native": Row(make=NativeEngine, samples=True),
    "scripted": Row(make=scripted, samples=False),
}
every_engine = pytest.mark.parametrize("make_engine", [pytest.param(row.make, id=name) for name, row in ENGINES.items()])
every_sampler = pytest.mark.parametrize(
    "make_engine", [pytest.param(row.make, id=name) for name, row in ENGINES.items() if row.samples]
)
MakeEngine = Callable[[Policy], Engine]


def flat(groups: Sequence[Sequence[Completion]]) -> list[Completion]:
    return [completion for group in groups for completion in group]


def fill_embedding(policy: Policy, value: float) -> None:
    embedding: Any = policy.model.get_input_embeddings()
    with torch.no_grad():
        embedding.weight.fill_(value)
