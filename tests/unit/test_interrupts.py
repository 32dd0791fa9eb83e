"""Signals become requests once; the second one is left to whoever handled it before."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from covey.interrupts import StopRequest, stop_on_signals

CAUGHT = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def heard() -> Iterator[list[int]]:
    """The signals that reached the handlers that stood before, which are put back at the end."""
    numbers: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: numbers.append(number)) for number in CAUGHT}
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


def test_nothing_is_requested_without_a_signal() -> None:
    with stop_on_signals() as stop:
        assert not stop.is_requested
        assert stop.signal_name is None


@pytest.mark.parametrize("number", CAUGHT)
def test_the_first_signal_is_a_request_and_goes_no_further(heard: list[int], number: signal.Signals) -> None:
    with stop_on_signals() as stop:
        signal.raise_signal(number)
    assert stop.is_requested
    assert stop.signal_name == number.name
    assert heard == []


@pytest.mark.parametrize("first", CAUGHT)
@pytest.mark.parametrize("second", CAUGHT)
def test_the_second_signal_is_left_to_the_handler_before(
    heard: list[int], first: signal.Signals, second: signal.Signals
) -> None:
    with stop_on_signals() as stop:
        signal.raise_signal(first)
        signal.raise_signal(second)
    assert stop.signal_name == first.name
    assert heard == [second]


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with stop_on_signals():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_handlers_before_stand_again_after_the_block(heard: list[int]) -> None:
    before = [signal.getsignal(number) for number in CAUGHT]
    with stop_on_signals():
        assert [signal.getsignal(number) for number in CAUGHT] != before
    assert [signal.getsignal(number) for number in CAUGHT] == before


def test_the_handlers_before_stand_again_after_an_error() -> None:
    before = [signal.getsignal(number) for number in CAUGHT]
    with pytest.raises(ValueError, match="in the block"), stop_on_signals():
        raise ValueError("in the block")
    assert [signal.getsignal(number) for number in CAUGHT] == before


def test_blocks_nest(heard: list[int]) -> None:
    with stop_on_signals() as outer, stop_on_signals() as inner:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
    assert (inner.signal_name, outer.signal_name, heard) == ("SIGINT", "SIGINT", [signal.SIGINT])


def test_outside_the_main_thread_nothing_is_caught() -> None:
    before = [signal.getsignal(number) for number in CAUGHT]
    found: list[tuple[StopRequest, list[object]]] = []

    def work() -> None:
        with stop_on_signals() as stop:
            found.append((stop, [signal.getsignal(number) for number in CAUGHT]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    [(stop, handlers)] = found
    assert handlers == before
    assert not stop.is_requested
