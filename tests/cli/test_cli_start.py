"""What answers at once must not load what takes seconds."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests import commands
from tests.commands import covey_from_scratch, python
from tests.processes import Finished
from typer.main import get_group

import covey
from covey.cli import app

COMMANDS = sorted(get_group(app).commands)

ALL_HELPS = """
import sys
from typer.testing import CliRunner
from covey.cli import app
for command in sys.argv[1:]:
    result = CliRunner().invoke(app, [command, "--help"])
    print(command, result.exit_code, "Usage:" in result.output)
print("torch" in sys.modules, "transformers" in sys.modules)
"""


@pytest.fixture(scope="module")
def help_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, float]:
    """`covey --help` and the seconds it took; of two tries the faster one, for others may be using the machine."""
    tries: list[tuple[float, Finished]] = []
    for _ in range(2):
        started = time.monotonic()
        finished = covey_from_scratch("--help", directory=tmp_path_factory.mktemp("help"))
        tries.append((time.monotonic() - started, finished))
    seconds, finished = min(tries, key=lambda attempt: attempt[0])
    return finished, seconds


def test_help_comes_at_once(help_page: tuple[Finished, float]) -> None:
    finished, seconds = help_page
    assert finished.code == 0, finished.err
    assert seconds < 2.0


def test_help_names_every_command(help_page: tuple[Finished, float]) -> None:
    finished, _ = help_page
    assert [
        *(
            "algorithms",
            "audit",
            "calibrate",
            "chat",
            "compare",
            "control",
            "convert-config",
            "evaluate",
            "export",
            "fetch",
            "guard",
            "plan",
        ),
        *("report", "tasks", "train"),
    ] == COMMANDS
    assert [command for command in COMMANDS if command not in finished.out] == []


def test_no_help_page_loads_torch(tmp_path: Path) -> None:
    finished = python(ALL_HELPS, *COMMANDS, directory=tmp_path)
    assert finished.code == 0, finished.err
    assert finished.out.splitlines() == [*(f"{command} 0 True" for command in COMMANDS), "False False"]


def test_importing_covey_loads_torch_only_when_it_is_needed(tmp_path: Path) -> None:
    code = "import sys, covey; covey.Prompt; covey.Score; covey.CoveyError; print('torch' in sys.modules)"
    assert python(code, directory=tmp_path).out == "False\n"


def test_the_version_is_the_packages(tmp_path: Path) -> None:
    finished = covey_from_scratch("--version", directory=tmp_path)
    assert (finished.code, finished.out) == (0, f"{covey.__version__}\n")


def test_no_command_at_all_shows_the_help(tmp_path: Path) -> None:
    finished = commands.covey(directory=tmp_path)
    assert "Usage:" in finished.out + finished.err


@pytest.mark.parametrize("arguments", [["trian"], ["train", "--num-steps", "3"], ["evaluate"]])
def test_wrong_usage_is_exit_code_2(tmp_path: Path, arguments: list[str]) -> None:
    finished = commands.covey(*arguments, directory=tmp_path)
    assert finished.code == 2
    assert "Traceback" not in finished.err
    assert "Usage:" in finished.err
