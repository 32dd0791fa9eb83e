"""What a conversion gives: a recipe, and for every key of the source what became of it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tomli_w

SECTIONS = ("run", "model", "lora", "reward", "algorithm", "sampling", "train", "evaluation", "checkpoint")
"""The recipe's sections that a conversion may fill, in their order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """A recipe made of another trainer's configuration."""

    recipe: dict[str, Any]
    """Sections of options, as `covey.config.make_recipe` takes them."""
    carried: list[str]
    """What was carried over, and to where."""
    ignored: list[str]
    """Keys without a counterpart that change no result: logging, memory, machines, defaults."""
    lost: list[str]
    """Keys that change the result and could not be carried over, each with the reason."""


@dataclass(kw_only=True, slots=True)
class Draft:
    """A conversion in the making. It knows which keys were looked at, so that none is forgotten."""

    values: Mapping[str, Any]
    """As the user has them."""
    defaults: Mapping[str, Any]
    """What the source takes where the user is silent."""
    recipe: dict[str, Any] = field(default_factory=dict)
    carried: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    settled: set[str] = field(default_factory=set)

    def get(self, key: str) -> Any:
        """Return the value of a key; a number written as text ("1e-6", which YAML does not take for one) as a number."""
        value = self.values.get(key, self.defaults.get(key))
        return as_number(value) if isinstance(value, str) else value

    def is_given(self, key: str) -> bool:
        return key in self.values

    def put(self, option: str, value: Any, *, of: Sequence[str] = (), note: str = "") -> None:
        """Set "section.option" and record the keys it was made of, also where they are the source's defaults."""
        section, _, name = option.partition(".")
        self.recipe.setdefault(section, {})[name] = value
        sources = ", ".join(self.told(key) for key in of) or "always"
        self.carried.append(f"{sources} -> {option} = {value!r}" + (f" ({note})" if note else ""))
        self.settled.update(of)

    def lose(self, key: str, reason: str) -> None:
        """Record a key whose effect is not in the recipe."""
        self.lost.append(f"{self.told(key)}: {reason}")
        self.settled.add(key)

    def ignore(self, key: str, reason: str) -> None:
        """Record a key that changes no result here. Of keys the user did not give nothing is said."""
        if self.is_given(key) and key not in self.settled:
            self.ignored.append(f"{self.told(key)}: {reason}")
        self.settled.add(key)

    def told(self, key: str) -> str:
        """Return the key with its value, and whether that is only the default."""
        if key not in self.defaults and key not in self.values:
            return key
        return f"{key} = {self.get(key)!r}" + ("" if self.is_given(key) else " (the default)")

    def finished(self) -> Conversion:
        recipe = {section: self.recipe[section] for section in SECTIONS if section in self.recipe}
        return Conversion(recipe=recipe, carried=self.carried, ignored=self.ignored, lost=self.lost)


def as_number(text: str) -> Any:
    """Return the number that a text is, and else the text."""
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() and text.strip().lstrip("+-").isdigit() else number


def to_text(conversion: Conversion, *, source: str, width: int = 120) -> str:
    """Return the recipe as TOML, with comments that say what was not carried over."""
    lines = [f"# Converted from {source}."]
    for title, entries in (("Not carried over:", conversion.lost), ("Without effect here:", conversion.ignored)):
        lines += ["#", f"# {title}"] if entries else []
        for entry in entries:
            lines += textwrap.wrap(entry, width, initial_indent="# - ", subsequent_indent="#   ", break_on_hyphens=False)
    return "\n".join(lines) + "\n\n" + tomli_w.dumps(conversion.recipe)
