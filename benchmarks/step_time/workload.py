"""What both sides are given: eight word problems, how many completions of which length, and a reward with a spread."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

MODEL = "smollm2-135m"
LEARNING_RATE = 1e-6
LORA_ALPHA = 32

PROBLEMS = (
    "What is half of 86? Say how you know.",
    "Nina saves 15 coins a week. How many coins has she after 4 weeks? Explain briefly.",
    "A baker fills 6 trays with 12 rolls each and sells 50 rolls. How many rolls are left? Show the steps.",
    "Omar is 9 years old and his sister is twice as old. How old will she be in 5 years? Show the steps, then give the answer.",
    "A bus starts with 28 people. At the first stop 9 get off and 4 get on, and at the second stop 11 get on. "
    "How many people are on the bus now? Explain each step.",
    "A garden has 7 rows of 8 tulips. The gardener picks 13 tulips for a vase and gives 6 of these to a neighbour. "
    "How many tulips are still growing, and how many are in the vase?",
    "Lea buys 3 notebooks for 4 euros each and 2 pens for 3 euros each, and she pays with a note of 50 euros. "
    "How much money does she get back? Write what you compute, one line for each step, and end with the answer.",
    "A library lends 45 books on Monday, 38 on Tuesday and 52 on Wednesday. On Thursday 60 of them come back, and a "
    "class of 24 children takes one book each. How many books are out now? Write each step in a short sentence.",
)
"""From short to long: 40 to 90 tokens in SmolLM2's chat format."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """One training step of all weights, or of adapters, at temperature 1."""

    num_prompts: int = len(PROBLEMS)
    prompt_tokens: tuple[int, int] = (40, 90)
    """The least and the most tokens that a prompt may have."""
    group_size: int = 8
    num_new_tokens: int = 64
    is_forced: bool = True
    """Whether no token ends a completion, so that each has exactly `num_new_tokens`."""
    beta: float = 0.0
    lora_rank: int = 0
    """Of the adapters on all linear layers that are trained instead of the weights."""
    num_context_sentences: int = 0
    """Sentences before each problem, which make its prompt longer."""

    @property
    def problems(self) -> Sequence[str]:
        context = "".join(f"{sentence} " for sentence in context_sentences(self.num_context_sentences))
        return [context + problem for problem in PROBLEMS[: self.num_prompts]]

    @property
    def num_rows(self) -> int:
        return self.num_prompts * self.group_size

    def check_lengths(self, lengths: Sequence[int]) -> None:
        """Fail if a prompt is shorter or longer than the workload says."""
        low, high = self.prompt_tokens
        assert all(low <= length <= high for length in lengths), f"prompts of {lengths} tokens, not {low} to {high}"

    def check_num_tokens(self, num_tokens: int) -> None:
        """Fail if completions of forced length had another."""
        most = self.num_rows * self.num_new_tokens
        is_right = num_tokens == most if self.is_forced else 0 < num_tokens <= most
        assert is_right, f"{num_tokens} tokens were generated, and at most {most} fit"


def context_sentences(count: int) -> Iterator[str]:
    """Yield sentences of about 16 tokens, no two alike."""
    for number in range(1, count + 1):
        yield f"On day {number} of the journal, the keeper noted {number * 7 % 90} visitors and clear weather."


WORKLOADS = {
    "W": Workload(),
    "W-long": Workload(num_new_tokens=256),
    "W-wide": Workload(group_size=32),
    "W-eos": Workload(is_forced=False),
    "W-kl": Workload(beta=0.04),
    "W-lora": Workload(lora_rank=16),
}

_TINY = Workload(num_prompts=2, prompt_tokens=(1, 500), group_size=2, num_new_tokens=8)
TINY_WORKLOADS = {
    "W": _TINY,
    "W-eos": replace(_TINY, is_forced=False),
    "W-kl": replace(_TINY, beta=0.04),
    "W-lora": replace(_TINY, lora_rank=2),
}
"""For a rehearsal with the tiny model."""


def text_reward(text: str) -> float:
    """Return a number from 0 to 1 that depends on every character, so that each group's rewards have a spread."""
    return zlib.crc32(text.encode()) / (2**32 - 1)
