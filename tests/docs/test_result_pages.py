"""Pages with figures say what the committed results say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.result_pages import (
    ABSENT,
    PAGES,
    PICTURE,
    SCALING_PICTURE,
    audit_part,
    decode_part,
    learned_part,
    live_part,
    picture,
    plan_part,
    read,
    scaling_part,
    scaling_picture,
    simulation_part,
    steps_part,
    with_results,
)

MACHINE: dict[str, Any] = {
    "machine": {"cpu": "a processor", "num_cores": 2},
    "versions": {"torch": "2", "transformers": "5"},
}


@pytest.mark.parametrize("page", list(PAGES), ids=lambda page: page.name)
def test_a_page_is_the_one_that_the_committed_results_give(page: Path) -> None:
    assert with_results(page.read_text(), PAGES[page]) == page.read_text(), "run python benchmarks/result_pages.py"


def test_the_picture_is_the_one_that_the_committed_results_give() -> None:
    assert picture(read("step_time")) == PICTURE.read_text(), "run python benchmarks/result_pages.py"


def test_the_picture_of_growth_is_the_one_that_the_committed_results_give() -> None:
    assert scaling_picture(read("scaling")) == SCALING_PICTURE.read_text(), "run python benchmarks/result_pages.py"


def test_growth_is_shown_from_the_first_point_to_the_last() -> None:
    points = [
        {"value": 4, "total_s": 5.0, "sampling_s": 1.5, "gb": 4.0},
        {"value": 32, "total_s": 30.0, "sampling_s": 9.0, "gb": 5.0},
    ]
    ratios = {"value_ratio": 8.0, "total_s_ratio": 6.0, "sampling_s_ratio": 6.0, "update_s_ratio": 6.04, "gb_ratio": 1.25}
    text = scaling_part(MACHINE | {"axes": {"group size": {"points": points, "growth": ratios}}})
    assert "| group size | 4 to 32 | 5.0 to 30.0 | 4.0 to 5.0 | 8.0 | 6.0 | 6.0 | 6.0 | 1.2 |" in text


def test_a_step_is_shown_with_its_ratio_and_its_distance_from_the_floor() -> None:
    step = {"covey_s": 20.0, "covey_sampling_s": 5.04, "covey_update_s": 14.96, "trl_s": 80.0, "ratio": 4.0, "covey_gb": 4.25}
    record = step | {"covey_over_floor": 1.512, "trl_gb": 5.8, "covey_num_steps": 8, "trl_num_steps": 3, "trl_default_s": 200.0}
    result = MACHINE | {"workloads": {"W": record | {"ratio_default": 10.0}}, "trl_configuration": {"dtype": "bf16", "rows": 8}}
    text = steps_part(result)
    assert "| `W` | 20.0 | 5.0 | 15.0 | 80.0 | 4.0 | 1.51 | 4.2 | 5.8 | 8 / 3 |" in text
    assert "bf16, 8 rows a micro-batch" in text
    assert "200.0 s on `W`, 10.0 times as long" in text


def test_a_workload_without_trl_is_shown_all_the_same() -> None:
    result = MACHINE | {"workloads": {"W-eos": {"covey_s": 9.0}}, "trl_configuration": {"dtype": "bf16", "rows": 8}}
    assert "| `W-eos` | 9.0 | - | - | - | - | - | - | - | 0 / 0 |" in steps_part(result)


def test_decoding_is_shown_by_the_number_of_rows() -> None:
    rows = {
        "8": {"tokens_per_s": {"limit": {"median": 568.4}, "native": {"median": 400.0}}, "share_of_limit": 0.704},
        "64": {"tokens_per_s": {"limit": {"median": 1314.0}, "native": {"median": 919.9}}, "share_of_limit": 0.7},
    }
    text = decode_part(MACHINE | {"rows": rows})
    assert "| tokens a second | B = 8 | B = 64 |" in text
    assert "| native | 400 | 920 |" in text
    assert "| native, share of the limit | 70% | 70% |" in text


def test_a_plan_is_shown_with_its_worst_error() -> None:
    record = {"measured_s": 20.0, "planned_s": [19.0, 23.0], "error_frac": 0.15, "measured_gb": 4.0, "planned_gb": [3.6]}
    text = plan_part({"workloads": {"W": record | {"memory_error_frac": -0.1}}})
    assert "| `W` | 20.0 | 19.0, 23.0 | +15% | 4.00 | 3.60 | -10% |" in text


def test_a_scenario_is_shown_with_its_interval_and_what_spoke() -> None:
    honest = {
        "is_honest": True,
        "stop_or_roll_back": {"rate": 0.001, "low": 0.0, "high": 0.0056},
        "detectors": {"exploit_mass": {"rate": 0.0}, "collapse": {"rate": 0.25}},
    }
    hacked = honest | {"is_honest": False, "steps_after_onset": {"exploit_drift": {"median": 15.0, "p5": 4.0, "p95": 26.0}}}
    text = simulation_part({"runs": 1000, "scenarios": {"flat": honest, "hack": hacked}})
    assert "| flat | honest | 0.1% [0.0%, 0.6%] | `collapse` 25.0% | - |" in text
    assert "| hack | hacked | 0.1% [0.0%, 0.6%] | `collapse` 25.0% | +15 [+4, +26] |" in text
    assert "1,000 runs of each scenario." in text


def test_a_live_run_is_shown_with_what_spoke_and_what_became_of_it() -> None:
    look = {"part": "test", "mode": "greedy", "proxy_mean": 0.25, "gold_mean": 0.2}
    run = {
        "arm": "hacked",
        "seed": 1,
        "steps": 21,
        "exploit_passes_10_percent_at": 12,
        "ended_by_guard_at": 21,
        "findings": [
            {"detector": "exploit_mass", "step": 20, "level": "critical"},
            {"detector": "flat_groups", "step": 10, "level": "note"},
        ],
        "held_out": [look, look | {"mode": "sampled"}, look | {"proxy_mean": 0.75, "gold_mean": 0.1}],
    }
    honest = run | {"arm": "honest", "exploit_passes_10_percent_at": None, "ended_by_guard_at": None, "findings": []}
    text = live_part(MACHINE | {"runs": [honest, run]})
    hacked_row = "| planted hole, seed 1 | 12 | `exploit_mass` at 20 | after step 21 | 25% to 75% | 20% to 10% |"
    assert text.index(hacked_row) < text.index("| honest, seed 1 | - | - | no, 21 steps | 25% to 75% | 20% to 10% |")


def test_a_learned_proxy_is_shown_with_its_curve_and_what_the_guard_said() -> None:
    at = {"step": 0, "distance": 0.0, "gold_mean": 0.25, "proxy_mean": 0.5, "words_mean": 21.25}
    result = {
        "labels_that_follow_gold": 0.8,
        "reward_model": {"accuracy": {"mean": 0.7, "low": 0.6, "high": 0.8}},
        "curve": {"best_distance": 2.51, "is_identified": True},
        "findings": [{"detector": "gold_regression", "step": 40, "level": "critical"}],
        "summary": {"start": at, "end": at | {"step": 60, "distance": 4.5, "gold_mean": 0.125}},
    }
    text = learned_part(result)
    assert "| end | 60 | 4.50 | 0.50 | 0.12 | 21.2 |" in text
    assert "70% of pairs [60%, 80%]; the labels follow gold in 80%" in text
    assert "peak at sqrt(KL) = 2.5." in text
    assert "`gold_regression` at step 40" in text
    assert "does not show where gold has its peak" in learned_part(result | {"curve": None})


def test_a_reward_is_shown_with_what_it_pays_and_refuses() -> None:
    totals = {"false_positive_rate": 0.198, "false_negative_rate": 0.0, "by_kind": {"blind": [0, 12], "near": [1, 9]}}
    text = audit_part({"rewards": {"last_number": {"totals": totals}}})
    assert "| `last_number` | 19.8% | blind 0 of 12, near 1 of 9 | 0.0% |" in text


def test_what_has_not_been_measured_is_said_to_be_missing() -> None:
    for part in (steps_part, decode_part, plan_part, scaling_part, simulation_part, live_part, learned_part, audit_part):
        assert part({}) == ABSENT
