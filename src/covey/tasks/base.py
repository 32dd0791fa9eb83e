"""What a task is, and the self-check every task must pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from covey.rewards.base import Reward, Sample, safe_score
from covey.sampling import permutation, stream_key
from covey.types import CoveyError, Prompt

Part = Literal["choose", "guard", "test"]
PARTS: tuple[Part, ...] = ("choose", "guard", "test")
"""Held-out parts. The first is for choosing (settings, checkpoints), the second for watching over a run independently of
such choices, the third for the figures that are reported: nothing may be chosen on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A completion whose gold score is known beforehand."""

    prompt: Prompt
    completion: str
    is_right: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Training questions, held-out questions, and how answers are judged."""

    name: str
    train: Sequence[Prompt]
    held_out: Mapping[Part, Sequence[Prompt]]
    proxy: Reward
    """The reward a recipe optimises unless it names another."""
    gold: Reward | None
    """Never optimised."""
    probes: Sequence[Probe]
    """Right answers and cheats, for the self-check."""

    def check(self) -> None:
        """Raise unless ids are unique, no held-out question is trained on, and gold pays right answers and no cheat.

        Raises:
            CoveyError: naming the first question or completion that is wrong.
        """
        seen: set[str] = set()
        for prompt in [*self.train, *(prompt for part in self.held_out.values() for prompt in part)]:
            if prompt.prompt_id in seen:
                raise CoveyError(f"task {self.name!r}: prompt id {prompt.prompt_id!r} occurs twice; ids must be unique")
            seen.add(prompt.prompt_id)
        trained = {prompt.messages for prompt in self.train}
        for part, prompts in self.held_out.items():
            shared = [prompt.prompt_id for prompt in prompts if prompt.messages in trained]
            if shared:
                raise CoveyError(f"task {self.name!r}: held-out part {part!r} holds training question {shared[0]!r}")
        for probe in self.probes:
            if self.gold is None:
                break
            verdict = safe_score(self.gold, probe_sample(probe))
            if verdict.value != float(probe.is_right):
                raise CoveyError(
                    f"task {self.name!r}: its verifier {self.gold.name!r} gives {verdict.value} to {probe.completion!r} for "
                    f"{probe.prompt.text!r}; {float(probe.is_right)} is right. {verdict.error or ''}"
                )


def probe_sample(probe: Probe) -> Sample:
    """Return the probe as a reward sees it."""
    num_tokens = len(probe.completion.split())
    return Sample(prompt=probe.prompt, completion=probe.completion, num_tokens=num_tokens, is_truncated=False)


def training_prompts(train: Sequence[Prompt], *, seed: int, start: int, count: int) -> list[Prompt]:
    """Return prompts number `start` to `start` + `count` - 1 of the endless training stream.

    Epoch e visits every prompt once, in an order that depends on (seed, e) alone; so the position in the stream is all
    the state there is.
    """
    chosen: list[Prompt] = []
    for epoch in range(start // len(train), (start + count - 1) // len(train) + 1):
        order = permutation(stream_key(seed, "order", epoch), len(train))
        first, last = start - epoch * len(train), start + count - epoch * len(train)
        chosen += [train[index] for index in order[max(first, 0) : max(last, 0)]]
    return chosen
