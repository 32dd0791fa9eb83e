"""Where checkpoints are saved to, damaged and lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.checkpoints import save


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """The directory for a test's checkpoints. The first save makes it."""
    return tmp_path / "checkpoints"


@pytest.fixture
def two_checkpoints(checkpoints: Path) -> Path:
    """The same directory, with the checkpoints of steps 1 and 2."""
    save(checkpoints, 1)
    save(checkpoints, 2)
    return checkpoints


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of this module are."""
    return tmp_path_factory.mktemp("runs")
