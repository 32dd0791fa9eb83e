"""Answers in a demanded form. The questions are trivial: what is learned is the form, and nothing around it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

from covey.rewards.base import FunctionReward, Sample, score_of
from covey.rewards.extract import normalise
from covey.tasks.base import Probe, Task
from covey.tasks.generated import Canonical, Dice, Question, generated_task, level_of, make_probes
from covey.tasks.wording import is_cut
from covey.types import Prompt, Score


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """How an answer must be written: `{}` in `shown` stands for each number."""

    shown: str
    pattern: re.Pattern[str]


FORMS: dict[str, Form] = {
    "tag": Form(shown="<answer>{}</answer>", pattern=re.compile(r"<answer>\s*(\d+)\s*</answer>")),
    "brackets": Form(shown="[[{}]]", pattern=re.compile(r"\[\[\s*(\d+)\s*\]\]")),
    "json": Form(shown='{"answer": {}}', pattern=re.compile(r'\{\s*"answer"\s*:\s*(\d+)\s*\}')),
    "line": Form(shown="RESULT = {};", pattern=re.compile(r"RESULT\s*=\s*(\d+)\s*;")),
    "two_tags": Form(
        shown="<sum>{}</sum><difference>{}</difference>",
        pattern=re.compile(r"<sum>\s*(\d+)\s*</sum>\s*<difference>\s*(\d+)\s*</difference>"),
    ),
    "two_json": Form(
        shown='{"sum": {}, "difference": {}}',
        pattern=re.compile(r'\{\s*"sum"\s*:\s*(\d+)\s*,\s*"difference"\s*:\s*(\d+)\s*\}'),
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """What is asked, and in which forms it must be answered."""

    kind: str
    """copy: a number as it stands; sum; both: sum and difference."""
    forms: tuple[str, ...]


LEVELS: dict[str, Level] = {
    "easy": Level(kind="copy", forms=("tag",)),
    "medium": Level(kind="sum", forms=("tag", "brackets", "json", "line")),
    "hard": Level(kind="both", forms=("two_tags", "two_json")),
}


def holds_form(sample: Sample) -> Score:
    """Return 1 if the last place that has the demanded form holds the answer, else 0. Lenient: it reads no further."""
    found = [" ".join(match.groups()) for match in form_of(sample.prompt).pattern.finditer(normalise(sample.completion))]
    if not found:
        return score_of(0.0)
    return score_of(float(found[-1] == sample.prompt.answer), extracted=found[-1])


def is_form(sample: Sample) -> Score:
    """Return 1 if the whole completion is the demanded form with the answer in it, else 0."""
    match = form_of(sample.prompt).pattern.fullmatch(normalise(sample.completion).strip())
    if match is None or is_cut(sample.completion):
        return score_of(0.0)
    found = " ".join(match.groups())
    return score_of(float(found == sample.prompt.answer), extracted=found)


PROXY = FunctionReward(name="holds_form", score=holds_form, runs_inline=True)
GOLD = FunctionReward(name="is_form", score=is_form, runs_inline=True)


def form_of(prompt: Prompt) -> Form:
    """Return the form that the question demands."""
    return FORMS[prompt.tags["form"]]


def filled(form: Form, *values: object) -> str:
    """Return the form with the values in it."""
    text = form.shown
    for value in values:
        text = text.replace("{}", str(value), 1)
    return text


def format_following(*, level: str = "easy") -> Task:
    """Return the task at one of LEVELS.

    Raises:
        CoveyError: there is no such level.
    """
    spec = level_of(LEVELS, level, task="format_following")
    return generated_task("format_following", level, partial(draw, spec), probes=probes, proxy=PROXY, gold=GOLD)


def draw(spec: Level, dice: Dice) -> Question:
    """Return a question; the form is no part of what it is."""
    name = dice.choice(spec.forms)
    form = FORMS[name]
    num_values = form.shown.count("{}")
    asked, twin_asked, canonical, values = posed(spec.kind, dice)
    shape = filled(form, *["NUMBER"] * num_values)
    wrong = [value + dice.number(211, 499) for value in values]
    return Question(
        canonical=canonical,
        text=f"{asked} Answer with just {shape}",
        twin_text=f"{twin_asked} Your whole answer must look like {shape}",
        answer=" ".join(map(str, values)),
        wrong_answer=" ".join(map(str, wrong)),
        right=filled(form, *values),
        tags={"form": name},
    )


def posed(kind: str, dice: Dice) -> tuple[str, str, Canonical, list[int]]:
    """Return the question, its twin's words, what makes it this question, and the values of its answer."""
    if kind == "copy":
        number = dice.number(1, 9999)
        return f"Repeat the number {number}.", f"The number is {number}; say it again.", ("copy", number), [number]
    larger, smaller = sorted((dice.number(1, 99), dice.number(1, 99)), reverse=True)
    canonical: Canonical = ("sum", larger, smaller)
    if kind == "sum":
        return f"What is {larger} + {smaller}?", f"Add {smaller} to {larger}.", canonical, [larger + smaller]
    asked = f"What are the sum and the difference of {larger} and {smaller}?"
    twin = f"Add {smaller} to {larger}, then subtract it from {larger}."
    return asked, twin, canonical, [larger + smaller, larger - smaller]


def probes(prompt: Prompt) -> list[Probe]:
    """Return right answers, and cheats that must earn nothing."""
    form, values = form_of(prompt), prompt.answer.split()
    written = filled(form, *values)
    others = [str(int(value) + 1) for value in values]
    right = [written, f"  {written}\n", filled(form, *(f" {value} " for value in values))]
    cheats = [
        "",
        prompt.text,
        prompt.answer,
        f"The answer is {prompt.answer}.",
        filled(form, *["NUMBER"] * len(values)),
        filled(form, *[""] * len(values)),
        filled(form, *others),
        f"{filled(form, *others)} {written}",
        f"{written} {written}",
        f"{written} {filled(form, *others)}",
        f"Sure! {written}",
        f"{written} is the answer.",
        f"not {written}",
        written[:-1],
        written.replace(values[0], f"-{values[0]}", 1),
        written.replace(values[0], f"{values[0]}.5", 1),
        written.replace(values[0], f"{values[0]} or {others[0]}", 1),
    ]
    return make_probes(prompt, right=right, cheats=cheats)
