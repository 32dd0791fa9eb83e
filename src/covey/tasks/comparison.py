"""The largest or smallest of several numbers. Chance is one in the number of them."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from functools import partial

from covey.rewards.registry import find_reward
from covey.tasks.base import Probe, Task
from covey.tasks.generated import Dice, Question, generated_task, level_of, number_probes
from covey.types import Prompt

_WORDS = {"largest": ("largest", "biggest"), "smallest": ("smallest", "lowest")}
"""Each kind in the words of the question and of its twin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """How many numbers are compared, up to what, and in which ways."""

    count: int
    largest: int
    kinds: tuple[str, ...] = ("largest",)
    has_decimals: bool = False


LEVELS: dict[str, Level] = {
    "easy": Level(count=3, largest=99),
    "medium": Level(count=4, largest=999, kinds=("largest", "smallest")),
    "hard": Level(count=5, largest=20, kinds=("largest", "smallest"), has_decimals=True),
}


def comparison(*, level: str = "easy") -> Task:
    """Return the task at one of LEVELS.

    Raises:
        CoveyError: there is no such level.
    """
    spec = level_of(LEVELS, level, task="comparison")
    return generated_task(
        "comparison",
        level,
        partial(draw, spec),
        probes=probes,
        proxy=find_reward("last_number", key="task.verifier"),
        gold=find_reward("asserted_number", key="task.verifier"),
    )


def draw(spec: Level, dice: Dice) -> Question:
    """Return a question. Which of the numbers is asked for, and their order, is no part of what it is."""
    shown = [written(spec, number, dice) for number in dice.distinct(spec.count, 1, spec.largest)]
    kind = dice.choice(spec.kinds)
    answer = (max if kind == "largest" else min)(shown, key=Decimal)
    word, twin_word = _WORDS[kind]
    # None of the numbers, and out of their range: who errs says one of those that are shown.
    wrong = str(spec.largest + dice.number(11, 60))
    return Question(
        canonical=tuple(sorted(shown, key=Decimal)),
        text=f"Which of these numbers is the {word}: {', '.join(shown)}? Answer with just the number.",
        twin_text=f"Look at {', '.join(dice.shuffled(shown))}. Which one is the {twin_word}? Answer with just the number.",
        answer=answer,
        wrong_answer=wrong,
        right=answer,
        tags={"numbers": " ".join(shown), "kind": kind},
    )


def written(spec: Level, number: int, dice: Dice) -> str:
    """Return the number, with one to three decimals of which the last is not 0 where the level has decimals."""
    if not spec.has_decimals:
        return str(number)
    decimals = [*(str(dice.number(0, 9)) for _ in range(dice.number(0, 2))), str(dice.number(1, 9))]
    return f"{number}.{''.join(decimals)}"


def probes(prompt: Prompt) -> list[Probe]:
    """Return right answers in several wordings, and cheats that must earn nothing."""
    other = next(number for number in prompt.tags["numbers"].split() if number != prompt.answer)
    return number_probes(prompt, other=other)
