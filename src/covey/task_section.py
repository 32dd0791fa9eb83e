"""The section of a recipe that says which questions are trained on: Covey's own by level, or a user's by where they are."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from covey.section import Section
from covey.tasks.registry import SOURCES

OWN_KEYS = ("name", "level")
"""What every task has; the other keys belong to a source of questions."""


class TaskSection(Section):
    name: str = Field(
        "arithmetic", description="a row of the task table, or a source: files, reasoning_gym, preferences, demonstrations"
    )
    level: str = Field("easy", description="difficulty; sources have none")
    path: str | None = Field(None, description="files: a JSONL, JSON or Parquet file, or the name of a data set on the hub")
    format: Literal["auto", "jsonl", "json", "parquet", "hub"] | None = Field(
        None, description="files: how to read it; absent = by the file's name"
    )
    preset: str | None = Field(None, description="files: columns, wording and verifier of a well-known schema")
    prompt_column: str | None = Field(None, description="files: the column with the question")
    answer_column: str | None = Field(None, description="files: the column with the right answer")
    id_column: str | None = Field(None, description="files: the column with an id; absent = a hash of the question")
    template: str | None = Field(None, description="sources: what is asked, with {prompt} in it")
    system: str | None = Field(None, description="files: a system message before each question")
    verifier: str | None = Field(None, description="files: a row of the reward table or module:function")
    verifier_options: dict[str, Any] | None = Field(None, description="files: the verifier's options")
    held_out_path: str | None = Field(None, description="files: questions to measure on; absent = a fifth of all, by hash")
    hub_config: str | None = Field(None, description="files: configuration of the hub's data set")
    split: str | None = Field(None, description="files: the hub's split to train on")
    held_out_split: str | None = Field(None, description="files: the hub's split to measure on")
    max_rows: int | None = Field(None, ge=0, description="files: rows that are read of each file; 0 = all")
    bad_rows: Literal["error", "skip"] | None = Field(None, description="files: what a row that cannot be used leads to")
    max_bad_frac: float | None = Field(None, ge=0, lt=1, description="files: with skip, the share of rows that may be bad")
    generator: str | None = Field(None, description="reasoning_gym: a data set of it, such as chain_sum")
    generator_options: dict[str, Any] | None = Field(None, description="reasoning_gym: what the data set's configuration takes")
    num_questions: int | None = Field(None, description="reasoning_gym: questions that are drawn for training")

    @property
    def options(self) -> dict[str, Any]:
        """What the source of the questions is given; nothing for Covey's own tasks."""
        return {key: value for key, value in self.model_dump().items() if key not in OWN_KEYS and value is not None}

    @model_validator(mode="after")
    def _options_have_a_source(self) -> Self:
        if self.name not in SOURCES and self.options:
            first = next(iter(self.options))
            raise ValueError(
                f"{first}={self.options[first]!r}: it belongs to task.name={' or '.join(repr(name) for name in SOURCES)}; "
                f"{self.name!r} has a level alone"
            )
        return self
