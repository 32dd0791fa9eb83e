"""Reward functions that hang. Only what a reward may import is imported here: worker processes load this module."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

MARKER = "COVEY_TEST_MARKER"
"""The variable with the path of a file that says that a function has hung."""


def sleep_for_ever(sample: Any) -> float:
    time.sleep(3600)
    return 0.5


def leave_child_and_hang(sample: Any) -> float:
    """Leave a process in a session of its own behind, and hang."""
    subprocess.Popen(["sleep", "3600"], start_new_session=True)
    return sleep_for_ever(sample)


def take_a_while(completion: str) -> float:
    time.sleep(0.3)
    return 0.5


def hang_once(completion: str) -> float:
    """Hang in the first call of all."""
    marker = Path(os.environ[MARKER])
    if not marker.exists():
        marker.touch()
        time.sleep(3600)
    return sum(character.isdigit() for character in completion) / max(1, len(completion))
