"""Zygotes at the other end of a stream, such as the input and output of a command: for the judge they are like any other."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from covey.rewards.sandbox.inside import pieces
from covey.rewards.sandbox.inside.limits import Limits
from covey.rewards.sandbox.pump import Flow, Pump
from covey.rewards.sandbox.zygotes import END_TIMEOUT_S, Ending, Execution, SandboxError

if TYPE_CHECKING:
    from covey.rewards.sandbox.tiers import Tier

START_TIMEOUT_S = 120.0
"""With a connection to be made, an image to be fetched, or a runtime to be compiled."""
_NETWORK_PATIENCE_S = 10.0
"""How long an end may take to be told, beyond what a zygote of this machine may."""
_GRACE_S = 1.0
"""How long a command may take to end by itself once its input has."""
_MAX_WORDS_BYTES = 65_536
_PASSED_ON = ("PATH", "HOME", "USER", "SSH_AUTH_SOCK", "XDG_RUNTIME_DIR", "DOCKER_HOST", "DOCKER_CONFIG")
"""Variables that ssh, docker or podman need to do their work. No other of this environment is passed on, and these only to the
command: the interpreter at its end starts itself anew without any."""


class FarZygote:
    """A zygote that forks executions elsewhere. For one thread at a time."""

    def __init__(self, tier: Tier, *, number: int = 0, without: tuple[str, ...] = ()) -> None:
        self.tier = tier
        self._endings: dict[int, Ending] = {}
        self._num_runs = 0
        self._words = bytearray()
        self._process = started(tier.wrapper())
        given, said, errors = self._process.stdin, self._process.stdout, self._process.stderr
        assert given is not None
        assert said is not None
        assert errors is not None
        self._errors = errors
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        with given, said:
            self._pump = Pump(os.dup(said.fileno()), os.dup(given.fileno()))
        try:
            self._pump.send(tier.opening(tier, without))
            report = self._pump.report(time.monotonic() + START_TIMEOUT_S)
            if report is None:
                raise SandboxError("the sandbox's process did not start in time")
        except SandboxError as error:
            words = self._last_words(str(error))
            self.close()
            raise SandboxError(words) from None
        self.facts = report

    @property
    def process_id(self) -> int:
        """Of the command."""
        return self._process.pid

    def close(self) -> None:
        """End the command; what it has started elsewhere ends with the stream."""
        self._pump.close()
        self._listener.join(_GRACE_S)  # It ends with the command.
        self._kill()
        self._listener.join(_GRACE_S)
        if not self._listener.is_alive():
            self._errors.close()

    def begin(self, mode: str, limits: Limits, streams: tuple[int, ...] = ()) -> Execution:
        """Fork an execution.

        Raises:
            SandboxError: the zygote is gone.
        """
        self._num_runs += 1
        run = self._num_runs
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        flows = {theirs.detach(): Flow(kind=pieces.CHANNEL, run=run, is_read=True)}
        for number, is_read in zip(streams, (True, False), strict=False):
            flows[os.dup(number)] = Flow(kind=pieces.STANDARD, run=run, is_read=is_read)
        for number in flows:
            os.set_blocking(number, False)
        order = {"run": run, "mode": mode, "limits": asdict(limits), "streams": bool(streams)}
        try:
            self._pump.send(pieces.pack_control(order), flows)
        except SandboxError as error:
            ours.close()
            raise SandboxError(self._last_words(str(error))) from None
        return Execution(self, run, ours, limits)

    def end(self, number: int) -> Ending:
        """Kill an execution if it still runs, and return how it ended.

        Raises:
            SandboxError: the zygote says nothing.
        """
        if number not in self._endings:
            self._pump.send(pieces.pack_control({"kill": number}))
        ending = self.ending(number, END_TIMEOUT_S + _NETWORK_PATIENCE_S)
        if ending is None:
            raise SandboxError(self._last_words("the sandbox's process did not answer in time"))
        return ending

    def ending(self, number: int, timeout_s: float) -> Ending | None:
        """Return how an execution ended, None if it has not after this time.

        Raises:
            SandboxError: the zygote is gone.
        """
        deadline = time.monotonic() + timeout_s
        while number not in self._endings:
            report = self._pump.report(deadline)
            if report is None:
                return None
            if "run" not in report:
                raise SandboxError(self._last_words("the sandbox's process began anew"))
            self._endings[report["run"]] = Ending(exit_code=int(report["exit"]), cpu_s=float(report["cpu_s"]))
        return self._endings.pop(number)

    def _kill(self) -> None:
        """Kill the command with all that it has started here and that has not left its group."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _listen(self) -> None:
        """Keep the last of what the command says of itself, so that it can go on saying it."""
        while data := os.read(self._errors.fileno(), 4096):
            self._words += data
            del self._words[:-_MAX_WORDS_BYTES]

    def _last_words(self, what: str) -> str:
        self._kill()
        self._listener.join(_GRACE_S)
        return f"{what}: {self._words.decode(errors='replace')[-500:].strip() or 'it said nothing'}"


def started(command: list[str]) -> subprocess.Popen[bytes]:
    """Start a command with pipes for its standard files.

    Raises:
        SandboxError: the program cannot be run.
    """
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    try:
        return subprocess.Popen(
            command,
            env=environment,
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxError(f"{command[0]} cannot be run: {error.strerror}") from error
