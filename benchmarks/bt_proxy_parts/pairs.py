"""Preference pairs drawn from the model of Bradley and Terry on a gold score."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from covey.rewards.preference import sigmoid


def drawn_pairs(
    completions: Mapping[str, Sequence[str]],
    gold: Callable[[str], float],
    *,
    num_pairs: int,
    sharpness: float,
    seed: int,
) -> list[dict[str, Any]]:
    """Return up to `num_pairs` pairs of different completions, P(a is preferred to b) = sigmoid(sharpness (gold_a - gold_b)).

    `completions` holds those of each prompt, by its text. Empty ones take no part. `follows_gold` says whether the chosen
    completion is the better one; None where both are equally good.
    """
    generator = random.Random(seed)
    candidates = [
        (prompt, first, second)
        for prompt, texts in completions.items()
        for first, second in itertools.combinations([text for text in texts if text.strip()], 2)
        if first != second
    ]
    generator.shuffle(candidates)
    pairs: list[dict[str, Any]] = []
    for prompt, first, second in candidates[:num_pairs]:
        difference = gold(first) - gold(second)
        is_first = generator.random() < sigmoid(sharpness * difference)
        chosen, rejected = (first, second) if is_first else (second, first)
        follows_gold = (difference > 0) == is_first if difference else None
        pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "follows_gold": follows_gold})
    return pairs


def agreement(pairs: Sequence[Mapping[str, Any]]) -> float:
    """Return how often the label follows gold: what a perfect reward model would get right. Ties count half."""
    return sum(0.5 if pair["follows_gold"] is None else pair["follows_gold"] for pair in pairs) / len(pairs)
