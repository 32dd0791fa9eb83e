"""The learned proxy's benchmark: its gold score, its pairs, its parts of prompts, its record and its picture."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from benchmarks.bt_proxy_parts.gold import sentence_score, words_of
from benchmarks.bt_proxy_parts.looks import looks_of, summary, without_nan
from benchmarks.bt_proxy_parts.pairs import agreement, drawn_pairs
from benchmarks.bt_proxy_parts.picture import HEIGHT, LEFT, TOP, WIDTH, picture, round_distances
from benchmarks.bt_proxy_parts.prompts import TEMPLATES, TOPICS, split_prompts, with_references
from tests.report_fixture import write_run

from covey.guard.history import History
from covey.monitor.run_directory import RunDirectory
from covey.rewards.preference_pairs import read_preference_pairs

SIXTEEN = "One two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen."


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        (SIXTEEN, 1.0),
        (f"{SIXTEEN} {SIXTEEN}", math.exp(-(16**2) / 100) / 2),
        ("Boats come home.", math.exp(-(13**2) / 100)),
        ("Home home Home", math.exp(-(13**2) / 100) / 3),
        ("It's well-known", math.exp(-(14**2) / 100)),
        ("1 2 3 4 5 6 7 8 9 10 11 12", 0.0),
        ("", 0.0),
    ],
)
def test_gold_likes_sixteen_different_words(completion: str, score: float) -> None:
    assert sentence_score(completion) == pytest.approx(score, abs=1e-12)


def test_a_word_is_a_run_of_letters_with_its_apostrophe() -> None:
    assert words_of("Don't stop, it\u2019s 5 o'clock_now - Café!") == ["don't", "stop", "it\u2019s", "o'clock", "now", "café"]


def test_the_parts_share_all_prompts_among_them() -> None:
    parts = split_prompts(seed=0)
    assert {part: len(prompts) for part, prompts in parts.items()} == {"choose": 60, "guard": 60, "train": 200}
    texts = [prompt.text for prompts in parts.values() for prompt in prompts]
    assert sorted(texts) == sorted(template.format(topic) for topic in TOPICS for template in TEMPLATES)
    assert len(set(texts)) == len(texts)


def test_the_reference_is_the_first_completion_of_the_base_model() -> None:
    [prompt, *_] = split_prompts(seed=0)["train"]
    [referred] = with_references([prompt], {prompt.prompt_id: ["first", "second"]})
    assert (referred.text, referred.columns) == (prompt.text, {"reference": "first"})


def test_labels_follow_the_model_of_bradley_and_terry() -> None:
    completions = {f"prompt {number}": ["good", "bad"] for number in range(4000)}
    gold = {"good": 0.8, "bad": 0.5}.__getitem__
    pairs = drawn_pairs(completions, gold, num_pairs=4000, sharpness=6.0, seed=0)
    share = Counter(pair["chosen"] for pair in pairs)["good"] / 4000
    assert share == pytest.approx(1 / (1 + math.exp(-6 * 0.3)), abs=0.02)
    assert agreement(pairs) == share


def test_only_different_and_written_completions_of_a_prompt_are_paired() -> None:
    pairs = drawn_pairs({"one": ["a", "a", "b", " "], "two": ["c"]}, len, num_pairs=100, sharpness=6.0, seed=0)
    assert [{pair["chosen"], pair["rejected"]} for pair in pairs] == [{"a", "b"}, {"a", "b"}]
    assert agreement(pairs) == 0.5


def test_the_same_seed_draws_the_same_pairs_and_they_can_be_read_back(tmp_path: Path) -> None:
    words = random.Random(1)
    completions = {f"prompt {number}": [f"answer {words.random()}" for _ in range(4)] for number in range(20)}
    first, again = (drawn_pairs(completions, sentence_score, num_pairs=50, sharpness=6.0, seed=3) for _ in range(2))
    assert first == again
    assert len(first) == 50
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in first))
    read = read_preference_pairs(file)
    assert [(pair.chosen, pair.rejected) for pair in read] == [(pair["chosen"], pair["rejected"]) for pair in first]


def look(step: int, *, part: str, gold: float, proxy: float = 0.5) -> dict[str, Any]:
    ends = {"gold_low": gold - 0.1, "gold_high": gold + 0.1}
    own = {"step": step, "part": part, "distance": step / 10, "gold_mean": gold, "proxy_mean": proxy, "words_mean": 9.0}
    return own | ends


LOOKS = [
    look(step, part=part, gold=gold, proxy=0.5 + step / 100)
    for part in ("choose", "guard")
    for step, gold in ((0, 0.25), (10, 0.5), (20, 0.4))
]


def test_the_best_step_is_chosen_on_one_part_and_told_on_the_other() -> None:
    looks = [*LOOKS[:3], look(0, part="guard", gold=0.2), look(10, part="guard", gold=0.3), look(20, part="guard", gold=0.6)]
    told = {name: (moment["step"], moment["gold_mean"]) for name, moment in summary(looks).items()}
    assert told == {"start": (0, 0.2), "best": (10, 0.3), "end": (20, 0.6)}


def test_a_look_without_a_recorded_distance_says_so(tmp_path: Path) -> None:
    run = RunDirectory(write_run(tmp_path / "run", eval_parts=("choose",)))
    history = History(looks=[], steps=[], planned_looks=1, group_size=8)
    looks = looks_of(run, history, "choose", words_of)
    assert [(found["step"], found["kl"]) for found in looks] == [(0, 0.0), (10, None), (20, None), (30, None), (40, None)]
    assert looks[0]["words_mean"] > 3
    assert looks[0]["gold_gain"] is None


def test_what_is_no_number_becomes_null() -> None:
    assert without_nan({"a": math.nan, "b": 1.5, "c": ""}) == {"a": None, "b": 1.5, "c": ""}


def test_the_picture_has_each_score_at_its_distance() -> None:
    drawn = picture({"looks": LOOKS, "curve": None})
    places = [LEFT, LEFT + WIDTH / 2, LEFT + WIDTH]
    gold = " ".join(f"{x:.1f},{TOP + HEIGHT * (1 - y):.1f}" for x, y in zip(places, (0.25, 0.5, 0.4), strict=True))
    proxy = " ".join(f"{x:.1f},{TOP + HEIGHT * (1 - y):.1f}" for x, y in zip(places, (0.5, 0.6, 0.7), strict=True))
    assert f'<polyline points="{gold}" fill="none" stroke="#0b7285"' in drawn
    assert f'<polyline points="{proxy}" fill="none" stroke="#e8590c"' in drawn
    assert "dashed" not in drawn


def test_the_picture_has_the_curve_with_its_peak_where_it_is_identified() -> None:
    curve = {"is_identified": True, "alpha": 0.5, "beta": 0.25, "best_distance": math.e, "best_gain": 0.25 * math.e}
    drawn = picture({"looks": LOOKS, "curve": curve})
    assert "dashed: gold = 0.25 + d (0.5 - 0.25 ln d), highest at 2.72" in drawn
    peak = f"M{LEFT + WIDTH:.1f} {TOP + HEIGHT * (0.75 - 0.25 * math.e) - 6:.1f}"
    assert peak in drawn


def test_without_a_result_the_picture_is_empty() -> None:
    assert "polyline" not in picture({})


@pytest.mark.parametrize(
    ("reach", "marks"),
    [
        (4.7, [0, 1, 2, 3, 4]),
        (2.0, [0, 0.5, 1, 1.5, 2]),
        (9.0, [0, 2, 4, 6, 8]),
        (0.31, [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]),
        (21.0, [0, 5, 10, 15, 20]),
    ],
)
def test_distances_are_marked_at_round_numbers(reach: float, marks: list[float]) -> None:
    assert round_distances(reach) == marks


def test_steps_that_would_be_written_over_each_other_are_left_out() -> None:
    crowded = [look(step, part="choose", gold=0.5) | {"distance": distance} for step, distance in ((0, 0), (5, 4), (10, 4.01))]
    drawn = picture({"looks": crowded, "curve": None})
    assert ">5</text>" in drawn
    assert ">10</text>" not in drawn
