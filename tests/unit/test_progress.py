"""The words for a step: times, sparklines, texts that are safe to print, and the line of an evaluation."""

from __future__ import annotations

import pytest
from rich.cells import cell_len
from tests.step_records import EVALUATION, record

from covey.monitor.progress import (
    ASCII_BLOCKS,
    clip_lines,
    duration,
    eta_s,
    evaluation_line,
    one_line,
    printable,
    sparkline,
)


def test_the_eta_is_the_median_step_time_times_the_steps_left() -> None:
    records = [record(step, elapsed_s=elapsed_s) for step, elapsed_s in ((10, 100.0), (11, 108.0), (12, 316.0), (13, 326.0))]
    assert eta_s(records) == 10.0 * 187  # the median of 8, 208 and 10


def test_the_eta_after_the_first_step_uses_the_mean_since_the_start() -> None:
    assert eta_s([record(4, elapsed_s=20.0)]) == 5.0 * 196


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3725.0, "1:02:05"), (360000.0, "100:00:00")]
)
def test_a_duration_is_hours_minutes_seconds(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_sparkline_runs_from_the_smallest_to_the_largest_value() -> None:
    assert sparkline([0.0, 0.5, 1.0, None, 0.0]) == "▁▅█ ▁"


def test_a_sparkline_of_equal_values_is_flat() -> None:
    assert sparkline([0.3, 0.3]) == "▁▁"


def test_a_sparkline_without_values_is_empty() -> None:
    assert sparkline([None, None]) == ""


def test_an_ascii_sparkline_has_as_many_levels() -> None:
    assert sparkline(list(range(8)), blocks=ASCII_BLOCKS) == ASCII_BLOCKS


def test_control_and_direction_characters_are_stripped() -> None:
    assert printable("a\x1b[31mb\x07\r\u202ec\u200b\ud800\nd") == "a[31mbc\nd"


def test_what_an_encoding_lacks_becomes_a_question_mark() -> None:
    assert printable("≈ 4", "ascii") == "? 4"


def test_white_space_of_any_kind_becomes_one_blank() -> None:
    assert one_line(" a\n\n\tb\u2028c ") == "a b c"


def test_a_text_that_fits_is_not_shortened() -> None:
    assert clip_lines("abcdefgh", 4) == ["abcd", "efgh"]


def test_a_text_that_does_not_fit_ends_in_dots() -> None:
    assert clip_lines("abcdefghijklmnopq", 8) == ["abcdefgh", "ijkl ..."]


def test_wide_characters_count_as_two_cells() -> None:
    assert [cell_len(line) for line in clip_lines("数" * 50, 20)] == [20, 20]


def test_a_held_out_result_has_its_interval_and_gain() -> None:
    line = "choose, greedy, step 10: gold 0.410 [0.350,0.470], gain +0.060 [-0.010,+0.130]"
    assert evaluation_line(10, "choose", "greedy", EVALUATION) == line


def test_a_held_out_result_before_training_has_no_gain() -> None:
    before = EVALUATION | {"gold_gain": None, "gold_gain_low": None, "gold_gain_high": None}
    assert evaluation_line(0, "choose", "greedy", before) == "choose, greedy, step 0: gold 0.410 [0.350,0.470]"


def test_a_held_out_result_without_gold_says_so() -> None:
    line = "test, sampled, step 9: reward (no gold) 0.600 [0.500,0.700]"
    assert evaluation_line(9, "test", "sampled", EVALUATION | {"gold_mean": None}) == line
