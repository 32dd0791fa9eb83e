"""The report: its sentences are pinned, and the page needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.report_fixture import write_run

from covey.monitor.run_directory import RunDirectory, read_rows, write_rows
from covey.report import write_report
from covey.report.charts import CHARTS, reward_parts_chart
from covey.report.figures import chart_figure, main_figure, step_rows
from covey.report.load import Run, load_run
from covey.report.stats import evenly_spaced, fates, paired, phase_totals, verdict


class Page(HTMLParser):
    """Collects what a browser would load or run."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.bodies: dict[str, list[str]] = {"script": [], "style": []}
        self.policy = ""
        self._open = ""
        self.html = path.read_text()
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [f"{key}={value}" for key, value in attrs if key in ("src", "href", "srcset", "action", "data")]
        values = dict(attrs)
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""
        self._open = tag if "type" not in values else ""

    def handle_data(self, data: str) -> None:
        if self._open in self.bodies:
            self.bodies[self._open].append(data)
            self._open = ""


def made_run(evals: list[dict[str, Any]], *, has_gold: bool = True, last_step: int = 40, events: Any = ()) -> Run:
    return Run(
        directory=RunDirectory(Path("some-run")),
        env={"has_gold": has_gold},
        recipe_text="[train]\nnum_steps = 40\n",
        metrics=[{"step": step} for step in range(1, last_step + 1)],
        timing=[{"step": step, "elapsed_s": 9.3 * step} for step in range(last_step + 1)],
        evals=evals,
        events=[{"kind": kind} for kind in events],
    )


def evaluation(
    step: int, mean: float | None, gain: tuple[float, float, float] | None = None, *, part: str = "test", **changes: Any
) -> dict[str, Any]:
    row: dict[str, Any] = {"step": step, "part": part, "mode": "greedy", "num_prompts": 200}
    for score in ("gold", "proxy"):
        keys = (f"{score}_gain", f"{score}_gain_low", f"{score}_gain_high")
        row |= {f"{score}_mean": mean, **dict(zip(keys, gain or (None, None, None), strict=True))}
    return {**row, **changes}


BEFORE = evaluation(0, 0.31)
ROSE = evaluation(40, 0.68, (0.37, 0.30, 0.44))


def test_a_clear_rise_is_one_sentence_with_its_interval() -> None:
    result = verdict(made_run([BEFORE, ROSE]))
    assert result.headline == (
        "Held-out accuracy rose from 31 % to 68 % (test part, greedy, 200 questions): "
        "+37 points, 95 % interval +30 to +44, in 6.2 minutes."
    )
    assert result.notes == ("All 40 steps are done.",)
    assert result.tone == "up"


def test_a_fall_is_called_a_fall() -> None:
    result = verdict(made_run([BEFORE, evaluation(40, 0.2, (-0.11, -0.16, -0.055))]))
    assert result.headline == (
        "Held-out accuracy fell from 31 % to 20 % (test part, greedy, 200 questions): "
        "-11 points, 95 % interval -16 to -5.5, in 6.2 minutes."
    )
    assert result.tone == "down"


def test_an_interval_that_includes_zero_is_inconclusive() -> None:
    result = verdict(made_run([BEFORE, evaluation(40, 0.33, (0.02, -0.03, 0.07))]))
    assert result.headline == (
        "Inconclusive, the interval includes 0: held-out accuracy went from 31 % to 33 % "
        "(test part, greedy, 200 questions): +2 points, 95 % interval -3 to +7, in 6.2 minutes."
    )
    assert result.tone == "unclear"


def test_the_choose_part_stands_in_for_an_untouched_test_part_and_says_so() -> None:
    choose = [evaluation(0, 0.3, part="choose"), evaluation(20, 0.5, (0.2, 0.1, 0.3), part="choose")]
    result = verdict(made_run([BEFORE, *choose], last_step=23))
    assert result.headline == (
        "Held-out accuracy rose from 30 % to 50 % (choose part, greedy, 200 questions): "
        "+20 points, 95 % interval +10 to +30, after 20 of 23 finished steps, in 3.1 minutes."
    )
    assert result.notes == (
        "The test part has not been evaluated after training, so these are the choose questions, "
        "which steer the run: read the number as a little optimistic.",
        "Unfinished: 23 of 40 steps are done.",
    )


def test_without_gold_the_run_is_flying_blind() -> None:
    blank = {"gold_mean": None, "gold_gain": None, "gold_gain_low": None, "gold_gain_high": None}
    result = verdict(made_run([{**BEFORE, **blank}, {**ROSE, **blank}], has_gold=False))
    assert result.headline == (
        "No gold verifier: this run is flying blind. The held-out proxy reward rose from 0.31 to 0.68 "
        "(test part, greedy, 200 questions): +0.37, 95 % interval +0.3 to +0.44, in 6.2 minutes."
    )
    assert result.notes[0] == (
        "Whether the answers became better is not known: nothing but the reward being optimised has judged them."
    )
    assert result.tone == "blind"


@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        ((), "Unfinished: 7 of 40 steps are done."),
        (("interrupted",), "Interrupted: 7 of 40 steps are done."),
        (("interrupted", "resumed"), "Unfinished: 7 of 40 steps are done."),
        (("kl_budget",), "Ended by its KL budget after 7 of 40 steps."),
    ],
)
def test_an_unfinished_run_says_how_far_it_came(events: tuple[str, ...], sentence: str) -> None:
    assert verdict(made_run([BEFORE], last_step=7, events=events)).notes[-1] == sentence


def test_one_evaluation_is_nothing_to_compare() -> None:
    assert verdict(made_run([BEFORE], last_step=0)).headline == (
        "Held-out accuracy before training is 31 % (test part, greedy, 200 questions); "
        "there is no second evaluation to compare it with yet."
    )


def test_no_evaluation_says_that_nothing_can_be_said() -> None:
    result = verdict(made_run([]))
    assert result.headline == "No held-out evaluation yet: nothing can be said about learning."
    assert result.tone == "empty"


def test_questions_are_sorted_into_fixed_broken_and_unchanged() -> None:
    before = [{"prompt_id": name, "sample": 0, "gold": gold} for name, gold in zip("abcde", (0, 1, 0, 1, None), strict=True)]
    after = [{"prompt_id": name, "sample": 0, "gold": gold} for name, gold in zip("edcba", (1, 1, 0, 0, 1), strict=True)]
    found = fates(paired(before, after), has_gold=True)
    names = {name: [pair.before["prompt_id"] for pair in pairs] for name, pairs in found.items()}
    assert names == {"fixed": ["a"], "broken": ["b"], "still wrong": ["c"], "still right": ["d"], "not scored": ["e"]}


def test_examples_are_spread_over_the_whole_list() -> None:
    assert evenly_spaced(range(9), 3) == [0, 3, 6]
    assert evenly_spaced([5], 3) == [5]
    assert evenly_spaced([], 3) == []


def test_phase_totals_count_the_evaluation_before_training() -> None:
    timing = [{"step": 0, "evaluate_s": 2.0}, {"step": 1, "rollout_s": 5.0, "evaluate_s": None, "update_s": 1.0}]
    totals = {phase.name: (phase.total_s, phase.share_frac) for phase in phase_totals(timing)}
    assert totals["rollout"] == (5.0, 0.625)
    assert totals["evaluate"] == (2.0, 0.25)


def test_a_step_repeated_after_a_crash_counts_once(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", num_steps=3)
    metrics = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join([*metrics, metrics[1]]))
    assert [row["step"] for row in load_run(path).metrics] == [1, 2, 3]


def test_the_main_chart_knows_steps_and_minutes(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run"))
    figure = main_figure(run)
    assert figure is not None
    trace = next(trace for trace in figure.data if trace.name == "gold, greedy" and trace.showlegend is None)
    assert trace.meta["steps"] == [0, 10, 20, 30, 40]
    assert trace.meta["minutes"][0] == 0.0
    assert trace.meta["minutes"] == sorted(trace.meta["minutes"])


def test_a_chart_without_numbers_is_left_out() -> None:
    rows = step_rows(made_run([], last_step=2))
    assert chart_figure(CHARTS["kl"], [{**row, "kl/ref": None} for row in rows]) is None
    assert chart_figure(CHARTS["kl"], [{**row, "kl/ref": 0.1} for row in rows]) is not None


def test_names_of_reward_parts_are_escaped_in_charts() -> None:
    chart = reward_parts_chart([{"step": 1, "reward/mean": 0.5, "reward/part/<a href=x>": 0.5}])
    assert [line.label for line in chart.panels[0].lines] == ["reward", "&lt;a href=x&gt;"]


@pytest.fixture(scope="module")
def full_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_report(write_run(tmp_path_factory.mktemp("runs") / "full")))


def test_the_page_loads_nothing(full_page: Page) -> None:
    assert full_page.loads == []
    assert not {"link", "img", "iframe", "base"} & set(full_page.tags)
    assert "url(" not in full_page.bodies["style"][0]
    assert "@import" not in full_page.bodies["style"][0]
    assert full_page.policy.startswith("default-src 'none';")


def test_the_browser_is_told_to_run_these_two_scripts_and_no_others(full_page: Page) -> None:
    hashes = [base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in full_page.bodies["script"]]
    assert full_page.policy.endswith(f"script-src 'sha256-{hashes[0]}' 'sha256-{hashes[1]}'")


def test_the_page_shows_every_section(full_page: Page) -> None:
    headings = ("Held-out questions", "Training, step by step", "Before and after", "Training completions")
    for text in (*headings, "Where the time went", "Events", "What was run", "Why is there no chart of the loss?"):
        assert text in full_page.html
    assert full_page.html.count("data-figure=") == 2 + len(CHARTS)


def test_the_words_of_a_model_cannot_become_markup(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    hostile = "</pre></script><script>alert(1)</script><img src=x onerror=alert(1)>"
    for file in [*path.glob("evals/*.parquet"), *path.glob("rollouts/*.parquet")]:
        columns = ("completion", "extracted", "question", "answer", "error")
        write_rows(file, [{**row, **dict.fromkeys(columns, hostile)} for row in read_rows(file)])
    RunDirectory(path).logs()["events"].append({"step": 1, "at": "now", "kind": hostile, "message": hostile})
    env = json.loads((path / "env.json").read_text())
    (path / "env.json").write_text(json.dumps({**env, "name": hostile, "formula": hostile, "task": hostile}))
    metrics = RunDirectory(path).logs()["metrics"]
    metrics.append({"step": 41, "reward/mean": 0.5, f"reward/part/{hostile}": 0.5})

    page = Page(write_report(path))

    assert "<script>alert" not in page.html
    assert "&lt;script&gt;alert(1)" in page.html
    assert page.tags.count("script") == 3
    assert "img" not in page.tags


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"has_gold": False}, "No gold verifier: this run is flying blind."),
        ({"eval_parts": ()}, "No held-out evaluation yet: nothing can be said about learning."),
        ({"num_steps": 0}, "No training step has been finished yet."),
        ({"num_steps": 0, "eval_parts": ()}, "No step and no evaluation has been recorded yet."),
        ({"num_steps": 1}, "Unfinished: 1 of 40 steps are done."),
    ],
)
def test_a_page_is_made_whatever_is_missing(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    assert sentence in write_report(write_run(tmp_path / "run", **options)).read_text()


def test_a_directory_with_only_a_recipe_gives_a_page(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    run.recipe.write_text("")
    assert "No env.json in the run directory." in write_report(run.path).read_text()


def test_torn_last_lines_are_left_out(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    for log in path.glob("*.jsonl"):
        log.write_text(log.read_text() + '{"step": 41, "part": "te')
    page = write_report(path).read_text()
    assert "All 40 steps are done." in page


def test_null_values_leave_gaps(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", num_steps=10)
    keys = {key for line in (path / "metrics.jsonl").read_text().splitlines() for key in json.loads(line)}
    RunDirectory(path).logs()["metrics"].append({"step": 11, **dict.fromkeys(keys - {"step"})})
    assert "Unfinished: 11 of 40 steps are done." in write_report(path).read_text()


def test_the_report_imports_no_torch() -> None:
    code = "import sys, covey.report; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
