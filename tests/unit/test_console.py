"""Plain lines, the quiet console, and which console a stream gets."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from tests.step_records import EVALUATION, AsciiStream, metrics, record

from covey.monitor.console import LiveConsole, PlainConsole, QuietConsole, open_console
from covey.monitor.diagnosis import TRUNCATED
from covey.monitor.progress import LOSS_NOTE

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


# --- choosing -----------------------------------------------------------------------------------------------------


class TerminalStream(io.StringIO):
    def isatty(self) -> bool:
        return True


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
