"""How data sets of programming tasks are laid out: their tests as the reward for code takes them, public and hidden."""

from __future__ import annotations

import ast
import builtins
import doctest
import json
from collections.abc import Mapping
from typing import Any

from covey.tasks.row_values import RowError, Values, text_of, value_of


def mbpp_prompt(values: Values) -> str:
    """Return the task with its first test, which names the function (MBPP: `text`; in the sanitized edition `prompt`)."""
    task = text_of(values, "text" if "text" in values else "prompt").strip()
    return f"{task}\nThe function must pass this test:\n{mbpp_tests(values)[0]}"


def mbpp_tests(values: Values) -> list[str]:
    """Return the assertions of an MBPP task.

    Raises:
        RowError: its column is no list of texts.
    """
    tests = value_of(values, "test_list")
    if not isinstance(tests, list | tuple) or not all(isinstance(test, str) for test in tests):
        raise RowError("its column 'test_list' is no list of texts")
    return list(tests)


def mbpp_answer(values: Values) -> dict[str, Any]:
    """Return the first assertion, which the question shows, as the public test, and all of them as the hidden ones.

    Raises:
        RowError: the first assertion calls no function that can be told.
    """
    tests = mbpp_tests(values)
    entry = function_called(tests[0])
    if not entry:
        raise RowError(f"its test {tests[0][:60]!r} calls no function that can be told")
    setup = values.get("test_setup_code") or "\n".join(values.get("test_imports") or [])
    return {
        "entry": entry,
        "preamble": str(setup),
        "public": {"asserts": tests[:1]},
        "hidden": {"asserts": [*tests, *(values.get("challenge_test_list") or [])]},
    }


def function_called(test: str) -> str:
    """Return the function that an assertion is about: the first it calls that is no built-in one; empty if there is none."""
    try:
        nodes = ast.walk(ast.parse(test.strip()))
    except (SyntaxError, ValueError):
        return ""
    called = [node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return next((name for name in called if not hasattr(builtins, name)), "")


def humaneval_answer(values: Values) -> dict[str, Any]:
    """Return the examples of the docstring as public tests, the function `check` as the hidden ones.

    A task without examples that can be read has the hidden tests as public ones, too.
    """
    prompt, tests, entry = text_of(values, "prompt"), text_of(values, "test"), text_of(values, "entry_point")
    examples = docstring_examples(prompt, entry)
    return {
        "entry": entry,
        "preamble": prompt,
        "prefix": before_function(prompt, entry),
        "public": {"asserts": examples} if examples else {"tests": tests},
        "hidden": {"tests": tests},
    }


def docstring_examples(prompt: str, entry: str) -> list[str]:
    """Return the examples `>>> f(1)` of a function's docstring, whose results are literals, as assertions."""
    try:
        functions = [node for node in ast.parse(prompt).body if isinstance(node, ast.FunctionDef) and node.name == entry]
        text = (ast.get_docstring(functions[-1]) or "") if functions else ""
        examples = doctest.DocTestParser().get_examples(text)
    except (SyntaxError, ValueError):  # A docstring that only looks like examples.
        return []
    found: list[str] = []
    for example in examples:
        source, want = _expression(example.source), example.want.strip()
        if source and _is_literal(want):
            found.append(f"assert ({source}) == ({want})")
    return found


def before_function(prompt: str, entry: str) -> str:
    """Return what stands before the function in the prompt, such as imports and helpers, for completions that leave it out."""
    try:
        parsed = ast.parse(prompt)
    except SyntaxError:
        return ""
    above = [node for node in parsed.body if not (isinstance(node, ast.FunctionDef) and node.name == entry)]
    return "".join(f"{ast.unparse(node)}\n" for node in above)


def _is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False
    return True


def _expression(text: str) -> str:
    """Return the text if it is an expression, without its comments; else nothing."""
    try:
        return ast.unparse(ast.parse(text.strip(), mode="eval"))
    except (SyntaxError, ValueError):
        return ""


def program_answer(values: Values) -> dict[str, Any]:
    """Return the runs of a program's task, the first of them as the public one.

    The column `input_output` holds the lists `inputs` and `outputs`, itself or in JSON (APPS, TACO).

    Raises:
        RowError: there are none, or not as many inputs as outputs.
    """
    given = value_of(values, "input_output")
    try:
        runs = json.loads(given) if isinstance(given, str) else given
    except ValueError as error:
        raise RowError(f"its column 'input_output' is not JSON ({error})") from error
    inputs, outputs = ((runs.get(key) if isinstance(runs, Mapping) else None) for key in ("inputs", "outputs"))
    if not inputs or not outputs or len(inputs) != len(outputs):
        raise RowError("its column 'input_output' has not as many 'inputs' as 'outputs', or none")
    if not all(isinstance(text, str) for text in [*inputs, *outputs]):
        raise RowError("its inputs and outputs are no texts: a task with calls of a function, which this preset does not read")
    pairs = [list(pair) for pair in zip(inputs, outputs, strict=True)]
    return {"public": {"runs": pairs[:1]}, "hidden": {"runs": pairs}}
