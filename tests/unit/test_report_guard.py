"""The guard's part of a report: what it said, what it did, and the completions that show it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from tests.report_fixture import write_run

from covey.monitor.run_directory import RunDirectory, read_rows, write_rows
from covey.report import write_report
from covey.report.figures import main_figure
from covey.report.guard import guard_sentences, guard_view
from covey.report.load import Run, load_run
from covey.report.stats import progress

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


def test_of_several_grave_alarms_the_first_is_told_and_the_others_are_dated(tmp_path: Path):
    run = run_with(tmp_path / "run", ALARM, ALARM | {"step": 35, "message": "Gold fell."})
    first = f"The guard stopped the run after step 30: {MESSAGE}"
    assert guard_sentences(run) == [first, "Grave alarms followed after step 35."]


def test_without_a_grave_one_the_first_warning_is_told(tmp_path: Path):
    run = run_with(tmp_path / "run", NOTE, WARNING, WARNING | {"step": 25})
    assert guard_sentences(run) == ["The guard warned after step 20: One answer for all."]


def test_ten_different_completions_that_are_paid_and_wrong_are_shown(tmp_path: Path):
    view = guard_view(run_with(tmp_path / "run", WARNING, ALARM))
    assert [row["question"] for row in view.exploits] == [f"What is {number}?" for number in range(10)]
    assert {row["step"] for row in view.exploits} == {29}


def test_completions_after_the_alarm_are_not_its_evidence(tmp_path: Path):
    assert guard_view(run_with(tmp_path / "run", ALARM | {"step": 28})).exploits == ()


def test_evidence_is_taken_from_before_the_alarm_about_the_reward_whatever_else_was_grave(tmp_path: Path):
    damage = ALARM | {"step": 12, "detector": "general_damage"}
    view = guard_view(run_with(tmp_path / "run", damage, ALARM))
    assert view.first == ALARM
    assert len(view.exploits) == 10


def test_one_completion_of_each_question_comes_before_the_second_of_any(tmp_path: Path):
    run = run_with(tmp_path / "run", ALARM, num_exploits=0)
    [row, *_] = read_rows(run.directory.rollouts_of(29))
    wrong = row | {"reward": 1.0, "gold": 0.0}
    written = [("one", "a"), ("one", "b"), ("two", "c"), ("two", "c"), ("three", "d"), ("one", "e")]
    rows = [wrong | {"question": question, "completion": completion} for question, completion in written]
    write_rows(run.directory.rollouts_of(29), rows)
    assert [row["completion"] for row in guard_view(run).exploits] == ["a", "c", "d", "b", "e"]


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


def first_screen(run: Run) -> str:
    """Return what of the page stands above the small charts."""
    page = write_report(run.directory.path).read_text()
    return page[: page.index("Training, step by step")]


def test_the_first_screen_says_what_the_guard_did_and_what_became_of_it(tmp_path: Path):
    run = run_with(tmp_path / "run", ALARM | {"action": "roll_back"})
    message = "the guard ends the run after step 30 with the weights of step 20, its best by gold"
    run.directory.logs()["events"].append({"step": 30, "at": "now", "kind": "guard_action", "message": message})
    screen = first_screen(run)
    assert "It ended the run and went back to its best checkpoint." in screen
    assert message in screen


def test_a_completion_that_is_paid_and_wrong_has_its_prompt_its_scores_and_what_was_read(tmp_path: Path):
    run = run_with(tmp_path / "run", ALARM, num_exploits=0)
    [row, *_] = read_rows(run.directory.rollouts_of(29))
    trick = row | {"question": "What is 2 + 2?", "completion": "3, 4 or 5", "reward": 0.75, "gold": 0.25}
    write_rows(run.directory.rollouts_of(29), [trick | {"extracted": "three", "answer": "4"}])
    entry = first_screen(run).partition('<ol class="exploits"')[2].partition("</ol>")[0]
    texts = ("What is 2 + 2?", "<pre>3, 4 or 5</pre>", "answer read: <code>three</code>", "expected <code>4</code>")
    assert all(text in entry for text in (*texts, "step 29", "proxy <b>0.75</b>", "gold <b>0.25</b>"))


def test_of_a_long_prompt_the_end_is_shown_and_the_whole_can_be_opened(tmp_path: Path):
    run = run_with(tmp_path / "run", ALARM, num_exploits=0)
    [row, *_] = read_rows(run.directory.rollouts_of(29))
    question = "First words. " + 50 * "An example. " + "Question: 7 + 7"
    write_rows(run.directory.rollouts_of(29), [row | {"question": question, "reward": 1.0, "gold": 0.0}])
    summary, _, whole = first_screen(run).partition("<summary>")[2].partition("</summary>")
    assert summary.endswith("Question: 7 + 7")
    assert "First words." not in summary
    assert "First words." in whole.partition("</details>")[0]


def test_the_completions_scroll_in_a_box_of_their_own(tmp_path: Path):
    screen = first_screen(run_with(tmp_path / "run", ALARM))
    assert ".exploits { flex: 1; min-height: 0; overflow-y: auto; }" in screen
    assert ".chart.main { height: 430px; }" in screen
    assert "height: 430px; font-size: .82rem" in screen


def test_an_alarm_without_such_completions_says_that_there_are_none(tmp_path: Path):
    screen = first_screen(run_with(tmp_path / "run", ALARM | {"step": 28}))
    assert "No saved training completion up to step 28 is paid by the reward and failed by gold." in screen


def test_a_detector_that_spoke_twice_stands_once_in_the_legend(tmp_path: Path):
    figure = main_figure(run_with(tmp_path / "run", ALARM | {"level": "warn", "action": "warn", "step": 20}, ALARM))
    assert figure is not None
    assert [trace.showlegend for trace in figure.data if trace.name == "guard: exploit mass"] == [True, False]


@pytest.mark.parametrize(("unit", "expected"), [("steps", [30, 30]), ("minutes", None)])
def test_the_chart_has_a_line_where_the_guard_spoke(tmp_path: Path, unit: str, expected: list[int] | None):
    figure = main_figure(run_with(tmp_path / "run", NOTE, ALARM))
    assert figure is not None
    [line] = [trace for trace in figure.data if (trace.name or "").startswith("guard:")]
    assert line.name == "guard: exploit mass"
    positions = line.meta[unit]
    assert positions == expected if expected else positions[0] == positions[1] > 0


def test_a_run_that_the_guard_has_ended_is_not_called_unfinished(tmp_path: Path):
    run = run_with(tmp_path / "run", ALARM)
    stopped = dataclasses.replace(run, metrics=[row for row in run.metrics if row["step"] <= 30])
    assert progress(stopped) == "Ended by the guard after 30 of 40 steps."
    warned = run_with(tmp_path / "other", WARNING)
    assert progress(dataclasses.replace(warned, metrics=stopped.metrics)) == "Unfinished: 30 of 40 steps are done."
