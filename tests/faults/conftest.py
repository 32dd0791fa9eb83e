"""Where checkpoints are saved to, damaged and lost, and runs without what takes long."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.checkpoints import save
from tests.digits import leave_out_slow_parts


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
def no_slow_parts() -> Iterator[None]:
    """Runs of this module write no report and wait for no disk."""
    with pytest.MonkeyPatch.context() as patch:
        leave_out_slow_parts(patch)
        yield


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of this module are."""
    return tmp_path_factory.mktemp("runs")
