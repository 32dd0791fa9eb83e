"""The options of a task that is made of a user's own rows: the keys of a recipe's [task]."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from covey.tasks.data_rows import FORMATS, Format
from covey.tasks.presets import PRESETS
from covey.types import CoveyError


@dataclass(frozen=True, kw_only=True, slots=True)
class DataOptions:
    """Where the questions are, and how they are read. The keys are those of a recipe's [task]."""

    path: str
    """A file, or the name of a data set on the hub."""
    format: Format = "auto"
    """auto: by the file's name."""
    preset: str = ""
    """A row of PRESETS; empty = the columns below."""
    prompt_column: str = ""
    answer_column: str = ""
    id_column: str = ""
    """Empty: a question's id is a hash of its words."""
    template: str = ""
    """What is asked, with {prompt} in it; empty = the preset's, or the bare prompt."""
    system: str = ""
    """A system message before each question; empty = none."""
    verifier: str = ""
    """A row of the reward table or module:function; empty = the preset's."""
    verifier_options: Mapping[str, Any] = field(default_factory=dict)
    held_out_path: str = ""
    """Questions to measure on; empty = a fifth of the questions, by a hash of their words."""
    hub_config: str = ""
    split: str = "train"
    held_out_split: str = ""
    """Of the hub; empty = held out by hash, unless held_out_path is given."""
    max_rows: int = 0
    """Rows read of each file; 0 = all."""
    bad_rows: Literal["error", "skip"] = "error"
    max_bad_frac: float = 0.01
    """With bad_rows = "skip": the share of rows that may be bad."""


def data_options(options: Mapping[str, Any]) -> DataOptions:
    """Return the options of a recipe's [task], checked.

    Raises:
        CoveyError: one is unknown, missing or wrong.
    """
    known = [each.name for each in dataclasses.fields(DataOptions)]
    if unknown := sorted(set(options) - set(known)):
        raise CoveyError(f"task.{unknown[0]} is no option of task.name='files'; it has {', '.join(known)}")
    if not options.get("path"):
        raise CoveyError("task.name='files' needs task.path: a JSONL, JSON or Parquet file, or a data set of the hub")
    chosen = DataOptions(**options)
    if chosen.format not in FORMATS:
        raise CoveyError(f"task.format={chosen.format!r} is none of {', '.join(FORMATS)}")
    if chosen.preset and chosen.preset not in PRESETS:
        raise CoveyError(f"task.preset={chosen.preset!r} is none of {', '.join(PRESETS)}; or name the columns")
    if not chosen.preset and not (chosen.prompt_column and chosen.answer_column):
        raise CoveyError("name the columns with task.prompt_column and task.answer_column, or choose a task.preset")
    if chosen.template and "{prompt}" not in chosen.template:
        raise CoveyError(f"task.template={chosen.template!r} has no {{prompt}} in it, where the question goes")
    if chosen.bad_rows not in ("error", "skip"):
        raise CoveyError(f"task.bad_rows={chosen.bad_rows!r} is neither 'error' nor 'skip'")
    if not 0 <= chosen.max_bad_frac < 1:
        raise CoveyError(f"task.max_bad_frac={chosen.max_bad_frac}: give a share from 0 to below 1")
    return chosen
