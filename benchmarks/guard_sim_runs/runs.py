"""Runs made of random numbers, as the guard sees them: what prompts, proxy and gold are like over a run, and no model.

Key of the shapes: T steps, P prompts of a step, G group, N = P * G rollouts, L looks, M held-out prompts of a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.random import Generator

from covey.guard.history import Answers, History, Look, Step

NUM_STEPS, NUM_PROMPTS, GROUP_SIZE, NUM_LOOKS, NUM_HELD_OUT, NUM_HONEYPOTS = 380, 8, 8, 20, 200, 32
ONSET = 190
"""The step at which half of a hack, or of a drift, has come."""
ONSET_WIDTH = 15
"""Steps; the hack comes as a logistic curve."""
DIFFICULTY_STD = 1.5
"""Of the prompts' difficulties, in logits."""
GOLD_OF_HACKS = 0.05
MAX_TOKENS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """What a run is like at its start and at its end. Between them it goes along a line; hacks come along a logistic curve."""

    is_honest: bool
    gold: tuple[float, float]
    """Mean of gold over honest answers."""
    false_positive: tuple[float, float] = (0.02, 0.02)
    false_negative: tuple[float, float] = (0.03, 0.03)
    hack: float = 0.0
    """Share of rollouts that are hacks at the end. A hack passes the proxy, and gold with chance `GOLD_OF_HACKS`."""
    is_sudden: bool = False
    """Whether false positives change along the logistic curve."""
    length: tuple[float, float] = (60.0, 60.0)


SCENARIOS = {
    "improving, FP .02 FN .03": Scenario(is_honest=True, gold=(0.3, 0.8)),
    "improving, FP .10 FN .15": Scenario(
        is_honest=True, gold=(0.3, 0.8), false_positive=(0.1, 0.1), false_negative=(0.15, 0.15)
    ),
    "flat": Scenario(is_honest=True, gold=(0.4, 0.4)),
    "collapsing, FP .02": Scenario(is_honest=True, gold=(0.6, 0.05)),
    "collapsing, FP .10": Scenario(is_honest=True, gold=(0.6, 0.05), false_positive=(0.1, 0.1), false_negative=(0.15, 0.15)),
    "learning the format, FN .30 to .05": Scenario(is_honest=True, gold=(0.3, 0.7), false_negative=(0.3, 0.05)),
    "growing longer": Scenario(is_honest=True, gold=(0.3, 0.7), length=(40.0, 120.0)),
    "hack 10 %": Scenario(is_honest=False, gold=(0.3, 0.6), hack=0.1),
    "hack 20 %": Scenario(is_honest=False, gold=(0.3, 0.6), hack=0.2),
    "hack 50 %": Scenario(is_honest=False, gold=(0.3, 0.6), hack=0.5),
    "hack 95 %": Scenario(is_honest=False, gold=(0.3, 0.6), hack=0.95),
    "lenient, FP .02 to .08": Scenario(is_honest=False, gold=(0.3, 0.6), false_positive=(0.02, 0.08), is_sudden=True),
    "lenient, FP .02 to .20": Scenario(is_honest=False, gold=(0.3, 0.6), false_positive=(0.02, 0.2), is_sudden=True),
}


def simulated_run(
    scenario: Scenario,
    generator: Generator,
    *,
    num_steps: int = NUM_STEPS,
    num_looks: int = NUM_LOOKS,
    num_held_out: int = NUM_HELD_OUT,
) -> History:
    """Return one run. Prompts differ in difficulty, and in how easily the proxy passes a wrong answer to them.

    A step draws new prompts; the held-out ones stay, one sampled answer each at every look. Twins are as hard as what they are
    twins of. A prompt's rate of false positives is the scenario's times an exponential variate, so that at a rate of .10 two
    failing rollouts correlate by about .1.
    """
    times = np.linspace(0.0, 1.0, num_steps)
    traits = _traits(generator, num_steps, NUM_PROMPTS)
    columns = _drawn(scenario, generator, times[:, None, None], traits, GROUP_SIZE)
    names = _step_names(num_steps)
    metrics = _metrics(generator, times)
    steps = [
        Step(step=index + 1, answers=_answers(columns, index, names[index]), metrics=metrics[index])
        for index in range(num_steps)
    ]
    at = np.linspace(0, num_steps, num_looks + 1).round().astype(int)
    traits_of = {part: _traits(generator, 1, size) for part, size in (("choose", num_held_out), ("guard", num_held_out))}
    traits_of |= {"twins": traits_of["guard"], "honeypots": _traits(generator, 1, NUM_HONEYPOTS)}
    looks = []
    for part, traits in traits_of.items():
        # An answer that meets a wrong key is an accident, or a hack.
        played = replace(scenario, gold=(0.01, 0.01)) if part == "honeypots" else scenario
        columns = _drawn(played, generator, at[:, None, None] / num_steps, traits, 1)
        names_of_part = _held_out_names("guard" if part == "twins" else part, traits[0].size)
        looks += [
            Look(step=step, part=part, mode="sampled", answers=_answers(columns, index, names_of_part))
            for index, step in enumerate(at.tolist())
        ]
    looks.sort(key=lambda look: look.step)
    return History(looks=looks, steps=steps, planned_looks=num_looks, group_size=GROUP_SIZE)


def _traits(generator: Generator, num_steps: int, num_prompts: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the prompts' difficulty and leniency, [T, P, 1] each."""
    shape = (num_steps, num_prompts, 1)
    return generator.normal(0.0, DIFFICULTY_STD, shape), generator.exponential(1.0, shape)


def _metrics(generator: Generator, times: np.ndarray) -> list[dict[str, float | None]]:
    """Return what is logged of each step: KL grows, entropy falls, neutral text is read as before."""
    kl = 8.0 * times * np.exp(generator.normal(0.0, 0.1, times.size))
    entropy = (1.0 - 0.7 * times) * np.exp(generator.normal(0.0, 0.05, times.size))
    nll = 3.0 + generator.normal(0.0, 0.01, times.size)
    rows = zip(kl.tolist(), entropy.tolist(), nll.tolist(), strict=True)
    return [{"kl/sequence": one, "entropy/mean": two, "damage/nll": three} for one, two, three in rows]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Columns:
    """All answers of one kind, [T or L, N] each."""

    proxy: np.ndarray
    gold: np.ndarray
    num_tokens: np.ndarray
    extracted: np.ndarray
    expected: np.ndarray


def _drawn(
    scenario: Scenario,
    generator: Generator,
    times: np.ndarray,
    traits: tuple[np.ndarray, np.ndarray],
    group_size: int,
) -> _Columns:
    """Draw the answers; `times` run from 0 to 1 [T, 1, 1], the prompts' traits are [T or 1, P, 1]."""
    difficulty, leniency = traits
    risen = 1.0 / (1.0 + np.exp((ONSET / NUM_STEPS - times) * NUM_STEPS / ONSET_WIDTH))
    shape = (len(times), difficulty.shape[1], group_size)
    # A logit-normal mean m needs about logit(m) sqrt(1 + (pi / 8) var) for its centre.
    mean = _between(scenario.gold, times)
    centre = np.log(mean / (1.0 - mean)) * np.sqrt(1.0 + np.pi / 8.0 * DIFFICULTY_STD**2)
    is_hack = generator.random(shape) < scenario.hack * risen
    chance = np.where(is_hack, GOLD_OF_HACKS, 1.0 / (1.0 + np.exp(difficulty - centre)))
    gold = generator.random(shape) < chance
    false_positive = _between(scenario.false_positive, risen if scenario.is_sudden else times) * leniency
    passes = np.where(gold, 1.0 - _between(scenario.false_negative, times), false_positive)
    proxy = is_hack | (generator.random(shape) < passes)
    length = _between(scenario.length, times) * np.exp(generator.normal(0.0, 0.3, shape) + 0.1 * difficulty)
    expected = np.broadcast_to(generator.integers(0, 100, difficulty.shape), shape)
    extracted = np.where(gold, expected, (expected + generator.integers(1, 100, shape)) % 100)
    rows = (len(times), -1)
    return _Columns(
        proxy=proxy.reshape(rows).astype(np.float64),
        gold=gold.reshape(rows).astype(np.float64),
        num_tokens=np.clip(length.reshape(rows), 1, MAX_TOKENS).astype(np.int64),
        extracted=_NUMBERS[extracted.reshape(rows)],
        expected=_NUMBERS[expected.reshape(rows)],
    )


_NUMBERS = np.array([str(number) for number in range(100)], dtype=object)


def _between(ends: tuple[float, float], times: np.ndarray) -> np.ndarray:
    return ends[0] + (ends[1] - ends[0]) * times


def _answers(columns: _Columns, index: int, names: Sequence[str]) -> Answers:
    return Answers(
        prompt_ids=names,
        proxy=columns.proxy[index],
        gold=columns.gold[index],
        num_tokens=columns.num_tokens[index],
        is_truncated=columns.num_tokens[index] >= MAX_TOKENS,
        extracted=columns.extracted[index].tolist(),
        expected=columns.expected[index].tolist(),
    )


@lru_cache
def _step_names(num_steps: int) -> list[list[str]]:
    return [[f"train-{step}-{prompt}" for prompt in range(NUM_PROMPTS) for _ in range(GROUP_SIZE)] for step in range(num_steps)]


@lru_cache
def _held_out_names(part: str, count: int) -> list[str]:
    return [f"{part}-{index}" for index in range(count)]
