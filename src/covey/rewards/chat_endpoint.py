"""A chat model behind an OpenAI-compatible endpoint, asked with the standard library alone.

No error raised here holds the key. Redirects are not followed, since they would carry it elsewhere.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

from covey.sampling import stream_key, uniform
from covey.types import CoveyError, Message

AnswerFormat = Literal["json_schema", "json_object", "text"]
ANSWER_FORMATS: tuple[AnswerFormat, ...] = ("json_schema", "json_object", "text")

PASSING_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""HTTP statuses after which another attempt may succeed."""

_KEY = re.compile(r"[\x21-\x7e]+")
_MAX_SAID = 200
"""Characters of an endpoint's own error message that are passed on."""


class EndpointError(CoveyError):
    """The endpoint gave no answer that can be used."""


class EndpointTimeoutError(EndpointError):
    """There was none before the deadline."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why an attempt brought no answer."""

    reason: str
    is_passing: bool
    """Whether another attempt may succeed."""
    wait_s: float = 0.0
    """How long the endpoint asks to be left alone."""
    is_late: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """What came back over HTTP."""

    status: int
    retry_after: str
    content: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatEndpoint:
    """Where a chat model is asked, and how patiently. `refuse_endpoint` checks what a user can get wrong in it."""

    base_url: str
    """Such as http://localhost:8000/v1; /chat/completions is added."""
    model: str
    key_variable: str = ""
    """Name of the environment variable that holds the API key; empty = no key is sent."""
    deadline_s: float = 60.0
    """Of one question, with all its attempts and the waits between them."""
    max_attempts: int = 4
    backoff_s: float = 0.5
    """The wait before the second attempt, doubled for each one after; up to as much again is added, by a hash."""
    max_answer_tokens: int = 512
    max_response_bytes: int = 1 << 20
    answer_format: AnswerFormat = "json_schema"
    """What the endpoint is asked to keep to: a JSON schema, any JSON object, or nothing. Answers are read equally strictly."""

    def ask(self, messages: Sequence[Message], *, schema: Mapping[str, Any]) -> str:
        """Return the model's words at temperature 0.

        Raises:
            EndpointError: there are none that can be used.
        """
        key = self.key()
        request = json.dumps(self._request(messages, schema))
        jitter = stream_key(0, "endpoint backoff", request)
        until = time.monotonic() + self.deadline_s
        attempt = 0
        while True:
            outcome = self._attempt(request.encode(), key, until=until)
            if isinstance(outcome, str):
                return outcome
            wait_s = max(outcome.wait_s, self.backoff_s * 2**attempt * (1 + uniform(jitter, attempt)))
            attempt += 1
            if not outcome.is_passing or attempt == self.max_attempts or time.monotonic() + wait_s >= until:
                break
            time.sleep(wait_s)
        kind = EndpointTimeoutError if outcome.is_late else EndpointError
        count = f" ({attempt} attempts)" if attempt > 1 else ""
        raise kind(f"{self.model} at {self.base_url}: {without_key(outcome.reason, key)}{count}")

    def key(self) -> str:
        """Return the API key, empty if none is wanted.

        Raises:
            CoveyError: the environment has none, or one that cannot be sent.
        """
        if not self.key_variable:
            return ""
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise CoveyError(
                f"the environment variable {self.key_variable} is not set; put the API key for {self.base_url} there"
            )
        if not _KEY.fullmatch(key):
            raise CoveyError(
                f"the environment variable {self.key_variable} holds blanks or signs that no API key has; set it anew"
            )
        return key

    def _request(self, messages: Sequence[Message], schema: Mapping[str, Any]) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "temperature": 0,
            "max_tokens": self.max_answer_tokens,
        }
        if self.answer_format == "json_schema":
            named = {"name": "verdict", "strict": True, "schema": schema}
            request["response_format"] = {"type": "json_schema", "json_schema": named}
        elif self.answer_format == "json_object":
            request["response_format"] = {"type": "json_object"}
        return request

    def _attempt(self, body: bytes, key: str, *, until: float) -> str | Failure:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        url = urlsplit(f"{self.base_url.rstrip('/')}/chat/completions")
        if until <= time.monotonic():
            return Failure(reason=f"no answer within {self.deadline_s:g} s", is_passing=False, is_late=True)
        try:
            response = post(url, body, headers, until=until, max_bytes=self.max_response_bytes)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, TimeoutError) or time.monotonic() >= until:
                return Failure(reason=f"no answer within {self.deadline_s:g} s", is_passing=False, is_late=True)
            return Failure(
                reason=f"the connection failed ({type(error).__name__}: {clipped_line(str(error), key)})", is_passing=True
            )
        if time.monotonic() >= until:  # What was cut off at the deadline can look like an answer.
            return Failure(reason=f"no answer within {self.deadline_s:g} s", is_passing=False, is_late=True)
        return answer_in(response, key, max_bytes=self.max_response_bytes)


def refuse_endpoint(endpoint: ChatEndpoint) -> None:
    """Raise before anything is asked if the endpoint's options cannot work.

    Raises:
        CoveyError: they cannot; the message says which.
    """
    if "@" in endpoint.base_url or "?" in endpoint.base_url or "#" in endpoint.base_url:
        # Not shown: there may be a password in it.
        raise CoveyError(
            "the judge's base_url holds '@', '?' or '#'; give the bare address, and the name of a variable with the key"
        )
    try:
        url = urlsplit(endpoint.base_url)
        is_clean = endpoint.base_url.isascii() and endpoint.base_url.isprintable() and " " not in endpoint.base_url
        is_address = is_clean and url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise CoveyError(f"base_url={endpoint.base_url!r} is no address such as http://localhost:8000/v1")
    if not endpoint.model:
        raise CoveyError("the judge has no model; give the name under which the endpoint serves it")
    if endpoint.answer_format not in ANSWER_FORMATS:
        raise CoveyError(f"answer_format={endpoint.answer_format!r} is none of {', '.join(ANSWER_FORMATS)}")
    for name in ("deadline_s", "max_attempts", "max_answer_tokens", "max_response_bytes"):
        if getattr(endpoint, name) <= 0:
            raise CoveyError(f"{name}={getattr(endpoint, name)}: give a number above 0")
    if endpoint.backoff_s < 0:
        raise CoveyError(f"backoff_s={endpoint.backoff_s}: give a number from 0")
    endpoint.key()


def post(url: SplitResult, body: bytes, headers: Mapping[str, str], *, until: float, max_bytes: int) -> Response:
    """Return the response to a POST; at the time `until` the connection is cut, however slowly it still drips.

    At most `max_bytes` + 1 bytes of it are read.
    """
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.hostname or "", url.port, timeout=max(0.001, until - time.monotonic()))
    try:
        connection.connect()
        watchdog = threading.Timer(max(0.0, until - time.monotonic()), cut, [connection.sock])
        watchdog.daemon = True
        watchdog.start()
        try:
            connection.request("POST", url.path, body=body, headers=dict(headers))
            response = connection.getresponse()
            content = response.read(max_bytes + 1)
            return Response(status=response.status, retry_after=response.headers.get("Retry-After", ""), content=content)
        finally:
            watchdog.cancel()
    finally:
        connection.close()


def cut(connection: socket.socket) -> None:
    """End a connection that another thread is reading."""
    with contextlib.suppress(OSError):
        # Of the plain socket: that of a TLS socket would also take its state apart under the reader's feet.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def answer_in(response: Response, key: str, *, max_bytes: int) -> str | Failure:
    """Return the text of the model's answer, or why there is none."""
    if response.status != 200:
        is_passing = response.status in PASSING_STATUSES
        said = said_by(response.content, key)
        if 300 <= response.status < 400:
            said = ": it points elsewhere; give that address as base_url, as redirects are not followed"
        wait_s = float(response.retry_after) if re.fullmatch(r"\d{1,6}", response.retry_after) else 0.0
        return Failure(reason=f"HTTP status {response.status}{said}", is_passing=is_passing, wait_s=wait_s)
    if len(response.content) > max_bytes:
        return Failure(reason=f"the answer has more than {max_bytes} bytes", is_passing=False)
    try:
        choice = json.loads(response.content)["choices"][0]
        content, reason = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Failure(reason="the answer is no chat completion in JSON", is_passing=True)
    if reason == "length":
        return Failure(reason="the answer was cut off at max_answer_tokens; allow more", is_passing=False)
    if not isinstance(content, str):
        return Failure(reason="the answer has no text: the model may have refused", is_passing=False)
    return content


def said_by(content: bytes, key: str) -> str:
    """Return the endpoint's own error message, shortened and without the key, behind a colon; empty if there is none."""
    try:
        error = json.loads(content)["error"]
        message = error if isinstance(error, str) else error["message"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return f": {clipped_line(message, key)}" if isinstance(message, str) else ""


def clipped_line(text: str, key: str) -> str:
    """Return the text on one line, without the key, shortened. The key goes first: half of one could be left otherwise."""
    return " ".join(without_key(text, key).split())[:_MAX_SAID]


def without_key(text: str, key: str) -> str:
    """Return the text with the key taken out."""
    return text.replace(key, "[the key]") if key else text
