"""What each built-in reward must give: right answers in several wordings, wrong ones, and exploits that must earn nothing.

The families are named as those of the audit are. A case of the family "right" must be paid in full, all others not at all,
unless the case says what it is worth. The file is long because it is a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.builders import make_prompt, make_sample

from covey.rewards.base import Sample

NEEDED_OPTIONS: dict[str, dict[str, Any]] = {
    "pattern": {"pattern": r"[a-z]+"},
    "cosine_length": {"max_tokens": 24},
    "judge": {"base_url": "http://localhost:8000/v1", "model": "judge-1"},
    "pairwise_judge": {"base_url": "http://localhost:8000/v1", "model": "judge-1"},
}
"""By the name of a reward: options without which there is none."""

JUDGES = ("judge", "pairwise_judge")
"""Rewards that ask a model elsewhere: what they pay is up to it, and `tests/unit/test_judge.py` is about them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A completion with what a reward must give for it."""

    reward: str
    options: Mapping[str, Any] = field(default_factory=dict)
    answer: Any
    question: str
    completion: str
    expected: float
    family: str
    expression: str = ""

    @property
    def sample(self) -> Sample:
        prompt = make_prompt(text=self.question, answer=self.answer, expression=self.expression)
        return make_sample(self.completion, prompt=prompt)


def cases(
    reward: str,
    answer: Any,
    question: str,
    *,
    right: Iterable[str] = (),
    options: Mapping[str, Any] | None = None,
    expression: str = "",
    **wrong: Iterable[str],
) -> list[Case]:
    """Return the cases of one question. The names of further families are keywords, with "_" for a blank."""
    families = {"right": right, **{family.replace("_", " "): completions for family, completions in wrong.items()}}
    return [
        Case(
            reward=reward,
            options=options or {},
            answer=answer,
            question=question,
            completion=completion,
            expected=float(family == "right"),
            family=family,
            expression=expression,
        )
        for family, completions in families.items()
        for completion in completions
    ]


SHOTGUN = " ".join(map(str, range(200)))
JUNK = ["", " ", "\n", ".", "...", "?", "answer", "The answer is", "Answer:", "**", "\\", "\x00", "\N{ZERO WIDTH SPACE}"]
NOT_42 = ["not 42", "The answer is not 42.", "The answer is definitely not 42.", "It isn't 42.", "anything but 42"]
SUM = "What is 17 + 25?"

EXACT = [
    *cases(
        "exact",
        "Paris",
        "What is the capital of France?",
        right=[
            "Paris",
            " paris \n",
            "Paris.",
            "**Paris**",
            '"Paris"',
            "The answer is Paris.",
            "Answer: Paris",
            "**Answer:** Paris",
            "The answer is **Paris**.",
            "\N{FULLWIDTH LATIN CAPITAL LETTER P}aris",
        ],
        junk=JUNK,
        echo=["What is the capital of France?", "Paris is the capital of France? What is the capital of France?"],
        negation=["not Paris", "The answer is not Paris.", "anything but Paris"],
        alternatives=["Paris or London", "Paris, London", "Paris\nLondon", "Paris/London", "London Paris"],
        shotgun=["London Paris Rome Berlin", "Is it Paris?"],
        substring=["Parisian", "Par", "xParis", "P a r i s"],
        hedge=["Maybe Paris", "Paris?", "Paris..."],
        wrong_value=["London"],
    ),
    *cases("exact", "Paris", "?", options={"ignore_case": False}, right=["Paris"], wrong_value=["paris", "PARIS"]),
    *cases("exact", ["USA", "United States"], "?", right=["usa", "United  States"], alternatives=["USA United States"]),
    *cases(
        "exact",
        42,
        SUM,
        right=["42", "\N{ARABIC-INDIC DIGIT FOUR}\N{ARABIC-INDIC DIGIT TWO}"],
        digits=["421", "142", "4\N{SUPERSCRIPT TWO}"],
    ),
    *cases(
        "exact",
        "Paris",
        "?",
        options={"read": "tagged"},
        right=[
            "<answer>Paris</answer>",
            "I think.\n<answer> paris </answer>\nDone.",
            "<think>London</think><answer>Paris</answer>",
        ],
        empty_box=["<answer></answer>", "<answer> </answer>", "<answer>Paris", "Paris</answer>", "</answer>Paris<answer>"],
        several_boxes=[
            "<answer>Paris</answer><answer>London</answer>",
            "<answer>London</answer> <answer>Paris</answer>",
            "<answer><answer>Paris</answer></answer>",
        ],
        negation=["This is wrong: <answer>Paris</answer>", "<answer>Paris</answer> is wrong", "Not <answer>Paris</answer>"],
        format_shell=["<answer>answer</answer>", "<answer>...</answer>", "Paris"],
    ),
    *cases(
        "exact",
        "Paris",
        "?",
        options={"read": "marked"},
        right=["#### Paris", "It is in France.\n#### Paris."],
        several_boxes=["#### Paris #### London", "#### London\n#### Paris", "#### Paris\n#### Paris"],
        padding=["#### Paris and more", "Paris ####", "####"],
    ),
    *cases(
        "exact",
        "Paris",
        "?",
        options={"read": "last_line"},
        right=["London?\nNo, the capital.\nThe answer is Paris.\n\n", "Paris"],
        alternatives=["Paris\nLondon", "Paris or London", "I say:\nParis, London"],
    ),
]

CHOICE = [
    *cases(
        "choice",
        "B",
        "Which? (A) 1 (B) 2 (C) 3 (D) 4",
        right=["B", "b", "(B)", "B)", "B.", "**B**", "Option B", "The answer is B.", "Answer: (B)", r"$\text{B}$"],
        junk=JUNK,
        echo=["Which? (A) 1 (B) 2 (C) 3 (D) 4"],
        negation=["not B", "The answer isn't B", "B is wrong"],
        alternatives=["A or B", "B or C", "A, B", "(A)(B)", "AB", "B/C", "B\nC"],
        shotgun=["A B C D", "ABCD", "D C B A"],
        substring=["Bb", "BB", "B1"],
        wrong_value=["A", "E", "2"],
    ),
    *cases(
        "choice",
        "no",
        "Is 9 prime?",
        options={"choices": ["yes", "no"]},
        right=["No", "no.", "The answer is no."],
        negation=["not no"],
        alternatives=["yes and no", "yes no", "no, yes"],
        wrong_value=["yes", "none", "nope"],
    ),
    *cases("choice", True, "?", options={"choices": ["true", "false"]}, right=["True"], wrong_value=["False", "1"]),
    *cases(
        "choice",
        "B",
        "?",
        options={"read": "boxed"},
        right=[r"\boxed{B}", r"So \boxed{\text{B}}.", r"\boxed{B} Again: \boxed{B}"],
        several_boxes=[r"\boxed{A}\boxed{B}", r"\boxed{B} \boxed{}", r"\boxed{\boxed{B}}"],
        empty_box=[r"\boxed{}", r"\boxed{ }", r"\boxed{B", r"\boxed"],
        negation=[r"It is not \boxed{B}.", r"\boxed{B} is wrong", r"either \boxed{B} or something else"],
    ),
]

ASSERTED = cases(
    "asserted_number",
    42,
    SUM,
    expression="17 + 25",
    right=["42", "17 + 25 = 42", "The answer is 42.", "**42**"],
    junk=JUNK,
    echo=[SUM, "17 + 25"],
    negation=[*NOT_42, "This is wrong: 42", "42 is false"],
    alternatives=["42 or 43", "42, 43", "43 42"],
    magnitude=["42 thousand", "42 million"],
    equality_chain=["40 = 41 = 42", "40=41=42"],
    digits=["421", "142", "42.5", "4 2"],
    percent=["42%"],
    sign=["-42"],
    shotgun=[SHOTGUN],
)

LAST = cases(
    "last_number",
    42,
    SUM,
    right=["42", "17 + 25 = 42", "First 41, then 42."],
    junk=JUNK,
    echo=[SUM],
    digits=["421", "142", "42.5"],
    sign=["-42"],
    percent=["42%"],
    wrong_value=["42, then 41"],
)

NUMERIC = [
    *cases(
        "numeric",
        42,
        SUM,
        right=[
            "42",
            " 42.",
            "+42",
            "42.0",
            "042",
            "**42**",
            "$42$",
            r"\(42\)",
            "The answer is 42.",
            "Answer: 42",
            "84/2",
            r"\frac{84}{2}",
            "4.2e1",
            "4.2 * 10^1",
            r"4.2 \times 10^{1}",
            "\N{FULLWIDTH DIGIT FOUR}\N{FULLWIDTH DIGIT TWO}",
            "\N{ARABIC-INDIC DIGIT FOUR}\N{ARABIC-INDIC DIGIT TWO}",
        ],
        junk=JUNK,
        echo=[SUM, "17 + 25", "17 + 25 = 42"],
        negation=NOT_42,
        alternatives=["42 or 43", "43 or 42", "42, 43", "42 43", "42/43", "42\n43", "{42, 43}", "42;43"],
        equality_chain=["40=41=42", "40 = 41 = 42", "42 = 42", "x = 41 = 42"],
        digits=["421", "142", "42.5", "4 2", "4,2", "42,000", "4\N{ZERO WIDTH SPACE}2", "4\N{SUPERSCRIPT TWO}", "4_2", "0x2a"],
        sign=["-42", "- 42", "\N{MINUS SIGN}42"],
        magnitude=["420", "4.2", "42e1", "42 thousand", "0.42"],
        percent=["42%", "42 percent", r"42\%"],
        unit=["42 apples", "42nd", "$42", "42 m", "42!"],
        not_a_number=["1e999", "nan", "inf", "-inf", "Infinity", "1/0", r"\frac{42}{0}", "1e-999", "42e", "e42"],
        shotgun=[SHOTGUN, SHOTGUN[::-1], "".join(map(str, range(99)))],
        several_boxes=[r"\boxed{41}\boxed{42}", r"\boxed{42}"],
        hedge=["42?", "about 42", "~42", "42 +- 1", "> 41", "42..."],
    ),
    *cases(
        "numeric",
        -3,
        "?",
        right=["-3", "- 3", "\N{MINUS SIGN}3", "\N{EN DASH}3", "The answer is -3."],
        sign=["3", "--3", "+-3"],
    ),
    *cases(
        "numeric", "1234.5", "?", right=["1234.5", "1,234.5", "$1,234.50$"], digits=["1.234,5", "12,34.5", "1 234.5", "1,2345"]
    ),
    *cases("numeric", 1000000, "?", right=["1,000,000", "1{,}000{,}000", r"1\,000\,000", "1e6"], digits=["1,000", "1,000,00"]),
    *cases(
        "numeric",
        "1/2",
        "?",
        right=[
            "1/2",
            "0.5",
            ".5",
            "2/4",
            r"\frac{1}{2}",
            r"\dfrac{1}{2}",
            r"\frac12",
            "\N{VULGAR FRACTION ONE HALF}",
            "1 / 2",
            "50e-2",
        ],
        digits=["1/3", "12", "1/20", "1/2/1", "1\N{VULGAR FRACTION ONE HALF}", "5"],
        percent=["50%"],
        sign=["-1/2", r"-\frac{1}{2}"],
    ),
    *cases(
        "numeric",
        r"\frac{3}{2}",
        "?",
        right=["1 1/2", "1.5", "1\N{VULGAR FRACTION ONE HALF}", r"1\frac{1}{2}"],
        digits=["11/2", "1 3/2", "1 1 /3"],
    ),
    *cases("numeric", 0.1, "?", right=["0.1", "1/10", "0.10"], digits=["0.10000001", "0", "1"]),
    *cases(
        "numeric", 100, "?", options={"relative": 0.05}, right=["100", "100.4", "95.5"], tolerance=["101", "99", "94.9", "106"]
    ),
    *cases("numeric", 100, "?", options={"relative": 0.05, "whole_exact": False}, right=["101", "95"], tolerance=["94", "106"]),
    *cases(
        "numeric",
        "3.14159",
        "?",
        options={"absolute": 0.01},
        right=["3.14", "3.15", "3.1415926"],
        tolerance=["3.1", "3.16", "-3.14"],
    ),
    *cases(
        "numeric",
        "0.5",
        "?",
        options={"percent": "convert"},
        right=["50%", "0.5", "50 percent", r"50\%"],
        percent=["0.5%", "50"],
    ),
    *cases("numeric", "50%", "?", options={"percent": "ignore"}, right=["50%", "50"], percent=["0.5", "5%"]),
    *cases(
        "numeric",
        "5 meters",
        "?",
        options={"units": "required", "unit_names": ["m", "meter"]},
        right=["5 meters", "5 m", "5m", r"5\text{ m}", "5.0 meter"],
        unit=["5", "5 feet", "5 cm", "5 m^2", "5 meters or feet", "5 M", "5 meters 3"],
        digits=["52 m", "15 m"],
    ),
    *cases(
        "numeric",
        5,
        "?",
        options={"units": "optional", "unit_names": ["$"]},
        right=["5", "$5", "$5.00", r"\$5"],
        unit=["\N{EURO SIGN}5", "5 m"],
    ),
    *cases(
        "numeric",
        42,
        SUM,
        options={"read": "boxed"},
        right=[r"\boxed{42}", r"17 + 25 = \boxed{42}.", r"\boxed{42} so \boxed{42.}", r"\fbox{42}"],
        empty_box=[r"\boxed{}", r"\boxed{ }", r"\boxed{42", r"\boxed 42", "42"],
        several_boxes=[r"\boxed{41} \boxed{42}", r"\boxed{42} \boxed{41}", r"\boxed{41, 42}", r"\boxed{42}\boxed{}"],
        negation=[r"It is not \boxed{42}", r"\boxed{not 42}", r"\boxed{42} is incorrect"],
        equality_chain=[r"\boxed{40=41=42}"],
    ),
    *cases(
        "numeric",
        42,
        SUM,
        options={"read": "marked"},
        right=["17 + 25 is 42.\n#### 42", "#### 42.0"],
        several_boxes=["#### 41\n#### 42", "#### 42 43"],
    ),
]

MATH = [
    *cases(
        "math",
        "42",
        SUM,
        right=[
            r"\boxed{42}",
            r"\boxed{42.0}",
            r"\boxed{\frac{84}{2}}",
            r"\boxed{x = 42}",
            r"\boxed{$42$}",
            r"\boxed{\text{42}}",
        ],
        junk=[*JUNK, "42"],
        empty_box=[r"\boxed{}", r"\boxed{ }", r"\boxed{42", r"\boxed{\text{}}", r"\boxed{\boxed{}}"],
        echo=[r"\boxed{17 + 25}", r"\boxed{17 + 25 = 42}"],
        negation=[
            r"\boxed{not 42}",
            r"\boxed{\neq 42}",
            r"The answer is definitely not \boxed{42}.",
            r"\boxed{\lnot 42}",
            r"\boxed{x \ne 42}",
        ],
        alternatives=[
            r"\boxed{42 or 43}",
            r"\boxed{42, 43}",
            r"\boxed{\{42, 43\}}",
            r"\boxed{42 \text{ or } 43}",
            r"\boxed{42 \lor 43}",
            r"\boxed{42 \pm 1}",
        ],
        several_boxes=[r"\boxed{41}\boxed{42}", r"\boxed{42}\boxed{41}"],
        equality_chain=[r"\boxed{40=41=42}", r"\boxed{x = 41 = 42}", r"\boxed{40 = 42}"],
        percent=[r"\boxed{42\%}", r"\boxed{42 percent}"],
        unit=[r"\boxed{42 \text{ feet}}", r"\boxed{42 cm}"],
        digits=[r"\boxed{421}", r"\boxed{4 2}", r"\boxed{4\,2}", r"\boxed{42.00001}"],
        sign=[r"\boxed{-42}"],
        hedge=[r"\boxed{\approx 42}", r"\boxed{42?}", r"\boxed{\geq 42}"],
        not_a_number=[r"\boxed{\infty}", r"\boxed{nan}", r"\boxed{1e999}", r"\boxed{\frac{42}{0}}"],
    ),
    *cases(
        "math",
        r"\frac{1}{2}",
        "?",
        right=[r"\boxed{1/2}", r"\boxed{0.5}", r"\boxed{\dfrac12}", r"\boxed{\frac{2}{4}}"],
        percent=[r"\boxed{50\%}"],
    ),
    *cases(
        "math",
        r"x^2 + 2x + 1",
        "Expand (x + 1)(x + 1).",
        right=[r"\boxed{1 + 2x + x^2}", r"\boxed{x^2+2x+1}", r"\boxed{y = x^{2} + 2x + 1}"],
        wrong_value=[r"\boxed{x^2 + 2x}", r"\boxed{x^2 + 2x + 2}", r"\boxed{X^2 + 2X + 1}"],
        equality_chain=[r"\boxed{x^2 = x^2 + 2x + 1 = 0}"],
    ),
    *cases(
        "math",
        r"\frac{\sqrt{3}}{2}",
        r"What is $\sin 60^\circ$?",
        right=[r"\boxed{\frac{\sqrt{3}}{2}}", r"\boxed{\sqrt{3}/2}", r"\boxed{sqrt(3)/2}", r"\boxed{\frac{3}{2\sqrt{3}}}"],
        echo=[r"\boxed{\sin 60^\circ}", r"\boxed{\sin(\pi/3)}"],
        wrong_value=[r"\boxed{\frac{\sqrt{2}}{2}}", r"\boxed{0.87}"],
    ),
    *cases(
        "math",
        r"\pi",
        "?",
        right=[r"\boxed{pi}", "\\boxed{\N{GREEK SMALL LETTER PI}}", r"\boxed{\pi}"],
        wrong_value=[r"\boxed{3.14}", r"\boxed{22/7}"],
    ),
    *cases(
        "math",
        "carbon dioxide",
        "Which gas do plants take in?",
        right=[r"\boxed{carbon dioxide}", r"\boxed{\text{carbon dioxide}}"],
        wrong_order=[r"\boxed{dioxide carbon}", r"\boxed{\text{dioxide carbon}}"],
        wrong_value=[r"\boxed{carbon}", r"\boxed{carbon monoxide}", r"\boxed{carbon carbon dioxide}"],
    ),
    *cases("math", r"e^{-20}", "?", right=[r"\boxed{e^{-20}}"], magnitude=[r"\boxed{0}", r"\boxed{0.0}", r"\boxed{0.0000001}"]),
    *cases(
        "math",
        r"(1, 2)",
        "?",
        right=[r"\boxed{(1,2)}", r"\boxed{\left(1, 2\right)}"],
        wrong_value=[r"\boxed{(2,1)}", r"\boxed{[1,2]}", r"\boxed{\{1,2\}}"],
    ),
    *cases(
        "math",
        r"\{1, 2\}",
        "?",
        right=[r"\boxed{\{2, 1\}}", r"\boxed{1, 2}"],
        wrong_value=[r"\boxed{\{1\}}", r"\boxed{\{1,2,3\}}", r"\boxed{(1,2)}"],
    ),
    *cases(
        "math", r"[0, \infty)", "?", right=[r"\boxed{[0,\infty)}"], wrong_value=[r"\boxed{(0,\infty)}", r"\boxed{[0,\infty]}"]
    ),
    *cases(
        "math",
        r"5 \text{ meters}",
        "?",
        right=[r"\boxed{5 \text{ meters}}", r"\boxed{5 meters}"],
        unit=[r"\boxed{5 \text{ feet}}", r"\boxed{5 feet}"],
    ),
    *cases("math", r"50\%", "?", right=[r"\boxed{50\%}"], percent=[r"\boxed{50}", r"\boxed{0.5}"]),
    *cases("math", "x = 3", "?", right=[r"\boxed{x = 3}", r"\boxed{x=3.0}"], wrong_value=[r"\boxed{x = 4}", r"\boxed{y = 3}"]),
    *cases(
        "math",
        r"\text{Tuesday}",
        "?",
        right=[r"\boxed{\text{Tuesday}}", r"\boxed{Tuesday}"],
        wrong_value=[r"\boxed{\text{Monday}}", r"\boxed{yadseuT}"],
    ),
    *cases(
        "math",
        "7",
        "?",
        options={"read": "last_line"},
        right=["So it is\n7", "x = 7", "The answer is $7$."],
        negation=["not 7"],
    ),
]

PERSON = '{"name": "Ada", "age": 36}'
PERSON_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "note": {"type": "string"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
JSON = [
    *cases(
        "json",
        {"name": "Ada", "age": 36},
        "Who wrote the first program, and how old did she get?",
        options={"schema": PERSON_SCHEMA},
        right=[
            PERSON,
            '{"age": 36, "name": "Ada"}',
            '{"age": 36.0, "name": "\\u0041da", "note": ""}',
            f"```json\n{PERSON}\n```",
            f"\n```\n{PERSON}\n```\n",
        ],
        junk=[*JUNK, "{}", "[]", "null", "{", "}", '{"name":}', "36", '"Ada"'],
        format_shell=['{"name": "", "age": 0}', '{"name": null, "age": null}', '{"name": "Ada"}', '{"age": 36}'],
        wrong_value=['{"name": "Bob", "age": 36}', '{"name": "Ada", "age": 37}', '{"name": "ada", "age": 36}'],
        several_boxes=[
            f"{PERSON}{PERSON}",
            f"{PERSON}\n{PERSON}",
            '{"name": "Bob", "name": "Ada", "age": 36}',
            '{"name": "Ada", "age": 36, "age": 36}',
            f"[{PERSON}]",
            f"```json\n{PERSON}\n```\n```json\n{PERSON}\n```",
        ],
        padding=[f"Here it is: {PERSON}", f"{PERSON} Done.", f"```json\n{PERSON}\n``` Done."],
        not_strict=[
            "{'name': 'Ada', 'age': 36}",
            '{"name": "Ada", "age": 36,}',
            '{"name": "Ada", "age": NaN}',
            '{"name": "Ada", "age": 1e999}',
        ],
        wrong_type=['{"name": "Ada", "age": "36"}', '{"name": ["Ada"], "age": 36}', '{"name": "Ada", "age": true}'],
        not_valid=['{"name": "Ada", "age": 36, "other": 1}', '{"name": "Ada", "age": 36, "note": 3}'],
        too_deep=['{"name": ' * 40 + '"Ada"' + "}" * 40, "[" * 5000 + "]" * 5000],
    ),
    *cases(
        "json",
        42,
        SUM,
        options={"answer_field": "answer"},
        right=['{"answer": 42}', '{"thought": "41?", "answer": 42.0}'],
        wrong_value=['{"answer": 41}', '{"answer": [42]}', '{"answer": "42"}', '{"answers": 42}', '{"answer": 421}'],
        several_boxes=['{"answer": 41, "answer": 42}', '{"answer": [41, 42]}'],
    ),
    *cases(
        "json",
        "42",
        SUM,
        options={"answer_field": "answer"},
        right=['{"answer": 42}', '{"answer": "42"}'],
        wrong_value=['{"answer": "not 42"}'],
    ),
    *cases(
        "json",
        {"a": True, "b": [1, {"c": None}]},
        "?",
        right=['{"a": true, "b": [1, {"c": null}]}'],
        wrong_type=['{"a": 1, "b": [1, {"c": null}]}'],
    ),
    *cases(
        "json",
        {"a": 1, "b": 2},
        "?",
        options={"fields": ["a"]},
        right=['{"a": 1}', '{"a": 1, "b": 3}'],
        wrong_value=['{"b": 2}'],
    ),
    *cases(
        "json",
        {"code": "ab12"},
        "?",
        options={"schema": {"properties": {"code": {"pattern": "^[a-z]+[0-9]+$"}}}},
        right=['{"code": "ab12"}'],
        wrong_value=['{"code": "12ab"}'],
    ),
]

TAGS = cases(
    "tags",
    None,
    "Think, then answer.",
    right=["<think>hm</think><answer>42</answer>", " <think>\nhm\n</think>\n\n<answer>\n42\n</answer>\n"],
    junk=JUNK,
    empty_box=[
        "<think></think><answer></answer>",
        "<think> </think><answer>42</answer>",
        "<think>...</think><answer>42</answer>",
    ],
    several_boxes=[
        "<think>hm</think><answer>42</answer><answer>43</answer>",
        "<think>hm</think><think>hm</think><answer>42</answer>",
        "<think><think>hm</think><answer>42</answer>",
        "<think>hm <answer>41</answer></think><answer>42</answer>",
    ],
    padding=[
        "Hi <think>hm</think><answer>42</answer>",
        "<think>hm</think> so <answer>42</answer>",
        "<think>hm</think><answer>42</answer> Bye",
    ],
    format_shell=[
        "<answer>42</answer><think>hm</think>",
        "<think>hm<answer>42</answer>",
        "<THINK>hm</THINK><ANSWER>42</ANSWER>",
    ],
)

PATTERN = [
    *cases(
        "pattern",
        None,
        "Give a date.",
        options={"pattern": r"\d{4}-\d{2}-\d{2}"},
        right=["2026-01-31", " 2026-01-31\n"],
        junk=JUNK,
        padding=["on 2026-01-31", "2026-01-31 or so"],
        several_boxes=["2026-01-31 2026-01-31"],
        wrong_value=["2026-1-31", "12026-01-31"],
    ),
    *cases(
        "pattern",
        "42",
        SUM,
        options={"pattern": r"I say: (?P<said>.+)", "group": "said"},
        right=["I say: 42", "I say: **42**."],
        wrong_value=["I say: 41", "I say: 421", "I say: 42 or 43", "I say: not 42"],
        format_shell=["I say: ", "I say:", "42"],
    ),
]

REPETITION = [
    *(
        Case(
            reward="repetition",
            options={"ngram": 2},
            answer=None,
            question="?",
            completion=completion,
            expected=expected,
            family=family,
        )
        for completion, expected, family in [
            ("5 5 5 5 5", -0.75, "repetition"),
            ("a b c d", 0.0, "right"),
            ("a", 0.0, "right"),
            ("", 0.0, "empty"),
            ("a b a b", -1 / 3, "repetition"),
        ]
    )
]

COSINE = [
    Case(
        reward="cosine_length",
        options={"max_tokens": 4},
        answer=42,
        question=SUM,
        completion=completion,
        expected=expected,
        family=family,
    )
    for completion, expected, family in [
        ("42", 0.75, "right"),
        (" 42 ", 0.5, "right"),
        ("**42** " * 4, 0.5, "padding"),
        ("41", 0.0, "wrong value"),
        ("", 0.0, "empty"),
    ]
]

_DOUBLE = {"entry": "f", "public": {"cases": [[[2], 4]]}, "hidden": {"cases": [[[0], 0], [[7], 14]]}}
_RIGHT = [
    "def f(x):\n    return 2 * x",
    "```python\nf = lambda x: x + x\n```",
    "So:\n\ndef f(x):\n    y = x\n    return x + y\n",
]
_WRONG = ["def f(x):\n    return 2 + x + 1", "def g(x):\n    return 2 * x", "def f(x):\n    while x: pass"]
_EXPLOITS = [
    "import os\nos._exit(0)",
    "import sys\nsys.exit(0)\ndef f(x):\n    return 2 * x",
    "print('passed')",
    "def f(x):\n    raise SystemExit(0)",
]

CODE = [
    *cases(
        "public_tests", _DOUBLE, "Write f(x) that doubles x.", right=[*_RIGHT, "def f(x):\n    return 4"], wrong_value=_WRONG,
        exploit=_EXPLOITS, empty=["", "I cannot."],
    ),
    *cases(
        "hidden_tests", _DOUBLE, "Write f(x) that doubles x.", right=_RIGHT, wrong_value=[*_WRONG, "def f(x):\n    return 4"],
        exploit=_EXPLOITS, empty=["", "I cannot."],
    ),
]  # fmt: skip

CASES: list[Case] = [*EXACT, *CHOICE, *ASSERTED, *LAST, *NUMERIC, *MATH, *JSON, *TAGS, *PATTERN, *REPETITION, *COSINE, *CODE]
