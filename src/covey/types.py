"""The plain data that flows through a training step. No tensors here: see `tensors.py` for those.

Dimension key, used everywhere in Covey: P prompts per step, G group size, B = P * G sequences
(row-major: sequence b belongs to prompt b // G), T completion positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length"]


class CoveyError(Exception):
    """Base of the errors a user can act on; its message says what to do. The CLI prints it without a traceback."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn of a conversation, as chat templates take it."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A question together with what its verifier needs to know."""

    prompt_id: str
    """Stable across epochs, ranks and resumes; no two prompts of a task share one."""
    messages: tuple[Message, ...]
    answer: Any = None
    """The verifier's private payload. It is never shown to the model."""
    task: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The data row's other columns, for rewards that ask for them by name. They are never shown to the model."""
    given: tuple[tuple[str, float], ...] = ()
    """Completions to learn from with their rewards, of tasks that bring them along: nothing is sampled then."""
    is_conversation: bool = False
    """Whether the prompt was given as messages, and not as a text."""

    @property
    def text(self) -> str:
        """The user's words, for display only."""
        return "\n".join(message.content for message in self.messages if message.role == "user")


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """Tokens sampled from the policy, with the log-probabilities they were sampled at."""

    token_ids: list[int]
    """Includes the end token if one was sampled."""
    logprobs: list[float]
    """Of the distribution really sampled from, in nats; as long as `token_ids`."""
    finish_reason: FinishReason
    policy_version: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What a reward or a verifier says about one completion."""

    value: float | None
    """None = could not be scored. Never a silent 0."""
    parts: Mapping[str, float] = field(default_factory=dict)
    extracted: str | None = None
    """The answer that was read out of the completion, if one was."""
    error: str | None = None
    elapsed_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One completion of one prompt, decoded for display and scored."""

    prompt_ids: list[int]
    completion: Completion
    text: str
    """Decoded without special tokens. Display and scoring only: it is never encoded again."""
    reward: Score
    """The proxy: what is optimised."""
    gold: Score | None
    """The verifier that is never optimised; None if the run has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """All completions of one prompt: the unit that advantages are computed in."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]  # [G]
    baseline: Rollout | None = None
    """The greedy completion; None iff the algorithm asks for none."""

    @property
    def scored_rewards(self) -> list[float]:
        """The rewards of the rollouts that could be scored."""
        return [rollout.reward.value for rollout in self.rollouts if rollout.reward.value is not None]

    @property
    def is_flat(self) -> bool:
        """Whether no two scored rewards differ: such a group has zero advantage everywhere and teaches nothing."""
        rewards = self.scored_rewards
        return len(rewards) < 2 or max(rewards) == min(rewards)
