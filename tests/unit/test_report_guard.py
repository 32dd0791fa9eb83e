"""The guard's part of a report: what it said, what it did, and the completions that show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.report_fixture import write_run

from covey.monitor.run_directory import RunDirectory, read_rows, write_rows
from covey.report import write_report
from covey.report.figures import main_figure
from covey.report.guard import guard_sentences, guard_view
from covey.report.load import Run, load_run

MESSAGE = "The proxy passes 40.0% of the held-out answers that gold fails."
ALARM = {"step": 30, "detector": "exploit_mass", "level": "critical", "action": "stop", "message": MESSAGE, "figures": {}}
WARNING = ALARM | {"step": 20, "detector": "modal_answer", "level": "warn", "action": "warn", "message": "One answer for all."}
NOTE = ALARM | {"step": 10, "detector": "zero_variance", "level": "note", "action": "note", "message": "Half are flat."}


def run_with(path: Path, *records: dict[str, Any], num_exploits: int = 12) -> Run:
    """Return a run whose guard has said this, and whose step 29 has as many completions that are paid and wrong."""
    run = RunDirectory(write_run(path))
    [template, *_] = read_rows(run.rollouts_of(40))
    rows = [
        template | {"question": f"What is {number}?", "completion": "<b>trick</b>", "reward": 1.0, "gold": 0.0}
        for number in range(num_exploits)
    ]
    honest = template | {"question": "What is honest?", "completion": "right", "reward": 1.0, "gold": 1.0}
    partly = template | {"question": "What is partly?", "completion": "half", "reward": 0.4, "gold": 0.0}
    write_rows(run.rollouts_of(29), [honest, partly, *rows, *rows])
    for record in records:
        run.logs()["guard"].append(record)
    return load_run(path)


def test_a_grave_alarm_is_told_in_the_first_sentences(tmp_path: Path):
    run = run_with(tmp_path / "run", NOTE, WARNING, ALARM)
    assert guard_sentences(run) == [f"The guard stopped the run after step 30: {MESSAGE}"]


def test_without_a_grave_one_the_first_warning_is_told(tmp_path: Path):
    run = run_with(tmp_path / "run", NOTE, WARNING, WARNING | {"step": 25})
    assert guard_sentences(run) == ["The guard warned after step 20: One answer for all."]


def test_ten_different_completions_that_are_paid_and_wrong_are_shown(tmp_path: Path):
    view = guard_view(run_with(tmp_path / "run", WARNING, ALARM))
    assert [row["question"] for row in view.exploits] == [f"What is {number}?" for number in range(10)]
    assert {row["step"] for row in view.exploits} == {29}


def test_completions_after_the_alarm_are_not_its_evidence(tmp_path: Path):
    assert guard_view(run_with(tmp_path / "run", ALARM | {"step": 28})).exploits == ()


def test_a_quiet_guard_takes_no_room(tmp_path: Path):
    run = run_with(tmp_path / "run")
    assert guard_view(run).first is None
    assert guard_sentences(run) == []
    page = write_report(run.directory.path).read_text()
    assert "What the guard saw" not in page
    assert "Noted by the guard" not in page


def test_the_page_has_alarm_action_and_completions_escaped(tmp_path: Path):
    run = run_with(tmp_path / "run", NOTE, ALARM)
    page = write_report(run.directory.path).read_text()
    first_screen = page[: page.index("Training, step by step")]
    assert MESSAGE in first_screen
    assert "10 completions that are paid and wrong" in first_screen
    assert first_screen.count("&lt;b&gt;trick&lt;/b&gt;") == 10
    assert "<b>trick</b>" not in page
    assert "Noted by the guard" in page


@pytest.mark.parametrize(("unit", "expected"), [("steps", [30, 30]), ("minutes", None)])
def test_the_chart_has_a_line_where_the_guard_spoke(tmp_path: Path, unit: str, expected: list[int] | None):
    figure = main_figure(run_with(tmp_path / "run", NOTE, ALARM))
    assert figure is not None
    [line] = [trace for trace in figure.data if (trace.name or "").startswith("guard:")]
    assert line.name == "guard: exploit mass"
    positions = line.meta[unit]
    assert positions == expected if expected else positions[0] == positions[1] > 0
