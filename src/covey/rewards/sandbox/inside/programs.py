"""What an execution does: answer calls of a function, run a data set's tests against a stand-in, or run as a program."""

from __future__ import annotations

import atexit
import builtins
import os
import random
import sys
import types
from collections.abc import Callable
from io import TextIOWrapper
from typing import Any, Protocol

from . import wire

MAX_ERROR_CHARACTERS = 300
_FIXED_SEED = 0
"""A candidate that draws random numbers draws the same ones whenever it is graded."""

Json = dict[str, Any]


class Connection(Protocol):
    """What a channel goes over: a socket, or what is used like one."""

    def recv(self, count: int, /) -> bytes: ...

    def sendall(self, data: bytes, /) -> None: ...


class Channel:
    """Frames over a connection, to and from the judge."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, message: Json) -> None:
        self._connection.sendall(wire.frame(message))

    def receive(self) -> Json:
        """Return the next message.

        Raises:
            EOFError: the judge has gone.
        """
        (length,) = wire.HEADER.unpack(self._exactly(wire.HEADER.size))
        return wire.message_of(self._exactly(length))

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self._connection.recv(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)


def failure(error: BaseException) -> Json:
    """Return an exception's name and text."""
    try:
        text = str(error)[:MAX_ERROR_CHARACTERS]
    except BaseException:  # An exception of the candidate's own may fail at this as well.
        text = ""
    return {"error": type(error).__name__, "text": text}


def new_module(name: str) -> types.ModuleType:
    """Return an empty module that classes and functions defined in it can find."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    return module


def answer_calls(channel: Channel) -> None:
    """Run the candidate's source once, and then answer calls of what it defines until the judge has gone."""
    job = channel.receive()
    module = new_module("solution")
    reason: Json = {"error": "NameError", "text": f"it defines no function {job['entry']}"}
    try:
        exec(compile(job["source"], "solution.py", "exec"), module.__dict__)
    except BaseException as error:  # SystemExit too: what is defined by then can be called.
        reason = failure(error)
    if not callable(module.__dict__.get(job["entry"])):
        channel.send(reason)
        return
    channel.send({"ready": True})
    while True:
        request = channel.receive()
        channel.send(answer(module.__dict__[job["entry"]], request))


def answer(function: Callable[..., Any], request: Json) -> Json:
    """Return what a call gives, and its arguments afterwards if they are asked for."""
    try:
        arguments, named = wire.decode(request["args"]), wire.decode(request["kwargs"])
        found = {"id": request["id"], "value": wire.encode(function(*arguments, **named))}
        if request.get("wants_arguments"):
            found["args"] = wire.encode(arguments)
        wire.frame(found)
        return found
    except BaseException as error:  # Whatever a candidate raises is its answer.
        return {"id": request["id"], **failure(error)}


def run_tests(channel: Channel) -> None:
    """Run a data set's tests against a stand-in that asks the judge, and say how they ended."""
    job = channel.receive()
    module = new_module("tests")
    stand_in = make_stand_in(channel)
    try:
        exec(compile(job["preamble"], "preamble.py", "exec"), module.__dict__)
        module.__dict__[job["entry"]] = stand_in
        exec(compile(job["tests"], "tests.py", "exec"), module.__dict__)
        module.__dict__[job["entry"]] = stand_in
        if callable(check := module.__dict__.get("check")):
            check(stand_in)
    except BaseException as error:  # Of the tests or of the stand-in: a verdict either way.
        channel.send({"verdict": failure(error)})
    else:
        channel.send({"verdict": {"passed": True}})


def make_stand_in(channel: Channel) -> Callable[..., Any]:
    """Return a function that has the judge ask the candidate, with plain data alone in both directions."""

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        try:
            sent_args, sent_kwargs = wire.encode(list(args)), wire.encode(kwargs)
        except wire.NoPlainDataError as error:
            raise Unsplittable(str(error)) from None
        channel.send({"call": sent_args, "kwargs": sent_kwargs})
        reply = channel.receive()
        if "error" in reply:
            raise exception_of(reply)
        for mine, theirs in zip(args, wire.decode(reply["args"]), strict=False):
            copy_into(mine, theirs)
        return wire.decode(reply["value"])

    return stand_in


class Unsplittable(BaseException):
    """An argument that is no plain data: the candidate would have to be in the process that holds the tests."""


def exception_of(reply: Json) -> Exception:
    """Return an exception of the name the candidate's had, of the built-in ones that a test may expect."""
    kind = getattr(builtins, str(reply["error"]), None)
    is_ordinary = isinstance(kind, type) and issubclass(kind, Exception)
    try:
        return kind(reply.get("text", "")) if is_ordinary else RuntimeError(f"{reply['error']}: {reply.get('text', '')}")
    except TypeError:  # UnicodeDecodeError and its like want more than a text.
        return RuntimeError(str(reply["error"]))


def copy_into(mine: Any, theirs: Any) -> None:
    """Give a list, set or dictionary of the tests what the candidate has made of its copy."""
    if type(mine) is not type(theirs) or mine == theirs:
        return
    if isinstance(mine, list):
        mine[:] = theirs
    elif isinstance(mine, set | dict):
        mine.clear()
        mine.update(theirs)


def run_program(channel: Channel) -> None:
    """Run the candidate's source as the main program. Its input and output are files 0 and 1."""
    job = channel.receive()
    sys.argv = ["solution.py"]
    # Anew, for the files that were 0 and 1 when the interpreter started were others.
    sys.stdin = sys.__stdin__ = _text_file(0, "rb")
    sys.stdout = sys.__stdout__ = _text_file(1, "wb")
    ending: Json = {"ended": True}
    try:
        exec(compile(job["source"], "solution.py", "exec"), new_module("__main__").__dict__)
    except SystemExit as error:
        ending = {"ended": True} if error.code in (None, 0) else {"error": "SystemExit", "text": str(error.code)[:100]}
    except BaseException as error:  # As in `answer`.
        ending = failure(error)
    atexit._run_exitfuncs()  # Programs made for fast output write it all at exit.
    sys.stdout.flush()
    os.close(1)
    channel.send(ending)


def _text_file(number: int, mode: str) -> TextIOWrapper:
    return TextIOWrapper(os.fdopen(number, mode, closefd=False), encoding="utf-8", errors="surrogateescape")


MODES: dict[str, Callable[[Channel], None]] = {"calls": answer_calls, "tests": run_tests, "program": run_program}


def run(mode: str, connection: Connection) -> None:
    """Do what the mode says and end the process, whatever happens."""
    code = 1
    try:
        random.seed(_FIXED_SEED)
        MODES[mode](Channel(connection))
        code = 0
    except (EOFError, OSError):
        pass  # The judge has gone.
    finally:
        os._exit(code)
