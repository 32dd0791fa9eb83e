"""Where the tests of Covey from Python run."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the tiny model in `model`, shared by the tests of a file."""
    from tests.digits import tiny_model  # here, for it imports torch, which many unit tests do without

    directory = tmp_path_factory.mktemp("api")
    tiny_model(directory / "model")
    return directory


@pytest.fixture
def in_model_directory(model_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in `model_directory`, where runs go to `runs`, and leave their slow parts out."""
    from tests.digits import leave_out_slow_parts

    leave_out_slow_parts(monkeypatch)
    monkeypatch.chdir(model_directory)
