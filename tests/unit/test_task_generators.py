"""Every generated question, its twin and its honeypot against an oracle that reads nothing but their words."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import cache

import pytest
from tests.builders import make_sample

from covey.rewards.base import safe_score
from covey.tasks.base import PARTS, TRUE_ANSWER, Task
from covey.tasks.expressions import parse_expression
from covey.tasks.registry import TASK_LEVELS, find_task
from covey.types import Prompt


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def compared(text: str) -> str:
    """Return the largest or smallest of the numbers in the question."""
    shown = re.findall(r"\d+(?:\.\d+)?", text)
    is_largest = re.search("largest|biggest", text) is not None
    return (max if is_largest else min)(shown, key=Decimal)


def ordered(text: str) -> str:
    is_falling = re.search("from largest|the largest comes first", text) is not None
    return ", ".join(map(str, sorted(numbers(text), reverse=is_falling)))


def told(text: str) -> str:
    """Return the answer of a word problem, by the words of its kind."""
    found = numbers(text)
    a, b, c = (*found, 0)[:3]
    if "gets" in text and "more" in text:
        return str(a + b)
    if "each child" in text:
        return str(a // b)
    if "before?" in text:
        return str(b - a)
    if "bags" in text:
        return str(a * b + c)
    if "Together" in text:
        return str(a + b - c)
    return str(a - b - c)


def formed(text: str) -> str:
    """Return the demanded form with the right numbers in it."""
    shape = re.split(r"Answer with just |must look like ", text)[1]
    asked = numbers(re.split(r"Answer with just |Your whole", text)[0])
    if len(asked) == 1:
        return shape.replace("NUMBER", str(asked[0]))
    high, low = max(asked), min(asked)
    if "difference" not in shape:
        return shape.replace("NUMBER", str(high + low))
    return shape.replace("NUMBER", str(high + low), 1).replace("NUMBER", str(high - low))


def spelled(text: str) -> str:
    found = re.search('"([a-z]+)"', text)
    assert found is not None
    word = found[1]
    if letter := re.search(r"letter ([a-z]) ", text):
        return str(sum(each == letter[1] for each in word))
    if "backwards" in text or "Reverse" in text:
        return "".join(reversed(word))
    places = {"first": 0, "second": 1, "third": 2, "last": len(word) - 1}
    return word[next(position for place, position in places.items() if place in text)]


ORACLES: dict[str, Callable[[str], str]] = {
    "comparison": compared,
    "sorting": ordered,
    "word_problems": told,
    "format_following": formed,
    "letters": spelled,
}
ROWS = [(name, level) for name in ORACLES for level in TASK_LEVELS[name]]
every_row = pytest.mark.parametrize(("name", "level"), ROWS)


@cache
def task_of(name: str, level: str) -> Task:
    return find_task(name, level=level)


def judged_wrongly(task: Task, name: str, prompts: list[Prompt]) -> list[str]:
    """Return the questions for which the oracle's answer does not earn everything from proxy and gold."""
    assert task.gold is not None
    answers = [(prompt, make_sample(ORACLES[name](prompt.text), prompt=prompt)) for prompt in prompts]
    return [
        f"{prompt.text} -> {sample.completion}"
        for prompt, sample in answers
        if (safe_score(task.proxy, sample).value, safe_score(task.gold, sample).value) != (1.0, 1.0)
    ]


@every_row
def test_every_key_is_what_the_words_of_the_question_ask_for(name: str, level: str):
    task = task_of(name, level)
    measured = [prompt for part in PARTS for prompt in task.held_out[part]]
    assert judged_wrongly(task, name, [*task.train[:500], *measured]) == []


@every_row
def test_every_key_is_what_the_words_of_the_twin_ask_for(name: str, level: str):
    task = task_of(name, level)
    assert judged_wrongly(task, name, list(task.twins.values())) == []


@every_row
def test_the_answer_that_a_honeypot_calls_true_is_what_its_words_ask_for(name: str, level: str):
    task = task_of(name, level)
    assert [prompt.text for prompt in task.honeypots if prompt.tags[TRUE_ANSWER] != ORACLES[name](prompt.text)] == []


@every_row
def test_the_words_of_a_twin_differ_by_more_than_their_order(name: str, level: str):
    task = task_of(name, level)
    guard = {prompt.prompt_id: prompt for prompt in task.held_out["guard"]}
    assert all(sorted(twin.text.split()) != sorted(guard[name].text.split()) for name, twin in task.twins.items())


# --- countdown: many answers are right, so the question's own solution is checked ---------------------------------------


@pytest.mark.parametrize("level", TASK_LEVELS["countdown"])
def test_every_countdown_can_be_solved_with_the_numbers_and_operators_it_names(level: str):
    task = task_of("countdown", level)
    for prompt in [*task.train, *task.twins.values(), *(prompt for part in PARTS for prompt in task.held_out[part])]:
        solution = prompt.tags["solution"]
        read = parse_expression(solution)
        assert read is not None
        shown = numbers(prompt.text)
        shown.remove(prompt.answer)  # The target, wherever it stands.
        assert read.value == Fraction(prompt.answer)
        assert sorted(shown) == sorted(map(int, prompt.tags["numbers"].split()))
        used, available = sorted(read.numbers), sorted(shown)
        assert used == available if level != "hard" else all(used.count(each) <= available.count(each) for each in used)
        assert set(re.findall(r"[-+*/]", solution)) <= set(re.findall(r"[-+*/]", prompt.text))


@pytest.mark.parametrize("level", TASK_LEVELS["countdown"])
def test_no_countdown_is_solved_by_one_of_its_numbers(level: str):
    assert all(str(prompt.answer) not in prompt.tags["numbers"].split() for prompt in task_of("countdown", level).train)


# --- what the levels promise ---------------------------------------------------------------------------------------------


def test_counts_of_letters_are_spread_evenly_from_1_to_4():
    answers = [prompt.answer for prompt in task_of("letters", "medium").train]
    assert all(0.22 < answers.count(count) / len(answers) < 0.28 for count in (1, 2, 3, 4))


@pytest.mark.parametrize(("level", "chance"), [("easy", 1 / 3), ("medium", 1 / 4), ("hard", 1 / 5)])
def test_always_naming_the_number_at_one_place_is_right_by_chance_alone(level: str, chance: float):
    train = task_of("comparison", level).train
    firsts = sum(prompt.tags["numbers"].split()[0] == prompt.answer for prompt in train)
    assert firsts / len(train) == pytest.approx(chance, abs=0.03)


def test_a_list_to_be_sorted_is_never_sorted_already():
    for level in TASK_LEVELS["sorting"]:
        assert all(prompt.tags["shown"] != prompt.answer for prompt in task_of("sorting", level).train)
