"""Questions of reasoning-gym: apart by seed and by words, and judged by exact match."""

from __future__ import annotations

import random
import sys
from types import ModuleType
from typing import Any

import pytest

from covey.rewards.base import safe_score
from covey.tasks.base import PARTS, Probe, Task, probe_sample
from covey.tasks.reasoning_gym import HELD_OUT_SEED, MAX_QUESTIONS, TRAIN_SEED
from covey.tasks.registry import find_task
from covey.types import CoveyError, Prompt


class Gym(ModuleType):
    """Stands in for the package: like there, question i of seed s is drawn with the seed s + i."""

    def __init__(self, num_different: int = 10**6):
        super().__init__("reasoning_gym")
        self.num_different = num_different
        self.made: list[tuple[str, int, int, dict[str, Any]]] = []

    def create_dataset(self, name: str, *, seed: int, size: int, **options: Any) -> list[dict[str, Any]]:
        if name != "sums":
            raise ValueError(f"Dataset '{name}' not registered")
        self.made.append((name, seed, size, options))
        return [self.question(seed + index) for index in range(size)]

    def question(self, seed: int) -> dict[str, Any]:
        number = random.Random(seed).randrange(self.num_different)
        return {"question": f"What is {number} plus 1?", "answer": str(number + 1), "metadata": {"number": number}}


@pytest.fixture
def gym(monkeypatch: pytest.MonkeyPatch) -> Gym:
    stand_in = Gym()
    monkeypatch.setitem(sys.modules, "reasoning_gym", stand_in)
    return stand_in


def task_of(**options: Any) -> Task:
    return find_task("reasoning_gym", level="", options={"generator": "sums", **options})


def held_out(task: Task) -> list[Prompt]:
    return [prompt for part in PARTS for prompt in task.held_out[part]]


def test_the_task_passes_its_self_check(gym: Gym):
    task = task_of(num_questions=300)
    task.check()
    assert {part: len(task.held_out[part]) for part in PARTS} == dict.fromkeys(PARTS, 86)
    assert len(task.honeypots) == 40


def test_the_seeds_of_training_and_of_what_is_held_out_cannot_overlap(gym: Gym):
    task_of(num_questions=300)
    (_, train_seed, train_size, _), (_, held_out_seed, held_out_size, _) = gym.made
    assert held_out_seed + held_out_size <= train_seed or train_seed + train_size <= held_out_seed
    assert HELD_OUT_SEED + MAX_QUESTIONS <= TRAIN_SEED


def test_a_question_that_both_draw_is_held_out_alone(gym: Gym):
    gym.num_different = 400
    task = task_of(num_questions=2000)
    trained = {prompt.text for prompt in task.train}
    assert len(held_out(task)) == 3 * 26
    assert not trained & {prompt.text for prompt in held_out(task)}


def test_a_question_that_is_drawn_again_is_asked_once_and_noted(gym: Gym):
    gym.num_different = 400
    task = task_of(num_questions=2000)
    assert len({prompt.text for prompt in task.train}) == len(task.train)
    assert task.notes == [
        f"reasoning_gym/sums: {len(task.train)} of 2000 drawn questions are trained on; the others repeat one or are held out"
    ]


def test_the_held_out_questions_do_not_depend_on_how_many_are_trained_on(gym: Gym):
    few, many = (task_of(num_questions=number) for number in (4000, 9000))
    assert [prompt.prompt_id for prompt in held_out(few)] == [prompt.prompt_id for prompt in held_out(many)]


def test_the_key_in_tags_is_right_and_a_list_with_the_key_in_it_is_not(gym: Gym):
    task = task_of(num_questions=300)
    prompt = task.train[0]
    listed = " ".join(str(number) for number in range(int(prompt.answer) + 1))[-2000:]
    scores = [
        safe_score(task.proxy, probe_sample(Probe(prompt=prompt, completion=completion, is_right=True))).value
        for completion in (f"<answer>{prompt.answer}</answer>", listed, "anything")
    ]
    assert scores == [1.0, 0.0, 0.0]


def test_options_reach_the_generator(gym: Gym):
    task_of(num_questions=100, generator_options={"max_terms": 3})
    assert [options for _, _, _, options in gym.made] == [{"max_terms": 3}] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generator": ""}, r"needs task\.generator"),
        ({"generator": "nothing"}, "task.generator='nothing' cannot be made: Dataset 'nothing' not registered"),
        ({"seed": 3}, r"task\.seed is no option"),
        ({"generator_options": {"seed": 3}}, "generator_options has 'seed'"),
        ({"num_questions": 3}, "give a number from 10"),
        ({"template": "x"}, "has no {prompt} in it"),
    ],
)
def test_a_wrong_option_is_refused(gym: Gym, options: dict[str, Any], message: str):
    with pytest.raises(CoveyError, match=message):
        task_of(**options)


def test_a_generator_with_too_few_questions_is_refused(gym: Gym):
    gym.num_different = 5
    with pytest.raises(CoveyError, match="has 5 different questions in 100: too few"):
        task_of(num_questions=100)


def test_without_the_package_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(CoveyError, match=r"pip install 'covey\[reasoning-gym\]'"):
        task_of()
