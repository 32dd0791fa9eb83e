"""The report of a comparison: its figures hold the summary's numbers, its sentences are pinned, the page needs nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from covey.report.charts import BLUE, INK, ORANGE
from covey.report.compare.axes import number_axis
from covey.report.compare.blocks import Items, Report, Table, Text
from covey.report.compare.content import answer, equal_time_blocks, not_covered, report_of, score_blocks, verdict_blocks
from covey.report.compare.costs import critic_sentences, trial_blocks
from covey.report.compare.figures import (
    DARK_COLOURS,
    arm_marks,
    curves,
    figures_of,
    forest,
    mean_over_seeds,
    rates,
    stacks,
)
from covey.report.compare.markdown import escaped, markdown
from covey.report.compare.page import comparison_html, write_comparison
from covey.report.compare.plotly_figures import plotly_figure
from covey.report.compare.svg import OUTLINES, svg
from covey.types import CoveyError

KEYS = ("test/sampled", "test/greedy", "hard/sampled")
HOSTILE = "</script><img src=x onerror=alert(1)>|`*_&\"'"


def score(mean: float, *, by_seed: tuple[float, ...] = ()) -> dict[str, Any]:
    return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "by_seed": list(by_seed) or [mean]}


def untrained(name: str, gold: float) -> dict[str, Any]:
    return {
        "name": name,
        "title": "the model as it is",
        "paper": "",
        "trained": False,
        "seeds": [],
        "learning_rate": None,
        "trials": [],
        "scores": {key: score(gold) for key in KEYS if name == "base" or key != "test/greedy"},
        "proxy": {key: score(gold) for key in KEYS} if name == "base" else {},
        "gain_over_base": None if name == "base" else {"mean": gold - 0.3, "low": gold - 0.35, "high": gold - 0.25},
        "curve": [],
        "costs": {"tokens_per_question": 40.0 if name == "base" else 320.0},
    }


def trained(name: str, gold: float, *, critic: float = 0.0, train_s: float = 900.0) -> dict[str, Any]:
    memory = {"policy": 1.0e9, "reference": 0.0, "critic": critic, "optimizer": 1.1e9, "engine": 0.3e9, "libraries": 0.4e9}
    memory["activations and cache"] = 0.7e9
    curve = [
        {
            "seed": seed,
            "tokens": [0, 100_000 + 500 * seed, 200_000 + 500 * seed],
            "train_s": [0.0, train_s / 2, train_s],
            "gold": [0.3, gold - 0.1 + 0.01 * seed, gold + 0.01 * seed],
            "proxy": [0.35, gold, gold + 0.1],
        }
        for seed in range(3)
    ]
    return {
        "name": name,
        "title": name.upper(),
        "paper": "arXiv 2402.03300",
        "trained": True,
        "seeds": [0, 1, 2],
        "learning_rate": 3e-5,
        "trials": [{"learning_rate": rate, "gold": gold - 0.1 * place} for place, rate in enumerate((3e-5, 1e-4, 1e-5))],
        "scores": {key: score(gold, by_seed=(gold - 0.02, gold, gold + 0.02)) for key in KEYS},
        "proxy": {key: score(gold + 0.06) for key in KEYS},
        "gain_over_base": {"mean": gold - 0.3, "low": gold - 0.36, "high": gold - 0.24},
        "curve": curve,
        "costs": {
            "parameters": {
                "policy": 134_515_008,
                "trained": 134_515_008,
                "reference": 0,
                "critic": 134_515_584 if critic else 0,
            },
            "memory_bytes": memory,
            "peak_rss_bytes": sum(memory.values()),
            "seconds": {"sampling": 400.0, "rewards": 10.0, "scoring": 90.0, "update": train_s - 520, "load_weights": 20.0}
            | {"evaluation": 200.0, "checkpoint": 5.0},
            "train_s": train_s,
            "tokens": {"generated": 200_500, "trained": 180_000},
            "num_updates": 40,
            "num_steps": 40,
            "budget_missing_frac": 0.0025,
        },
    }


def verdict(arm: str, reference: str, outcome: str, mean: float, *, is_primary: bool = False) -> dict[str, Any]:
    return {
        "arm": arm,
        "reference": reference,
        "is_primary": is_primary,
        "outcome": outcome,
        "sentence": f"{arm} against {reference} is {outcome}.",
        "mean": mean,
        "low": mean - 0.04,
        "high": mean + 0.04,
        "p_value": 0.2,
    }


def made_summary(*, outcome: str = "better", gain: float = 0.062) -> dict[str, Any]:
    """Return what a comparison of three trained arms and three untrained ones leaves."""
    arms = [
        untrained("base", 0.3),
        untrained("best_of_n", 0.52),
        untrained("majority", 0.47),
        trained("grpo", 0.7),
        trained("raft", 0.64, train_s=700.0),
        trained("ppo", 0.66, critic=2.0e9, train_s=1400.0),
    ]
    found = [
        verdict("raft", "base", "better", 0.34),
        verdict("grpo", "raft", outcome, gain, is_primary=True),
        verdict("ppo", "grpo", "inconclusive", -0.04),
    ]
    return {
        "plan": {
            "recipe": {"task": {"name": "arithmetic"}, "train": {"group_size": 8}},
            "arms": [
                {"name": arm["name"], "overrides": [f"algorithm.name={arm['name']}"], "seeds": arm["seeds"]} for arm in arms
            ],
            "budget_tokens": 200_000,
            "learning_rates": [1e-5, 3e-5, 1e-4],
            "primary": ["grpo", "raft"],
            "margin": None,
            "harder": ["hard"],
        },
        "machine": {"cpu": "Some CPU", "num_cores": 2},
        "versions": {"covey": "0.6.0", "torch": "2.9.0"},
        "command": ["covey", "compare", "arithmetic", "--arms", "grpo,raft,ppo", "--name", "two words"],
        "primary_key": "test/sampled",
        "arms": arms,
        "oracle": {"test/sampled": 0.81},
        "resolution": "With 200 prompts and 3 seeds a difference of 14.9 points is found.",
        "verdicts": dict.fromkeys(KEYS, found),
        "equal_time": {
            "seconds": 700.0,
            "rows": [
                {"arm": "grpo", "mean": 0.61, "low": 0.6, "high": 0.62},
                {"arm": "raft", "mean": 0.65, "low": 0.64, "high": 0.66},
            ],
            "note": "gold of part choose",
        },
        "claims": ["Better than the model as it is: grpo, raft, ppo.", "Every run generated 200000 tokens."],
    }


def emptied(value: Any) -> Any:
    """Return the same with null instead of every number."""
    if isinstance(value, dict):
        return {key: emptied(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [emptied(inner) for inner in value]
    return value if isinstance(value, str | bool) else None


def renamed(value: Any, old: str, new: str) -> Any:
    """Return the same with another name of an arm, wherever it stands."""
    if isinstance(value, dict):
        return {key: renamed(inner, old, new) for key, inner in value.items()}
    if isinstance(value, list):
        return [renamed(inner, old, new) for inner in value]
    return value.replace(old, new) if isinstance(value, str) else value


def report(summary: dict[str, Any]) -> Report:
    return report_of(summary, name="arithmetic")


def write(directory: Path, summary: dict[str, Any]) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "summary.json").write_text(json.dumps(summary))
    return write_comparison(directory)


def table_of(blocks: list[Any], place: int = 0) -> Table:
    return [block for block in blocks if isinstance(block, Table)][place]


def cells(table: Table, arm: str) -> dict[str, str]:
    return dict(zip(table.header, next(row for row in table.rows if row[0] == arm), strict=True))


class Page(HTMLParser):
    """Collects what a browser would load or show."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.styles: list[str] = []
        self.words: list[str] = []
        self._open = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [f"{key}={value}" for key, value in attrs if key in ("src", "href", "srcset", "action", "data", "poster")]
        self.styles += [value or "" for key, value in attrs if key == "style"]
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        kept = {"style": self.styles, "script": None}.get(self._open, self.words)
        if kept is not None:
            kept.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(comparison_html(report(made_summary())))


def test_the_headline_is_the_primary_verdict_with_its_interval() -> None:
    headline, tone, lead = answer(made_summary())
    assert headline == "grpo is better than raft: +6.2 points (95 % interval +2.2 to +10.2) of gold"
    assert tone == "up"
    assert lead == (
        "grpo against raft is better.",
        "With 200 prompts and 3 seeds a difference of 14.9 points is found.",
        "Better than the model as it is: grpo, raft, ppo.",
        "Every run generated 200000 tokens.",
    )


def test_a_loss_is_said_as_one() -> None:
    headline, tone, _ = answer(made_summary(outcome="worse", gain=-0.1))
    assert headline == "grpo is worse than raft: -10 points (95 % interval -14 to -6) of gold"
    assert tone == "down"


def test_inconclusive_is_a_normal_answer_and_says_what_could_have_been_found() -> None:
    headline, tone, lead = answer(made_summary(outcome="inconclusive", gain=0.012))
    assert headline == "Inconclusive whether grpo is better than raft: +1.2 points (95 % interval -2.8 to +5.2) of gold"
    assert tone == ""
    assert lead[1].startswith("Inconclusive is a normal answer")
    assert lead[2] == "With 200 prompts and 3 seeds a difference of 14.9 points is found."


def test_without_a_primary_verdict_nothing_is_claimed_of_it() -> None:
    headline, tone, lead = answer({**made_summary(), "verdicts": {}})
    assert (headline, tone) == ("The contrast that was declared has not been measured yet", "")
    assert lead[0] == "Better than the model as it is: grpo, raft, ppo."


def test_the_table_of_arms_has_gold_proxy_their_gap_and_the_gain() -> None:
    table = table_of(score_blocks(made_summary()))
    assert [row[0] for row in table.rows] == ["grpo", "raft", "ppo", "best_of_n", "majority", "base"]
    assert cells(table, "grpo") == {
        "arm": "grpo",
        "algorithm": "GRPO",
        "gold %": "70.0 [65.0, 75.0]",
        "proxy %": "76.0 [71.0, 81.0]",
        "proxy - gold": "+6",
        "gain over base": "+40 [+34, +46]",
        "test, greedy": "70.0 [65.0, 75.0]",
        "hard, sampled": "70.0 [65.0, 75.0]",
    }
    assert cells(table, "best_of_n")["proxy %"] == "-"
    assert cells(table, "best_of_n")["test, greedy"] == "-"


def test_each_seed_has_its_own_number() -> None:
    table = table_of(score_blocks(made_summary()), 1)
    assert cells(table, "ppo") == {"gold % by seed": "ppo", "0": "64.0", "1": "66.0", "2": "68.0"}


def test_a_seed_that_only_one_arm_has_leaves_the_others_a_gap() -> None:
    summary = made_summary()
    more = summary["arms"][3]
    more["seeds"].append(3)
    more["scores"]["test/sampled"]["by_seed"].append(0.71)
    table = table_of(score_blocks(summary), 1)
    assert (cells(table, "grpo")["3"], cells(table, "raft")["3"]) == ("71.0", "-")


def test_the_primary_verdict_stands_first_among_all_verdicts() -> None:
    lists = [block for block in verdict_blocks(made_summary()) if isinstance(block, Items)]
    assert [block.title for block in lists] == ["Test questions, sampled", "Test questions, greedy", "Hard questions, sampled"]
    assert lists[0].items == (
        "grpo against raft is better.",
        "raft against base is better.",
        "ppo against grpo is inconclusive.",
    )
    assert [block.is_loud for block in lists] == [True, False, False]


def test_the_critics_price_is_computed_from_the_measured_bytes() -> None:
    assert list(critic_sentences(made_summary()["arms"])) == [
        "The critic of ppo (134.5M parameters) adds 2.00 GB (57 %) to what the arm would need without it. "
        "Measured against grpo, the peak is 5.50 GB instead of 3.50 GB: +2.00 GB."
    ]


def test_without_a_critic_nothing_is_said_of_one() -> None:
    arms = [arm for arm in made_summary()["arms"] if arm["name"] != "ppo"]
    assert list(critic_sentences(arms)) == []


def test_equal_time_says_when_and_who_was_where() -> None:
    text, table = equal_time_blocks(made_summary())
    assert getattr(text, "text", "") == "After 700 s of training, when the fastest arm was done: gold of part choose"
    assert table_of([table]).rows == (("grpo", "61.0", "60.0", "62.0"), ("raft", "65.0", "64.0", "66.0"))


def test_runs_of_another_machine_are_named_where_seconds_are_compared() -> None:
    summary = made_summary()
    assert len([block for block in equal_time_blocks(summary) if isinstance(block, Text)]) == 1
    summary["equal_time"]["left_out"] = ["grpo, seed 0", "raft, seed 1"]
    said = [block.text for block in equal_time_blocks(summary) if isinstance(block, Text)][-1]
    assert said.startswith("Made on another machine")
    assert said.endswith(": grpo, seed 0; raft, seed 1")


def test_an_arm_that_did_best_with_the_highest_rate_tried_is_named() -> None:
    summary = made_summary()
    assert not any(said.startswith("Higher learning rates") for said in not_covered(summary))
    next(arm for arm in summary["arms"] if arm["name"] == "raft")["learning_rate"] = 1e-4
    assert "Higher learning rates: raft did best with the highest that was tried." in not_covered(summary)
    summary["plan"]["learning_rates"] = [1e-4]
    assert not any(said.startswith("Higher learning rates") for said in not_covered(summary))


def test_the_trials_stand_in_the_order_of_their_rates() -> None:
    table = table_of(trial_blocks(made_summary()))
    assert table.header == ("gold % of part choose", "1e-05", "3e-05", "0.0001", "trained with")
    assert table.rows[0] == ("grpo", "50.0", "70.0", "60.0", "3e-05")


def test_what_is_needed_to_repeat_it_is_there(page: Page) -> None:
    for words in (
        "covey compare arithmetic --arms grpo,raft,ppo --name 'two words'",
        "Some CPU",
        "2.9.0",
        "algorithm.name=ppo",
        "arXiv 2402.03300",
        '"group_size": 8',
    ):
        assert words in page.text


def test_the_forest_holds_intervals_seeds_and_the_base_as_a_line() -> None:
    figure = forest(made_summary()["arms"], "test/sampled")
    assert figure is not None
    assert [text for _, text in figure.y.ticks] == ["grpo", "raft", "ppo", "best_of_n", "majority", "base"]
    grpo = {series.kind: series for series in figure.series if series.label == "grpo"}
    assert (grpo["interval"].xs, grpo["interval"].ys) == ((0.7,), (5.0,))
    assert (*grpo["interval"].lows, *grpo["interval"].highs) == pytest.approx((0.65, 0.75))
    assert grpo["points"].xs == pytest.approx((0.68, 0.7, 0.72))
    rules = [series for series in figure.series if series.kind == "rule"]
    assert [(rule.label, rule.xs) for rule in rules] == [("base", (0.3,))]
    assert not [series for series in figure.series if series.kind == "points" and series.label == "base"]


def test_every_sampled_level_has_a_forest_of_its_own() -> None:
    assert [figure.name for figure in figures_of(made_summary())] == [
        "forest-test",
        "forest-1-hard",
        "curve-tokens",
        "curve-time",
        "learning-rates",
        "memory",
        "seconds",
    ]


def test_a_curve_is_the_mean_over_seeds_read_between_their_evaluations() -> None:
    seeds = [{"tokens": [0, 10, 20], "gold": [0.0, 1.0, 2.0]}, {"tokens": [0, 20, 30], "gold": [1.0, 3.0, 9.0]}]
    xs, means, lows, highs = mean_over_seeds(seeds, "tokens", "gold")
    assert xs == (0.0, 10.0, 20.0)  # Beyond 20 one seed would stand for both.
    assert means == (0.5, 1.5, 2.5)
    assert lows == (0.0, 1.0, 2.0)
    assert highs == (1.0, 2.0, 3.0)


def test_a_null_on_a_curve_is_left_out() -> None:
    assert mean_over_seeds([{"tokens": [0, 5, 10], "gold": [0.0, None, 1.0]}], "tokens", "gold")[:2] == (
        (0.0, 10.0),
        (0.0, 1.0),
    )


def test_gold_has_a_band_and_the_proxy_is_dashed_without_one() -> None:
    figure = curves(made_summary()["arms"], "tokens")
    assert figure is not None
    lines = {series.label: series for series in figure.series}
    assert list(lines) == ["grpo", "raft", "ppo", "grpo, proxy", "raft, proxy", "ppo, proxy"]
    assert lines["grpo"].lows[0] == lines["grpo"].highs[0] == 0.3
    assert (lines["grpo"].lows[-1], lines["grpo"].highs[-1]) != (0.7, 0.7)
    assert (lines["grpo, proxy"].is_dashed, lines["grpo, proxy"].lows) == (True, ())
    assert not lines["grpo"].is_dashed


def test_one_seed_has_no_band() -> None:
    arm = trained("grpo", 0.7)
    figure = curves([{**arm, "curve": arm["curve"][:1]}], "train_s")
    assert figure is not None
    assert figure.series[0].lows == ()


def test_bars_are_stacked_in_the_order_of_the_parts() -> None:
    figure = stacks(made_summary()["arms"], "memory_bytes", ("policy", "reference", "critic"))
    assert figure is not None
    assert [text for _, text in figure.y.ticks] == ["grpo", "raft", "ppo"]
    policy, critic = figure.series  # No arm has a reference.
    assert (policy.label, policy.lows, policy.highs) == ("policy", (0.0, 0.0, 0.0), (1e9, 1e9, 1e9))
    assert (critic.label, critic.lows, critic.highs) == ("critic", (1e9, 1e9, 1e9), (1e9, 1e9, 3e9))


def test_rates_stand_on_a_logarithmic_axis() -> None:
    figure = rates(made_summary()["arms"])
    assert figure is not None
    assert figure.series[0].xs == pytest.approx((-5.0, -4.522879, -4.0), abs=1e-6)
    assert [text for _, text in figure.x.ticks] == ["1e-05", "3e-05", "0.0001"]


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ((0.0, 1.0), ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ((0.31, 0.74), ["0.3", "0.4", "0.5", "0.6", "0.7"]),
        ((0.5, 0.5), ["0.48", "0.49", "0.5", "0.51", "0.52"]),
        ((0.0, 0.0), ["0", "0.1", "0.2", "0.3", "0.4", "0.5"]),
    ],
)
def test_ticks_are_round_numbers_within_the_axis(values: tuple[float, ...], ticks: list[str]) -> None:
    assert [text for _, text in number_axis("gold", values, lambda value: f"{value:.4g}").ticks] == ticks


def test_ten_arms_differ_in_colour_and_in_symbol() -> None:
    arms = [untrained("base", 0.3), *(trained(f"arm{index}", 0.5) for index in range(9))]
    marks = arm_marks(arms).values()
    assert len({mark.colour for mark in marks}) == len({mark.symbol for mark in marks}) == 10
    assert {mark.symbol for mark in marks} - set(OUTLINES) == {"circle"}
    assert {mark.colour for mark in marks} <= set(DARK_COLOURS)


def test_an_arm_keeps_its_look_whatever_else_is_compared() -> None:
    marks = arm_marks(made_summary()["arms"])
    assert (marks["grpo"].colour, marks["raft"].colour, marks["base"].colour) == (BLUE, ORANGE, INK)


def test_a_click_on_the_legend_takes_the_band_with_the_line() -> None:
    figure = curves(made_summary()["arms"], "tokens")
    assert figure is not None
    groups = [trace.legendgroup for trace in plotly_figure(figure).data]
    assert groups == ["grpo", "grpo", "raft", "raft", "ppo", "ppo", "grpo, proxy", "raft, proxy", "ppo, proxy"]


def test_the_page_loads_nothing(page: Page) -> None:
    assert page.loads == []
    assert not {"link", "iframe", "img", "object", "embed", "base", "form"} & set(page.tags)
    assert not re.search(r"url\(|@import|@font-face|//", " ".join(page.styles))


def test_the_page_names_every_arm_and_offers_every_figure_twice(page: Page) -> None:
    for arm in made_summary()["arms"]:
        assert arm["name"] in page.text
    assert page.tags.count("button") == 2 * len(figures_of(made_summary()))


def test_the_page_is_written_with_markdown_and_figures_beside_it(tmp_path: Path) -> None:
    path = write(tmp_path / "arithmetic", made_summary())
    assert path == tmp_path / "arithmetic" / "report.html"
    pictures = {f"figures/{file.name}" for file in (path.parent / "figures").iterdir()}
    assert set(re.findall(r"\]\((.*?)\)", (path.parent / "report.md").read_text())) == pictures
    assert len(pictures) == 7


def test_a_missing_or_torn_summary_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CoveyError, match="once its runs are finished"):
        write_comparison(tmp_path)
    (tmp_path / "summary.json").write_text('{"arms": [')
    with pytest.raises(CoveyError, match="is no JSON"):
        write_comparison(tmp_path)


def test_names_and_texts_cannot_become_markup() -> None:
    summary = {**renamed(made_summary(), "raft", HOSTILE), "claims": [HOSTILE], "resolution": HOSTILE}
    html = comparison_html(report(summary))
    hostile = Page(html)
    assert hostile.tags.count("script") == 4  # The numbers, plotly, the charts, and what saves them.
    assert "img" not in hostile.tags
    assert "<img" not in html.partition('<script type="application/json"')[2].partition("</script>")[0]
    assert HOSTILE in hostile.text


def test_plotly_is_given_no_markup_of_a_name() -> None:
    arms = renamed(made_summary(), "raft", "<a href='x'>raft</a>")["arms"]
    for figure in figures_of({"arms": arms}):
        assert "<a" not in plotly_figure(figure).to_json().replace("\\u003c", "<")


@pytest.mark.parametrize("name", ["raft", HOSTILE, "control\x00\x1bcharacters"])
def test_every_figure_is_an_svg_file_with_its_arms_names(name: str) -> None:
    summary = renamed(made_summary(), "raft", name)
    for figure in figures_of(summary):
        root = ElementTree.fromstring(svg(figure))
        words = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
        shown = [text for _, text in figure.y.ticks] if figure.num_rows is not None else [one.label for one in figure.series]
        assert {"grpo", "ppo"} <= set(words) & set(shown)
        assert any(word.startswith(re.sub("[\x00\x1b]", "\ufffd", name)[:20]) for word in words)
        assert "script" not in {element.tag.rpartition("}")[2] for element in root.iter()}


def test_svg_puts_an_interval_where_its_numbers_are() -> None:
    figure = forest(made_summary()["arms"], "test/sampled")
    assert figure is not None
    paths = re.findall(rf'<path d="M([\d.]+) ([\d.]+)H([\d.]+)" stroke="{BLUE}"', svg(figure))
    low, y, high = (float(number) for number in paths[0])
    left, right = 20 + 6.8 * len("best_of_n"), 720 - 24
    span = figure.x.high - figure.x.low
    assert low == pytest.approx(left + (right - left) * (0.65 - figure.x.low) / span, abs=0.06)
    assert high == pytest.approx(left + (right - left) * (0.75 - figure.x.low) / span, abs=0.06)
    assert y == pytest.approx(40 + 38 * 0.5, abs=0.06)  # The first of the rows is on top.


def test_every_row_of_a_markdown_table_has_as_many_cells() -> None:
    text = markdown(report(renamed(made_summary(), "raft", HOSTILE)))
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 9
    for table in tables:
        lengths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(lengths) == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("best_of_n", "best_of_n"),
        ("_a_ *b* <c> `d` | e", r"\_a\_ \*b\* \<c\> \`d\` \| e"),
        ("two\nlines", "two lines"),
        ("# no heading", r"\# no heading"),
        ("-3.1", "-3.1"),
        ("&lt;", "&amp;lt;"),
    ],
)
def test_markdown_shows_text_as_it_is(text: str, shown: str) -> None:
    assert escaped(text) == shown


@pytest.mark.parametrize(
    "summary",
    [
        emptied(made_summary()),
        {"arms": []},
        {"arms": [{"name": "grpo", "trained": True}, {"name": "base"}], "plan": {}},
        {**made_summary(), "verdicts": None, "equal_time": None, "oracle": None, "machine": None, "claims": None},
        {**made_summary(), "arms": [untrained("base", 0.0), trained("grpo", 0.0)]},
    ],
    ids=["null numbers", "nothing", "bare arms", "null parts", "zero everywhere"],
)
def test_a_report_is_made_whatever_is_missing(tmp_path: Path, summary: dict[str, Any]) -> None:
    path = write(tmp_path / "some", summary)
    assert "How to repeat it" in path.read_text()
    assert "nan" not in Page(path.read_text()).text.lower().split()
    for file in (path.parent / "figures").glob("*.svg"):
        ElementTree.parse(file)


def test_a_bar_needs_a_number_and_not_a_zero() -> None:
    assert (
        stacks([{"name": "grpo", "trained": True, "costs": {"seconds": {"sampling": None}}}], "seconds", ("sampling",)) is None
    )


def test_the_report_imports_no_torch() -> None:
    code = "import sys, covey.report.compare.page; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
