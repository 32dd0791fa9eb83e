"""What the commands share: their arguments, and how they print."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

EXIT_STOPPED = 75
"""A signal came; what was done is saved, and can be gone on with."""

Quiet = Annotated[bool, typer.Option("--quiet", help="Say nothing but warnings and errors.")]
ModelArgument = Annotated[str, typer.Argument(help="Bundled name, local directory, hub id, or a run directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return (recipes, overrides): an override is what has an equals sign in it."""
    return [item for item in arguments if "=" not in item], [item for item in arguments if "=" in item]


def say(message: str) -> None:
    """Print a line of progress on standard error: standard output is for the result."""
    typer.echo(message, err=True)


def print_json(value: Any) -> None:
    """Print one JSON document on standard output."""
    typer.echo(json.dumps(value, indent=1, allow_nan=False))
