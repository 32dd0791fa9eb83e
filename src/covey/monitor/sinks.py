"""Optional trackers, fed with the same numbers as `metrics.jsonl`.

The run directory is the record of a run; a tracker is a second view of it. So a tracker that cannot be opened is an
error before training starts, and one that fails later costs a warning and never the run.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from covey.types import CoveyError

__all__ = ["SINKS", "Sink", "SinkFactory", "SinkSet", "open_sinks"]

PROJECT = "covey"
"""The project (W&B, Trackio) or experiment (MLflow) that runs are filed under."""
# MLflow refuses more parameters in one request, and older servers refuse longer values.
MLFLOW_MAX_PARAMS, MLFLOW_MAX_PARAM_CHARS = 100, 500


class Sink(Protocol):
    """Somewhere that metrics are sent to, under their own keys."""

    @property
    def name(self) -> str:
        """Its key in `SINKS`."""
        ...

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Send the values of a step; those that are None are left out."""
        ...

    def close(self) -> None: ...


SinkFactory = Callable[[str, Path, Mapping[str, Any]], Sink]
"""(run_name, run_path, config) -> Sink."""


class TensorBoardSink:
    """Event files in `<run>/tensorboard/`, by TensorBoard's own writer: neither torch nor TensorFlow is needed."""

    name = "tensorboard"

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        for key, value in present(values).items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """A Weights & Biases run. `WANDB_MODE=offline` and its other variables work as usual."""

    name = "wandb"

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        self._run.log(present(values), step=step)

    def close(self) -> None:
        self._run.finish()


class MlflowSink:
    """An MLflow run in the store that `MLFLOW_TRACKING_URI` names, or in MLflow's default one."""

    name = "mlflow"

    def __init__(self, client: Any, run_id: str, make_metric: Callable[..., Any]) -> None:
        self._client = client
        self._run_id = run_id
        self._make_metric = make_metric

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        now_ms = time.time_ns() // 1_000_000
        metrics = [self._make_metric(key, value, now_ms, step) for key, value in present(values).items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


class TrackioSink:
    """A Trackio run in its local store (`TRACKIO_DIR`)."""

    name = "trackio"

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        self._run.log(present(values), step=step)

    def close(self) -> None:
        # Trackio prints its greetings to stdout, which belongs to our own output.
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()


def present(values: Mapping[str, float | None]) -> dict[str, float]:
    """Return the values that exist."""
    return {key: value for key, value in values.items() if value is not None}


def flat_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a nested configuration as dotted keys and texts."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        dotted = f"{prefix}{key}"
        flat |= flat_config(value, f"{dotted}.") if isinstance(value, Mapping) else {dotted: str(value)}
    return flat


def open_tensorboard(run_name: str, run_path: Path, config: Mapping[str, Any]) -> TensorBoardSink:
    """Return a sink that writes event files into the run directory; the run's name is that of the directory."""
    from tensorboard.summary import Writer

    folder = run_path / TensorBoardSink.name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return TensorBoardSink(Writer(str(folder)))


def open_wandb(run_name: str, run_path: Path, config: Mapping[str, Any]) -> WandbSink:
    """Return a sink that logs to a W&B run of its own, whatever other runs the process has open."""
    import wandb  # ty: ignore[import-not-found]

    run = wandb.init(
        project=PROJECT,
        name=run_name,
        group=run_name,  # a resumed run is a new W&B run of the same group
        dir=run_path,
        config=dict(config),
        reinit="create_new",
        settings={"console": "off"},  # it would record every redraw of the live console
    )
    return WandbSink(run)


def open_mlflow(run_name: str, run_path: Path, config: Mapping[str, Any]) -> MlflowSink:
    """Return a sink that logs to a new MLflow run whose parameters are the recipe's keys."""
    from mlflow import MlflowClient  # ty: ignore[import-not-found]
    from mlflow.entities import Metric, Param  # ty: ignore[import-not-found]

    client = MlflowClient()
    experiment = client.get_experiment_by_name(PROJECT)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(PROJECT)
    run_id = client.create_run(experiment_id, run_name=run_name).info.run_id
    params = [Param(key, text[:MLFLOW_MAX_PARAM_CHARS]) for key, text in flat_config(config).items()]
    for start in range(0, len(params), MLFLOW_MAX_PARAMS):
        client.log_batch(run_id, params=params[start : start + MLFLOW_MAX_PARAMS])
    return MlflowSink(client, run_id, Metric)


def open_trackio(run_name: str, run_path: Path, config: Mapping[str, Any]) -> TrackioSink:
    """Return a sink that logs to a new Trackio run."""
    with contextlib.redirect_stdout(sys.stderr):
        import trackio  # ty: ignore[import-not-found]

        return TrackioSink(trackio.init(project=PROJECT, name=run_name, config=dict(config)))


SINKS: dict[str, SinkFactory] = {
    "tensorboard": open_tensorboard,
    "wandb": open_wandb,
    "mlflow": open_mlflow,
    "trackio": open_trackio,
}


def open_sinks(names: Iterable[str], run_name: str, run_path: Path, config: Mapping[str, Any]) -> list[Sink]:
    """Open the named trackers in order, or none of them: if one cannot be opened the others are closed again."""
    chosen = list(dict.fromkeys(names))
    unknown = [name for name in chosen if name not in SINKS]
    if unknown:
        raise CoveyError(f"unknown tracker {unknown[0]!r}: the known ones are {', '.join(SINKS)}")
    opened: list[Sink] = []
    try:
        for name in chosen:
            opened.append(open_sink(name, run_name, run_path, config))
    except CoveyError:
        for sink in opened:
            sink.close()
        raise
    return opened


def open_sink(name: str, run_name: str, run_path: Path, config: Mapping[str, Any]) -> Sink:
    """Open one known tracker; whatever its library raises becomes a CoveyError with a remedy."""
    try:
        return SINKS[name](run_name, run_path, config)
    except ImportError as error:
        remedy = f"pip install 'covey[{name}]'"
        raise CoveyError(f"tracker {name!r} needs a library that is not installed ({error}): {remedy}") from error
    # Four libraries, four families of errors (no login, no server, bad store): all are the user's to act on.
    except Exception as error:
        remedy = "set it up as its documentation says, or leave it out of the recipe's trackers"
        raise CoveyError(f"tracker {name!r} could not be opened: {type(error).__name__}: {error}; {remedy}") from error


class SinkSet:
    """The trackers of a run behind a wall: none of them can stop training."""

    def __init__(self, sinks: Sequence[Sink], warn: Callable[[str], None]) -> None:
        self._sinks = tuple(sinks)
        self._warn = warn
        self.num_failures: dict[str, int] = {sink.name: 0 for sink in self._sinks}
        """Failed calls of each sink. It is tried again at the next step; only its first failure is reported."""

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Send a step's values to every sink."""
        for sink in self._sinks:
            self._attempt(sink, sink.log, step, values)

    def close(self) -> None:
        """Close every sink."""
        for sink in self._sinks:
            self._attempt(sink, sink.close)

    def _attempt(self, sink: Sink, call: Callable[..., None], *args: Any) -> None:
        try:
            call(*args)
        # Broad on purpose: hours of training must not end because somebody else's server or disk did.
        except Exception as error:
            self.num_failures[sink.name] += 1
            if self.num_failures[sink.name] == 1:
                self._warn(f"tracker {sink.name!r} failed; training goes on: {type(error).__name__}: {error}")
