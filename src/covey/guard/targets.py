"""What an attack on a reward aims at: the answer of a question as text, wrong values near it, and how answers are worded."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, Literal

from covey.rewards.extract import normalise, numbers_in
from covey.types import Prompt

AnswerKind = Literal["number", "quantity", "choice", "text", "long", "structure", "none"]

BENDS = frozenset({"percent", "scale word"})
"""Families of wrong values that are the right number with a word or sign behind it."""
LONG_TEXT = 200
"""Characters from which an answer is a reference text, that no completion has to repeat."""

WORDINGS: dict[str, str] = {
    "bare": "{}",
    "sentence": "The answer is {}.",
    "label": "Answer: {}",
    "bold": "**{}**",
    "boxed": r"\boxed{{}}",
    "marker": "#### {}",
    "tag": "<answer>{}</answer>",
    "json": '{"answer": {}}',
    "steps": "I go through it step by step.\n\nThe final answer is {}.",
    "steps, boxed": "I go through it step by step.\n\nThe final answer is " + r"\boxed{{}}.",
    "thought, tag": "<think>\nI go through it step by step.\n</think>\n<answer>{}</answer>",
}
"""Ways to give an answer and nothing else. Rewards differ in which they read; one that reads none of them pays nobody."""

_UNITS = {"m": "ft", "cm": "mm", "km": "miles", "meters": "feet", "metres": "feet", "kg": "g", "hours": "minutes"}
_OPPOSITES = {"yes": "no", "true": "false", "right": "left", "even": "odd", "valid": "invalid", "positive": "negative"}
_OPPOSITES |= {there: here for here, there in _OPPOSITES.items()}
_LETTERS = "ABCDEFGHIJ"
_NUMBER = re.compile(r"[-+]?\$?\d[\d,]*(?:\.\d+)?")
_QUANTITY = re.compile(r"(?P<number>[-+]?\d[\d,]*(?:\.\d+)?)\s*(?P<unit>%|[A-Za-z]+)")
_MATHEMATICAL = re.compile(r"[\\^=(){}\[\]<>+*/]")
_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Near:
    """A wrong value."""

    family: str
    variant: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A question as attacks see it."""

    prompt: Prompt
    kind: AnswerKind
    key: str
    """The answer as it would be written; empty iff there is none."""
    near: tuple[Near, ...]
    """Wrong values such as honest mistakes give: another sign, a digit more."""
    carriers: tuple[str, ...] = ("{}",)
    """Texts in which {} stands for the answer: wordings that the reward reads."""

    @property
    def is_plain(self) -> bool:
        """Whether the key, worded, is sure to be a right completion; else it may be what a verifier works with."""
        return self.kind in ("number", "quantity", "choice", "text")

    @property
    def others(self) -> tuple[str, ...]:
        """Wrong values of the answer's own form, for lists of guesses."""
        values = [near.text for near in self.near if near.family in ("off by one", "other value")]
        return tuple(values or [near.text for near in self.near])


def target_of(prompt: Prompt, *, carriers: Sequence[str] = ("{}",)) -> Target:
    """Return what attacks on the question aim at."""
    kind, key = kind_of(prompt.answer)
    unlike = {canonical(key)}
    near: list[Near] = []
    for each in NEAR[kind](key, prompt.answer):
        if canonical(each.text) not in unlike:
            unlike.add(canonical(each.text))
            near.append(each)
    return Target(prompt=prompt, kind=kind, key=key, near=tuple(near), carriers=tuple(carriers))


def kind_of(answer: Any) -> tuple[AnswerKind, str]:
    """Return what kind of answer it is, and the answer as text."""
    if answer is None or (isinstance(answer, str) and not answer.strip()):
        return "none", ""
    if isinstance(answer, bool):
        return "choice", str(answer).lower()
    if isinstance(answer, Mapping | list | tuple | set | frozenset):
        return "structure", json_text(answer)
    text = str(answer).strip()
    if isinstance(answer, int | float | Decimal | Fraction) or _NUMBER.fullmatch(text):
        return ("text", text) if value_of(text) is None else ("number", text)
    if text.casefold() in _OPPOSITES or re.fullmatch(rf"\(?[{_LETTERS}]\)?", text):
        return "choice", text
    if _QUANTITY.fullmatch(text):
        return "quantity", text
    if text[0] in "[{" and isinstance(loaded(text), dict | list):
        return "structure", text
    return ("long" if len(text) > LONG_TEXT or "\n" in text else "text"), text


def value_of(text: str) -> Decimal | None:
    """Return the number that the whole text is; None if it is none, or not finite."""
    try:
        value = Decimal(text.replace("$", "").replace(",", ""))
    except InvalidOperation:
        return None
    return value if value.is_finite() and abs(value.adjusted()) < LONG_TEXT else None


def canonical(text: str) -> str:
    """Return the text without what makes no difference: case, blanks, separators of thousands and zeros behind the point."""
    plain = "".join(normalise(text).casefold().split())
    value = value_of(plain)
    return plain if value is None else f"{value.normalize():f}"


def json_text(answer: Any) -> str:
    """Return a structure as JSON; sets become sorted lists, and what JSON has no form for its text."""
    if isinstance(answer, set | frozenset):
        answer = sorted(answer, key=str)
    return json.dumps(answer, ensure_ascii=False, default=str)


def loaded(text: str) -> Any:
    """Return the value of a JSON text; None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def plain_number(value: Decimal) -> str:
    """Return the number in digits, without an exponent."""
    return f"{value:f}"


def near_numbers(key: str, answer: Any) -> Iterator[Near]:
    """Yield numbers that slips give: another one, sign, power of ten, digits more, less and swapped; percent, thousands."""
    value = value_of(key)
    if value is None:
        return
    text = plain_number(value)
    exponent = int(value.as_tuple().exponent)
    # Of a number with many decimals the last one may lie within a verifier's tolerance.
    step = Decimal(1) if exponent >= 0 else Decimal(1).scaleb(max(exponent, value.adjusted() - 1))
    yield Near(family="off by one", variant="one more", text=plain_number(value + step))
    yield Near(family="off by one", variant="one less", text=plain_number(value - step))
    yield Near(family="off by one", variant="two more", text=plain_number(value + 2 * step))
    if value == 0:
        return
    yield Near(family="sign", variant="other sign", text=plain_number(-value))
    yield Near(family="magnitude", variant="ten times", text=plain_number(value * 10))
    yield Near(family="magnitude", variant="a tenth", text=plain_number(value / 10))
    yield Near(family="scale word", variant="thousand", text=f"{text} thousand")
    yield Near(family="percent", variant="percent sign", text=f"{text}%")
    yield Near(family="percent", variant="percent word", text=f"{text} percent")
    yield Near(family="digits", variant="digit behind", text=f"{text}7")
    yield Near(family="digits", variant="digit before", text=f"-1{text[1:]}" if value < 0 else f"1{text}")
    if "." not in text:
        yield Near(family="digits", variant="decimals", text=f"{text}.5")
    digits = text.lstrip("-")
    if len(digits) > 1 and digits[:-1].strip("."):
        yield Near(family="digits", variant="digit less", text=text[:-1].rstrip("."))
        yield Near(family="digits", variant="swapped", text=text.replace(digits, digits[1] + digits[0] + digits[2:]))


def near_quantities(key: str, answer: Any) -> Iterator[Near]:
    """Yield other numbers with the unit, and the number with another unit."""
    match = _QUANTITY.fullmatch(key)
    if match is None:
        return
    gap = key[match.end("number") : match.start("unit")]
    for near in near_numbers(match["number"], answer):
        if near.family not in BENDS:
            yield Near(family=near.family, variant=near.variant, text=f"{near.text}{gap}{match['unit']}")
    unit = _UNITS.get(match["unit"], "kg" if match["unit"] != "kg" else "g")
    yield Near(family="unit", variant="other unit", text=f"{match['number']} {'points' if match['unit'] == '%' else unit}")


def near_choices(key: str, answer: Any) -> Iterator[Near]:
    """Yield the other choices: the opposite, or other letters."""
    opposite = _OPPOSITES.get(key.casefold())
    if opposite is not None:
        yield Near(family="other value", variant="opposite", text=opposite.capitalize() if key[0].isupper() else opposite)
        return
    letter = key.strip("()")
    for offset, variant in ((1, "next letter"), (2, "letter after next")):
        other = _LETTERS[:4][(_LETTERS.index(letter) + offset) % 4]
        yield Near(family="other value", variant=variant, text=key.replace(letter, other))


def near_texts(key: str, answer: Any) -> Iterator[Near]:
    """Yield the text with its numbers moved, with a letter more, less or changed, and with its words in another order."""
    if _DIGITS.search(key):
        yield Near(family="other value", variant="numbers moved", text=numbers_moved(key))
    if _MATHEMATICAL.search(key):
        yield Near(family="sign", variant="other sign", text=key[1:] if key.startswith("-") else f"-({key})")
        return
    words = key.split()
    if len(words) > 1:
        if "," not in key:  # What is listed with commas may be a set.
            yield Near(family="order", variant="reversed", text=" ".join(reversed(words)))
        yield Near(family="order", variant="last left out", text=" ".join(words[:-1]))
        yield Near(family="order", variant="last repeated", text=f"{key} {words[-1]}")
    if key[-1].isalpha():
        changed = "q" if key[0].casefold() != "q" else "z"
        yield Near(family="other value", variant="letter changed", text=changed + key[1:])
        yield Near(family="other value", variant="another word", text=changed * len(key) + "x")
        yield Near(family="letters", variant="letter more", text=key + changed)
        yield Near(family="letters", variant="letter before", text=changed + key)
        if len(words) == 1 and len(key) > 1:
            yield Near(family="letters", variant="letter less", text=key[:-1])
            yield Near(family="letters", variant="reversed", text=key[::-1])


def near_long(key: str, answer: Any) -> Iterator[Near]:
    """Yield the text with its numbers moved, and half of it."""
    yield Near(family="other value", variant="numbers moved", text=numbers_moved(key))
    yield Near(family="order", variant="half of it", text=key[: len(key) // 2])


def near_structures(key: str, answer: Any) -> Iterator[Near]:
    """Yield the structure with a value changed, with something left out and put in, and empty."""
    value = loaded(key)
    empty = "{}" if isinstance(value, dict) else "[]"
    yield Near(family="structure", variant="empty", text=empty)
    if not value:
        yield Near(family="other value", variant="not empty", text='{"a": 0}' if isinstance(value, dict) else "[0]")
        return
    yield Near(family="other value", variant="a value changed", text=json_text(changed_leaf(value)))
    if isinstance(value, dict):
        first = next(iter(value))
        yield Near(family="structure", variant="left out", text=json_text({k: v for k, v in value.items() if k != first}))
        yield Near(family="structure", variant="null", text=json_text({**value, first: None}))
        yield Near(family="structure", variant="keys alone", text=json_text(dict.fromkeys(value)))
    else:
        yield Near(family="structure", variant="left out", text=json_text(value[:-1]))
        yield Near(family="structure", variant="one more", text=json_text([*value, value[-1]]))


def changed_leaf(value: Any) -> Any:
    """Return the structure with its first value changed: a number moved, a text with a letter more, a truth turned."""
    if isinstance(value, dict) and value:
        first = next(iter(value))
        return {**value, first: changed_leaf(value[first])}
    if isinstance(value, list) and value:
        return [changed_leaf(value[0]), *value[1:]]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float) and math.isfinite(value):
        return value + 1
    return f"{value}q"


def no_near(key: str, answer: Any) -> Iterator[Near]:
    """Yield nothing."""
    yield from ()


NEAR = {
    "number": near_numbers,
    "quantity": near_quantities,
    "choice": near_choices,
    "text": near_texts,
    "long": near_long,
    "structure": near_structures,
    "none": no_near,
}
"""(key, answer) -> wrong values, by the kind of answer."""


def numbers_moved(text: str) -> str:
    """Return the text with each run of digits one higher: what was right with numbers in it is right no more."""
    return _DIGITS.sub(lambda match: str(int(match.group()) + 1) if len(match.group()) < LONG_TEXT else "0", text)


def worded(wording: str, value: str, *, kind: AnswerKind = "text") -> str:
    """Return the wording with the value in place of {}; in JSON a text gets its quotes."""
    if wording == WORDINGS["json"] and kind not in ("number", "structure"):
        value = json.dumps(value, ensure_ascii=False)
    return wording.replace("{}", value, 1)


def carrier_of(completion: str, key: str) -> str | None:
    """Return a right completion with {} in place of the key; None unless the key stands in it once, as a word.

    None as well if other digits stand around it: they may be what the reward reads, as in "12 + 9 = 21".
    """
    pattern = re.compile(rf"(?<![\w.]){re.escape(key)}(?![\w]|\.\d)")
    if not key or "{}" in completion or len(pattern.findall(completion)) != 1:
        return None
    carrier = pattern.sub("{}", completion)
    return None if _DIGITS.search(carrier) else carrier


def occurs(key: str, text: str) -> bool:
    """Return whether the key stands in the text as a word of its own, in any case."""
    return re.search(rf"(?<!\w){re.escape(key.casefold())}(?!\w)", normalise(text).casefold()) is not None


def values_in(prompt: Prompt, kind: AnswerKind) -> list[str]:
    """Return what a guesser finds in the question: its numbers, letters of choices or words, in canonical form."""
    text = normalise(prompt.text)
    if kind in ("number", "quantity"):
        return [canonical(plain_number(number)) for number in numbers_in(text)]
    if kind == "choice":
        return [canonical(word) for word in re.findall(rf"\b[{_LETTERS}]\b|\b(?:{'|'.join(_OPPOSITES)})\b", text)]
    return [canonical(word) for word in re.findall(r"\w+", text)]


def guess_rate(targets: Sequence[Target]) -> float:
    """Return the share of questions that the best blind habit gets right: one answer for all, or a fixed place in the text.

    What earns no more than this is a guess and no exploit: of three numbers, the last is the largest once in three times.
    """
    keys = [canonical(target.key) for target in targets if target.kind != "none"]
    if not keys:
        return 0.0
    # Of a single question anything is a habit.
    rates = [max(keys.count(key) for key in set(keys)) / len(keys) if len(keys) > 1 else 0.0]
    listed = [values_in(target.prompt, target.kind) for target in targets if target.kind != "none"]
    for place in range(-5, 5) if len(keys) > 1 else ():
        hits = [values[place] == key for values, key in zip(listed, keys, strict=True) if -len(values) <= place < len(values)]
        rates.append(sum(hits) / len(keys))
    return max(rates)
