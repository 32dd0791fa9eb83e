"""Candidates as WebAssembly modules: the runtime is the one that is known, its cache the user's alone, and holes are found."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.sandbox.conftest import QUICK, available
from tests.sandbox.test_judge import DOUBLE

from covey.rewards.sandbox import wasm_runtime
from covey.rewards.sandbox.canaries import NEEDS, attempt, bait, escapes
from covey.rewards.sandbox.inside.limits import Limits
from covey.rewards.sandbox.judge import CallJob, Case
from covey.rewards.sandbox.pool import SandboxPool
from covey.rewards.sandbox.tiers import Tier
from covey.rewards.sandbox.wasi import Wasi
from covey.rewards.sandbox.wasm_runtime import RuntimeMissingError, compiled, keep, kept_bytes

ALL_FILES = (
    "import os\nfor n in range(3, 256):\n    try:\n        os.write(n, b'x')\n        1 / 0\n"
    "    except OSError:\n        pass\n"
)
GOOD = "def f(x): return 2 * x"


@pytest.fixture(scope="module")
def pool():
    with SandboxPool(available("wasm"), num_zygotes=1, limits=QUICK) as found:
        yield found


def tier_with(hole: str) -> Tier:
    """Return the tier with a hole in it."""
    paths = [os.path.abspath(path) for path in sys.path]
    code = f"import sys; sys.path[:] = {paths}; from tests.sandbox.holed_wasm import main; main({hole!r})"
    return dataclasses.replace(available("wasm"), wrapper=lambda: [sys.executable, "-P", "-c", code])


@pytest.mark.parametrize(("hole", "canary"), [("files", "writes_file"), ("environment", "sees_environment")])
def test_a_hole_is_found_before_anything_runs(hole: str, canary: str, pool: SandboxPool):
    """The positive control of the canaries: an open directory that may be written to; a variable of the environment."""
    holed = tier_with(hole).start()
    try:
        with bait() as laid:
            assert attempt(pool._zygote(0), canary, laid) == ""
            assert attempt(holed, canary, laid) != ""
    finally:
        holed.close()


def test_memory_is_limited_by_the_runtime_alone(pool: SandboxPool):
    job, source = CallJob(entry="f", cases=[Case(args=(), right=300 << 20)]), "def f(): return len(bytearray(300 << 20))"
    limits = Limits(cpu_s=20, memory_mb=200)
    holed = tier_with("memory").start()
    try:
        assert job.grade(pool._zygote(0), source, limits).kind == "memory"
        assert job.grade(holed, source, limits).has_passed
    finally:
        holed.close()


def test_what_honest_solutions_lack_is_said_and_no_escape_is_excused(pool: SandboxPool):
    """What a tier lacks is what honest solutions need; an attempt that a tier names so is made all the same."""
    assert set(escapes(pool._zygote(0))) == pool.tier.lacks
    assert pool.tier.lacks < NEEDS
    holed = tier_with("environment").start()
    try:
        assert set(escapes(holed, lacks=frozenset({"sees_environment", "threads"}))) == {"sees_environment"}
    finally:
        holed.close()


def test_the_module_is_given_no_call_that_opens_anything():
    files: Any = None
    calls = set(Wasi(files, arguments=(), environment=()).calls)
    assert len(calls) == 19, "as the guide says"
    assert not [name for name in calls if name.startswith(("path_", "sock_"))]
    assert {"fd_prestat_dir_name", "fd_readdir", "fd_allocate", "fd_filestat_set_size"}.isdisjoint(calls)


@pytest.mark.parametrize("place", [-1, -65536, 0x7FFFFFFF, 0])
def test_addresses_outside_of_its_memory_reach_nothing(place: int):
    """A module may name any address in a call: what lies beyond its memory is neither read nor written."""

    class Memory:
        data = bytearray(b"\x08\0\0\0\xff\xff\xff\xff" + b"s" * 56)

        def read(self, caller: Any, start: int, stop: int) -> bytes:
            return bytes(self.data[start:stop])

        def write(self, caller: Any, value: bytes, start: int) -> None:
            if start + len(value) > len(self.data):
                raise IndexError("out of bounds")
            self.data[start : start + len(value)] = value

    handed: list[bytes] = []
    files: Any = SimpleNamespace(write=lambda number, data: handed.append(data) or len(data))
    calls = Wasi(files, arguments=(), environment=()).calls
    caller = {"memory": Memory()}
    assert calls["fd_write"](caller, 1, place, 1, 0) == 0
    assert all(set(data) <= set(b"s") for data in handed)
    with pytest.raises(IndexError):
        calls["random_get"](caller, -4, 64)


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("import os\nos.pwrite(1, b'\\xff' * 64, 0)\n" + GOOD, "protocol_violation"),
        ("import os\nos.pread(0, 1 << 20, 0)\n" + GOOD, "timeout"),
        ("import os\nos.write(1, b'noise')\nos.write(2, b'noise')\nprint('noise')\n" + GOOD, "passed"),
        (ALL_FILES + GOOD, "passed"),
        ("import sys\nsys.stderr.write('x' * 10_000_000)\n" + GOOD, "passed"),
        ("def f(x):\n    r = []\n    for _ in range(10**5): r = [r]\n    return repr(r)", "exception"),
        ("def f(x): return eval('(' * 5000)", "memory"),
    ],
)  # fmt: skip
def test_what_a_module_does_with_its_files_is_its_own_affair(source: str, kind: str, pool: SandboxPool):
    outcome = pool.grade(DOUBLE, source)
    assert outcome.kind == kind, outcome
    assert pool.grade(DOUBLE, GOOD).has_passed


def test_deep_recursion_and_large_numbers_work(pool: SandboxPool):
    source = "import sys\nsys.setrecursionlimit(30_000)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)"
    assert pool.grade(CallJob(entry="f", cases=[Case(args=(20_000,), right=20_000)]), source).has_passed
    assert pool.grade(CallJob(entry="f", cases=[Case(args=(300,), right=2**300)]), "def f(n): return 2 ** n").has_passed


def test_a_sleeper_is_ended_from_outside(pool: SandboxPool):
    outcome = pool.grade(DOUBLE, "import time\ndef f(x): time.sleep(60)")
    assert (outcome.kind, outcome.was_starved) == ("timeout", False)


def test_another_runtime_is_refused(monkeypatch: pytest.MonkeyPatch):
    available("wasm")
    assert len(wasm_runtime.runtime_bytes()) > 20_000_000
    monkeypatch.setattr(wasm_runtime, "WASM_SHA256", "0" * 64)
    with pytest.raises(RuntimeMissingError, match="and not 0000"):
        wasm_runtime.runtime_bytes()


def test_a_compiled_runtime_is_kept_for_this_user_alone(tmp_path: Path):
    path = tmp_path / "x.cwasm"
    keep(path, b"machine code")
    assert kept_bytes(path) == b"machine code"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.chmod(0o644),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"machine", b"another")),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: path.symlink_to(path.rename(path.with_name("elsewhere"))),
    ],
)
def test_what_is_not_as_it_was_kept_is_compiled_anew(damage: Any, tmp_path: Path):
    path = tmp_path / "x.cwasm"
    keep(path, b"machine code")
    damage(path)
    assert kept_bytes(path) is None


def test_a_cache_that_others_may_write_to_is_refused(tmp_path: Path):
    available("wasm")
    directory = tmp_path / "wasm"
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(RuntimeMissingError, match="set COVEY_HOME"):
        compiled(None, directory)
    with pytest.raises(RuntimeMissingError, match="cannot be made"):
        compiled(None, Path("/proc/none/wasm"))


def test_what_is_missing_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wasm_runtime, "_PACKAGE", "no_such_package")
    assert "no_such_package; pip install 'covey[wasm]'" in wasm_runtime.missing()


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86-64")
def test_without_the_kernels_help_it_is_the_one_that_holds():
    available("wasm")
    code = (
        "from tests.sandbox.test_training_on_code import without_kernel_help\nwithout_kernel_help()\n"
        "from covey.rewards.sandbox.pool import choose_tier\nchoice = choose_tier()\nprint(choice.tier.name, *choice.refused)\n"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root})
    assert done.stdout.split() == ["wasm", "bubblewrap", "landlock"], done.stderr
