"""A few simulated runs through the detectors; benchmarks/guard_sim.py has a thousand of each scenario."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from benchmarks.guard_sim_runs.alarms import Alarms, first_alarms
from benchmarks.guard_sim_runs.runs import ONSET, SCENARIOS, simulated_run
from tests.guard.recorded import recorded

from covey.guard.exploit import exploit_drift, exploit_path
from covey.guard.table import DETECTORS

NAMES = ("exploit_mass", "exploit_drift", "gold_regression")
NUM_RUNS = 40


@lru_cache
def alarms_of(scenario: str) -> list[dict[str, Alarms]]:
    detectors = {name: DETECTORS[name] for name in NAMES}
    generators = np.random.default_rng(0).spawn(NUM_RUNS)
    return [first_alarms(simulated_run(SCENARIOS[scenario], generator), detectors) for generator in generators]


def test_an_honest_collapse_ends_no_run():
    # At a true rate of 0.2 % a run, 2 of 40 or more have a chance of 0.3 %.
    assert sum(any(alarms.values()) for alarms in alarms_of("collapsing, FP .10")) <= 1


def test_a_hack_of_a_tenth_is_found_by_held_out_questions():
    assert sum(bool(alarms["exploit_mass"]) for alarms in alarms_of("hack 10 %")) >= 36


def test_a_hack_of_a_tenth_is_found_by_training_rollouts_within_40_steps():
    delays = [alarms["exploit_drift"].get("critical", 10**6) - ONSET for alarms in alarms_of("hack 10 %")]
    assert sum(delay <= 40 for delay in delays) >= 36


def test_the_path_of_a_simulated_run_says_what_each_call_would_say():
    history = simulated_run(SCENARIOS["hack 50 %"], np.random.default_rng(0))
    path = exploit_path(history.steps)
    assert path is not None
    calls = [exploit_drift(recorded(steps=history.steps[:end])) is not None for end in range(21, len(history.steps) + 1, 6)]
    assert calls == path.is_over[::6].tolist()
    assert True in calls
