"""Names from recipes, data and the disk that point elsewhere: nothing outside a run's place is written, read or removed."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoints import names, save
from tests.commands import SMALL, covey
from tests.digits import PROMPTS, resume_digits, train_digits

import covey as covey_of_python
from covey.checkpoint import newest_valid_checkpoint
from covey.monitor.run_directory import RunDirectory, write_rows
from covey.tasks.registry import find_task
from covey.types import CoveyError

ELSEWHERE = {
    "up": "../escaped",
    "up and up": "a/../../../escaped",
    "absolute": "/tmp/covey-escaped",
    "quoted": "%2e%2e/escaped",
    "quoted slash": "..%2fescaped",
    "backslashes": "..\\escaped",
    "home": "~/escaped",
    "NUL": "a\x00b",
    "long": "x" * 300,
    "dots": "..",
    "dot": ".",
    "line": "a\nescaped",
    "option": "--help",
}
TAKEN = {"quoted slash", "backslashes", "line", "option"}
"""Strange, and names of directories all the same."""


pytestmark = pytest.mark.usefixtures("no_slow_parts")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """The directory of runs, in the midst of one that nothing may appear in."""
    place = tmp_path / "inside" / "runs"
    place.mkdir(parents=True)
    return place


def outside(runs: Path) -> list[Path]:
    """Return what lies beside the runs and the model that they need."""
    return [path for path in runs.parents[1].rglob("*") if not path.is_relative_to(runs) and path != runs.parent]


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_a_name_of_a_run_leads_nowhere_else(runs: Path, kind: str) -> None:
    if kind in TAKEN:
        assert train_digits(runs, ELSEWHERE[kind], num_steps=1).path.parent == runs
    else:
        with pytest.raises(CoveyError, match=r"run\.name|no name of a directory"):
            train_digits(runs, ELSEWHERE[kind], num_steps=1)
        assert [path.name for path in runs.iterdir()] == ["model"]
    assert outside(runs) == []
    assert not Path("/tmp/covey-escaped").exists()


def test_a_name_of_a_run_that_is_a_link_is_not_written_through(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("mine")
    (runs / "linked").symlink_to(tmp_path / "other")
    with pytest.raises(CoveyError, match="is not empty"):
        train_digits(runs, "linked", num_steps=1)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["file"]


def test_ids_of_rows_name_no_files(runs: Path) -> None:
    ids = itertools.cycle(ELSEWHERE.values())
    prompts: list[Any] = [{"prompt": text, "id": f"{next(ids)} {n}"} for n, text in enumerate(PROMPTS)]
    run = train_digits(runs, "run", num_steps=2, prompts=prompts, evaluation__every=1, checkpoint__rollouts_every=1)
    assert outside(runs) == []
    tables = [path.name for path in (*run.path.glob("rollouts/*"), *run.path.glob("evals/*"))]
    assert {name.rpartition("-")[2] for name in tables} == {f"00000{step}.parquet" for step in range(3)}


@pytest.mark.parametrize("kind", sorted({*ELSEWHERE} - {"dots", "dot", "absolute"}))
def test_a_path_of_data_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"path": ELSEWHERE[kind], "prompt_column": "q", "answer_column": "a", "verifier": "last_number"}
    with pytest.raises(CoveyError):
        find_task("files", level="", options=options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["model", "resume", "recipe"])
@pytest.mark.parametrize("name", ["x" * 300, "x" * 5000, "a\x00b", "runs/" + "y" * 300])
def test_what_no_file_can_be_called_is_refused_wherever_it_is_given(tmp_path: Path, what: str, name: str) -> None:
    given: dict[str, Any] = {what: name} if what != "recipe" else {what: f"{name}.toml"}
    with pytest.raises(CoveyError):
        covey_of_python.train(quiet=True, **given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--name", "../escaped"], ["run.name='../escaped'"], ["--name", "x" * 300]])
def test_the_command_refuses_such_names(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "work").mkdir()
    finished = covey("train", "arithmetic", *words, *SMALL, directory=tmp_path / "work")
    assert finished.code == 2
    assert [path.name for path in tmp_path.iterdir() if "escaped" in path.name] == []


@pytest.mark.parametrize("name", ["step-../../x", "step-1", "step-000001/../../x", "latest", "step-000001 "])
def test_what_is_no_name_of_a_checkpoint_is_none(checkpoints: Path, name: str) -> None:
    save(checkpoints, 1)
    if "/" not in name:
        (checkpoints / name).mkdir()
    assert newest_valid_checkpoint(checkpoints) == (checkpoints / "step-000001", [])


# Links


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "checkpoints"


@pytest.fixture
def treasure(tmp_path: Path) -> Path:
    """A directory that no run may touch, with a checkpoint in it, so that nothing is wrong with it but its place."""
    place = save(tmp_path / "elsewhere", 1)
    (place / "treasure").write_text("mine")
    return place


def contents(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.iterdir()}


def test_pruning_an_old_checkpoint_that_is_a_link_removes_the_link_alone(checkpoints: Path, treasure: Path) -> None:
    checkpoints.mkdir()
    (checkpoints / "step-000001").symlink_to(treasure)
    before = contents(treasure)
    for step in (2, 3, 4):
        save(checkpoints, step)
    assert names(checkpoints) == ["step-000003", "step-000004"]
    assert contents(treasure) == before


@pytest.mark.parametrize("kind", ["tmp", "del"])
def test_a_leftover_that_is_a_link_is_removed_and_what_it_leads_to_stays(checkpoints: Path, treasure: Path, kind: str) -> None:
    save(checkpoints, 1)
    (checkpoints / f".{kind}-000002-{os.getpid()}").symlink_to(treasure)
    before = contents(treasure)
    save(checkpoints, 2)
    assert names(checkpoints) == ["step-000001", "step-000002"]
    assert contents(treasure) == before


def test_a_link_within_an_old_checkpoint_is_not_followed(checkpoints: Path, treasure: Path) -> None:
    for step in (1, 2):
        save(checkpoints, step)
    (checkpoints / "step-000001/linked").symlink_to(treasure)
    before = contents(treasure)
    save(checkpoints, 3)
    assert names(checkpoints) == ["step-000002", "step-000003"]
    assert contents(treasure) == before


def test_replacing_a_checkpoint_that_is_a_link_leaves_what_it_leads_to(checkpoints: Path, treasure: Path) -> None:
    save(checkpoints, 1)
    (checkpoints / "step-000002").symlink_to(treasure)
    before = contents(treasure)
    save(checkpoints, 2)
    assert not (checkpoints / "step-000002").is_symlink()
    assert contents(treasure) == before


def test_completions_that_are_a_link_are_replaced_and_not_written_through(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    run.rollouts.mkdir()
    (tmp_path / "treasure").write_text("mine")
    run.rollouts_of(1).symlink_to(tmp_path / "treasure")
    write_rows(run.rollouts_of(1), [{"reward": 1.0}])
    assert (tmp_path / "treasure").read_text() == "mine"
    assert not run.rollouts_of(1).is_symlink()


def test_a_removed_directory_is_seen(checkpoints: Path, treasure: Path) -> None:
    """The positive control: a checkpoint that is no link is gone after the same saves."""
    for step in (1, 2, 3, 4):
        save(checkpoints, step)
    assert not (checkpoints / "step-000001").exists()


# Modes


@pytest.mark.parametrize("umask", [0o000, 0o277])
def test_whatever_the_mask_files_are_the_users_alone(runs: Path, umask: int) -> None:
    run = train_digits(runs, "run", num_steps=1)
    before = os.umask(umask)
    try:
        resume_digits(runs, "run", num_steps=2)
        fresh = train_digits(runs, "fresh", num_steps=1)
    finally:
        os.umask(before)
    modes = {oct(path.stat().st_mode & 0o777) for top in (run.path, fresh.path) for path in top.rglob("*") if path.is_file()}
    places = {oct(path.stat().st_mode & 0o777) for top in (run.path, fresh.path) for path in top.rglob("*") if path.is_dir()}
    assert modes <= {"0o600", "0o400"}
    assert places <= {"0o700", "0o500"}


def test_a_file_that_others_may_read_is_seen(tmp_path: Path) -> None:
    """The positive control of the modes."""
    before = os.umask(0o000)
    try:
        (tmp_path / "file").write_text("x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o077
