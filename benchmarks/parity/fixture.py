"""The data of the cases: prompts, completions and rewards of one step, the same on both sides. B completions, K rewards."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import Any

END_ID = 257
MAX_LENGTH = 12


@dataclass(frozen=True, kw_only=True)
class Data:
    """Prompts, completions and rewards of one step. A reward of None could not be computed."""

    prompts: tuple[str, ...]
    completions: tuple[tuple[int, ...], ...]  # [B]
    parts: tuple[tuple[float | None, ...], ...]  # [B, K]
    part_weights: tuple[float, ...] = (1.0,)
    old_shift: float = 0.0
    """Added to the old log-prob of token 0 of completion 3."""

    @property
    def group_size(self) -> int:
        return len(self.completions) // len(self.prompts)

    def reward(self, row: int) -> float | None:
        parts = [weight * part for weight, part in zip(self.part_weights, self.parts[row], strict=True) if part is not None]
        return sum(parts) if parts else None

    def is_truncated(self, row: int) -> bool:
        return self.completions[row][-1] != END_ID


def fixed_completions() -> tuple[tuple[int, ...], ...]:
    """Return 16 completions of random bytes, 2 to 12 long; three run into the limit, the others end with the end token."""
    numbers = random.Random(0)
    completions = []
    for row in range(16):
        is_truncated = row % 5 == 2
        length = MAX_LENGTH if is_truncated else numbers.randint(2, MAX_LENGTH - 1)
        ids = [numbers.randrange(256) for _ in range(length)]
        completions.append(tuple(ids if is_truncated else [*ids[:-1], END_ID]))
    return tuple(completions)


# Rewards of several sizes, right-or-wrong ones, a group in which all are equal. TRL keeps rewards in float32, which holds
# these exactly.
REWARDS = (1.0, 0.0, 0.5, 0.25, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.875, 0.3125, 0.0, 0.625)
FORMAT = (1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0)
STANDARD = Data(
    prompts=("2+3=", "Name a colour: ", "The answer to everything is", "a b c "),
    completions=fixed_completions(),
    parts=tuple((reward,) for reward in REWARDS),
)


def with_rewards(rewards: tuple[float | None, ...], **changes: Any) -> Data:
    return dataclasses.replace(STANDARD, parts=tuple((reward,) for reward in rewards), **changes)


TWO_PARTS = dataclasses.replace(STANDARD, parts=tuple(zip(REWARDS, FORMAT, strict=True)), part_weights=(1.0, 0.5))
ONE_TOKEN = dataclasses.replace(STANDARD, completions=tuple(ids[:1] for ids in STANDARD.completions))
UNSCORED = with_rewards((*REWARDS[:13], None, *REWARDS[14:]))
CRUMBS = with_rewards((0.5, 0.501953125, 0.498046875, 0.5, *REWARDS[4:]))
FLAT = with_rewards((0.9,) * 8 + REWARDS[:8], prompts=STANDARD.prompts[:2])
FLAT_EXACT = with_rewards((0.5,) * 8 + REWARDS[:8], prompts=STANDARD.prompts[:2])
SHIFTED = dataclasses.replace(STANDARD, old_shift=-25.0)
B = len(STANDARD.completions)
NUM_TOKENS = sum(len(ids) for ids in STANDARD.completions)
NUM_WHOLE = sum(not STANDARD.is_truncated(row) for row in range(B))


def sampler_noise(data: Data, std: float) -> list[list[float]]:
    """Return by how much the engine's log-prob of each token is above the trainer's."""
    numbers = random.Random(1)
    return [[numbers.gauss(0.0, std) for _ in ids] for ids in data.completions]
