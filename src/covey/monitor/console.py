"""What a person sees while a run trains: a live panel on a terminal, short lines elsewhere, or warnings only.

The loss is left out on purpose (`LOSS_NOTE` says why). Everything that comes from a model or a data set is shown as
plain text: no markup is interpreted and no control character reaches the terminal.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TextIO

from rich.console import Console as Terminal
from rich.console import RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from covey.monitor.diagnosis import Diagnoses
from covey.monitor.progress import (
    ASCII_BLOCKS,
    BLOCKS,
    LOSS_NOTE,
    StepRecord,
    clip_lines,
    duration,
    eta_s,
    evaluation_line,
    number,
    one_line,
    percent,
    printable,
    sparkline,
    step_line,
    step_time_s,
)

__all__ = ["Console", "LiveConsole", "PlainConsole", "QuietConsole", "StepRecord", "open_console"]

NUM_RECENT_STEPS = 30
REFRESH_EVERY_S = 0.2
LABEL_WIDTH, MAX_PANEL_WIDTH = 9, 120
WIDE = 80
"""From this width on there is room for the range of a sparkline."""


class Console(Protocol):
    """The events of a run, in the order of their first appearance."""

    def plan(self, lines: Sequence[str]) -> None:
        """Say what is going to be done."""
        ...

    def note(self, message: str) -> None: ...

    def warn(self, message: str) -> None: ...

    def phase(self, name: str, done: int, total: int) -> None:
        """Show life within a step or an evaluation; may be called as often as convenient."""
        ...

    def step(self, record: StepRecord) -> None: ...

    def evaluation(self, step: int, part: str, mode: str, record: Mapping[str, Any]) -> None:
        """Show a held-out result; `record` has the keys of `eval.jsonl`."""
        ...

    def finish(self, lines: Sequence[str]) -> None:
        """Say how it went; nothing but `close` follows."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was. May be called more than once and at any time."""
        ...


class QuietConsole:
    """Warnings and nothing else."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def plan(self, lines: Sequence[str]) -> None:
        pass

    def note(self, message: str) -> None:
        pass

    def warn(self, message: str) -> None:
        write_line(self._stream, f"warning: {message}")

    def phase(self, name: str, done: int, total: int) -> None:
        pass

    def step(self, record: StepRecord) -> None:
        pass

    def evaluation(self, step: int, part: str, mode: str, record: Mapping[str, Any]) -> None:
        pass

    def finish(self, lines: Sequence[str]) -> None:
        pass

    def close(self) -> None:
        pass


class PlainConsole:
    """One line an event, for pipes and logs; phases are left out."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._records: deque[StepRecord] = deque(maxlen=NUM_RECENT_STEPS)
        self._diagnoses = Diagnoses()

    def plan(self, lines: Sequence[str]) -> None:
        for line in [*lines, LOSS_NOTE]:
            write_line(self._stream, line)

    def note(self, message: str) -> None:
        write_line(self._stream, message)

    def warn(self, message: str) -> None:
        write_line(self._stream, f"warning: {message}")

    def phase(self, name: str, done: int, total: int) -> None:
        pass

    def step(self, record: StepRecord) -> None:
        self._records.append(record)
        write_line(self._stream, step_line(self._records))
        for line in self._diagnoses.after_step(record.step, record.metrics):
            write_line(self._stream, f"step {record.step}: {line}")

    def evaluation(self, step: int, part: str, mode: str, record: Mapping[str, Any]) -> None:
        write_line(self._stream, f"held-out {evaluation_line(step, part, mode, record)}")

    def finish(self, lines: Sequence[str]) -> None:
        for line in lines:
            write_line(self._stream, line)

    def close(self) -> None:
        pass


class LiveConsole:
    """A panel that is redrawn in place at every event; what is said once scrolls away above it."""

    def __init__(self, terminal: Terminal, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._terminal = terminal
        self._clock = clock
        self._drawn_at = -REFRESH_EVERY_S
        self._records: deque[StepRecord] = deque(maxlen=NUM_RECENT_STEPS)
        self._evaluations: dict[tuple[str, str], str] = {}
        self._phase: tuple[str, int, int] | None = None
        self._diagnoses = Diagnoses()
        # A stream that goes to a file stays there; one that shares the terminal must be printed above the panel.
        self._live = Live(
            get_renderable=self.panel,
            console=terminal,
            auto_refresh=False,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )

    def plan(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._print(line)
        self._print(LOSS_NOTE, style="dim")

    def note(self, message: str) -> None:
        self._print(message)

    def warn(self, message: str) -> None:
        self._print(f"warning: {message}", style="bold yellow")

    def phase(self, name: str, done: int, total: int) -> None:
        self._phase = (name, done, total)
        if self._clock() - self._drawn_at >= REFRESH_EVERY_S:
            self._draw()

    def step(self, record: StepRecord) -> None:
        self._records.append(record)
        self._phase = None
        for line in self._diagnoses.after_step(record.step, record.metrics):
            self._print(f"step {record.step}: {line}", style="yellow")
        self._draw()

    def evaluation(self, step: int, part: str, mode: str, record: Mapping[str, Any]) -> None:
        self._evaluations[part, mode] = evaluation_line(step, part, mode, record)
        self._phase = None
        self._draw()

    def finish(self, lines: Sequence[str]) -> None:
        self._phase = None
        self.close()
        for line in lines:
            self._print(line)

    def close(self) -> None:
        self._live.stop()

    def panel(self) -> Panel:
        """Return what is shown in place, for the present width of the terminal."""
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(style="dim", width=LABEL_WIDTH, no_wrap=True)
        grid.add_column(overflow="fold")
        for label, content in self._rows():
            grid.add_row(label, content)
        return Panel(grid, title="Covey", title_align="left", width=min(self._terminal.width, MAX_PANEL_WIDTH))

    def _rows(self) -> Iterator[tuple[str, RenderableType]]:
        if self._records:
            yield from self._step_rows(self._records[-1])
        for line in self._evaluations.values():
            yield "held-out", Text(line)
        if self._records:
            yield from self._sample_rows(self._records[-1])
        if self._phase:
            name, done, total = self._phase
            yield "now", self._bar(done, total, f"{name} {done:,}/{total:,}")

    def _step_rows(self, record: StepRecord) -> Iterator[tuple[str, RenderableType]]:
        metrics = record.metrics
        yield "step", self._bar(record.step, record.num_steps, f"{record.step}/{record.num_steps}")
        left = duration(eta_s(self._records))
        yield "time", f"{duration(record.elapsed_s)}, about {left} left ({step_time_s(self._records):.1f} s a step)"
        yield "reward", self._trend("reward/mean")
        yield "gold", self._trend("gold/mean") if metrics.get("gold/mean") is not None else "none: the run is flying blind"
        used, sampled = metrics.get("group/num_used"), metrics.get("group/num_sampled")
        flat = f"{percent(metrics.get('group/all_correct_frac'))} all correct, "
        flat += f"{percent(metrics.get('group/all_wrong_frac'))} all wrong"
        yield "groups", f"{number(used, '.0f')} of {number(sampled, '.0f')} used; {flat}"
        length = f"{number(metrics.get('completion/length_mean'), '.0f')} tokens"
        yield "length", f"{length}, {percent(metrics.get('completion/truncated_frac'))} cut off"
        yield "speed", f"{number(record.timing.get('generated_tokens_per_s'), ',.0f')} tokens/s"

    def _sample_rows(self, record: StepRecord) -> Iterator[tuple[str, RenderableType]]:
        for label, text in (("question", record.question), ("sample", record.completion), ("verdict", record.verdict)):
            if text:
                lines = clip_lines(one_line(text, self._terminal.encoding), self._content_width)
                yield label, Text("\n".join(lines), no_wrap=True)

    def _trend(self, key: str) -> Text:
        values = [record.metrics.get(key) for record in self._records]
        known = [value for value in values if value is not None]
        blocks = BLOCKS if self._terminal.encoding.startswith("utf") else ASCII_BLOCKS
        text = f"{number(values[-1])} {sparkline(values, blocks=blocks)}"
        if known and self._terminal.width >= WIDE:
            text += f" ({min(known):.3f} to {max(known):.3f} in the last {len(values)} steps)"
        return Text(text)

    def _bar(self, done: int, total: int, text: str) -> Table:
        bar = Table.grid(padding=(0, 1, 0, 0))
        bar.add_row(ProgressBar(total=max(total, 1), completed=done, width=self._content_width // 2), Text(text))
        return bar

    @property
    def _content_width(self) -> int:
        # Two border lines and two blanks of the panel, the label and the blank after each column.
        return max(min(self._terminal.width, MAX_PANEL_WIDTH) - 4 - LABEL_WIDTH - 2, 10)

    def _print(self, message: str, style: str = "") -> None:
        self._terminal.print(Text(printable(message, self._terminal.encoding), style=style))

    def _draw(self) -> None:
        self._drawn_at = self._clock()
        self._live.start()
        self._live.refresh()


def write_line(stream: TextIO, line: str) -> None:
    """Write one printable line at once, so that a log can be followed."""
    stream.write(printable(line, stream.encoding or "utf-8") + "\n")
    stream.flush()


def open_console(quiet: bool = False, json: bool = False, *, stream: TextIO | None = None) -> Console:
    """Return the console that suits the stream.

    By default that is stdout; with `json` it is stderr, because stdout then belongs to the machine-readable output.
    With `quiet` only warnings are written, to stderr.
    """
    out = stream or (sys.stderr if quiet or json else sys.stdout)
    if quiet:
        return QuietConsole(out)
    terminal = Terminal(file=out)
    # Rich also takes a pipe for a terminal if FORCE_COLOR is set; redrawing in place needs a real one.
    return LiveConsole(terminal) if out.isatty() and terminal.is_interactive else PlainConsole(out)
