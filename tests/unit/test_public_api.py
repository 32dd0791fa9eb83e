"""The public names, and what importing them costs."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest

import covey

HEAVY = ("torch", "transformers", "pydantic", "numpy", "scipy", "pyarrow", "plotly")

# A change here is a change of what users may rely on: say so in the changelog.
PUBLIC = ["CoveyError", "Message", "Prompt", "Run", "Sample", "Score", "__version__", "open_run", "train"]


def run_python(code: str) -> str:
    """Return what a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_names_are_these():
    assert covey.__all__ == PUBLIC
    assert dir(covey) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_documented(name: str):
    value = getattr(covey, name)
    assert name == "__version__" or inspect.getdoc(value)


def test_an_unknown_name_is_an_attribute_error():
    name = "trian"
    with pytest.raises(AttributeError, match="module 'covey' has no attribute 'trian'"):
        getattr(covey, name)


@pytest.mark.parametrize("name", ["train", "open_run", "Run"])
def test_a_public_name_is_the_one_of_the_api(name: str):
    assert getattr(covey, name) is getattr(importlib.import_module("covey.api"), name)


@pytest.mark.parametrize("is_known_before", [True, False])
def test_train_stays_the_function_when_its_submodule_is_imported(monkeypatch: pytest.MonkeyPatch, is_known_before: bool):
    function = covey.train
    monkeypatch.delitem(sys.modules, "covey.train")
    if not is_known_before:
        monkeypatch.delattr(covey, "train")
    module = importlib.import_module("covey.train")
    assert inspect.ismodule(module)
    assert covey.train is function


def test_the_signature_of_train_is_this():
    parameters = inspect.signature(covey.train).parameters
    assert list(parameters) == [
        *(
            "recipe",
            "model",
            "prompts",
            "held_out",
            "reward",
            "reward_weights",
            "gold",
            "reward_range",
            "resume",
            "quiet",
            "profile",
            "overrides",
        )
    ]
    assert [name for name, parameter in parameters.items() if parameter.kind is not parameter.KEYWORD_ONLY] == [
        "recipe",
        "overrides",
    ]


RUN = "import sys; sys.argv = ['covey', *{arguments}]; import covey.cli as cli\ntry: cli.main()\nexcept SystemExit: pass"


@pytest.mark.parametrize(
    "statement",
    [
        "import covey",
        "import covey; covey.Prompt, covey.CoveyError, covey.__version__, dir(covey)",
        "import covey.cli",
        RUN.format(arguments=["--help"]),
    ],
    ids=["package", "names", "cli", "help"],
)
def test_nothing_heavy_is_imported_before_it_is_needed(statement: str):
    printed = run_python(f"{statement}\nimport sys; print([name for name in {HEAVY} if name in sys.modules])")
    assert printed.splitlines()[-1] == "[]"


@pytest.mark.parametrize("arguments", [["train", "--help"], ["--version"]], ids=" ".join)
def test_no_command_loads_torch_or_the_recipe_to_explain_itself(arguments: list[str]):
    heavy = ("torch", "transformers", "scipy", "covey.config")
    printed = run_python(f"{RUN.format(arguments=arguments)}\nprint([name for name in {heavy} if name in sys.modules])")
    assert printed.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "module", ["covey.tasks.registry", "covey.rewards.registry", "covey.stats", "covey.metrics", "covey.report"]
)
def test_tasks_rewards_and_the_report_need_no_torch(module: str):
    printed = run_python(f"import {module}, sys; print([name for name in ('torch', 'transformers') if name in sys.modules])")
    assert printed == "[]\n"


def test_help_prints_the_commands():
    printed = run_python("import sys; sys.argv = ['covey', '--help']; import covey.cli; covey.cli.main()")
    assert all(command in printed for command in ("train", "evaluate", "export", "report", "chat", "fetch"))


def test_the_version_is_printed():
    printed = run_python("import sys; sys.argv = ['covey', '--version']; import covey.cli; covey.cli.main()")
    assert printed.strip() == covey.__version__
