"""The page on parity with TRL says what the committed results say. TRL is not needed here."""

from __future__ import annotations

import json
from typing import Any

import pytest
from benchmarks.parity.report import LOSSES, PAGE, QUANTITIES, RESULTS, failed_names, generated_parts, short, with_results

REPORT = json.loads(RESULTS.read_text())


def record(name: str, **fields: Any) -> dict[str, Any]:
    """Return the record of a made-up case: differences in float32 and, a billion times smaller, in float64."""
    differences = {"advantages": 0.0, "loss": 3.4e-7, "gradient": 0.3, "logprobs": 8.0, "largest_gradient": 2.0}
    exact = {key: value * 1e-9 for key, value in differences.items()}
    return {"name": name, "float32": differences, "float64": exact, "result": "PASS"} | fields


def test_the_page_is_the_one_that_the_committed_results_give() -> None:
    assert with_results(PAGE.read_text(), REPORT) == PAGE.read_text(), "run python benchmarks/parity_trl.py --docs"


def test_the_page_installs_the_version_of_trl_that_was_measured() -> None:
    assert f"\npip install trl=={REPORT['versions']['trl']}\n" in PAGE.read_text()


def test_every_committed_case_passes_and_is_within_the_tolerances() -> None:
    assert len(REPORT["cases"]) == 75
    assert failed_names(REPORT["cases"]) == []
    for case in REPORT["cases"]:
        for dtype, tolerance in REPORT["tolerances"].items():
            assert max(case[dtype][name] for name in (*QUANTITIES, "logprobs")) < tolerance, case["name"]


def test_every_committed_case_is_on_the_page() -> None:
    parts = generated_parts(REPORT)
    cells = {row.split(" | ")[0].removeprefix("| ") for name in ("options", "differences") for row in parts[name].splitlines()}
    for case in REPORT["cases"]:
        assert case["name"] in cells or case["name"].split(":")[0] in LOSSES, case["name"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (4.47e-6, "4e-6"),
        (0.0871, "9e-2"),
        (0.1, "0.1"),
        (0.866, "0.9"),
        (4.2, "4"),
        (12.0, "1e+1"),
        (3.2e8, "3e+8"),
    ],
)
def test_a_difference_is_shown_with_one_digit(value: float, text: str) -> None:
    assert short(value) == text


def test_a_loss_is_shown_with_the_largest_differences_over_its_settings() -> None:
    larger = record("sapo: KL", table="loss types")
    larger["float32"] = larger["float32"] | {"advantages": 0.006}
    others = [record(f"{loss}: token ratio", table="loss types") for loss in LOSSES]
    rows = generated_parts(REPORT | {"cases": [*others, larger, record("x", table="options")]})["losses"].splitlines()
    assert "| `sapo` | `sapo` | 2 | 6e-3 | 3e-7 | 0.3 | 3e-10 |" in rows
    assert "| `bnpo` | `grpo`, `token-mean` | 1 | 0 | 3e-7 | 0.3 | 3e-10 |" in rows


def test_a_difference_by_design_is_shown_as_it_is_in_what_differs_and_adjusted_in_all() -> None:
    told = {"why": "why", "adjustment": "how", "differs": ["loss"], "unadjusted": {"loss": 0.5, "gradient": 9.0}}
    others = [record(f"{loss}: token ratio", table="loss types") for loss in LOSSES]
    parts = generated_parts(REPORT | {"cases": [*others, record("case", table="by design", **told)]})
    assert parts["differences"].splitlines()[2:] == ["| case | why | loss 0.5 | how | 0.3 |"]
    assert f"{len(LOSSES) + 1} cases: {len(LOSSES)} agree as they are, 1 differ by design" in parts["summary"]


def test_what_is_written_by_hand_is_kept() -> None:
    names = generated_parts(REPORT)
    marked = "<!-- generated: {0} -->\nold\n<!-- end of generated {0} -->\n"
    page = "".join(f"before {name}\n{marked.format(name)}after {name}\n" for name in names)
    lines = with_results(page, REPORT).splitlines()
    by_hand = [line for line in lines if line.startswith(("before", "after", "old"))]
    assert by_hand == [f"{place} {name}" for name in names for place in ("before", "after")]
