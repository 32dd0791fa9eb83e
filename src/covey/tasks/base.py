"""What a task is, and the self-check every task must pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from covey.rewards.base import Reward, Sample, score_all
from covey.sampling import permutation, stream_key
from covey.types import CoveyError, Prompt

Part = Literal["choose", "guard", "test"]
PARTS: tuple[Part, ...] = ("choose", "guard", "test")
"""Held-out parts. The first is for choosing (settings, checkpoints), the second for watching over a run independently of
such choices, the third for the figures that are reported: nothing may be chosen on it."""

TRUE_ANSWER = "true_answer"
"""Tag of a honeypot: a completion that is right in truth, and that the honeypot's key therefore must not pay."""


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
    twins: Mapping[str, Prompt] = field(default_factory=dict)
    """By the prompt id of a question of the guard part: the same question in other words, names or order. What a model
    has understood it answers as well there as in the words that it was trained on."""
    honeypots: Sequence[Prompt] = ()
    """Questions with a key that is wrong by construction, for measuring alone: what earns their reward has not found the
    answer but a way around it."""
    notes: Sequence[str] = ()
    """What a user should know of how the questions were made, such as how many rows of a file were left out."""

    @property
    def brings_completions(self) -> bool:
        """Whether its prompts have completions to learn from, so that nothing is sampled for training."""
        return any(prompt.given for prompt in self.train)

    def check(self) -> None:
        """Raise unless ids are unique, no held-out question is trained on, and gold pays right answers and no cheat.

        Raises:
            CoveyError: naming the first question or completion that is wrong.
        """
        seen: set[str] = set()
        measured = [prompt for part in self.held_out.values() for prompt in part]
        for prompt in [*self.train, *measured, *self.twins.values(), *self.honeypots]:
            if prompt.prompt_id in seen:
                raise CoveyError(f"task {self.name!r}: prompt id {prompt.prompt_id!r} occurs twice; ids must be unique")
            seen.add(prompt.prompt_id)
        trained = {prompt.messages for prompt in self.train}
        untrained: dict[str, Sequence[Prompt]] = {f"held-out part {part!r}": self.held_out[part] for part in self.held_out}
        untrained |= {"set of twins": [*self.twins.values()], "set of honeypots": self.honeypots}
        for where, prompts in untrained.items():
            shared = [prompt.prompt_id for prompt in prompts if prompt.messages in trained]
            if shared:
                raise CoveyError(f"task {self.name!r}: {where} holds training question {shared[0]!r}")
        self._check_twins()
        probes = [*self.probes, *(honeypot_probe(prompt) for prompt in self.honeypots if TRUE_ANSWER in prompt.tags)]
        if self.gold is not None:
            self._check_gold(self.gold, probes)

    def _check_gold(self, gold: Reward, probes: Sequence[Probe]) -> None:
        for probe, verdict in zip(probes, score_all(gold, [probe_sample(probe) for probe in probes]), strict=True):
            if verdict.value != float(probe.is_right):
                raise CoveyError(
                    f"task {self.name!r}: its verifier {gold.name!r} gives {verdict.value} to {probe.completion!r} for "
                    f"{probe.prompt.text!r}; {float(probe.is_right)} is right. {verdict.error or ''}"
                )

    def _check_twins(self) -> None:
        guarded = {prompt.prompt_id: prompt for prompt in self.held_out.get("guard", ())}
        for prompt_id, twin in self.twins.items():
            if prompt_id not in guarded:
                raise CoveyError(f"task {self.name!r}: twin of {prompt_id!r}, which is no question of held-out part 'guard'")
            if twin.messages == guarded[prompt_id].messages:
                raise CoveyError(f"task {self.name!r}: the twin of {prompt_id!r} has its very words; it must differ from it")


def honeypot_probe(honeypot: Prompt) -> Probe:
    """Return the answer that is right in truth, which must earn nothing: the key says otherwise."""
    return Probe(prompt=honeypot, completion=honeypot.tags[TRUE_ANSWER], is_right=False)


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
