"""The live panel: what it shows at which width, and that nothing in a completion can spoil it."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console as Terminal
from tests.step_records import EVALUATION, AsciiStream, metrics, record

from covey.monitor.console import LiveConsole, StepRecord
from covey.monitor.diagnosis import TRUNCATED
from covey.monitor.progress import LOSS_NOTE


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
