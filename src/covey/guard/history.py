"""What detectors see: the recorded answers and metrics of a run, up to some step. Nothing here samples or scores.

Key of the shapes: N answers of one evaluation or one training step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

Level = Literal["note", "warn", "critical"]
"""What a finding weighs: worth knowing; worth a look; the run is spoiled from here on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Scored completions, in the order in which they were recorded."""

    prompt_ids: Sequence[str]  # [N]
    proxy: Float64[np.ndarray, "N"]
    """What is optimised, brought to 0 to 1 by its declared range. NaN: could not be scored."""
    gold: Float64[np.ndarray, "N"]
    """The verifier that is never optimised, 0 to 1. NaN: could not be scored, or there is none."""
    num_tokens: Int64[np.ndarray, "N"]
    is_truncated: Bool[np.ndarray, "N"]
    extracted: Sequence[str | None]  # [N]
    """The answer that was read out of each completion."""
    expected: Sequence[str | None]  # [N]
    """The right answer as text, where the prompt has one."""
    parts: Mapping[str, Float64[np.ndarray, "N"]] = field(default_factory=dict)
    """The reward's parts by name, as recorded. NaN: could not be scored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """One evaluation of held-out questions. The questions of a part are the same at every look."""

    step: int
    part: str
    """choose, guard or test; twins (variants of guard's questions, same order of ids), honeypots (keys that are wrong)."""
    mode: str
    """greedy or sampled."""
    answers: Answers


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One training step: all its rollouts, and its row of metrics.jsonl."""

    step: int
    answers: Answers
    metrics: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """A run up to now, in the order in which it happened. The looks at step 0 were made before training."""

    looks: Sequence[Look]
    steps: Sequence[Step]
    planned_looks: int
    """How many evaluations of a part the whole run makes after step 0: what an error rate is shared among."""
    group_size: int

    def looks_at(self, part: str, mode: str) -> list[Look]:
        """Return the evaluations of a part in one mode, the first of them that of step 0 if it was recorded."""
        return [look for look in self.looks if (look.part, look.mode) == (part, mode)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What a detector says at the newest look or step of a history."""

    detector: str
    """Its key in the table."""
    step: int
    level: Level
    message: str
    """One sentence for a person: what was seen, with its figures."""
    figures: Mapping[str, float] = field(default_factory=dict)
