"""A verifier of JSON: strictly parsed, with the right values in it, and valid by a schema."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Literal

from covey.rewards.base import FunctionReward, Reward, Sample, score_of
from covey.rewards.killable import killable
from covey.rewards.numeric import MAX_NUMBER_CHARACTERS, number_of
from covey.rewards.packages import require
from covey.rewards.reading import plain_text
from covey.rewards.text import MAX_EXTRACTED_CHARACTERS, answer_of
from covey.types import CoveyError, Prompt, Score

Form = Literal["either", "bare", "fenced"]

ANY_OBJECT: Mapping[str, Any] = MappingProxyType({})
MAX_VALUES = 2000
"""Elements of the lists and objects of a completion, all together."""

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\Z)|[\[\]{},]', re.DOTALL)
_SLOW = frozenset({"pattern", "patternProperties", "$ref", "$dynamicRef", "$recursiveRef"})
"""Words of a schema that can take for ever to check."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonAnswer:
    """Pays 1 if the completion is one JSON object that is valid by the schema and has the right values, else 0.

    Right is, in each of the fields that count, the answer's own value. An object without them is worth nothing, however valid.
    """

    schema: str
    """As JSON."""
    fields: tuple[str, ...]
    answer_field: str
    form: Form
    max_characters: int
    max_depth: int

    def __call__(self, sample: Sample) -> Score:
        keys = self._keys(sample.prompt)
        text = json_text_in(sample.completion, self.form)
        value = None if text is None or len(text) > self.max_characters else strict_json(text, max_depth=self.max_depth)
        if text is None or not isinstance(value, dict):
            return score_of(0.0)
        has_values = all(name in value and is_same(value[name], key) for name, key in keys.items())
        is_right = has_values and validator_of(self.schema).is_valid(value)
        return score_of(float(is_right), extracted=text[:MAX_EXTRACTED_CHARACTERS])

    def _keys(self, prompt: Prompt) -> Mapping[str, Any]:
        """Return the fields that count, with their right values."""
        answer = answer_of(prompt)
        if self.answer_field:
            return {self.answer_field: answer}
        if isinstance(answer, str):
            answer = strict_json(answer, max_depth=self.max_depth)
        if not isinstance(answer, Mapping) or not answer:
            raise CoveyError(
                f"prompt {prompt.prompt_id!r} has the answer {prompt.answer!r}, which has no fields to compare; give an "
                "object, or name the field that it should stand in with answer_field"
            )
        if missing := [name for name in self.fields if name not in answer]:
            raise CoveyError(f"the answer of prompt {prompt.prompt_id!r} has no field {missing[0]!r}")
        return {name: answer[name] for name in self.fields or answer}


def json_answer(
    *,
    schema: Mapping[str, Any] = ANY_OBJECT,
    fields: tuple[str, ...] = (),
    answer_field: str = "",
    form: Form = "either",
    max_characters: int = 8000,
    max_depth: int = 16,
    deadline_s: float = 2.0,
) -> Reward:
    """Return the reward for JSON. A schema with patterns or references is checked in a process of its own.

    Raises:
        CoveyError: the schema is none, or refers to another document; or options contradict each other.
    """
    if fields and answer_field:
        raise CoveyError("fields and answer_field are both given: an answer is an object with fields, or the value of one")
    if max_characters < 2 or max_depth < 1:
        raise CoveyError(f"max_characters={max_characters} and max_depth={max_depth} leave no object to be read")
    words = _words_of(schema)
    if outside := [each for word, each in words if word == "$ref" and not str(each).startswith("#")]:
        raise CoveyError(f"the schema refers to {outside[0]!r}; give a schema without references to other documents")
    try:
        text = json.dumps(dict(schema), default=_refuse_value)
    except ValueError as error:
        raise CoveyError(f"schema is no JSON schema: {error}") from error
    validator_of(text)
    score = JsonAnswer(
        schema=text,
        fields=fields,
        answer_field=answer_field,
        form=form,
        max_characters=max_characters,
        max_depth=max_depth,
    )
    if _SLOW & {word for word, _ in words}:
        return killable(FunctionReward(name="json", score=score), deadline_s=deadline_s)
    return FunctionReward(name="json", score=score, runs_inline=True)


@functools.cache
def validator_of(schema: str) -> Any:
    """Return what checks values by a schema, given as JSON.

    Raises:
        CoveyError: it is no schema, or jsonschema is not installed.
    """
    require("jsonschema", package="jsonschema", reward="json")
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for

    value = json.loads(schema)
    kind = validator_for(value)
    try:
        kind.check_schema(value)
    except SchemaError as error:
        raise CoveyError(f"schema is no JSON schema: {error.message}") from error
    return kind(value)


def json_text_in(completion: str, form: Form) -> str | None:
    """Return the text that should be JSON: the whole completion, or what stands in a fence that is the whole completion."""
    bare = completion.strip()
    first, _, rest = bare.partition("\n")
    is_fenced = first.rstrip().casefold() in ("```", "```json") and rest.endswith("```")
    if is_fenced and form != "bare":
        return rest.removesuffix("```").strip()
    return None if form == "fenced" else bare


def strict_json(text: str, *, max_depth: int) -> Any:
    """Return the value of a JSON text; None if it is none.

    None also for what parsers disagree about, such as a key that comes twice, NaN and 1e999, and for what is too deep or large.
    """
    depth = values = 0
    for match in _TOKEN.finditer(text):
        token = match.group()
        depth += (token in ("[", "{")) - (token in ("]", "}"))
        values += token in ("[", "{", ",")
        if depth > max_depth or values > MAX_VALUES:
            return None
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_int=_short, parse_float=_finite, parse_constant=_refuse_value)
    except (ValueError, RecursionError):
        return None


def is_same(value: Any, key: Any) -> bool:
    """Return whether a JSON value is the key. Numbers are compared as numbers, and true is no 1.

    A key that is a text with a number in it, as columns of data have them, is also the number.
    """
    if isinstance(value, bool) or isinstance(key, bool) or value is None or key is None:
        return type(value) is type(key) and value == key
    if isinstance(value, int | float):
        number = number_of(plain_text(key)) if isinstance(key, str) else _fraction(key)
        return number is not None and _fraction(value) == number
    if isinstance(value, str):
        return isinstance(key, str) and value == key
    if isinstance(value, list):
        return isinstance(key, list | tuple) and len(value) == len(key) and all(map(is_same, value, key))
    return isinstance(key, Mapping) and value.keys() == key.keys() and all(is_same(value[name], key[name]) for name in value)


def _fraction(number: Any) -> Fraction | None:
    if not isinstance(number, int | float | Decimal | Fraction) or (
        isinstance(number, float | Decimal) and not math.isfinite(number)
    ):
        return None
    return Fraction(str(number)) if isinstance(number, float) else Fraction(number)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key comes twice")
    return found


def _short(text: str) -> int:
    if len(text) > MAX_NUMBER_CHARACTERS:
        raise ValueError(f"{text[:20]}... is beyond what a number can be")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is beyond what a number can be")
    return value


def _refuse_value(value: Any) -> Any:
    raise ValueError(f"{value!r} is no JSON")


def _words_of(schema: Any) -> list[tuple[str, Any]]:
    """Return every key in the schema with its value, at any depth."""
    if isinstance(schema, Mapping):
        return [*schema.items(), *(pair for value in schema.values() for pair in _words_of(value))]
    if isinstance(schema, list | tuple):
        return [pair for value in schema for pair in _words_of(value)]
    return []
