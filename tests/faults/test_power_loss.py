"""Power that is lost before any call of a run, and the proof that each fsync is needed: without it something is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.digits import train_digits
from tests.power_loss import Recording, losses

from covey import checkpoint
from covey.checkpoint import Checkpoint, load_checkpoint, newest_valid_checkpoint
from covey.monitor.run_directory import RunDirectory, read_jsonl
from covey.types import CoveyError

NUM_STEPS = 3
ENDED = 100
"""Stands for the step that was saved last once the whole run has returned."""
KNOWN_BY = (
    *("create", "write_bytes_synced", "_replacing", "write_rows", "sync"),
    *("_make_directory", "_write_files", "_write_manifest", "_publish"),
)
"""The functions that call fsync: each is seen to, or this test does not look where it should."""
NOT_PROMISED = "journal."
"""The journal outlives the process and not the machine: what it loses is graded again."""


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recording]:
    """A run of three steps that saves after each, without what takes long."""
    directory = tmp_path_factory.mktemp("power")
    (directory / "runs").mkdir()
    found = Recording(root=directory / "runs" / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("covey.api.write_report", lambda path: path / "report.html")
        plain = checkpoint._publish

        def publish(temporary: Path, path: Path) -> Path:
            published = plain(temporary, path)
            found.num_finished = int(path.name.rpartition("-")[2])
            return published

        patch.setattr(checkpoint, "_publish", publish)
        found.install(patch)
        # The first evaluation comes after the first save, so that a log begins when a checkpoint is there already.
        options = {"checkpoint__every": 1, "evaluation__before": False, "evaluation__every": 2, "checkpoint__rollouts_every": 1}
        model = str(directory / "model")
        train_digits(directory, "model-maker", num_steps=1)
        found.calls.clear()
        found.num_finished = 0
        train_digits(directory / "runs", "run", model=model, num_steps=NUM_STEPS, **options)
        found.num_finished = ENDED
        found.note()
    yield found
    found.close()


Known = dict[tuple[str, int], str]


@pytest.fixture(scope="module")
def known() -> Known:
    """What was found of each state that a loss of power can leave; most tests see the same ones."""
    return {}


def problem(left: Path, num_finished: int) -> str:
    """Return what is lost that must not be: of the last save that had returned, and of everything that it vouches for."""
    run = RunDirectory(left / "run")
    if empty := [file.name for file in (run.recipe, run.env, run.costs) if file.is_file() and not file.read_text()]:
        return f"{empty} have a name and nothing in them"
    if num_finished == ENDED and not run.costs.is_file():
        return "costs.json is gone"
    if not num_finished:
        return ""
    if not run.recipe.is_file() or not run.env.is_file():
        return "the run has no recipe.toml or env.json"
    try:
        path, damaged = newest_valid_checkpoint(run.checkpoints)
    except CoveyError as error:
        return str(error)
    if path is None:
        return "there is no checkpoint"
    found = load_checkpoint(path)
    if found.step < min(num_finished, NUM_STEPS) or damaged:
        return f"the newest whole checkpoint is that of step {found.step}, and step {num_finished} was saved; {damaged}"
    return problem_of_logs(run, found) or problem_of_tables(run, found)


def problem_of_logs(run: RunDirectory, found: Checkpoint) -> str:
    short = [name for name, log in run.logs().items() if log.size < found.log_sizes[name]]
    return f"{short} are shorter than the checkpoint says" if short else ""


def problem_of_tables(run: RunDirectory, found: Checkpoint) -> str:
    evaluations = read_jsonl(run.eval)
    wanted = [run.rollouts_of(step) for step in range(1, found.step + 1)]
    wanted += [
        run.evals_of(row["step"], part=row["part"], mode=row["mode"]) for row in evaluations if row["step"] <= found.step
    ]
    if gone := [table.name for table in wanted if not table.is_file()]:
        return f"{gone} are gone"
    empty = [table.name for table in (*run.rollouts.glob("s*"), *run.evals.glob("[!.]*")) if not table.stat().st_size]
    return f"{empty} have a name and nothing in them" if empty else ""


def test_a_loss_of_power_costs_nothing_that_was_saved(recording: Recording, known: Known, tmp_path: Path) -> None:
    assert len(recording.calls) > 50
    assert recording.calls[-1].num_finished == ENDED
    assert max(call.num_finished for call in recording.calls[:-1]) == NUM_STEPS
    assert list(losses(recording, problem, tmp_path / "left", known=known)) == []


def test_every_fsync_is_known(recording: Recording) -> None:
    callers = " ".join(recording.sites)
    assert [name for name in KNOWN_BY if f".{name}:" not in callers] == []


def test_without_any_one_fsync_something_is_lost(recording: Recording, known: Known, tmp_path: Path) -> None:
    """The mutation: each place that calls fsync is left out in turn."""
    needless = [
        site
        for site in recording.sites
        if NOT_PROMISED not in site and not any(losses(recording, problem, tmp_path / "left", known=known, without=site))
    ]
    assert needless == []


def test_the_logs_of_the_run_are_what_the_checkpoints_vouch_for(recording: Recording) -> None:
    assert [row["step"] for row in read_jsonl(recording.root / "metrics.jsonl")] == [1, 2, 3]
