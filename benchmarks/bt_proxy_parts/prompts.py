"""The prompts of `bt_proxy.py`: templates times topics."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from covey.types import Message, Prompt

TEMPLATES = (
    "Write one sentence about {}.",
    "Describe {} in one sentence.",
    "Tell me one thing about {}.",
    "What comes to mind when you think of {}?",
    "Say something short about {} to a friend.",
)

TOPICS = (
    *("the harbour", "a lighthouse", "the night train", "an old bridge", "the city library", "a village school"),
    *("the market square", "a narrow street", "the railway station", "a mountain hut", "the rose garden", "a lake in winter"),
    *("the first snow", "a summer storm", "the north wind", "morning fog", "a clear night sky", "the rainbow"),
    *("a river in flood", "the desert", "a pine forest", "the open sea", "a field of barley", "the tide"),
    *("a sleeping cat", "wild geese", "a honey bee", "the grey heron", "a loyal dog", "a garden snail"),
    *("the barn owl", "an old horse", "fresh bread", "a bowl of soup", "ripe plums", "black coffee"),
    *("a cup of tea", "the apple harvest", "homemade jam", "a birthday cake", "a wooden boat", "the pocket watch"),
    *("a bicycle", "the kitchen table", "a warm coat", "an umbrella", "the typewriter", "a paper map"),
    *("a music box", "the garden gate", "a candle", "the violin", "a street musician", "the village choir"),
    *("a chess game", "the football match", "a long walk", "swimming at dawn", "the baker", "a night nurse"),
    *("the ferry captain", "a clockmaker", "my grandmother", "the new neighbour"),
)

NUM_MEASURED = 60
"""Prompts of each held-out part; the others are trained on."""


def split_prompts(*, seed: int) -> dict[str, list[Prompt]]:
    """Return the prompts of each part, shuffled: train, choose and guard."""
    texts = [template.format(topic) for topic in TOPICS for template in TEMPLATES]
    prompts = [
        Prompt(prompt_id=f"sentence-{number:03d}", messages=(Message(role="user", content=text),))
        for number, text in enumerate(texts)
    ]
    random.Random(seed).shuffle(prompts)
    return {
        "choose": prompts[:NUM_MEASURED],
        "guard": prompts[NUM_MEASURED : 2 * NUM_MEASURED],
        "train": prompts[2 * NUM_MEASURED :],
    }


def with_references(prompts: Sequence[Prompt], completions: Mapping[str, Sequence[str]]) -> list[Prompt]:
    """Return the prompts, each with its first completion of the base model in the column `reference`."""
    return [
        Prompt(prompt_id=prompt.prompt_id, messages=prompt.messages, columns={"reference": completions[prompt.prompt_id][0]})
        for prompt in prompts
    ]
