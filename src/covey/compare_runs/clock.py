"""Whose seconds can be compared: a comparison may go on on another machine, and a second there is another second."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Json = dict[str, Any]


def machine_of(result: Mapping[str, Any]) -> Json:
    """Return the machine that a result was made on; empty if it does not say, as results of earlier versions do not."""
    return result.get("machine") or {}


def common_machine(finals: Sequence[Json]) -> Json:
    """Return the machine that most of the runs were made on, one that is known before one that is not; empty without runs."""
    counts = Counter(json.dumps(machine_of(result), sort_keys=True) for result in finals)
    most = max(counts, key=lambda machine: (counts[machine], machine != "{}"), default="{}")
    return json.loads(most)


def timed(finals: Sequence[Json], machine: Json) -> list[Json]:
    """Return the runs that were made on this machine: those whose seconds are compared."""
    return [result for result in finals if machine_of(result) == machine]


def left_out(finals: Sequence[Json], machine: Json) -> list[str]:
    """Return the names of the runs that were made elsewhere: their scores count, their seconds do not."""
    return [f"{result['arm']}, seed {result['seed']}" for result in finals if machine_of(result) != machine]
