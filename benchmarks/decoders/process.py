"""A tool's process, from the benchmark's side: it stays loaded, and computes only while it is asked."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from step_time.processes import worker_environment

from decoders.serving import Batch

_ENDING_S = 20


class ToolError(Exception):
    """A tool could not be loaded or did not decode; the message has its reason."""


class ToolProcess:
    """`python -m decoders.MODULE MODEL OPTIONS`, under the settings that all tools get."""

    def __init__(self, command: list[str], *, deadline_s: float):
        """`deadline_s`: for loading, and for each request."""
        self._deadline_s = deadline_s
        self._sizes: set[int] = set()
        self._is_late = False
        # An empty working directory, where no directory can be taken for a package.
        self._directory = tempfile.TemporaryDirectory()
        self._errors_path = Path(self._directory.name) / "stderr"
        with self._errors_path.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=self._directory.name,
                env=worker_environment(is_tuned=True),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # So that its own processes end with it.
            )

    def load(self) -> dict[str, Any]:
        """Wait until the tool is ready, and return its notes.

        Raises:
            ToolError: it could not be loaded.
        """
        return self._answer()["notes"]

    def tokens_per_s(self, batch: Batch) -> float:
        """Return what one call of the tool reaches, prompts included.

        Raises:
            ToolError: it did not decode the batch. The process is of no use then.
        """
        request = {"batch": dataclasses.asdict(batch), "is_first": batch.num_rows not in self._sizes}
        self._sizes.add(batch.num_rows)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # It has ended: the answer that is missing says so.
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        answer = self._answer()
        return answer["num_tokens"] / answer["elapsed_s"]

    def close(self) -> None:
        """End the process and those that it started."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_ENDING_S)
        self._kill()
        self._process.wait()
        self._directory.cleanup()

    def _answer(self) -> dict[str, Any]:
        alarm = threading.Timer(self._deadline_s, self._give_up)
        alarm.start()
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        alarm.cancel()
        if not line:
            raise ToolError(self._reason())
        answer = json.loads(line)
        if "error" in answer:
            raise ToolError(answer["error"])
        return answer

    def _reason(self) -> str:
        if self._is_late:
            return f"no answer within {self._deadline_s:.0f} s"
        lines = [line.strip() for line in self._errors_path.read_text(errors="replace").splitlines() if line.strip()]
        return f"ended with code {self._process.wait()}: {lines[-1] if lines else 'it wrote nothing'}"

    def _give_up(self) -> None:
        self._is_late = True
        self._kill()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
