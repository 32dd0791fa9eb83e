"""What a person sees: panel, plain lines and the words for a step."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console as Terminal

from covey.monitor.console import LiveConsole, PlainConsole, QuietConsole, StepRecord, open_console
from covey.monitor.diagnosis import TRUNCATED
from covey.monitor.progress import (
    ASCII_BLOCKS,
    LOSS_NOTE,
    clip_lines,
    duration,
    eta_s,
    evaluation_line,
    one_line,
    printable,
    sparkline,
)

METRICS: dict[str, float | None] = {
    "reward/mean": 0.5,
    "gold/mean": 0.25,
    "group/num_used": 6.0,
    "group/num_sampled": 8.0,
    "group/all_correct_frac": 0.25,
    "group/all_wrong_frac": 0.0,
    "completion/length_mean": 143.4,
    "completion/truncated_frac": 0.03,
    "loss/value": 1e-9,
}
EVALUATION = {
    "gold_mean": 0.41,
    "gold_low": 0.35,
    "gold_high": 0.47,
    "gold_gain": 0.06,
    "gold_gain_low": -0.01,
    "gold_gain_high": 0.13,
    "proxy_mean": 0.6,
    "proxy_low": 0.5,
    "proxy_high": 0.7,
    "proxy_gain": None,
}


def record(step: int, *, elapsed_s: float | None = None, **changes: Any) -> StepRecord:
    values: dict[str, Any] = {
        "num_steps": 200,
        "elapsed_s": 8.0 * step if elapsed_s is None else elapsed_s,
        "metrics": METRICS,
        "timing": {"generated_tokens_per_s": 1812.3},
        "question": "What is 2 + 2?",
        "completion": "It is 4.",
        "verdict": "reward 1, gold 1",
    }
    return StepRecord(step=step, **(values | changes))


def metrics(**changes: float | None) -> Mapping[str, float | None]:
    return METRICS | {key.replace("__", "/"): value for key, value in changes.items()}


class AsciiStream(io.StringIO):
    encoding = "ascii"


class TerminalStream(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(width: int = 80, *, stream: io.StringIO | None = None, environ: dict[str, str] | None = None) -> Terminal:
    return Terminal(
        file=stream or io.StringIO(),
        width=width,
        height=40,
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
        _environ=environ or {},
    )


def panel_lines(console: LiveConsole, width: int) -> list[str]:
    """Return the panel as it looks at the moment, line by line, without styles."""
    paper = Terminal(file=io.StringIO(), width=width, record=True, legacy_windows=False, _environ={})
    paper.print(console.panel())
    return paper.export_text().splitlines()


def live_after(*records: StepRecord, width: int = 80) -> LiveConsole:
    console = LiveConsole(terminal(width))
    for item in records:
        console.step(item)
    console.close()
    return console


# --- pure functions -----------------------------------------------------------------------------------------------


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


# --- plain lines --------------------------------------------------------------------------------------------------


def test_a_plain_step_is_one_line() -> None:
    stream = io.StringIO()
    PlainConsole(stream).step(record(5))
    line = "step 5/200  reward 0.500  gold 0.250  groups 6/8  length 143  1812 tokens/s  8.0 s/step  left 0:26:00\n"
    assert stream.getvalue() == line


def test_a_plain_step_without_gold_leaves_gold_out() -> None:
    stream = io.StringIO()
    PlainConsole(stream).step(record(5, metrics={"reward/mean": None}, timing={}))
    line = "step 5/200  reward -  groups -/-  length -  - tokens/s  8.0 s/step  left 0:26:00\n"
    assert stream.getvalue() == line


def test_the_plain_events_come_in_order_and_phases_are_left_out() -> None:
    stream = io.StringIO()
    console = PlainConsole(stream)
    console.plan(["model: tiny"])
    console.note("resumed")
    console.phase("sampling", 1, 2)
    console.evaluation(0, "choose", "greedy", EVALUATION | {"gold_gain": None})
    console.warn("slow")
    console.finish(["done"])
    console.close()
    lines = ["model: tiny", LOSS_NOTE, "resumed", "held-out choose, greedy, step 0: gold 0.410 [0.350,0.470]"]
    assert stream.getvalue().splitlines() == [*lines, "warning: slow", "done"]


def test_a_plain_diagnosis_follows_its_step() -> None:
    stream = io.StringIO()
    PlainConsole(stream).step(record(5, metrics=metrics(completion__truncated_frac=0.5)))
    assert stream.getvalue().splitlines()[1] == f"step 5: {TRUNCATED}"


def test_plain_text_survives_a_stream_that_knows_only_ascii() -> None:
    stream = AsciiStream()
    PlainConsole(stream).warn("reward ≈ 0")
    assert stream.getvalue() == "warning: reward ? 0\n"


def test_a_quiet_console_says_nothing_but_warnings() -> None:
    stream = io.StringIO()
    console = QuietConsole(stream)
    console.plan(["model: tiny"])
    console.note("resumed")
    console.phase("sampling", 1, 2)
    console.step(record(1, metrics=metrics(completion__truncated_frac=0.5)))
    console.evaluation(0, "choose", "greedy", EVALUATION)
    console.warn("slow")
    console.finish(["done"])
    console.close()
    assert stream.getvalue() == "warning: slow\n"


# --- the live panel -----------------------------------------------------------------------------------------------


def test_the_panel_at_60_columns() -> None:
    console = live_after(record(1), record(2), width=60)
    console.evaluation(2, "choose", "greedy", EVALUATION)
    console.close()
    assert panel_lines(console, 60) == [
        "╭─ Covey ──────────────────────────────────────────────────╮",
        "│ step                             2/200                   │",
        "│ time      0:00:16, about 0:26:24 left (8.0 s a step)     │",
        "│ reward    0.500 ▁▁                                       │",
        "│ gold      0.250 ▁▁                                       │",
        "│ groups    6 of 8 used; 25 % all correct, 0 % all wrong   │",
        "│ length    143 tokens, 3 % cut off                        │",
        "│ speed     1,812 tokens/s                                 │",
        "│ held-out  choose, greedy, step 2: gold 0.410             │",
        "│           [0.350,0.470], gain +0.060 [-0.010,+0.130]     │",
        "│ question  What is 2 + 2?                                 │",
        "│ sample    It is 4.                                       │",
        "│ verdict   reward 1, gold 1                               │",
        "╰──────────────────────────────────────────────────────────╯",
    ]


@pytest.mark.parametrize("width", [20, 60, 80, 120, 200])
def test_no_line_of_the_panel_is_wider_than_the_terminal(width: int) -> None:
    console = live_after(*[record(step, completion="数 word " * 200) for step in range(1, 40)], width=width)
    console.evaluation(39, "choose", "sampled", EVALUATION)
    console.phase("sampling", 1000, 4096)
    console.close()
    assert {cell_len(line) for line in panel_lines(console, width)} == {min(width, 120)}


def test_a_wide_panel_says_between_what_values_the_reward_moved() -> None:
    rewards = [record(step, metrics=metrics(reward__mean=step / 100)) for step in (1, 2, 3)]
    lines = panel_lines(live_after(*rewards, width=120), 120)
    assert lines[3].split("reward")[1].strip(" │") == "0.030 ▁▅█ (0.010 to 0.030 in the last 3 steps)"


def test_the_sparkline_covers_the_last_30_steps() -> None:
    console = live_after(*[record(step, metrics=metrics(reward__mean=float(step))) for step in range(1, 101)], width=60)
    assert sum(char in "▁▂▃▄▅▆▇█" for char in panel_lines(console, 60)[3]) == 30


def test_a_run_without_gold_says_that_it_is_flying_blind() -> None:
    console = live_after(record(1, metrics={"reward/mean": 0.5}))
    assert "none: the run is flying blind" in "\n".join(panel_lines(console, 80))


def test_markup_in_a_completion_is_shown_and_not_interpreted() -> None:
    console = live_after(record(1, question="[bold]2[/bold]", completion="[red]4[/red] [/] :smile:", verdict="[link=x]"))
    text = "\n".join(panel_lines(console, 80))
    assert "[bold]2[/bold]" in text
    assert "[red]4[/red] [/] :smile:" in text
    assert "[link=x]" in text


def test_markup_in_messages_is_shown_and_not_interpreted() -> None:
    stream = io.StringIO()
    console = LiveConsole(terminal(stream=stream))
    console.plan(["model: [red]tiny[/red]"])
    console.warn("[/] cannot parse")
    assert "model: [red]tiny[/red]" in stream.getvalue()
    assert "warning: [/] cannot parse" in stream.getvalue()


def test_a_completion_cannot_send_escape_sequences_to_the_terminal() -> None:
    stream = io.StringIO()
    LiveConsole(terminal(stream=stream)).step(record(1, completion="\x1b]0;owned\x07 \x1b[2J"))
    assert "]0;owned [2J" in stream.getvalue()
    assert "\x1b]0;" not in stream.getvalue()
    assert "\x1b[2J" not in stream.getvalue()


def test_a_long_completion_takes_two_lines() -> None:
    lines = panel_lines(live_after(record(1, completion="word " * 500), width=60), 60)
    start = next(index for index, line in enumerate(lines) if "sample" in line)
    assert lines[start + 1].strip(" │").endswith(" ...")
    assert "verdict" in lines[start + 2]


def test_the_loss_is_not_shown_and_the_reason_is_given_once() -> None:
    stream = io.StringIO()
    console = LiveConsole(terminal(300, stream=stream))
    console.plan(["model: tiny"])
    for step in (1, 2):
        console.step(record(step))
    console.close()
    assert stream.getvalue().count(LOSS_NOTE) == 1
    assert stream.getvalue().lower().count("loss") == 1


def test_a_phase_is_shown_until_its_step_is_finished() -> None:
    console = live_after(record(1))
    console.phase("sampling", 1000, 4096)
    assert "sampling 1,000/4,096" in "\n".join(panel_lines(console, 80))
    console.step(record(2))
    console.close()
    assert "sampling" not in "\n".join(panel_lines(console, 80))


def test_phases_redraw_at_most_five_times_a_second() -> None:
    stream = io.StringIO()
    clock = iter(index / 100 for index in range(1000))
    console = LiveConsole(terminal(stream=stream), clock=lambda: next(clock))
    for done in range(101):
        console.phase("sampling", done, 100)
    console.close()
    drawn = stream.getvalue().count("now")
    assert 4 <= drawn <= 8


def test_the_last_result_of_each_part_and_mode_is_kept() -> None:
    console = live_after(record(1))
    for step, mode in ((0, "greedy"), (0, "sampled"), (10, "greedy")):
        console.evaluation(step, "choose", mode, EVALUATION)
    console.close()
    text = "\n".join(panel_lines(console, 100))
    assert "choose, greedy, step 10" in text
    assert "choose, sampled, step 0" in text
    assert "choose, greedy, step 0" not in text


def test_a_live_diagnosis_is_printed_once_in_ten_steps() -> None:
    stream = io.StringIO()
    console = LiveConsole(terminal(200, stream=stream))
    for step in range(1, 11):
        console.step(record(step, metrics=metrics(completion__truncated_frac=0.5)))
    console.close()
    assert stream.getvalue().count(TRUNCATED) == 1


def test_finishing_prints_below_the_last_panel_and_shows_the_cursor_again() -> None:
    stream = io.StringIO()
    console = LiveConsole(terminal(stream=stream))
    console.step(record(1))
    console.finish(["gold rose by 0.06"])
    console.close()
    assert stream.getvalue().endswith("\x1b[?25hgold rose by 0.06\n")


def test_a_terminal_that_knows_only_ascii_gets_only_ascii() -> None:
    stream = AsciiStream()
    console = LiveConsole(terminal(stream=stream))
    console.plan(["reward ≈ gold"])
    console.step(record(1, completion="≈ 4"))
    console.close()
    assert stream.getvalue().isascii()


def test_no_color_is_respected() -> None:
    stream = io.StringIO()
    console = LiveConsole(terminal(stream=stream, environ={"NO_COLOR": "1"}))
    console.warn("slow")
    console.step(record(1))
    console.close()
    codes = [part.split("m")[0] for part in stream.getvalue().split("\x1b[")[1:] if "m" in part[:6]]
    assert set(codes) <= {"0", "1", "2"}  # reset, bold, dim


# --- choosing -----------------------------------------------------------------------------------------------------


def test_a_terminal_gets_the_live_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(open_console(stream=TerminalStream()), LiveConsole)


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_console(stream=TerminalStream()), PlainConsole)


def test_a_pipe_gets_plain_lines_even_with_forced_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(open_console(stream=io.StringIO()), PlainConsole)


def test_quiet_wins_over_the_terminal() -> None:
    assert isinstance(open_console(quiet=True, stream=TerminalStream()), QuietConsole)


def test_with_json_nothing_is_written_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    open_console(json=True).note("hello")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


def test_the_monitor_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, covey.monitor.console, covey.monitor.sinks; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
