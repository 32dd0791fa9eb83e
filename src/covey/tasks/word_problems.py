"""Word problems of one or two steps. Names and things change nothing: they are no part of what a question is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from covey.rewards.registry import find_reward
from covey.tasks.base import Probe, Task
from covey.tasks.generated import Canonical, Dice, Question, generated_task, level_of, number_probes
from covey.types import Prompt

# fmt: off
NAMES = (
    "Ada", "Bela", "Carla", "Dino", "Ella", "Femi", "Greta", "Hugo", "Ines", "Jonas",
    "Kira", "Luca", "Mona", "Nils", "Olga", "Pablo", "Rosa", "Samir", "Tessa", "Yusuf",
)
THINGS = (
    "apples", "marbles", "shells", "stamps", "buttons", "coins",
    "pencils", "stickers", "walnuts", "beads", "plums", "ribbons",
)
# fmt: on

_END = "Answer with just the number."


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """One kind of problem: {A} and {B} are names, {things} is a plural, {a}, {b} and {c} are numbers."""

    text: str
    numbers: Callable[[int, Dice], tuple[int, ...]]
    """Of the level's largest number and a stream: the numbers a, b and possibly c."""
    expression: str
    """What is to be computed, as it would be written down."""
    answer: Callable[..., int]
    is_symmetric: bool = False
    """Whether a and b may be swapped without changing what is computed."""


def two_summands(largest: int, dice: Dice) -> tuple[int, ...]:
    return dice.number(2, largest), dice.number(2, largest)


def larger_and_smaller(largest: int, dice: Dice) -> tuple[int, ...]:
    smaller, larger = sorted(dice.distinct(2, 2, largest))
    return larger, smaller


def two_factors(largest: int, dice: Dice) -> tuple[int, ...]:
    bound = 12 if largest < 100 else 20
    return dice.number(2, bound), dice.number(2, bound)


def dividend_and_divisor(largest: int, dice: Dice) -> tuple[int, ...]:
    share, divisor = two_factors(largest, dice)
    return share * divisor, divisor


def factors_and_summand(largest: int, dice: Dice) -> tuple[int, ...]:
    return dice.number(2, 12), dice.number(2, 12), dice.number(2, largest)


def summands_and_loss(largest: int, dice: Dice) -> tuple[int, ...]:
    first, second = two_summands(largest, dice)
    return first, second, dice.number(2, first + second - 1)


def double_loss(largest: int, dice: Dice) -> tuple[int, ...]:
    second, third = two_summands(largest, dice)
    return second + third + dice.number(1, largest), second, third


ONE_STEP: dict[str, Story] = {
    "join": Story(
        text="{A} has {a} {things} and gets {b} more. How many {things} does {A} have now?",
        numbers=two_summands,
        expression="{a} + {b}",
        answer=lambda a, b: a + b,
        is_symmetric=True,
    ),
    "give": Story(
        text="{A} has {a} {things} and gives {b} of them to {B}. How many {things} does {A} have left?",
        numbers=larger_and_smaller,
        expression="{a} - {b}",
        answer=lambda a, b: a - b,
    ),
    "compare": Story(
        text="{A} has {a} {things} and {B} has {b} {things}. How many more {things} does {A} have than {B}?",
        numbers=larger_and_smaller,
        expression="{a} - {b}",
        answer=lambda a, b: a - b,
    ),
    "before": Story(
        text="After finding {b} {things}, {A} has {a} {things}. How many {things} did {A} have before?",
        numbers=larger_and_smaller,
        expression="{a} - {b}",
        answer=lambda a, b: a - b,
    ),
    "bags": Story(
        text="{A} fills {a} bags with {b} {things} each. How many {things} are in the bags?",
        numbers=two_factors,
        expression="{a} * {b}",
        answer=lambda a, b: a * b,
        is_symmetric=True,
    ),
    "share": Story(
        text="{A} shares {a} {things} evenly among {b} children. How many {things} does each child get?",
        numbers=dividend_and_divisor,
        expression="{a} / {b}",
        answer=lambda a, b: a // b,
    ),
}

TWO_STEPS: dict[str, Story] = {
    "bags and more": Story(
        text="{A} has {a} bags with {b} {things} each, and {c} more {things} in a box. How many {things} does {A} have?",
        numbers=factors_and_summand,
        expression="{a} * {b} + {c}",
        answer=lambda a, b, c: a * b + c,
        is_symmetric=True,
    ),
    "both give": Story(
        text="{A} has {a} {things} and {B} has {b}. Together they give {c} {things} away. How many are left?",
        numbers=summands_and_loss,
        expression="{a} + {b} - {c}",
        answer=lambda a, b, c: a + b - c,
        is_symmetric=True,
    ),
    "give twice": Story(
        text="{A} has {a} {things}, gives {b} to {B} and then loses {c}. How many {things} does {A} have left?",
        numbers=double_loss,
        expression="{a} - {b} - {c}",
        answer=lambda a, b, c: a - b - c,
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """Which stories are told, with numbers up to what."""

    stories: dict[str, Story]
    largest: int


LEVELS: dict[str, Level] = {
    "easy": Level(stories=ONE_STEP, largest=60),
    "medium": Level(stories=ONE_STEP, largest=200),
    "hard": Level(stories=TWO_STEPS, largest=60),
}


def word_problems(*, level: str = "easy") -> Task:
    """Return the task at one of LEVELS.

    Raises:
        CoveyError: there is no such level.
    """
    spec = level_of(LEVELS, level, task="word_problems")
    return generated_task(
        "word_problems",
        level,
        partial(draw, spec),
        probes=probes,
        proxy=find_reward("last_number", key="task.verifier"),
        gold=find_reward("asserted_number", key="task.verifier"),
    )


def draw(spec: Level, dice: Dice) -> Question:
    """Return a question; its twin tells the same story of other people and things."""
    kind = dice.choice(list(spec.stories))
    story = spec.stories[kind]
    numbers = story.numbers(spec.largest, dice)
    names, things = dice.shuffled(NAMES), dice.shuffled(THINGS)
    values = dict(zip("abc", numbers, strict=False))
    told = [
        story.text.format(A=names[index], B=names[index + 1], things=things[index], **values) + f" {_END}" for index in (0, 2)
    ]
    answer = story.answer(*numbers)
    return Question(
        canonical=canonical(kind, story, numbers),
        text=told[0],
        twin_text=told[1],
        answer=answer,
        # Beyond what any of the question's numbers give together.
        wrong_answer=answer + sum(numbers) + dice.number(401, 799),
        right=str(answer),
        tags={"expression": story.expression.format(**values), "story": kind},
    )


def canonical(kind: str, story: Story, numbers: tuple[int, ...]) -> Canonical:
    """Return the kind and the numbers, in one order where the first two may be swapped."""
    swappable = sorted(numbers[:2]) if story.is_symmetric else list(numbers[:2])
    return (kind, *swappable, *numbers[2:])


def probes(prompt: Prompt) -> list[Probe]:
    """Return right answers in several wordings, and cheats that must earn nothing."""
    return number_probes(prompt, other=str(prompt.answer + 1))
