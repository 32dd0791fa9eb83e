"""A run on code from the command line: it refuses to start without a sandbox, records the one it has, and trains."""

from __future__ import annotations

import ctypes
import errno
import json
import os
from pathlib import Path

import pytest
from tests.commands import SMALL, covey, python

from covey.rewards.sandbox.inside.seccomp import install, instruction
from covey.rewards.sandbox.tiers import TIERS

ON_CODE = ["train", "arithmetic", "task.name=functions", *SMALL, "train.num_steps=1", "guard.enabled=false"]
_LANDLOCK, _UNSHARE, _CLONE3, _CLONE = 444, 272, 435, 56


def without_kernel_help() -> None:
    """Put this process where Landlock and namespaces do not exist, as an old kernel or a strict container does."""
    denied = []
    for number in (_LANDLOCK, _UNSHARE, _CLONE3):
        denied += [instruction(0x15, number, if_false=1), instruction(0x06, 0x50000 | errno.ENOSYS)]
    new_user_namespace = [
        instruction(0x15, _CLONE, if_false=4),
        instruction(0x20, 16),
        instruction(0x54, 0x10000000),
        instruction(0x15, 0, if_true=1),
        instruction(0x06, 0x50000 | errno.EPERM),
    ]
    install([instruction(0x20, 0), *denied, *new_user_namespace, instruction(0x06, 0x7FFF0000)])


@pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8 or os.uname().machine != "x86_64", reason="numbers of x86-64")
def test_without_a_sandbox_the_run_refuses_before_the_model_is_loaded(tmp_path: Path):
    code = (
        "import sys\nsys.modules['wasmtime'] = None\n"
        "from tests.sandbox.test_training_on_code import without_kernel_help\nwithout_kernel_help()\n"
        "from covey.cli import main\nmain()"
    )
    done = python(
        code, *ON_CODE, "--name", "run", directory=tmp_path, environment={"PYTHONPATH": str(Path(__file__).parents[2])}
    )
    assert done.code != 0
    assert "rewards that run code need a sandbox that holds" in done.err
    for name in (name for name, tier in TIERS.items() if tier.is_automatic):
        assert f"{name}: " in done.err
    assert 'sandbox = "unprotected"' in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "runs" / "run").exists()


def test_the_sandbox_is_part_of_the_record(tmp_path: Path):
    done = covey(*ON_CODE, "--name", "run", directory=tmp_path)
    assert done.code == 0, done.err
    facts = json.loads((tmp_path / "runs/run/env.json").read_text())["sandbox"]
    assert facts["tier"] in TIERS
    assert facts["limits"]["cpu_s"] == 3


def test_who_does_without_is_told_and_it_is_recorded(tmp_path: Path):
    done = covey(*ON_CODE, "reward.sandbox=unprotected", "--name", "run", directory=tmp_path)
    assert done.code == 0, done.err
    assert "runs with all that you may do" in done.err + done.out
    assert json.loads((tmp_path / "runs/run/env.json").read_text())["sandbox"]["tier"] == "unprotected"
    assert "ran without a sandbox" in (tmp_path / "runs/run/report.html").read_text()
