"""What all sections of a recipe have in common."""

from __future__ import annotations

from typing import get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """A frozen part of the recipe in which an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        wanted = cls.model_fields[str(info.field_name)].annotation
        members = get_args(wanted) if bool not in get_args(wanted) else ()
        if isinstance(value, bool) and ({wanted, *members} & {int, float}):
            raise ValueError("true and false are no numbers; give a number")
        return value
