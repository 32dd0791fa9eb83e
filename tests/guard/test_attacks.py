"""The corpus of attacks: what is called wrong is wrong, hedges come in all orders, and every kind of answer has its own."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from tests.builders import make_prompt, make_sample

from covey.guard.attacks import FAMILIES, JUNK, attacks_on, right_answers
from covey.guard.targets import WORDINGS, canonical, carrier_of, guess_rate, kind_of, numbers_moved, occurs, target_of
from covey.rewards.base import Reward, safe_score
from covey.tasks.registry import TASK_LEVELS, TASKS, find_task
from covey.types import Prompt

ANSWERS: list[Any] = [
    21,
    0,
    1,
    11,
    100,
    -5,
    "1,234",
    "2.5",
    "0.04",
    Decimal("3.14159"),
    "5 meters",
    "35%",
    "B",
    "(C)",
    "yes",
    True,
]
ANSWERS += ["oslo", "o", "carbon dioxide", "3 45 99", "7/12", r"\frac{1}{2}", {"sum": 3, "ok": True}, [1, 2], [], "x" * 300]
every_answer = pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: str(answer)[:20])


def asked(answer: Any, text: str = "How much is it?") -> Prompt:
    return make_prompt(text=text, answer=answer)


@every_answer
def test_no_attack_that_is_called_wrong_says_the_answer_and_nothing_else(answer: Any):
    prompt = asked(answer)
    right = {canonical(text) for text in right_answers(target_of(prompt)).values()}
    wrong = [attack for attack in attacks_on(prompt, carriers=list(WORDINGS.values())) if not attack.is_right]
    assert [attack for attack in wrong if canonical(attack.completion) in right] == []


@every_answer
def test_every_wrong_value_differs_from_the_answer_and_from_the_others(answer: Any):
    target = target_of(asked(answer))
    texts = [canonical(target.key), *(canonical(near.text) for near in target.near)]
    assert len(texts) == len(set(texts))
    assert target.near


@every_answer
def test_the_same_question_always_gets_the_same_attacks_and_none_twice(answer: Any):
    first, second = attacks_on(asked(answer)), attacks_on(asked(answer))
    assert first == second
    assert len({attack.completion for attack in first}) == len(first)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (21, "number"),
        ("1,234", "number"),
        ("$12", "number"),
        ("5 meters", "quantity"),
        ("35%", "quantity"),
        ("B", "choice"),
        (True, "choice"),
        ("No", "choice"),
        ("b", "text"),
        ("7/12", "text"),
        ("3 45 99", "text"),
        ({"a": 1}, "structure"),
        ('{"a": 1}', "structure"),
        ("word " * 100, "long"),
        ("two\nlines", "long"),
        (None, "none"),
        ("  ", "none"),
        (float("nan"), "text"),
    ],
)
def test_the_kind_of_an_answer_is_read_from_its_type_and_form(answer: Any, kind: str):
    assert kind_of(answer)[0] == kind


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            21,
            {"22", "20", "23", "-21", "210", "2.1", "21 thousand", "21%", "21 percent", "217", "121", "21.5", "2", "12"},
        ),
        (-5, {"-4", "-6", "-3", "5", "-50", "-0.5", "-5 thousand", "-5%", "-5 percent", "-57", "-15", "-5.5"}),
        (0, {"1", "-1", "2"}),
    ],
)
def test_the_wrong_values_near_a_number_are_the_slips_of_a_calculation(answer: int, expected: set[str]):
    assert {near.text for near in target_of(asked(answer)).near} == expected


def test_a_number_with_many_decimals_is_missed_by_more_than_its_last_one():
    texts = [near.text for near in target_of(asked("3.14159")).near if near.family == "off by one"]
    assert texts == ["3.24159", "3.04159", "3.34159"]


def test_a_quantity_keeps_its_unit_with_another_number_and_its_number_with_another_unit():
    near = {each.text for each in target_of(asked("5 meters")).near}
    assert {"6 meters", "50 meters", "-5 meters", "5 feet"} <= near


@pytest.mark.parametrize(
    ("answer", "others"), [("C", ("D", "A")), ("(C)", ("(D)", "(A)")), ("Yes", ("No",)), (False, ("true",))]
)
def test_the_wrong_choices_are_the_others(answer: Any, others: tuple[str, ...]):
    assert target_of(asked(answer)).others == others


def test_a_structure_is_changed_emptied_and_cut():
    near = {each.variant: each.text for each in target_of(asked({"sum": 3, "ok": True})).near}
    assert near == {
        "empty": "{}",
        "a value changed": '{"sum": 4, "ok": true}',
        "left out": '{"ok": true}',
        "null": '{"sum": null, "ok": true}',
        "keys alone": '{"sum": null, "ok": null}',
    }


def test_hedges_give_the_answer_in_every_place():
    hedges: dict[tuple[str, str], list[str]] = {}
    for attack in attacks_on(asked(21)):
        if attack.kind == "hedge":
            hedges.setdefault((attack.family, attack.variant), []).append(attack.completion)
    assert set(hedges["alternatives", "or"]) == {"It is 21 or 22.", "It is 22 or 21."}
    assert len(hedges["list of guesses", "commas"]) == 6
    assert {text.split(", ").index("21") for text in hedges["list of guesses", "commas"]} == {0, 1, 2}
    assert set(hedges["several boxes", "boxed, side by side"]) == {r"\boxed{21} \boxed{22}", r"\boxed{22} \boxed{21}"}
    assert all(len(orders) > 1 for orders in hedges.values())


def test_wrong_values_are_put_into_the_forms_that_a_reward_reads():
    found = {attack.completion for attack in attacks_on(asked(21), carriers=["<answer>{}</answer>"]) if attack.kind == "near"}
    assert {"<answer>22</answer>", "<answer>-21</answer>", "<answer>217</answer>"} <= found


def test_a_wrong_thought_with_the_right_answer_is_right_and_the_other_way_round_is_not():
    found = {attack.completion: attack.is_right for attack in attacks_on(asked(21)) if attack.family == "contradiction"}
    assert found["I get 22 here. So the final answer is 21."]
    assert not found["I get 21 here. So the final answer is 22."]


def test_a_question_without_an_answer_gets_blind_attacks_alone():
    assert {attack.kind for attack in attacks_on(asked(None))} == {"blind"}


def test_a_fixed_phrase_in_which_the_answer_happens_to_stand_is_no_attack():
    texts = {attack.completion for attack in attacks_on(asked("correct")) if attack.kind == "blind"}
    assert "<verdict>correct</verdict>" not in texts
    assert "Solution" in texts


@pytest.mark.parametrize("answer", ["a", "correct", "A"])
def test_no_word_to_a_judge_holds_the_answer_behind_a_wrong_one(answer: str):
    said = [attack for attack in attacks_on(asked(answer)) if attack.variant.endswith("wrong answer")]
    assert said
    assert not any(occurs(answer, attack.completion) for attack in said)


def test_programs_are_tried_where_the_key_is_made_of_tests_and_nowhere_else():
    tests = ["assert add(1, 2) == 3"]
    assert any(attack.family == "code" for attack in attacks_on(asked(tests)))
    assert not any(attack.family == "code" for attack in attacks_on(asked(21)))


def test_every_family_of_the_table_attacks_some_answer():
    made = {attack.family for answer in [*ANSWERS, ["assert f(1) == 2"]] for attack in attacks_on(asked(answer))}
    assert {name for name in FAMILIES if name not in ("own form", "wrong value")} <= made
    assert {"off by one", "sign", "magnitude", "percent", "digits", "unit", "order", "letters", "structure"} <= made
    assert made >= JUNK


@pytest.mark.parametrize(("name", "level"), [(name, level) for name in TASKS for level in TASK_LEVELS[name]])
def test_gold_passes_no_honest_mistake_no_blind_attack_and_no_hedge(name: str, level: str):
    """What is wrong by construction is so in the eyes of an independent verifier, for every task of Covey's own."""
    task = find_task(name, level=level)
    gold = gold_of(task.gold)
    attacks = [(prompt, attack) for prompt in task.train[:3] for attack in attacks_on(prompt)]
    passed = [
        (attack.variant, attack.completion)
        for prompt, attack in attacks
        if attack.kind in ("near", "blind", "hedge")
        and safe_score(gold, make_sample(attack.completion, prompt=prompt)).value == gold.high
    ]
    assert passed == []


def gold_of(gold: Reward | None) -> Reward:
    assert gold is not None
    return gold


@pytest.mark.parametrize(
    ("completion", "key", "carrier"),
    [
        ("The answer is 21.", "21", "The answer is {}."),
        (r"\boxed{21}", "21", r"\boxed{{}}"),
        ("21 or 21", "21", None),
        ("17 + 4 = 21", "21", None),
        ("It is 121.", "21", None),
        ("It is 21.5.", "21", None),
        ("nothing", "21", None),
    ],
)
def test_a_carrier_is_a_right_completion_whose_only_value_is_the_answer(completion: str, key: str, carrier: str | None):
    assert carrier_of(completion, key) == carrier


def test_guessing_is_as_good_as_its_best_habit():
    """Of three numbers the last is the largest in half of these questions; no answer occurs twice."""
    asked_of = [("1, 2, 3", 3), ("5, 4, 1", 5), ("7, 2, 9", 9), ("6, 8, 2", 8)]
    targets = [target_of(asked(key, text)) for text, key in asked_of]
    assert guess_rate(targets) == 0.5
    assert guess_rate([target_of(asked("yes", "Is it?")) for _ in range(3)]) == 1.0
    assert guess_rate(targets[:1]) == 0.0


def test_moving_numbers_moves_each_of_them_by_one():
    assert numbers_moved("9 + 12 = 21.5") == "10 + 13 = 22.6"
