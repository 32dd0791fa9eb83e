"""The command line in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests import processes
from tests.processes import Finished, Running

SMALL = [
    *("--model", "tiny"),
    *("run.num_threads=1", "model.compute_dtype=float32", "sampling.max_new_tokens=6", "evaluation.num_prompts=4"),
    *("train.num_steps=2", "train.prompts_per_step=2", "train.group_size=4", "train.max_draws=1"),
    *("train.warmup_steps=1", "train.decay=false"),
]
"""Options of a run on the tiny model that takes half a second."""


def covey(*arguments: str, directory: Path, environment: Mapping[str, str] | None = None, stdin: str = "") -> Finished:
    """Run `covey` with the arguments in `directory` and wait for its end."""
    return start_covey(*arguments, directory=directory, environment=environment, stdin=stdin).finish()


def start_covey(*arguments: str, directory: Path, environment: Mapping[str, str] | None = None, stdin: str = "") -> Running:
    """Start `covey` with the arguments in `directory`."""
    return processes.start(_main, arguments, directory=directory, environment=environment, stdin=stdin)


def covey_from_scratch(*arguments: str, directory: Path, environment: Mapping[str, str] | None = None) -> Finished:
    """Run `covey` in a new interpreter, as a shell does: seconds more, for what must not be prepared by anything."""
    return python("from covey.cli import main; main()", *arguments, directory=directory, environment=environment)


def python(code: str, *arguments: str, directory: Path, environment: Mapping[str, str] | None = None) -> Finished:
    """Run a Python program in a new interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=directory,
        env=os.environ | dict(environment or {}),
        capture_output=True,
        text=True,
        timeout=processes.DEADLINE_S,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def _main(arguments: tuple[str, ...]) -> None:
    sys.argv = ["covey", *arguments]
    from covey.cli import main

    main()
