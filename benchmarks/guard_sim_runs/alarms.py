"""When the detectors speak over a simulated run: the real functions of the table, called on the prefixes of its history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from covey.guard.exploit import exploit_path
from covey.guard.history import History, Level
from covey.guard.table import DETECTORS, Detector

Alarms = dict[Level, int]
"""The step of a detector's first finding of each level."""


def first_alarms(history: History, detectors: Mapping[str, Detector] = DETECTORS) -> dict[str, Alarms]:
    """Return when each detector speaks first.

    A detector is called at every look, with all that is recorded by then. Only exploit_drift is asked once for its whole path,
    which holds at each step what a call at that step would say; a test compares the two. So a detector that watches steps is
    called at the looks too: a call at each of 380 steps would take hours.
    """
    prefixes = [_up_to(history, step) for step in sorted({look.step for look in history.looks})]
    return {
        name: _on_path(history) if name == "exploit_drift" else _on_prefixes(prefixes, detector)
        for name, detector in detectors.items()
    }


def _on_path(history: History) -> Alarms:
    path = exploit_path(history.steps)
    if path is None or not path.is_over.any():
        return {}
    return {"critical": int(path.steps[path.is_over.argmax()])}


def _on_prefixes(prefixes: Sequence[History], detector: Detector) -> Alarms:
    alarms: Alarms = {}
    for prefix in prefixes:
        if (finding := detector.find(prefix)) is not None:
            alarms.setdefault(finding.level, finding.step)
            if finding.level == "critical":  # Nothing graver can follow.
                break
    return alarms


def _up_to(history: History, step: int) -> History:
    return replace(
        history,
        looks=[look for look in history.looks if look.step <= step],
        steps=[record for record in history.steps if record.step <= step],
    )
