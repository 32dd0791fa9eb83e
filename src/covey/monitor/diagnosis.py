"""What the numbers of the last steps say about the run, in words that name a remedy."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

__all__ = ["ALL_CORRECT", "ALL_WRONG", "TRUNCATED", "Diagnoses", "diagnose"]

Metrics = Mapping[str, float | None]

ALL_WRONG = "no learning signal: every group is all-wrong; make the task easier or raise group_size / temperature"
ALL_CORRECT = "the task is mastered at this difficulty: every group is all-correct; make it harder or stop here"
TRUNCATED = "many completions hit the token limit and cannot show an answer; raise sampling.max_new_tokens"

PATIENCE = 5
MAX_TRUNCATED_FRAC = 0.15


def diagnose(
    history: Sequence[Metrics], *, patience: int = PATIENCE, max_truncated_frac: float = MAX_TRUNCATED_FRAC
) -> list[str]:
    """Return what is to be said after the last step of `history` (metrics, oldest first).

    All groups wrong, or all correct, in each of the last `patience` steps; or a mean share of truncated completions
    above `max_truncated_frac` over the last steps, at most `patience` of them.
    """
    recent = history[-patience:]
    lines: list[str] = []
    if len(recent) == patience and all(metrics.get("group/all_wrong_frac") == 1.0 for metrics in recent):
        lines.append(ALL_WRONG)
    if len(recent) == patience and all(metrics.get("group/all_correct_frac") == 1.0 for metrics in recent):
        lines.append(ALL_CORRECT)
    truncated = [frac for metrics in recent if (frac := metrics.get("completion/truncated_frac")) is not None]
    if truncated and sum(truncated) / len(truncated) > max_truncated_frac:
        lines.append(TRUNCATED)
    return lines


class Diagnoses:
    """Diagnoses step after step that repeats itself only every `every` steps."""

    def __init__(self, *, every: int = 10) -> None:
        self._every = every
        self._history: deque[Metrics] = deque(maxlen=PATIENCE)
        self._said_at: dict[str, int] = {}

    def after_step(self, step: int, metrics: Metrics) -> list[str]:
        """Return the lines that are due after `step`."""
        self._history.append(metrics)
        due = [
            line
            for line in diagnose(list(self._history))
            if line not in self._said_at or step - self._said_at[line] >= self._every
        ]
        self._said_at |= dict.fromkeys(due, step)
        return due
