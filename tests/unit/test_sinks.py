"""The trackers: what they are sent, how they fail to open, and that none of them can stop a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from covey.monitor.sinks import SINKS, SinkSet, open_sinks
from covey.types import CoveyError

VALUES = {"reward/mean": 0.5, "gold/mean": None, "clip/high_frac": 0.0}
CONFIG = {"model": {"name": "tiny", "path": None}, "seed": 3}


class RecordingRun:
    """Stands in for a W&B or Trackio run."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.is_finished = False

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        print("a library's farewell")
        self.is_finished = True


class RecordingModule(ModuleType):
    """Stands in for the libraries whose `init` returns a run."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.run = RecordingRun()
        self.options: dict[str, Any] = {}

    def init(self, **options: Any) -> RecordingRun:
        print("a library's greeting")
        self.options = options
        return self.run


class RecordingMlflowClient:
    """Stands in for MLflow's client."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, str, list[Any]]] = []
        self.terminated: list[str] = []

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        return f"experiment of {name}"

    def create_run(self, experiment_id: str, run_name: str) -> SimpleNamespace:
        return SimpleNamespace(info=SimpleNamespace(run_id=f"{experiment_id}: {run_name}"))

    def log_batch(self, run_id: str, *, metrics: list[Any] | None = None, params: list[Any] | None = None) -> None:
        kind, entries = ("metrics", metrics) if metrics is not None else ("params", params or [])
        self.batches.append((run_id, kind, entries))

    def set_terminated(self, run_id: str) -> None:
        self.terminated.append(run_id)


class FakeSink:
    """A sink that remembers, or raises what it was given."""

    def __init__(self, name: str, error: BaseException | None = None) -> None:
        self.name = name
        self.error = error
        self.logged: list[int] = []

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        if self.error:
            raise self.error
        self.logged.append(step)

    def close(self) -> None:
        if self.error:
            raise self.error


@pytest.fixture
def mlflow_client(monkeypatch: pytest.MonkeyPatch) -> RecordingMlflowClient:
    client = RecordingMlflowClient()
    module, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    vars(module)["MlflowClient"] = lambda: client
    vars(entities)["Metric"] = lambda key, value, timestamp, step: (key, value, step)
    vars(entities)["Param"] = lambda key, value: (key, value)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return client


def test_the_known_trackers_are_the_four_documented_ones() -> None:
    assert list(SINKS) == ["tensorboard", "wandb", "mlflow", "trackio"]


def test_an_unknown_tracker_is_refused_with_the_known_names(tmp_path: Path) -> None:
    with pytest.raises(CoveyError, match="'tensorbord': the known ones are tensorboard, wandb, mlflow, trackio"):
        open_sinks(["tensorbord"], "run", tmp_path, CONFIG)


@pytest.mark.parametrize(
    ("name", "module"),
    [(name, name) for name in SINKS if name != "tensorboard"] + [("tensorboard", "tensorboard.summary")],
)
def test_a_missing_library_is_reported_with_its_extra(
    name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CoveyError, match=rf"pip install 'covey\[{name}\]'"):
        open_sinks([name], "run", tmp_path, CONFIG)


def test_a_tracker_that_cannot_be_opened_is_an_error_that_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("wandb")

    def init(**options: Any) -> None:
        raise ValueError("no API key")

    vars(module)["init"] = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    with pytest.raises(CoveyError, match="'wandb' could not be opened: ValueError: no API key"):
        open_sinks(["wandb"], "run", tmp_path, CONFIG)


def test_the_trackers_already_open_are_closed_when_a_later_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = RecordingModule("wandb")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(CoveyError):
        open_sinks(["wandb", "trackio"], "run", tmp_path, CONFIG)
    assert wandb.run.is_finished


def test_tensorboard_gets_the_keys_unchanged_and_no_missing_value(tmp_path: Path) -> None:
    (sink,) = open_sinks(["tensorboard"], "run", tmp_path, CONFIG)
    sink.log(7, VALUES)
    sink.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    events = [event for event in EventFileLoader(str(path)).Load() if event.summary.value]
    written = [(event.step, event.summary.value[0].tag, event.summary.value[0].tensor.float_val[0]) for event in events]
    assert written == [(7, "reward/mean", 0.5), (7, "clip/high_frac", 0.0)]


def test_the_tensorboard_folder_is_private(tmp_path: Path) -> None:
    open_sinks(["tensorboard"], "run", tmp_path, CONFIG)[0].close()
    assert (tmp_path / "tensorboard").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_wandb_and_trackio_get_the_keys_unchanged_and_no_missing_value(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = RecordingModule(name)
    monkeypatch.setitem(sys.modules, name, module)
    (sink,) = open_sinks([name], "run", tmp_path, CONFIG)
    sink.log(7, VALUES)
    sink.close()
    assert module.run.logged == [(7, {"reward/mean": 0.5, "clip/high_frac": 0.0})]
    assert module.run.is_finished
    assert module.options["name"] == "run"
    assert module.options["config"] == CONFIG


def test_wandb_writes_into_the_run_directory_and_leaves_other_runs_of_the_process_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = RecordingModule("wandb")
    monkeypatch.setitem(sys.modules, "wandb", module)
    open_sinks(["wandb"], "run", tmp_path, CONFIG)
    assert module.options["dir"] == tmp_path
    assert module.options["reinit"] == "create_new"


def test_trackio_does_not_write_to_stdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", RecordingModule("trackio"))
    open_sinks(["trackio"], "run", tmp_path, CONFIG)[0].close()
    assert capsys.readouterr().out == ""


def test_mlflow_gets_the_keys_unchanged_and_no_missing_value(tmp_path: Path, mlflow_client: RecordingMlflowClient) -> None:
    (sink,) = open_sinks(["mlflow"], "run", tmp_path, CONFIG)
    sink.log(7, VALUES)
    sink.close()
    run_id = "experiment of covey: run"
    assert mlflow_client.batches[-1] == (run_id, "metrics", [("reward/mean", 0.5, 7), ("clip/high_frac", 0.0, 7)])
    assert mlflow_client.terminated == [run_id]


def test_mlflow_parameters_are_dotted_keys(tmp_path: Path, mlflow_client: RecordingMlflowClient) -> None:
    open_sinks(["mlflow"], "run", tmp_path, CONFIG)
    assert mlflow_client.batches[0][2] == [("model.name", "tiny"), ("model.path", "None"), ("seed", "3")]


def test_mlflow_parameters_are_sent_in_requests_of_at_most_100(tmp_path: Path, mlflow_client: RecordingMlflowClient) -> None:
    open_sinks(["mlflow"], "run", tmp_path, {f"key{index}": index for index in range(230)})
    assert [len(entries) for _, _, entries in mlflow_client.batches] == [100, 100, 30]


def test_a_failing_sink_is_reported_once_counted_and_tried_again() -> None:
    warnings: list[str] = []
    sinks = SinkSet([FakeSink("wandb", ConnectionError("no route"))], warnings.append)
    for step in (1, 2, 3):
        sinks.log(step, VALUES)
    assert warnings == ["tracker 'wandb' failed; training goes on: ConnectionError: no route"]
    assert sinks.num_failures == {"wandb": 3}


def test_a_failing_sink_does_not_keep_the_values_from_the_others() -> None:
    healthy = FakeSink("trackio")
    SinkSet([FakeSink("wandb", OSError("disk full")), healthy], lambda message: None).log(4, VALUES)
    assert healthy.logged == [4]


def test_a_sink_that_fails_to_close_is_reported() -> None:
    warnings: list[str] = []
    SinkSet([FakeSink("mlflow", OSError("gone"))], warnings.append).close()
    assert warnings == ["tracker 'mlflow' failed; training goes on: OSError: gone"]


def test_an_interruption_by_the_user_passes_through_a_sink() -> None:
    with pytest.raises(KeyboardInterrupt):
        SinkSet([FakeSink("wandb", KeyboardInterrupt())], lambda message: None).log(1, VALUES)
