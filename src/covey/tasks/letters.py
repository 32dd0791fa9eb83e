"""Letters of made-up words. In text the answers of such questions are far from evenly spread; here they are drawn evenly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from covey.rewards.base import FunctionReward, Reward
from covey.rewards.registry import find_reward
from covey.tasks.base import Probe, Task
from covey.tasks.generated import Dice, Question, generated_task, level_of, make_probes, number_probes
from covey.tasks.wording import last_word, only_word
from covey.types import Prompt

VOWELS, CONSONANTS = "aeiou", "bcdfghjklmnprstvwz"
_POSITIONS = {"first": 0, "second": 1, "third": 2, "last": -1}

PROXY = FunctionReward(name="last_word", score=last_word, runs_inline=True)
GOLD = FunctionReward(name="only_word", score=only_word, runs_inline=True)


def letter_question(dice: Dice) -> Question:
    """Return which letter stands at a place of a word."""
    word, place = made_up_word(dice, dice.number(4, 7)), dice.choice(list(_POSITIONS))
    answer = word[_POSITIONS[place]]
    absent = [letter for letter in VOWELS + CONSONANTS if letter not in word]
    return Question(
        canonical=("letter", word, _POSITIONS[place]),
        text=f'What is the {place} letter of "{word}"? Answer with just the letter.',
        twin_text=f'Look at the word "{word}". Which letter is its {place} one? Answer with just the letter.',
        answer=answer,
        wrong_answer=dice.choice(absent),
        right=answer,
        tags={"word": word},
    )


def count_question(dice: Dice) -> Question:
    """Return how often a letter occurs in a word: from 1 to 4 times, each equally often among all questions."""
    letter, count = dice.choice(VOWELS + CONSONANTS), dice.number(1, 4)
    others = [other for other in VOWELS + CONSONANTS if other != letter]
    word = "".join(dice.shuffled([letter] * count + [dice.choice(others) for _ in range(dice.number(3, 5))]))
    return Question(
        canonical=("count", word, letter),
        text=f'How often does the letter {letter} occur in "{word}"? Answer with just the number.',
        twin_text=f'Count the letter {letter} in the word "{word}". Answer with just the number.',
        answer=count,
        wrong_answer=dice.number(11, 40),
        right=str(count),
        tags={"word": word},
    )


def reverse_question(dice: Dice) -> Question | None:
    """Return how a word is written backwards."""
    word = made_up_word(dice, dice.number(4, 6))
    answer = word[::-1]
    wrong = made_up_word(dice, len(word))
    if answer == word or wrong in (word, answer):
        return None
    return Question(
        canonical=("reverse", word),
        text=f'Write the word "{word}" backwards. Answer with just the result.',
        twin_text=f'Reverse the letters of "{word}". Answer with just the result.',
        answer=answer,
        wrong_answer=wrong,
        right=answer,
        tags={"word": word},
    )


def made_up_word(dice: Dice, length: int) -> str:
    """Return a word in which vowels and consonants take turns."""
    starts_with_vowel = dice.number(0, 1)
    return "".join(dice.choice(VOWELS if (index + starts_with_vowel) % 2 else CONSONANTS) for index in range(length))


def word_probes(prompt: Prompt) -> list[Probe]:
    """Return right answers in several wordings, and cheats that must earn nothing, for an answer that is a word."""
    answer, word = prompt.answer, prompt.tags["word"]
    other = "q" * len(answer)
    right = [answer, f" {answer}.", f"The answer is {answer}.", f"**{answer}**", f'"{answer}"', answer.upper()]
    cheats = [
        "",
        prompt.text,
        word,
        f"{other} {answer}",
        f"{answer} or {other}",
        f"{other}, {answer}",
        f"not {answer}",
        f"It isn't {answer}.",
        f"{answer}{answer}",
        f"{answer} 1",
        f"{answer}q",
        f"q{answer}",
        " ".join("abcdefghijklmnopqrstuvwxyz"),
        " ".join(f"{letter}{answer}" for letter in "bcdf"),
        other,
    ]
    return make_probes(prompt, right=right, cheats=cheats)


def count_probes(prompt: Prompt) -> list[Probe]:
    """Return the same for an answer that is a number."""
    return number_probes(prompt, other=str(prompt.answer + 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """What is asked, and how it is judged."""

    draw: Callable[[Dice], Question | None]
    probes: Callable[[Prompt], list[Probe]] = word_probes
    proxy: Reward = PROXY
    gold: Reward = GOLD


LEVELS: dict[str, Level] = {
    "easy": Level(draw=letter_question),
    "medium": Level(
        draw=count_question,
        probes=count_probes,
        proxy=find_reward("last_number", key="task.verifier"),
        gold=find_reward("asserted_number", key="task.verifier"),
    ),
    "hard": Level(draw=reverse_question),
}


def letters(*, level: str = "easy") -> Task:
    """Return the task at one of LEVELS: a letter at a place, the number of times it occurs, a word backwards.

    Raises:
        CoveyError: there is no such level.
    """
    spec = level_of(LEVELS, level, task="letters")
    return generated_task("letters", level, spec.draw, probes=spec.probes, proxy=spec.proxy, gold=spec.gold)
