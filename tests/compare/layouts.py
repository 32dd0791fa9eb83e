"""Made-up tables of scores with known variance components."""

from __future__ import annotations

import math

import numpy as np

from covey.compare.statistics import ArmScores, Components


def layouts(
    components: Components, *, num_layouts: int, num_seeds: int, num_prompts: int, mean: float = 0.0, draw: int = 0
) -> np.ndarray:
    """Return independent layouts [L, S, P] of normal seed, prompt and residual effects."""
    rng = np.random.default_rng(draw)
    by_seed = rng.normal(0.0, math.sqrt(components.seed), (num_layouts, num_seeds, 1))
    by_prompt = rng.normal(0.0, math.sqrt(components.prompt), (num_layouts, 1, num_prompts))
    residual = rng.normal(0.0, math.sqrt(components.residual), (num_layouts, num_seeds, num_prompts))
    return mean + by_seed + by_prompt + residual


def arm(scores: object, *, name: str = "grpo", seeds: tuple[int, ...] | None = None) -> ArmScores:
    """Return an arm; its seeds are 0, 1, ... unless given."""
    table = np.asarray(scores, dtype=float)
    return ArmScores(name=name, seeds=tuple(range(len(table))) if seeds is None else seeds, scores=table)
