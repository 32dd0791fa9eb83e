"""Proxy and gold over the distance from the reference, and the fits that stand beside the charts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.report_fixture import write_run

from covey.guard.regression import fit_curve
from covey.monitor.run_directory import RunDirectory, read_jsonl, write_rows, write_text_atomic
from covey.report import write_report
from covey.report.distance import distance_view, entropy_sentence, history_of
from covey.report.figures import distance_figure
from covey.report.load import Run, load_run

STEPS = range(10, 90, 10)
NUM_QUESTIONS = 1000
BASE_GOLD, BASE_PROXY = 0.1, 0.2


def distance_at(step: int) -> float:
    return 0.05 * step


def gold_gain(distance: float) -> float:
    """Gao's curve with its peak at d = exp(0.35 / 0.25 - 1) = 1.49."""
    return distance * (0.35 - 0.25 * math.log(distance))


def proxy_gain(distance: float) -> float:
    return 0.1 * distance


def write_moving_run(
    path: Path,
    *,
    gain: Callable[[float], float] = gold_gain,
    steps: range = STEPS,
    part: str = "choose",
    has_gold: bool = True,
    env: Mapping[str, Any] | None = None,
) -> Run:
    """Return a run that has moved by `distance_at` at each of its evaluations, with gold at .1 + the gain there."""
    run = RunDirectory.create(path)
    write_text_atomic(run.recipe, "[train]\nnum_steps = 80\n")
    write_text_atomic(run.env, json.dumps({"has_gold": has_gold, "reward_range": [0, 1], **(env or {})}))
    logs = run.logs()
    for step in (0, *steps):
        distance = distance_at(step)
        gold, proxy = (function(distance) if step else 0.0 for function in (gain, proxy_gain))
        rows = [question_row(index, gold=BASE_GOLD + gold if has_gold else None) for index in range(NUM_QUESTIONS)]
        write_rows(run.evals_of(step, part=part, mode="sampled"), rows)
        ends = {"gold": gold if has_gold else None, "proxy": proxy}
        gains = {f"{score}_gain{end}": around(value, move) for score, value in ends.items() for end, move in ENDS.items()}
        means = {"gold_mean": BASE_GOLD + gold if has_gold else None, "proxy_mean": BASE_PROXY + proxy}
        ranges = {f"{score}_{end}": mean for score in ends for end in ("low", "high") if (mean := means[f"{score}_mean"])}
        logs["eval"].append(
            {"step": step, "part": part, "mode": "sampled", "num_prompts": NUM_QUESTIONS, **means, **ranges, **gains}
        )
    for step in range(1, steps[-1] + 1):
        look = -(-step // 10) * 10  # The mean over the last five steps is then the value at the evaluation.
        logs["metrics"].append({"step": step, "reward/mean": 0.5, "kl/sequence": distance_at(look) ** 2})
    return load_run(path)


ENDS = {"": 0.0, "_low": -0.02, "_high": 0.02}


def around(value: float | None, move: float) -> float | None:
    return None if value is None else value + move


def question_row(index: int, *, gold: float | None) -> dict[str, Any]:
    right = None if gold is None else float(index < round(NUM_QUESTIONS * gold))
    return {
        "prompt_id": f"q{index:04d}",
        "question": f"What is {index}?",
        "answer": str(index),
        "sample": 0,
        "completion": "an answer",
        "extracted": None,
        "gold": right,
        "proxy": 0.5,
        "num_tokens": 3,
        "finish_reason": "stop",
        "error": None,
    }


@pytest.fixture(scope="module")
def moving_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_moving_run(tmp_path_factory.mktemp("runs") / "moving")


def drawn(run: Run) -> dict[str, Any]:
    """Return the traces of the chart by name."""
    figure = distance_figure(distance_view(run, history_of(run)))
    assert figure is not None
    return {trace.name: trace for trace in figure.data}


def test_the_points_stand_at_the_root_of_kl_with_the_changes_since_step_0(moving_run: Run) -> None:
    traces = drawn(moving_run)
    places = [0.0, *(distance_at(step) for step in STEPS)]
    assert traces["gold"].x == pytest.approx(places)
    assert traces["gold"].y == pytest.approx([0.0, *map(gold_gain, places[1:])])
    assert traces["proxy"].y == pytest.approx([0.0, *map(proxy_gain, places[1:])])
    assert traces["proxy"].text == ("0", *map(str, STEPS))


def test_gold_has_the_whiskers_of_its_paired_gain(moving_run: Run) -> None:
    whiskers = drawn(moving_run)["gold"].error_y
    assert whiskers.array == pytest.approx([0.0] + [0.02] * len(STEPS))
    assert whiskers.arrayminus == pytest.approx([0.0] + [0.02] * len(STEPS))


def test_the_curve_is_the_guards_and_its_peak_is_marked(moving_run: Run) -> None:
    places = np.array([distance_at(step) for step in STEPS])
    rounded = np.array([round(NUM_QUESTIONS * (BASE_GOLD + gold_gain(place))) / NUM_QUESTIONS for place in places]) - BASE_GOLD
    curve = fit_curve(places, rounded)
    traces = drawn(moving_run)
    assert (traces["its peak"].x[0], traces["its peak"].y[0]) == pytest.approx((curve.best_distance, curve.best_gain))
    assert curve.best_distance == pytest.approx(math.exp(0.4), rel=0.02)
    drawn_curve = np.interp(places, traces["curve of gold"].x, traces["curve of gold"].y)
    assert drawn_curve == pytest.approx(places * (curve.alpha - curve.beta * np.log(places)), abs=1e-3)


def test_a_curve_that_is_not_identified_is_not_drawn_and_the_note_says_why(tmp_path: Path) -> None:
    run = write_moving_run(tmp_path / "run", gain=lambda distance: 0.1 * distance**2, steps=range(10, 70, 10))
    assert "curve of gold" not in drawn(run)
    assert distance_view(run, history_of(run)).note.endswith("No curve is fitted to gold: the curve does not bend.")


def test_without_a_recorded_distance_one_line_names_the_option(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run"))
    view = distance_view(run, history_of(run))
    assert distance_figure(view) is None
    page = write_report(run.directory.path).read_text()
    assert "the distance was not recorded. algorithm.track_kl = true records it." in page
    assert 'data-figure="distance"' not in page


def test_two_evaluations_at_a_distance_are_too_few(tmp_path: Path) -> None:
    run = write_moving_run(tmp_path / "run", steps=range(10, 30, 10))
    view = distance_view(run, history_of(run))
    assert view.points == ()
    assert "2 evaluations are at a distance that algorithm.track_kl has recorded, and 3 are needed." in view.note


def test_three_evaluations_are_enough_for_points(tmp_path: Path) -> None:
    run = write_moving_run(tmp_path / "run", steps=range(10, 40, 10))
    assert [point.step for point in distance_view(run, history_of(run)).points] == [0, 10, 20, 30]


def test_the_guard_part_stands_in_where_nothing_is_chosen_on(tmp_path: Path) -> None:
    run = write_moving_run(tmp_path / "run", part="guard")
    view = distance_view(run, history_of(run))
    assert len(view.points) == 1 + len(STEPS)
    assert view.curve is None
    assert "an evaluation of the guard part, sampled" in view.note


def test_without_gold_the_proxy_stands_alone(tmp_path: Path) -> None:
    run = write_moving_run(tmp_path / "run", has_gold=False)
    assert list(drawn(run)) == ["proxy"]
    assert "whiskers" not in distance_view(run, history_of(run)).note


def test_a_proxy_of_another_range_is_brought_to_the_scale_of_gold(tmp_path: Path) -> None:
    run = write_moving_run(tmp_path / "run", env={"reward_range": [-1, 3]})
    assert drawn(run)["proxy"].y[-1] == pytest.approx(proxy_gain(distance_at(80)) / 4)
    assert "the proxy's as a share of its declared range" in distance_view(run, history_of(run)).note


def test_steps_that_would_be_written_over_each_other_are_left_out(tmp_path: Path) -> None:
    run = write_moving_run(tmp_path / "run", steps=range(10, 310, 10), gain=lambda distance: 0.001 * distance)
    labels = [label for label in drawn(run)["proxy"].text if label]
    assert labels == [str(step) for step in range(0, 310, 20)]


def test_the_chart_stands_below_the_first_screen(moving_run: Run) -> None:
    page = write_report(moving_run.directory.path).read_text()
    assert page.index("Training, step by step") < page.index('data-figure="distance"') < page.index("Before and after")
    assert "The curve d (a - b ln d) with a = 0.3" in page


def test_the_fit_of_gold_over_entropy_is_told_with_its_ceiling(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run"))
    rows = [row | {"entropy/mean": 1.0 - 0.02 * row["step"]} for row in read_jsonl(run.directory.metrics)]
    for row in rows:
        row["gold/mean"] = 0.9 - 0.25 * math.exp(row["entropy/mean"])
    run.directory.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report(run.directory.path).read_text()
    assert "gold = b - a exp(H) has a = 0.25 and b = 0.9: at entropy 0, with nothing left to try, gold would be 0.65" in page


def test_gold_above_one_is_called_no_ceiling(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run"))
    rows = [{**row, "entropy/mean": 1.0 - 0.02 * row["step"]} for row in run.metrics]
    rising = [row | {"gold/mean": 1.6 - 0.5 * math.exp(row["entropy/mean"])} for row in rows]
    run.directory.metrics.write_text("".join(json.dumps(row) + "\n" for row in rising))
    assert "it shows no ceiling" in entropy_sentence(history_of(load_run(run.directory.path)))


def test_where_gold_falls_with_entropy_nothing_is_told_of_a_fit(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run"))
    rows = [{**row, "entropy/mean": 1 - 0.02 * row["step"], "gold/mean": 0.5 - 0.01 * row["step"]} for row in run.metrics]
    run.directory.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert entropy_sentence(history_of(load_run(run.directory.path))) == ""
