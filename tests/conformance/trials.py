"""Tests run against changed copies of the package, each in a process forked from one that has imported the libraries.

The parent imports torch, transformers, pytest and the like once, but never covey. A trial copies `src/`, replaces some of
its files, forks, puts the copy first on the path and runs pytest there. What the tests did comes back as data; what it
means (killed, survived) is decided elsewhere.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import pytest

ROOT = Path(__file__).parents[2]
PRELOADED = (
    *("torch", "numpy", "scipy.stats", "hypothesis", "jaxtyping", "beartype", "pydantic", "typer", "rich.console"),
    *("transformers", "transformers.models.llama.modeling_llama", "transformers.generation", "tokenizers", "safetensors.torch"),
    *("pyarrow.parquet", "tomli_w", "jinja2", "filelock"),
)

Kind = Literal["assertion", "shape", "other"]
"""How a test failed: by its own assertion (or a raise that it expected and did not get), by a check of annotated shapes, or
by any other exception."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One test that did not pass."""

    test: str
    phase: str
    """"call", or "setup" or "teardown" where a fixture failed, or "collect"."""
    kind: Kind
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """Tests to run against a copy of the package."""

    name: str
    tests: tuple[str, ...]
    changed: Mapping[str, str] = field(default_factory=dict)
    """Path from the root of the repository, below src/ -> the file's new text."""
    options: tuple[str, ...] = ()
    """More options for pytest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What the tests of a trial did."""

    collected: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    exit_code: int = -1
    """pytest's; 0 = all passed, 1 = some failed, others = it could not run them."""
    used_copy: bool = False
    """Whether covey was imported from the copy. If not, the result says nothing."""
    is_timeout: bool = False
    elapsed_s: float = 0.0
    log: str = ""
    """The end of what pytest printed."""


def preload() -> None:
    """Import what every trial needs, once. covey is left out: each trial imports its own copy.

    The settings come before numpy and torch: a process with threads must not be forked, and jobs share the cores.
    """
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that trials end with their parent
    for name in PRELOADED:
        importlib.import_module(name)
    assert "covey" not in sys.modules, "the parent of the trials must not import covey"


def run_trials(
    trials: Sequence[Trial], *, jobs: int = 1, timeout_s: float = 120.0, root: Path = ROOT
) -> Iterator[tuple[Trial, Result]]:
    """Yield each trial with its result as it ends, `jobs` at a time. `src/` is read once, at the start."""
    waiting = list(reversed(trials))
    running: dict[int, tuple[Trial, Path, float]] = {}
    with tempfile.TemporaryDirectory(prefix="covey-trials-") as scratch:
        pristine = Path(scratch) / "pristine"
        shutil.copytree(root / "src", pristine / "src", ignore=shutil.ignore_patterns("__pycache__"))
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    trial = waiting.pop()
                    workspace = Path(tempfile.mkdtemp(dir=scratch))
                    running[_fork(trial, pristine, workspace, root)] = (trial, workspace, time.monotonic())
                for pid, (trial, workspace, start) in list(running.items()):
                    elapsed_s = time.monotonic() - start
                    has_ended = os.waitpid(pid, os.WNOHANG)[0] == pid
                    if not has_ended and elapsed_s < timeout_s:
                        continue
                    _end_group(pid)
                    if not has_ended:
                        os.waitpid(pid, 0)
                    del running[pid]
                    yield trial, _read_result(workspace, is_timeout=not has_ended, elapsed_s=elapsed_s)
                    shutil.rmtree(workspace, ignore_errors=True)
                time.sleep(0.02)
        finally:
            for pid in running:
                _end_group(pid)


def _fork(trial: Trial, pristine: Path, workspace: Path, root: Path) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()  # so that whatever the tests start can be ended with them
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _run(trial, pristine, workspace, root)
        code = 0
    finally:
        os._exit(code)


def _end_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _read_result(workspace: Path, *, is_timeout: bool, elapsed_s: float) -> Result:
    path, log = workspace / "result.json", workspace / "log"
    text = log.read_text(errors="replace")[-3000:] if log.exists() else ""
    if is_timeout or not path.exists():
        return Result(is_timeout=is_timeout, elapsed_s=elapsed_s, log=text)
    data: dict[str, Any] = json.loads(path.read_text())
    failures = tuple(Failure(**failure) for failure in data.pop("failures"))
    data["collected"] = tuple(data["collected"])
    return Result(**data, failures=failures, elapsed_s=elapsed_s, log=text)


def _run(trial: Trial, pristine: Path, workspace: Path, root: Path) -> None:
    """In the forked process: make the copy, run the tests, write result.json."""
    log = os.open(workspace / "log", os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    source = workspace / "src"
    shutil.copytree(pristine / "src", source)
    for path, text in trial.changed.items():
        (workspace / path).write_text(text)
    (workspace / "recipes").symlink_to(root / "recipes")  # a source tree has them beside src/
    os.environ["PYTHONPATH"] = os.pathsep.join([str(source), str(root)])  # for processes that tests start
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(source))
    os.chdir(root)
    recorder = Recorder(source, root)
    options = ["-o", "addopts=", "--import-mode=importlib", "--strict-markers", "-m", "not slow", "--rootdir", str(root)]
    options += ["-p", "no:cacheprovider", "--tb=short", "-q", f"--basetemp={workspace / 'tmp'}"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    exit_code = pytest.main([*options, *trial.options, *trial.tests], plugins=[recorder])
    covey = sys.modules.get("covey")
    outcome = {
        "collected": recorder.collected,
        "failures": [asdict(failure) for failure in recorder.failures],
        "exit_code": int(exit_code),
        "used_copy": covey is not None and str(covey.__file__).startswith(str(source)),
    }
    (workspace / "result.json").write_text(json.dumps(outcome))
    sys.stdout.flush()
    sys.stderr.flush()


class Recorder:
    """A pytest plugin that notes the tests collected and how each failure came about."""

    def __init__(self, source: Path, root: Path):
        self.source = source
        self.root = root
        self.collected: list[str] = []
        self.failures: list[Failure] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.collected = [item.nodeid for item in session.items]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            lines = [line.removeprefix("E").strip() for line in report.longreprtext.splitlines() if line.startswith("E")]
            message = lines[-1] if lines else report.longreprtext[-200:]
            self.failures.append(Failure(test=report.nodeid, phase="collect", kind="other", message=message))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report: pytest.TestReport = yield
        if report.failed and call.excinfo is not None:
            error = call.excinfo.value
            message = f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]
            kind = kind_of(error, self.root / "tests")
            self.failures.append(Failure(test=item.nodeid, phase=report.when or "", kind=kind, message=message))
        return report


def kind_of(error: BaseException, tests: Path) -> Kind:
    """Return how a test failed. Of several failures that hypothesis found, one assertion is enough.

    An AssertionError counts as the test's only if it was raised there or by the comparisons that it calls: an `assert`
    in a library, or in the package under test, is an accident like any other exception.
    """
    if isinstance(error, BaseExceptionGroup):
        kinds = {kind_of(part, tests) for part in error.exceptions}
        return "assertion" if "assertion" in kinds else "shape" if "shape" in kinds else "other"
    if isinstance(error, (AssertionError, pytest.fail.Exception)) and _is_raised_by_a_test(error.__traceback__, tests):
        return "assertion"
    module = type(error).__module__
    return "shape" if module.startswith(("jaxtyping", "beartype")) or type(error).__name__ == "TypeCheckError" else "other"


def _is_raised_by_a_test(traceback: TracebackType | None, tests: Path) -> bool:
    file = ""
    while traceback is not None:
        file, traceback = traceback.tb_frame.f_code.co_filename, traceback.tb_next
    comparisons = ("/torch/testing/", "/numpy/testing/", "/_pytest/", "/hypothesis/")
    return file.startswith(str(tests)) or any(part in file for part in comparisons)
