"""Variants of right answers: other clothes keep the value, another value loses it, a second answer gains nothing."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest
from tests.builders import make_prompt, make_sample

from covey.guard.metamorphic import KEEPS, corrupted_variants, kept_variants, second_answers, variants_of
from covey.guard.targets import Target, target_of
from covey.rewards.base import safe_score
from covey.tasks.registry import TASK_LEVELS, TASKS, find_task


def target(answer: object) -> Target:
    return target_of(make_prompt(text="How much is it?", answer=answer))


def kept(completion: str, answer: object) -> dict[str, str]:
    return {attack.variant: attack.completion for attack in kept_variants(completion, target(answer))}


def test_a_number_is_reworded_in_all_these_ways():
    assert kept("The answer is -1234.", -1234) == {
        "blanks around": "  The answer is -1234.  ",
        "lines around": "\n\nThe answer is -1234.\n",
        "full stop": "The answer is -1234",
        "bold value": "The answer is **-1234**.",
        "code value": "The answer is `-1234`.",
        "dollars": "The answer is $-1234$.",
        "brackets of LaTeX": r"The answer is \(-1234\).",
        "box": r"The answer is \boxed{-1234}.",
        "bold whole": "**The answer is -1234.**",
        "separators": "The answer is -1,234.",
        "zero behind the point": "The answer is -1234.0.",
        "typographic minus": "The answer is \N{MINUS SIGN}1234.",
        "polite start": "Sure, here it is: The answer is -1234.",
        "restated question": "How much is it?\nThe answer is -1234.",
    }


def test_case_is_changed_only_where_the_answer_has_letters_of_any_case():
    assert kept("oslo", "oslo")["other case"] == "OSLO"
    assert "other case" not in kept("Oslo", "Oslo")
    assert "other case" not in kept("21", 21)


def test_separators_of_thousands_come_and_go():
    assert kept("1,234", "1,234")["separators"] == "1234"
    assert "separators" not in kept("999", 999)


def test_rewordings_keep_the_value_as_a_plain_reader_sees_it():
    for answer in (21, -5, 1234, "2.5"):
        for completion in (str(answer), f"The answer is {answer}."):
            for name, text in kept(completion, answer).items():
                read = text.replace("\N{MINUS SIGN}", "-").replace(",", "")
                numbers = [Decimal(found) for found in re.findall(r"-?\d+(?:\.\d+)?", read)]
                assert numbers == [Decimal(answer)], (name, text)


@pytest.mark.parametrize(("name", "level"), [(name, level) for name in TASKS for level in TASK_LEVELS[name]])
def test_no_corruption_of_a_right_probe_passes_gold(name: str, level: str):
    task = find_task(name, level=level)
    assert task.gold is not None
    passed = []
    for probe in task.probes:
        if not probe.is_right:
            continue
        for attack in corrupted_variants(probe.completion, target_of(probe.prompt)):
            score = safe_score(task.gold, make_sample(attack.completion, prompt=probe.prompt))
            if score.value == 1.0 and attack.kind == "near":
                passed.append((probe.completion, attack.completion))
    assert passed == []


def test_a_corruption_keeps_the_clothes_and_changes_the_value():
    texts = {attack.completion for attack in corrupted_variants(r"\boxed{21}", target(21))}
    assert {r"\boxed{22}", r"\boxed{-21}", r"\boxed{210}", r"\boxed{12}"} <= texts


def test_numbers_are_moved_where_the_answer_cannot_be_found_in_the_text():
    assert [attack.completion for attack in corrupted_variants("17 + 4 = 21", target(21))] == ["18 + 5 = 22"]


def test_a_second_answer_stands_behind_and_before():
    texts = {attack.completion for attack in second_answers("21", target(21)) if attack.variant == "or"}
    assert texts == {"21 or 22", "22 or 21"}


def test_no_text_is_a_variant_twice_and_only_rewordings_are_right():
    variants = variants_of("The answer is 21.", target(21))
    assert len({attack.completion for attack in variants}) == len(variants)
    assert {attack.family for attack in variants if attack.is_right} == {"rewording"}
    assert {attack.family for attack in variants} == {"rewording", "corruption", "second answer"}


def test_an_exact_match_keeps_its_reward_under_blanks_and_loses_it_under_corruption():
    def exact(text: str) -> bool:
        return text.strip().strip(".*$`") == "21"

    variants = variants_of("21", target(21))
    paid = {attack.variant for attack in variants if exact(attack.completion)}
    assert paid == {"blanks around", "lines around", "full stop", "bold value", "code value", "dollars"}
    assert not any(exact(attack.completion) for attack in variants if not attack.is_right)


def test_every_change_applies_to_some_right_answer():
    seen = {name for answer in (-1234, "oslo") for name in kept(f"{answer}", answer)}
    assert seen == set(KEEPS)
