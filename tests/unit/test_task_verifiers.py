"""The verifiers that come with the tasks, on completions that right models write and on such that cheat."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.rewards.base import FunctionReward, Sample, safe_score
from covey.tasks import countdown, format_following, letters, presets, reasoning_gym, sorting
from covey.tasks.expressions import expressions_in, parse_expression, uses
from covey.types import Message, Prompt, Score


def sample(completion: str, answer: Any, **tags: str) -> Sample:
    prompt = Prompt(prompt_id="p", messages=(Message(role="user", content="?"),), answer=answer, tags=tags)
    return Sample(prompt=prompt, completion=completion, num_tokens=len(completion), is_truncated=False)


def value(verifier: FunctionReward | Callable[[Sample], Score], completion: str, answer: Any, **tags: str) -> float | None:
    return verifier(sample(completion, answer, **tags)).value


# --- expressions ---------------------------------------------------------------------------------------------------------


@st.composite
def trees(draw: st.DrawFn, depth: int = 3) -> tuple[str, Fraction | None, list[int]]:
    """Return an expression with all its brackets, its value (None: it divides by zero) and its numbers in order."""
    if depth == 0 or draw(st.booleans()):
        number = draw(st.integers(0, 99))
        return str(number), Fraction(number), [number]
    (one, a, left), (other, b, right) = draw(trees(depth - 1)), draw(trees(depth - 1))
    operator = draw(st.sampled_from("+-*/"))
    blank = draw(st.sampled_from(["", " "]))
    result: Fraction | None = None
    if a is not None and b is not None and not (operator == "/" and b == 0):
        result = {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a / b}[operator]()
    return f"({one}{blank}{operator}{blank}{other})", result, left + right


@given(tree=trees())
def test_an_expression_is_worth_what_its_tree_is(tree: tuple[str, Fraction | None, list[int]]):
    text, result, numbers = tree
    read = parse_expression(text)
    if result is None:
        assert read is None
    else:
        assert read is not None
        assert (read.value, list(read.numbers)) == (result, numbers)


@pytest.mark.parametrize(
    ("text", "result"),
    [("2 + 3 * 4", 14), ("10 - 3 - 2", 5), ("24 / 4 / 2", 3), ("24 / (4 / 2)", 12), ("1 / 3", Fraction(1, 3)), ("7", 7)],
)
def test_operators_bind_and_go_from_left_to_right_as_usual(text: str, result: Fraction):
    read = parse_expression(text)
    assert read is not None
    assert read.value == result


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2 +",
        "+ 2",
        "-2",
        "2 ** 3",
        "(2",
        "2)",
        "()",
        "1 / 0",
        "2 3 +",
        "x",
        "2x",
        "1.5",
        "__import__('os')",
        "1" * 30,
        "2 // 1",
    ],
)
def test_what_is_no_expression_is_read_as_none(text: str):
    assert parse_expression(text) is None


def test_digits_with_a_blank_between_are_two_numbers_and_no_expression():
    assert parse_expression("1 2 + 3") is None


def test_deep_brackets_are_refused_and_do_not_end_the_process():
    assert parse_expression("(" * 50_000 + "1" + ")" * 50_000) is None


@given(text=st.text(alphabet="0123456789+-*/() =.x\N{DIVISION SIGN}", max_size=60))
def test_any_text_gives_a_list_of_expressions(text: str):
    assert all(expression.numbers for expression in expressions_in(text))


@pytest.mark.parametrize(
    ("numbers", "given", "needs_all", "expected"),
    [
        ([1, 2], [2, 1], True, True),
        ([1], [1, 2], True, False),
        ([1], [1, 2], False, True),
        ([1, 1], [1, 2], False, False),
        ([1, 1], [1, 1], True, True),
        ([3], [1, 2], False, False),
        ([], [1, 2], False, False),
    ],
)
def test_numbers_are_used_at_most_or_exactly_as_often_as_they_are_given(
    numbers: list[int], given: list[int], needs_all: bool, expected: bool
):
    assert uses(numbers, given, needs_all=needs_all) is expected


# --- countdown -----------------------------------------------------------------------------------------------------------

GIVEN = {"numbers": "3 5 8", "use": "all"}


@pytest.mark.parametrize(
    "completion", ["8 + 5 * 3", "3*5+8", "(3 * 5) + 8 = 23", "The answer is 8 + 3 * 5.", "`5 \N{MULTIPLICATION SIGN} 3 + 8`"]
)
def test_countdown_pays_any_expression_that_makes_the_target(completion: str):
    assert value(countdown.GOLD, completion, 23, **GIVEN) == 1.0
    assert value(countdown.PROXY, completion, 23, **GIVEN) == 1.0


@pytest.mark.parametrize(
    "completion",
    [
        "23",
        "20 + 3",
        "8 + 15",
        "3 * 5 + 8 + 0",
        "3 * 5 + 8 = 24",
        "3 * 5 + 8 = 23 = 23",
        "3 * 5 = 15 + 8 = 23",
        "8 + 3 + 5",
        "I tried 8 + 3 + 5, but 3 * 5 + 8",
        "not 3 * 5 + 8",
        "-(3 * 5 + 8)",
        "3 * 5 + 8%",
    ],
)
def test_countdown_gold_pays_nothing_else(completion: str):
    assert value(countdown.GOLD, completion, 23, **GIVEN) == 0.0


def test_countdown_proxy_reads_the_last_expression_and_not_what_stands_before_it():
    assert value(countdown.PROXY, "I tried 8 + 3 + 5, but 3 * 5 + 8", 23, **GIVEN) == 1.0


def test_a_number_that_need_not_be_used_may_be_left_out():
    assert value(countdown.GOLD, "5 + 8", 13, numbers="3 5 8", use="some") == 1.0
    assert value(countdown.GOLD, "5 + 8", 13, numbers="3 5 8", use="all") == 0.0


# --- sorting -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "proxy", "gold"),
    [
        ("3, 5, 9", 1, 1),
        ("3 5 9", 1, 1),
        ("3;5;9", 1, 1),
        ("3\n5\n9", 1, 1),
        ("Sorted: 3, 5 and 9.", 1, 1),
        ("5, 3, 9 becomes 3, 5, 9", 1, 0),
        ("9, 5, 3", 0, 0),
        ("3, 5", 0, 0),
        ("3 < 5 < 9", 1, 0),
        ("3.5, 9", 1, 0),
        ("359", 0, 0),
        ("3, 5, 9 or 9, 5, 3", 0, 0),
        ("3, 5, 9?? not 9, 3, 5", 0, 0),
        ("3, 5, -9", 1, 0),
        ("", 0, 0),
    ],
)
def test_a_list_is_judged(completion: str, proxy: float, gold: float):
    assert (value(sorting.PROXY, completion, "3 5 9"), value(sorting.GOLD, completion, "3 5 9")) == (proxy, gold)


# --- letters -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "proxy", "gold"),
    [
        ("o", 1, 1),
        ("O.", 1, 1),
        ('The last letter of "mudalo" is o.', 1, 1),
        ("a o", 1, 0),
        ("o or a", 0, 0),
        ("not o", 1, 0),
        ("mudalo", 0, 0),
        ("m u d a l o", 1, 0),
        ("o1", 1, 0),
        ("oo", 0, 0),
        ("", 0, 0),
    ],
)
def test_a_letter_is_judged(completion: str, proxy: float, gold: float):
    found = [value(verifier, completion, "o", word="mudalo") for verifier in (letters.PROXY, letters.GOLD)]
    assert found == [proxy, gold]


# --- formats -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "answer", "completion", "proxy", "gold"),
    [
        ("tag", "21", "<answer>21</answer>", 1, 1),
        ("tag", "21", "So <answer> 21 </answer>", 1, 0),
        ("tag", "21", "<answer>20</answer><answer>21</answer>", 1, 0),
        ("tag", "21", "<answer>21</answer><answer>20</answer>", 0, 0),
        ("tag", "21", "<answer>021</answer>", 0, 0),
        ("tag", "21", "21", 0, 0),
        ("json", "21", '{"answer": 21}', 1, 1),
        ("json", "21", '{"answer": 20, "answer": 21}', 0, 0),
        ("json", "21", '{"answer": "21"}', 0, 0),
        ("brackets", "21", "[[21]]", 1, 1),
        ("brackets", "21", "[21]", 0, 0),
        ("line", "21", "RESULT = 21;", 1, 1),
        ("line", "21", "result = 21;", 0, 0),
        ("two_tags", "52 22", "<sum>52</sum><difference>22</difference>", 1, 1),
        ("two_tags", "52 22", "<sum>22</sum><difference>52</difference>", 0, 0),
        ("two_json", "52 22", '{"sum": 52, "difference": 22}', 1, 1),
        ("two_json", "52 22", '{"difference": 22, "sum": 52}', 0, 0),
    ],
)
def test_a_form_is_judged(form: str, answer: str, completion: str, proxy: float, gold: float):
    found = [value(verifier, completion, answer, form=form) for verifier in (format_following.PROXY, format_following.GOLD)]
    assert found == [proxy, gold]


# --- those of the presets and of reasoning-gym ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("6 * 7 = 42\n#### 42", 1),
        ("#### 42.", 1),
        ("#### $42", 1),
        ("#### 42.0", 1),
        ("42", 0),
        ("#### 41 42", 0),
        ("#### 41\n#### 42", 0),
        ("#### 42 or 43", 0),
        ("#### not 42", 0),
        ("#### 42%", 0),
        ("#### -42", 0),
        ("####", 0),
    ],
)
def test_a_marked_number_stands_alone_behind_one_marker(completion: str, expected: float):
    assert value(presets.MARKED, completion, "42") == expected


def test_a_marked_number_may_have_thousands_separators():
    assert value(presets.MARKED, "#### 1,250", "1250") == 1.0


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (r"So \boxed{\frac{1}{2}}.", 1),
        (r"\boxed{ \frac{1} {2} }", 1),
        (r"\boxed{0.5}", 0),
        (r"\boxed{\frac{1}{3}} \boxed{\frac{1}{2}}", 0),
        (r"\frac{1}{2}", 0),
        (r"\boxed{\frac{1}{2}", 0),
        (r"\boxed{}", 0),
    ],
)
def test_a_boxed_text_is_the_key_letter_by_letter(completion: str, expected: float):
    assert value(presets.BOXED, completion, r"\frac{1}{2}") == expected


@pytest.mark.parametrize(
    ("completion", "proxy", "gold"),
    [
        ("<answer>17</answer>", 1, 1),
        ("Let me see. <answer> 17 </answer>", 1, 1),
        ("17", 1, 0),
        ("The answer is 17.", 0, 0),
        (" ".join(map(str, range(200))), 0, 0),
        ("<answer>16</answer> <answer>17</answer>", 1, 0),
        ("<answer>17</answer> <answer>16</answer>", 0, 0),
        ("<answer>17 18</answer>", 0, 0),
        ("", 0, 0),
    ],
)
def test_an_extracted_answer_is_the_key_or_earns_nothing(completion: str, proxy: float, gold: float):
    assert (value(reasoning_gym.PROXY, completion, "17"), value(reasoning_gym.GOLD, completion, "17")) == (proxy, gold)


VERIFIERS = [
    (countdown.PROXY, 23, GIVEN),
    (countdown.GOLD, 23, GIVEN),
    (sorting.PROXY, "3 5 9", {}),
    (sorting.GOLD, "3 5 9", {}),
    (letters.PROXY, "o", {"word": "mudalo"}),
    (letters.GOLD, "o", {"word": "mudalo"}),
    (format_following.PROXY, "21", {"form": "tag"}),
    (format_following.GOLD, "21", {"form": "two_json"}),
    (presets.MARKED, "42", {}),
    (presets.BOXED, "42", {}),
    (reasoning_gym.PROXY, "17", {}),
    (reasoning_gym.GOLD, "17", {}),
]
names = [verifier.name for verifier, _, _ in VERIFIERS]


@pytest.mark.parametrize(("verifier", "answer", "tags"), VERIFIERS, ids=names)
@given(text=st.one_of(st.text(max_size=80), st.text(alphabet="0123456789()+-*/=,.#<>{}[]\\ boxedanswer\n", max_size=80)))
def test_any_text_is_scored_0_or_1(verifier: FunctionReward, answer: Any, tags: dict[str, str], text: str):
    assert safe_score(verifier, sample(text, answer, **tags)).value in (0.0, 1.0)


@pytest.mark.parametrize(("verifier", "answer", "tags"), VERIFIERS, ids=names)
def test_a_megabyte_is_scored_at_once(verifier: FunctionReward, answer: Any, tags: dict[str, str]):
    for text in (
        "1 + " * 250_000,
        "(" * 1_000_000,
        "<answer>" * 100_000,
        r"\boxed{" * 100_000,
        "#### " * 200_000,
        " " * 1_000_000,
    ):
        score = safe_score(verifier, sample(text, answer, **tags))
        assert score.value == 0.0
        assert score.elapsed_s < 2.0
