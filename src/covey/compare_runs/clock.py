"""Whose seconds can be compared: a comparison may go on on another machine, and a second there is another second."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Json = dict[str, Any]
_SPEED = ("cpu", "cpu_model", "instructions", "num_cores")
"""What of a machine's description its speed hangs on. Its memory is counted a little differently at each start."""


def common_machine(finals: Sequence[Json]) -> Json:
    """Return the machine that most of the runs were made on, one that is known before one that is not; empty without runs."""
    counts = Counter(_speed(_machine(result)) for result in finals)
    most = max(counts, key=lambda speed: (counts[speed], speed != _speed({})), default=_speed({}))
    return next((machine for result in finals if _speed(machine := _machine(result)) == most), {})


def is_timed(result: Mapping[str, Any], machine: Json) -> bool:
    """Return whether a run was made on a machine like this one."""
    return _speed(_machine(result)) == _speed(machine)


def timed(finals: Sequence[Json], machine: Json) -> list[Json]:
    """Return the runs whose seconds are compared."""
    return [result for result in finals if is_timed(result, machine)]


def left_out(finals: Sequence[Json], machine: Json) -> list[str]:
    """Return the names of the runs that were made elsewhere: their scores count, their seconds do not."""
    return [f"{result['arm']}, seed {result['seed']}" for result in finals if not is_timed(result, machine)]


def _machine(result: Mapping[str, Any]) -> Json:
    """Return the machine that a result was made on; empty if it does not say, as results of earlier versions do not."""
    return result.get("machine") or {}


def _speed(machine: Mapping[str, Any]) -> str:
    return json.dumps([machine.get(key) for key in _SPEED])
