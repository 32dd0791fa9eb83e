"""Functions that misbehave as reward functions, as data, each with what is declared to become of it.

Only what a reward may import is imported here: worker processes load this module.
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from covey.rewards.base import Sample
from covey.types import Message, Prompt, Score

FINE = 0.5
"""What each function gives to a completion that it does not misbehave on."""

BAD = "bad"
"""The completion that it misbehaves on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bad:
    """One way to misbehave."""

    act: Callable[[Any], Any]
    """It is given the sample."""
    kind: str | None = None
    """The kind of failure in a worker process; None: the score is kept."""
    value: float | None = None
    """The score that is kept."""
    said: str = ""
    """What the error says."""
    inline: str = "same"
    """In the training process: the same kind; "interrupt": it passes for Ctrl-C; "unsafe": only a process holds it."""
    coroutine: str = "same"
    """As a coroutine in the training process: as above."""


# Values that are no score


class TensorLike:
    """Has one element and says so, as a tensor does."""

    shape, dtype = (1,), "float32"

    def __float__(self) -> float:
        return 0.25

    def item(self) -> float:
        return 0.25


class FailsToBeFloat:
    def __float__(self) -> float:
        raise ZeroDivisionError("not today")


class HangsToBeFloat:
    def __float__(self) -> float:
        time.sleep(3600)
        return 1.0


def a_generator(sample: Any) -> Any:
    yield 0.5


# Exceptions


class UnpicklableError(Exception):
    """Cannot be pickled, nor copied."""

    def __init__(self) -> None:
        super().__init__("cannot travel")
        self.lock = threading.Lock()


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def raise_error(error: BaseException) -> Any:
    raise error


def recurse(depth: int) -> int:
    return recurse(depth + 1) + 1


# Time, memory and threads


def hang_in_python(sample: Any) -> float:
    while True:
        pass


def hang_in_c(sample: Any) -> float:
    """Backtracks for longer than the universe has been there, without giving the interpreter back."""
    return float(bool(re.match(r"(a+)+$", "a" * 64 + "b")))


def hang_deaf(sample: Any) -> float:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        with suppress(ValueError):  # In a thread.
            signal.signal(number, signal.SIG_IGN)
    time.sleep(3600)
    return 1.0


def allocate_without_end(sample: Any) -> float:
    kept = []
    while True:
        kept.append(bytearray(16 << 20))


def start_threads(sample: Any) -> float:
    for _ in range(8):
        threading.Thread(target=time.sleep, args=(3600,)).start()
    return 0.25


# Streams and descriptors


def print_much(sample: Any) -> float:
    for _ in range(100):
        print("x" * (1 << 20))
    return 0.25


def close_stdout(sample: Any) -> float:
    sys.stdout.close()
    os.close(1)
    return 0.25


def lose_streams(sample: Any) -> float:
    sys.stdout = sys.stderr = None
    return 0.25


def write_to(descriptors: range, data: bytes) -> None:
    for descriptor in descriptors:
        try:
            os.set_blocking(descriptor, False)
            os.write(descriptor, data)
        except OSError:
            pass


def write_garbage(descriptors: range) -> float:
    write_to(descriptors, b"\x00\xff garbage\n" * 100)
    return 0.25


def forge_pickle(sample: Any) -> float:
    """Write what looks like an answer, and would make whoever unpickles it make a file."""
    payload = f"cos\nsystem\n(S'touch {sample.prompt.columns['canary']}'\ntR.".encode()
    write_to(range(3, 64), b"CVY1" + struct.pack(">I", len(payload)) + payload)
    return 0.25


def forge_score(sample: Any) -> float:
    """Write an answer for a call that nobody has made."""
    payload = b'{"index": 99, "scores": [[1.0, {}, null, null, 0.1]]}'
    write_to(range(3, 64), b"CVY1" + struct.pack(">I", len(payload)) + payload)
    return 0.25


def close_everything(sample: Any) -> float:
    os.closerange(0, 256)
    return 0.25


# Processes


def leave_child(sample: Any) -> float:
    if os.fork() == 0:
        time.sleep(3600)
        os._exit(0)
    return 0.25


def leave_child_and_die(sample: Any) -> float:
    """The child has the worker's end of the pipes, too, unless it is taken away."""
    leave_child(sample)
    os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


def leave_daemon(sample: Any) -> float:
    subprocess.Popen(["sleep", "3600"], start_new_session=True)
    return 0.25


def return_twice(sample: Any) -> float:
    """Fork, and let the child come back as well."""
    return 0.25 if os.fork() else 0.75


# What other calls see


def mutate_input(sample: Any) -> float:
    sample.prompt.columns["list"].append("changed")
    sample.prompt.columns["new"] = 1
    return 0.25


def change_environment(sample: Any) -> float:
    os.environ.clear()
    os.environ["COVEY_TEST_LEFT_BEHIND"] = "1"
    return 0.25


def change_directory(sample: Any) -> float:
    os.chdir("/")
    return 0.25


BAD_REWARDS: dict[str, Bad] = {
    "raises": Bad(act=lambda sample: raise_error(ValueError("bad day")), kind="raised", said="ValueError: bad day"),
    "divides by zero": Bad(act=lambda sample: 1 / 0, kind="raised", said="ZeroDivisionError"),
    "raises what cannot be pickled": Bad(
        act=lambda sample: raise_error(UnpicklableError()), kind="raised", said="UnpicklableError: cannot travel"
    ),
    "raises what cannot be printed": Bad(
        act=lambda sample: raise_error(UnprintableError()), kind="raised", said="UnprintableError"
    ),
    "raises KeyboardInterrupt": Bad(
        act=lambda sample: raise_error(KeyboardInterrupt()), kind="raised", said="KeyboardInterrupt", inline="interrupt"
    ),
    "exits": Bad(act=lambda sample: sys.exit(0), kind="raised", said="SystemExit"),
    "recurses deeply": Bad(act=lambda sample: recurse(0), kind="raised", said="RecursionError"),
    "None": Bad(act=lambda sample: None, kind="none", said="returned None"),
    "a Score without a value": Bad(
        act=lambda sample: Score(value=None, error="the grader was away"), kind="none", said="the grader was away"
    ),
    "NaN": Bad(act=lambda sample: math.nan, kind="invalid", said="returned nan, outside its declared range"),
    "infinity": Bad(act=lambda sample: math.inf, kind="invalid", said="returned inf"),
    "out of range": Bad(act=lambda sample: 7, kind="invalid", said="returned 7.0, outside its declared range [0.0, 1.0]"),
    "NaN in a part": Bad(
        act=lambda sample: Score(value=0.5, parts={"form": math.nan}), kind="invalid", said="the part 'form' is nan"
    ),
    "a text": Bad(act=lambda sample: "good", kind="invalid", said="a value of type str"),
    "the text of a number": Bad(act=lambda sample: "1.0", kind="invalid", said="a value of type str"),
    "a Score of text": Bad(act=lambda sample: Score(value="1"), kind="invalid", said="the text '1'"),  # ty: ignore
    "two values": Bad(act=lambda sample: [0.5, 0.5], kind="invalid", said="a value of type list"),
    "no values": Bad(act=lambda sample: [], kind="invalid", said="a value of type list"),
    "a generator": Bad(act=a_generator, kind="invalid", said="a value of type generator"),
    "a complex number": Bad(act=lambda sample: 1j, kind="invalid", said="a value of type complex"),
    "a number too large": Bad(act=lambda sample: 10**400, kind="invalid", said="a value of type int"),
    "a bool": Bad(act=lambda sample: True, value=1.0),
    "a tensor": Bad(act=lambda sample: TensorLike(), value=0.25),
    "fails to be a number": Bad(act=lambda sample: FailsToBeFloat(), kind="raised", said="ZeroDivisionError: not today"),
    "hangs to be a number": Bad(
        act=lambda sample: HangsToBeFloat(), kind="timeout", said="__float__", inline="unsafe", coroutine="same"
    ),
    "sleeps": Bad(act=lambda sample: time.sleep(3600), kind="timeout", said="bad_rewards.py", inline="unsafe"),
    "hangs in Python": Bad(act=hang_in_python, kind="timeout", said="in hang_in_python", inline="unsafe", coroutine="unsafe"),
    "hangs in C": Bad(act=hang_in_c, kind="timeout", said="in hang_in_c", inline="unsafe", coroutine="unsafe"),
    "hangs and ignores signals": Bad(act=hang_deaf, kind="timeout", inline="unsafe", coroutine="unsafe"),
    "allocates without end": Bad(
        act=allocate_without_end, kind="raised", said="MemoryError", inline="unsafe", coroutine="unsafe"
    ),
    "starts threads": Bad(act=start_threads, value=0.25, inline="unsafe", coroutine="unsafe"),
    "prints 100 MB": Bad(act=print_much, value=0.25, inline="unsafe", coroutine="unsafe"),
    "closes stdout": Bad(act=close_stdout, value=0.25, inline="unsafe", coroutine="unsafe"),
    "loses its streams": Bad(act=lose_streams, value=0.25, inline="unsafe", coroutine="unsafe"),
    "writes garbage to stdout": Bad(
        act=lambda sample: write_garbage(range(1, 3)), value=0.25, inline="unsafe", coroutine="unsafe"
    ),
    "writes garbage everywhere": Bad(
        act=lambda sample: write_garbage(range(64)),
        kind="died",
        said="something else than",
        inline="unsafe",
        coroutine="unsafe",
    ),
    "forges a pickle": Bad(act=forge_pickle, kind="died", said="something else than", inline="unsafe", coroutine="unsafe"),
    "forges a score": Bad(act=forge_score, kind="died", said="nobody had asked", inline="unsafe", coroutine="unsafe"),
    "closes everything": Bad(act=close_everything, kind="died", inline="unsafe", coroutine="unsafe"),
    "kills itself": Bad(
        act=lambda sample: os.kill(os.getpid(), signal.SIGKILL),
        kind="died",
        said="killed by SIGKILL",
        inline="unsafe",
        coroutine="unsafe",
    ),
    "ends at once": Bad(act=lambda sample: os._exit(0), kind="died", said="exit code 0", inline="unsafe", coroutine="unsafe"),
    "reads address 0": Bad(
        act=lambda sample: ctypes.string_at(0), kind="died", said="killed by SIGSEGV", inline="unsafe", coroutine="unsafe"
    ),
    "leaves a child": Bad(act=leave_child, value=0.25, inline="unsafe", coroutine="unsafe"),
    "leaves a daemon": Bad(act=leave_daemon, value=0.25, inline="unsafe", coroutine="unsafe"),
    "leaves a child and dies": Bad(
        act=leave_child_and_die, kind="died", said="killed by SIGKILL", inline="unsafe", coroutine="unsafe"
    ),
    "comes back twice": Bad(act=return_twice, value=0.25, inline="unsafe", coroutine="unsafe"),
    "changes its input": Bad(act=mutate_input, value=0.25, inline="unsafe", coroutine="unsafe"),
    "changes the environment": Bad(act=change_environment, value=0.25, inline="unsafe", coroutine="unsafe"),
    "changes the directory": Bad(act=change_directory, value=0.25, inline="unsafe", coroutine="unsafe"),
}


def ordinary(act: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return an ordinary reward function that misbehaves on the bad completion."""

    def reward(sample: Any) -> Any:
        return act(sample) if sample.completion == BAD else FINE

    return reward


def coroutine(act: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a coroutine function that does."""

    async def reward(sample: Any) -> Any:
        await asyncio.sleep(0)
        return act(sample) if sample.completion == BAD else FINE

    return reward


def batched(act: Callable[[Any], Any]) -> Callable[[list[str]], Any]:
    """Return a function of a whole batch, as TRL takes it, that does."""

    def reward(completions: list[str]) -> Any:
        return act(completions) if BAD in completions else [FINE] * len(completions)

    return reward


BAD_BATCHES: dict[str, Bad] = {
    "raises": Bad(act=lambda completions: raise_error(ValueError("bad day")), kind="raised", said="ValueError: bad day"),
    "hangs": Bad(act=hang_in_c, kind="timeout", said="in hang_in_c", inline="unsafe"),
    "ends at once": Bad(act=lambda completions: os._exit(3), kind="died", said="exit code 3", inline="unsafe"),
    "one value": Bad(act=lambda completions: [1.0], kind="invalid", said="returned 1 values for 4 completions"),
    "no values": Bad(act=lambda completions: [], kind="invalid", said="returned 0 values for 4 completions"),
    "one value too few": Bad(act=lambda completions: [1.0] * 3, kind="invalid", said="returned 3 values for 4"),
    "one value too many": Bad(act=lambda completions: [1.0] * 5, kind="invalid", said="returned 5 values for 4"),
    "a number": Bad(act=lambda completions: 1.0, kind="invalid", said="returned 1.0"),
    "texts": Bad(act=lambda completions: ["1"] * 4, kind="invalid", said="returned '1' for a completion"),
    "None": Bad(act=lambda completions: None, kind="invalid", said="returned None"),
}


def samples_of(completions: Sequence[str], **columns: Any) -> list[Sample]:
    """Return samples of one prompt, which all of them share."""
    prompt = Prompt(prompt_id="p", messages=(Message(role="user", content="?"),), columns={"list": [], **columns})
    return [Sample(prompt=prompt, completion=text, num_tokens=1, is_truncated=False) for text in completions]


# Rewards that behave, for what the workers do with them


def waits_as_told(completion: str) -> float:
    """Wait for as many hundredths of a second as the completion says, and return a hundredth of it."""
    time.sleep(int(completion) / 100)
    return int(completion) / 100


async def waits_as_told_later(completion: str) -> float:
    await asyncio.sleep(int(completion) / 100)
    return int(completion) / 100


def text_share(completion: str) -> float:
    """Depends on the order of a set, which the seed of the hashes decides."""
    letters = list(set(completion))
    return sum(place * ord(letter) for place, letter in enumerate(letters)) % 997 / 997


def knows_torch(completion: str) -> bool:
    return "torch" in sys.modules or "transformers" in sys.modules


def leaves_all_changed(completion: str) -> float:
    """Say whether all is as it should be, and leave it as it should not."""
    is_as_it_was = (
        os.getcwd() != "/"
        and "COVEY_TEST_LEFT_BEHIND" not in os.environ
        and "PATH" in os.environ
        and sys.stdout is not None
        and not sys.stdout.closed
        and os.get_blocking(1)
    )
    print("this is printed")
    os.set_blocking(1, False)
    change_directory(completion)
    change_environment(completion)
    close_stdout(completion)
    lose_streams(completion)
    return float(is_as_it_was)


def process_id(completion: str) -> float:
    return os.getpid()


def notes_its_calls(sample: Any) -> float:
    """Add the completion to a file, and hang if it is the bad one."""
    with open(sample.prompt.columns["notes"], "a") as notes:
        notes.write(f"{sample.completion}\n")
    if sample.completion == BAD:
        time.sleep(3600)
    return FINE


def counts_its_prompt(sample: Any) -> float:
    """Say how often this very prompt has been seen, and leave a trace in it."""
    sample.prompt.columns["list"].append("seen")
    return len(sample.prompt.columns["list"]) / 10


_waiting = 0


async def counts_who_waits(completion: str) -> float:
    """Return how many calls are under way."""
    global _waiting
    _waiting += 1
    await asyncio.sleep(0.05)
    found = _waiting
    await asyncio.sleep(0.05)
    _waiting -= 1
    return found


async def waits_forever(completion: str) -> float:
    if completion == BAD:
        await asyncio.Event().wait()
    return FINE


async def refuses_to_stop(completion: str) -> float:
    while completion == BAD:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
    return FINE


async def names_its_loop(completion: str) -> float:
    return id(asyncio.get_running_loop()) % 1_000_003


def makes_a_process(sample: Any) -> float:
    """Start a process that outlives the call, note its number, and hang."""
    process = subprocess.Popen(["sleep", "3600"], start_new_session=True)
    with open(sample.prompt.columns["notes"], "w") as notes:
        notes.write(f"{os.getpid()} {process.pid}")
    time.sleep(3600)
    return 1.0


def says_something_and_ends(completion: str) -> float:
    print("about to end", flush=True)
    os._exit(7)


class HangsOnArrival:
    """Hangs when it is unpickled, as a module does that waits when it is imported."""

    def __reduce__(self) -> Any:
        return time.sleep, (3600,)

    def __call__(self, completion: str) -> float:
        return FINE
