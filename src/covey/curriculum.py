"""Which training prompts come next. A source is drawn from, told how its prompts were solved, saved and restored.

Draws are functions of the seed, the source's state and the prompts' ids: a resumed run draws what an uninterrupted one
would have drawn.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from covey.metrics import Mean, Metric, mean_of
from covey.sampling import stream_key, uniform
from covey.tasks.base import training_prompts
from covey.types import CoveyError, Prompt


class PromptSource(Protocol):
    """Where a run takes its training prompts from."""

    def draw(self, count: int) -> list[Prompt]:
        """Return the next `count` prompts and move on."""
        ...

    def observe(self, prompt_id: str, num_right: int, num_scored: int) -> None:
        """Take note of one group: `num_right` of its `num_scored` scored completions were right."""
        ...

    def state(self) -> dict[str, Any]:
        """Return all that later draws depend on besides the constructor's arguments; JSON keeps it exactly."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            CoveyError: the state is another curriculum's, or of other training prompts.
        """
        ...

    def curriculum_metrics(self) -> dict[str, Metric]:
        """Return what the source knows about its prompts; empty if it keeps nothing."""
        ...


class EpochStream:
    """Every prompt once an epoch, in an order that depends on (seed, epoch) alone. It does not look at the results."""

    def __init__(self, train: Sequence[Prompt], *, seed: int):
        self._train = train
        self._seed = seed
        self._position = 0

    def draw(self, count: int) -> list[Prompt]:
        prompts = training_prompts(self._train, seed=self._seed, start=self._position, count=count)
        self._position += count
        return prompts

    def observe(self, prompt_id: str, num_right: int, num_scored: int) -> None:
        del prompt_id, num_right, num_scored

    def state(self) -> dict[str, Any]:
        return {"position": self._position}

    def restore(self, state: Mapping[str, Any]) -> None:
        _refuse_other_fields(state, self.state())
        self._position = state["position"]

    def curriculum_metrics(self) -> dict[str, Metric]:
        return {}


class PassRateCurriculum:
    """Prefers prompts that are solved about half of the time: there a group's rewards differ most.

    A prompt's pass rate is estimated as (1 + s) / (2 + n), the mean of a beta posterior with a flat prior, where s right
    and n scored completions are discounted: each observed group first multiplies both by `memory` (0: only the latest
    group counts, 1: all count alike). Its weight is max(floor, 4 rate (1 - rate)): the variance of a 0/1 reward, scaled to
    1 at its largest, which is also the weight of a prompt that was never seen. With a positive `floor` no prompt starves.

    A draw is weighted sampling without replacement (Efraimidis & Spirakis 2006, algorithm A): the largest keys
    u ** (1 / weight) win, with one uniform u a prompt. A draw of more prompts than there are goes round again.
    """

    def __init__(self, train: Sequence[Prompt], *, seed: int, floor: float = 0.1, memory: float = 0.9):
        self._train = train
        self._seed = seed
        self._floor = floor
        self._memory = memory
        self._num_draws = 0
        self._awaited: set[str] = set()  # Drawn and not yet observed: a step's later draws bring other prompts.
        self._counts: dict[str, tuple[float, float]] = {}  # prompt_id -> (s, n)

    def draw(self, count: int) -> list[Prompt]:
        fresh = [prompt for prompt in self._train if prompt.prompt_id not in self._awaited]
        chosen = self._round(fresh, number=0, count=count)
        for number in itertools.count(1):
            if len(chosen) == count:
                break
            chosen += self._round(self._train, number=number, count=count - len(chosen))
        self._num_draws += 1
        self._awaited |= {prompt.prompt_id for prompt in chosen}
        return chosen

    def _round(self, prompts: Sequence[Prompt], *, number: int, count: int) -> list[Prompt]:
        """Return up to `count` different prompts, the earliest first; equal times keep the order of the training prompts."""

        def time(prompt: Prompt) -> float:
            # -log(1 - u) / weight orders as the keys (1 - u) ** (1 / weight) do, where a low weight would underflow to ties.
            key = stream_key(self._seed, "curriculum", self._num_draws, prompt.prompt_id)
            return -math.log1p(-uniform(key, number)) / self.weight(prompt.prompt_id)

        return heapq.nsmallest(count, prompts, key=time)

    def pass_rate(self, prompt_id: str) -> float:
        """Return the running pass rate, (1 + s) / (2 + n): one half for a prompt that was never seen."""
        num_right, num_scored = self._counts.get(prompt_id, (0.0, 0.0))
        return (1.0 + num_right) / (2.0 + num_scored)

    def weight(self, prompt_id: str) -> float:
        """Return max(floor, 4 rate (1 - rate))."""
        rate = self.pass_rate(prompt_id)
        return max(self._floor, 4.0 * rate * (1.0 - rate))

    def observe(self, prompt_id: str, num_right: int, num_scored: int) -> None:
        self._awaited.discard(prompt_id)
        if num_scored == 0:  # Such a group says nothing: it must not fade what is known.
            return
        before_right, before_scored = self._counts.get(prompt_id, (0.0, 0.0))
        self._counts[prompt_id] = (self._memory * before_right + num_right, self._memory * before_scored + num_scored)

    def state(self) -> dict[str, Any]:
        return {"draws": self._num_draws, "rates": {name: list(self._counts[name]) for name in sorted(self._counts)}}

    def restore(self, state: Mapping[str, Any]) -> None:
        _refuse_other_fields(state, self.state())
        if unknown := state["rates"].keys() - {prompt.prompt_id for prompt in self._train}:
            raise CoveyError(
                f"the saved curriculum holds prompt {min(unknown)!r}, which the task does not train on: resume with the task "
                "that the run was started with, or start a new run"
            )
        self._num_draws = state["draws"]
        self._counts = {name: (num_right, num_scored) for name, (num_right, num_scored) in state["rates"].items()}

    def curriculum_metrics(self) -> dict[str, Metric]:
        """Return the mean running pass rate of the prompts seen so far, and their share of all training prompts."""
        return {
            "curriculum/rate_mean": mean_of(self.pass_rate(prompt_id) for prompt_id in self._counts),
            "curriculum/seen_frac": Mean(len(self._counts), len(self._train)),
        }


CURRICULA = {"none": EpochStream, "pass_rate": PassRateCurriculum}


def _refuse_other_fields(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    if state.keys() != own.keys():
        raise CoveyError(
            f"the saved state of the training prompts holds {sorted(state)}, this curriculum's holds {sorted(own)}: resume "
            "with the train.curriculum that the run was started with"
        )
