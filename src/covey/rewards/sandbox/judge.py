"""The split judge. It holds the tests; the process that holds the candidate answers calls and learns nothing else.

Three ways to grade, all through an execution in a zygote: calls whose answers are compared here; a data set's assertions, which
run in an execution of their own against a stand-in; a program's whole output.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from io import FileIO
from typing import Any

from covey.rewards.sandbox.compare_values import Comparison, same_output
from covey.rewards.sandbox.inside import wire
from covey.rewards.sandbox.inside.limits import Limits
from covey.rewards.sandbox.outcomes import Outcome, OutcomeClass
from covey.rewards.sandbox.zygotes import AnyZygote, EndedError, Ending, Execution, execution, ready_files

MAX_OUTPUT_BYTES = 1 << 20
MAX_CALLS = 10_000
"""Of a candidate by one set of tests."""
STARVED_FRAC = 0.05
"""An execution that was given up after having run for more than this share of the time may have been willing to go on."""
_NOTHING = wire.encode({})
_PIECE_BYTES = 1 << 16
_KINDS: dict[str, OutcomeClass] = {"MemoryError": "memory", "WireError": "wrong", "NoPlainDataError": "wrong"}
"""By the name of an exception, as the candidate's side of the wire tells it. A WireError: its answer is no plain data."""
_VERDICTS: dict[str, OutcomeClass] = {"AssertionError": "wrong", "TimeoutError": "timeout"}
"""By the name of the exception that tests ended with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A call and its right answer."""

    args: tuple[Any, ...]
    right: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class CallJob:
    """Calls of a function, whose answers are compared with the right ones."""

    entry: str
    cases: Sequence[Case]
    comparison: Comparison = field(default_factory=Comparison)

    def grade(self, zygote: AnyZygote, source: str, limits: Limits) -> Outcome:
        """Return what came of the candidate. It is asked one case after the other, until one is not answered."""
        num_passed = 0
        outcome = Outcome(kind="wrong", num_tests=len(self.cases))
        with execution(zygote, "calls", limits) as candidate:
            failure = load(candidate, source, self.entry)
            for number, case in enumerate(self.cases if failure is None else ()):
                reply = ask(candidate, number, wire.encode(list(case.args)), _NOTHING)
                if isinstance(reply, Outcome):
                    failure = failure or reply
                    if candidate.has_ended:
                        break
                else:
                    num_passed += self.comparison.same(reply["value"], case.right)
        if failure is not None:
            return replace(failure, num_passed=num_passed, num_tests=len(self.cases))
        has_passed = num_passed == len(self.cases) > 0
        return replace(outcome, kind="passed" if has_passed else "wrong", num_passed=num_passed)


@dataclass(frozen=True, kw_only=True, slots=True)
class AssertJob:
    """A data set's own assertions, or its function `check`, run where the candidate is not."""

    entry: str
    tests: str
    """The source of the tests; what is called `entry` in it, and what `check` is given, asks the candidate."""
    preamble: str = ""
    """Source that the tests rest on, such as helpers that the question shows. Runs with the tests."""
    prefix: str = ""
    """Source that goes before the candidate's, such as the imports that the question shows."""

    def grade(self, zygote: AnyZygote, source: str, limits: Limits) -> Outcome:
        """Return what came of the candidate."""
        with execution(zygote, "calls", limits) as candidate, execution(zygote, "tests", limits) as tests:
            failure = load(candidate, self.prefix + source, self.entry)
            if failure is not None:
                return replace(failure, num_tests=1)
            failure, num_calls, verdict = self._relay(candidate, tests)
        kind, detail = self._kind(failure, num_calls, verdict)
        return Outcome(kind=kind, num_passed=int(kind == "passed"), num_tests=1, detail=detail)

    def _relay(self, candidate: Execution, tests: Execution) -> tuple[Outcome | None, int, dict[str, Any]]:
        """Pass calls on until the tests have a verdict. Return (the last failed call, how many were answered, verdict)."""
        try:
            tests.send({"preamble": self.preamble, "tests": self.tests, "entry": self.entry})
            failure: Outcome | None = None
            num_answered = 0
            for number in range(MAX_CALLS):
                message = tests.receive()
                if "verdict" in message:
                    return failure, num_answered, message["verdict"]
                reply = ask(candidate, number, message["call"], message["kwargs"], wants_arguments=True)
                if isinstance(reply, Outcome):
                    failure = reply
                    tests.send({"error": reply.detail.partition(":")[0], "text": reply.detail})
                    if candidate.has_ended:
                        return failure, num_answered, {"error": "AssertionError", "text": "the candidate is gone"}
                else:
                    num_answered += 1
                    tests.send({"value": wire.encode(reply["value"]), "args": wire.encode(reply["args"])})
        except EndedError as ended:
            is_late = ended.ending.is_over_time(tests.limits) or ended.ending.has_stalled
            return None, 0, {"error": "TimeoutError" if is_late else "EOFError", "text": "the tests themselves"}
        except wire.WireError as error:
            return None, 0, {"error": "AssertionError", "text": f"the answer could not be handed on: {error}"}
        return None, 0, {"error": "AssertionError", "text": f"more than {MAX_CALLS} calls"}

    def _kind(self, failure: Outcome | None, num_calls: int, verdict: dict[str, Any]) -> tuple[OutcomeClass, str]:
        if verdict.get("passed"):
            # Tests that never ask, or whose every call failed, prove nothing.
            return ("passed", "") if num_calls else ("wrong", "the tests got no answer from the candidate")
        detail = f"{verdict['error']}: {verdict['text']}"
        if verdict["error"] == "Unsplittable":
            return "unsplittable", detail
        if failure is not None:
            return failure.kind, failure.detail
        return _VERDICTS.get(verdict["error"], "exception"), detail


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgramJob:
    """Runs of a program, whose whole output is compared with the right one."""

    runs: Sequence[tuple[str, str]]
    """(standard input, right output)."""
    rel_tol: float = 0.0

    def grade(self, zygote: AnyZygote, source: str, limits: Limits) -> Outcome:
        """Return what came of the candidate: its first failure, if it has one."""
        num_passed, failure = 0, None
        for given, right in self.runs:
            found = output_of(zygote, source, given, limits)
            if isinstance(found, Outcome):
                failure = failure or found
            else:
                num_passed += same_output(found, right, rel_tol=self.rel_tol)
        if failure is not None:
            return replace(failure, num_passed=num_passed, num_tests=len(self.runs))
        kind: OutcomeClass = "passed" if num_passed == len(self.runs) > 0 else "wrong"
        return Outcome(kind=kind, num_passed=num_passed, num_tests=len(self.runs))


Job = CallJob | AssertJob | ProgramJob


def load(candidate: Execution, source: str, entry: str) -> Outcome | None:
    """Hand the source over. Return what went wrong, None if the function can be called."""
    return _failure_of(candidate, lambda: _loaded(candidate, source, entry))


def ask(
    candidate: Execution, number: int, args: Any, kwargs: Any, *, wants_arguments: bool = False
) -> dict[str, Any] | Outcome:
    """Call the candidate's function. Return its answer as plain values, or what went wrong."""
    found: dict[str, Any] = {}

    def called() -> Outcome | None:
        candidate.send({"id": number, "args": args, "kwargs": kwargs, "wants_arguments": wants_arguments})
        reply = candidate.receive()
        if reply.get("id") != number or type(reply.get("id")) is not int:
            candidate.end()
            return Outcome(kind="protocol_violation", detail="it answered what it was not asked")
        if "error" in reply:
            return _raised(reply)
        found["value"] = wire.decode(reply.get("value"))
        found["args"] = wire.decode(reply.get("args"))
        return None

    return _failure_of(candidate, called) or found


def _loaded(candidate: Execution, source: str, entry: str) -> Outcome | None:
    candidate.send({"source": source, "entry": entry})
    reply = candidate.receive()
    return None if reply.get("ready") is True else _raised(reply)


def _failure_of(candidate: Execution, work: Callable[[], Outcome | None]) -> Outcome | None:
    try:
        return work()
    except wire.WireError as error:
        candidate.end()
        return Outcome(kind="protocol_violation", detail=str(error))
    except EndedError as ended:
        return outcome_of_ending(ended.ending, candidate.limits)


def _raised(reply: dict[str, Any]) -> Outcome:
    name, text = str(reply.get("error"))[:100], str(reply.get("text"))[:300]
    return Outcome(kind=_KINDS.get(name, "exception"), detail=f"{name}: {text}")


def outcome_of_ending(ending: Ending, limits: Limits) -> Outcome:
    """Return what an execution's end says, where an answer was expected."""
    if ending.is_over_time(limits):
        return Outcome(kind="timeout", detail=f"{limits.cpu_s} s of processor time", cpu_s=ending.cpu_s)
    if ending.has_stalled:
        # Who sleeps uses no processor time; who was given too little of it has used some.
        is_starved = ending.cpu_s > STARVED_FRAC * limits.wall_s
        detail = f"no answer in {limits.wall_s:g} s, of which it ran for {ending.cpu_s:.2f} s"
        return Outcome(kind="timeout", detail=detail, cpu_s=ending.cpu_s, was_starved=is_starved)
    return Outcome(kind="crashed", detail=f"its process ended with {ending.exit_code}", cpu_s=ending.cpu_s)


def output_of(zygote: AnyZygote, source: str, given: str, limits: Limits) -> str | Outcome:
    """Return what a program writes when it is given this, or what went wrong."""
    with ExitStack() as files:
        their_input, giving = map(files.enter_context, new_pipe())
        reading, their_output = map(files.enter_context, new_pipe())
        with execution(zygote, "program", limits, (their_input.fileno(), their_output.fileno())) as program:
            their_output.close()
            failure = _failure_of(program, lambda: program.send({"source": source}))
            return failure or _exchange(program, given.encode("utf-8", "surrogateescape"), giving, reading)


def new_pipe() -> tuple[FileIO, FileIO]:
    """Return a pipe's two ends, the one to read from first."""
    reading, writing = os.pipe()
    return FileIO(reading, "rb"), FileIO(writing, "wb")


def _exchange(program: Execution, given: bytes, giving: FileIO, reading: FileIO) -> str | Outcome:
    """Feed a program and read all it writes; then see how it ended."""
    os.set_blocking(giving.fileno(), False)
    left, written = memoryview(given), bytearray()
    while True:
        if not left and not giving.closed:
            giving.close()
        wait_s = max(0.0, program.deadline - time.monotonic())
        ready = ready_files([reading], [] if giving.closed else [giving], wait_s)
        if not ready:
            return outcome_of_ending(program.end(has_stalled=True), program.limits)
        if giving in ready:
            try:
                left = left[giving.write(left) or 0 :]
            except BrokenPipeError:
                left = left[:0]  # It reads no further.
        if reading in ready:
            piece = reading.read(_PIECE_BYTES)
            if not piece:
                return _written(program, bytes(written))
            written += piece
            if len(written) > MAX_OUTPUT_BYTES:
                program.end()
                return Outcome(kind="output_limit", detail=f"more than {MAX_OUTPUT_BYTES} bytes")


def _written(program: Execution, written: bytes) -> str | Outcome:
    try:
        ending = program.receive()
    except EndedError as ended:
        if ended.ending.exit_code != 0:
            return outcome_of_ending(ended.ending, program.limits)
        ending = {"ended": True}  # It left by os._exit(0): its output is complete.
    except wire.WireError as error:
        return Outcome(kind="protocol_violation", detail=str(error))
    if "error" in ending:
        return _raised(ending)
    return written.decode("utf-8", "replace")
