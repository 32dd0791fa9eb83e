"""The table of tasks that recipes can name, and of the sources that bring questions from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from covey.tasks import arithmetic, comparison, countdown, format_following, functions, letters, sorting, word_problems
from covey.tasks.base import PARTS, Task
from covey.tasks.files import files_task
from covey.tasks.given import demonstrations_task, preferences_task
from covey.tasks.reasoning_gym import reasoning_gym_task
from covey.types import CoveyError

TASKS: dict[str, Callable[..., Task]] = {
    "arithmetic": arithmetic.arithmetic,
    "comparison": comparison.comparison,
    "sorting": sorting.sorting,
    "countdown": countdown.countdown,
    "word_problems": word_problems.word_problems,
    "format_following": format_following.format_following,
    "letters": letters.letters,
    "functions": functions.functions,
}
"""(level) -> task: Covey's own. All of them pass tests/contracts/test_tasks.py at every level."""

TASK_LEVELS: dict[str, tuple[str, ...]] = {
    "arithmetic": tuple(arithmetic.LEVELS),
    "comparison": tuple(comparison.LEVELS),
    "sorting": tuple(sorting.LEVELS),
    "countdown": tuple(countdown.LEVELS),
    "word_problems": tuple(word_problems.LEVELS),
    "format_following": tuple(format_following.LEVELS),
    "letters": tuple(letters.LEVELS),
    "functions": tuple(functions.LEVELS),
}

SOURCES: dict[str, Callable[[Mapping[str, Any]], Task]] = {
    "files": files_task,
    "reasoning_gym": reasoning_gym_task,
    "preferences": preferences_task,
    "demonstrations": demonstrations_task,
}
"""(options) -> task: questions from elsewhere. Difficulty is a matter of the data; there are no levels."""

SUMMARIES: dict[str, str] = {
    "arithmetic": "sums, differences and products of whole numbers",
    "comparison": "the largest or smallest of 3 to 5 numbers",
    "sorting": "putting 3 to 8 numbers in order",
    "countdown": "making a target out of 2 to 4 numbers with + - * /",
    "word_problems": "stories of one or two steps; the twins have other names and things",
    "format_following": "trivial questions, answered in a demanded form and nothing else",
    "letters": "a letter of a made-up word, how often it occurs, a word backwards",
    "functions": "Python functions written to order; run in a sandbox, judged by hidden tests",
    "files": "your own questions: JSONL, JSON, Parquet or a data set of the Hugging Face hub",
    "reasoning_gym": "the generators of the package reasoning-gym, judged by exact match",
    "preferences": "your own pairs, JSONL with prompt, chosen and rejected: for the rows dpo and ipo",
    "demonstrations": "your own demonstrations, JSONL with prompt and completion: for the row sft",
}

DEFAULT_LEVEL = "easy"


def find_task(name: str, *, level: str, options: Mapping[str, Any] | None = None) -> Task:
    """Return the task that the recipe names. `options` are those of a source: what its [task] has besides name and level.

    Raises:
        CoveyError: there is no such task or level, or the options are not the task's.
    """
    if name in SOURCES:
        if level not in ("", DEFAULT_LEVEL):
            raise CoveyError(f"task.level={level!r}: {name} has no levels; leave it out")
        return SOURCES[name](options or {})
    if name not in TASKS:
        raise CoveyError(f"task.name={name!r} is not a task; choose one of {', '.join([*TASKS, *SOURCES])}")
    if options:
        raise CoveyError(f"task.{next(iter(options))} is no option of {name}; it has a level alone. See {', '.join(SOURCES)}")
    return TASKS[name](level=level)


def task_rows() -> list[dict[str, Any]]:
    """Return what `covey tasks` lists: a row for each task and level, and one for each source."""
    rows: list[dict[str, Any]] = []
    for name in TASKS:
        for level in TASK_LEVELS[name]:
            task = find_task(name, level=level)
            rows.append(
                {
                    "name": name,
                    "level": level,
                    "summary": SUMMARIES[name],
                    "num_train": len(task.train),
                    "num_held_out": {part: len(task.held_out[part]) for part in PARTS},
                    "num_twins": len(task.twins),
                    "num_honeypots": len(task.honeypots),
                    "proxy": task.proxy.name,
                    "gold": task.gold.name if task.gold else None,
                    "example": task.train[0].text,
                    "right": next(probe.completion for probe in task.probes if probe.is_right),
                }
            )
    return [*rows, *({"name": name, "level": None, "summary": SUMMARIES[name]} for name in SOURCES)]


def task_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return the rows as lines for people."""
    lines: list[str] = []
    for row in rows:
        if row["level"] in (None, TASK_LEVELS.get(row["name"], ("",))[0]):
            lines.append(f"{row['name']}: {row['summary']}")
        if row["level"] is not None:
            example = row["example"].replace("\n", " ")
            lines.append(f"  {row['level']:<7} {row['num_train']:>6} questions   {example}  ->  {row['right']}")
    return lines
