"""Zygotes for a run: the tier chosen by trying to escape, executions side by side, failures of the sandbox told apart."""

from __future__ import annotations

import os
import queue
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from covey.rewards.sandbox.canaries import escapes
from covey.rewards.sandbox.inside.limits import Limits
from covey.rewards.sandbox.judge import CallJob, Case, Job
from covey.rewards.sandbox.outcomes import Outcome
from covey.rewards.sandbox.tiers import TIERS, UNPROTECTED, Tier
from covey.rewards.sandbox.zygotes import AnyZygote, SandboxError
from covey.types import CoveyError

AUTO = "auto"
MAX_ATTEMPTS = 3
_GOOD_SOURCE = "def plain(x):\n    return x + 1\n"
_GOOD_JOB = CallJob(entry="plain", cases=(Case(args=(1,), right=2),))


class NoSandboxError(CoveyError):
    """No way of confining code holds on this machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The tier that is used, and what was found out about those before it."""

    tier: Tier
    refused: Mapping[str, str] = field(default_factory=dict)
    """By tier: why it is not used."""
    facts: Mapping[str, Any] = field(default_factory=dict)


def choose_tier(name: str = AUTO, *, tiers: Mapping[str, Tier] = TIERS) -> Choice:
    """Return the tier of that name, or the first that no canary escapes from.

    Raises:
        NoSandboxError: there is none; the message says what each lacks.
        CoveyError: there is no tier of that name.
    """
    if name == UNPROTECTED.name:
        return Choice(tier=UNPROTECTED)
    if name != AUTO and name not in tiers:
        raise CoveyError(f"sandbox={name!r} is none; choose auto, {', '.join(tiers)}, or {UNPROTECTED.name}")
    refused: dict[str, str] = {}
    for tier in [tier for tier in tiers.values() if tier.is_automatic] if name == AUTO else [tiers[name]]:
        reason, facts = tried(tier)
        if not reason:
            return Choice(tier=tier, refused=refused, facts=facts)
        refused[tier.name] = reason
    lines = "\n".join(f"  {tier}: {reason}" for tier, reason in refused.items())
    raise NoSandboxError(
        f"rewards that run code need a sandbox that holds, and none does on this machine:\n{lines}\n"
        'Mend one of these, or give sandbox = "unprotected" if nothing on this machine is worth protecting from what the '
        "model writes; the run will say so"
    )


def tried(tier: Tier) -> tuple[str, Mapping[str, Any]]:
    """Return (why the tier is not to be used, what its zygote says of itself); the reason is empty if it holds."""
    if missing := tier.missing():
        return missing, {}
    try:
        zygote = tier.start()
    except SandboxError as error:
        return f"it does not start ({error})", {}
    try:
        found = escapes(zygote, lacks=tier.lacks)
    except SandboxError as error:
        return f"it does not run ({error})", zygote.facts
    finally:
        zygote.close()
    return "; ".join(f"{name}: {what}" for name, what in found.items()), zygote.facts


class SandboxPool:
    """Zygotes of a tier; `grade` may be called from several threads."""

    def __init__(self, tier: Tier, *, num_zygotes: int = 2, limits: Limits | None = None) -> None:
        self.tier, self.limits, self.num_zygotes = tier, limits or Limits(), num_zygotes
        self._zygotes: dict[int, AnyZygote] = {}
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(num_zygotes):
            self._free.put(number)
        self._stop = weakref.finalize(self, close_all, self._zygotes, os.getpid())

    def __enter__(self) -> SandboxPool:
        return self

    def __exit__(self, *failure: Any) -> None:
        self.close()

    def close(self) -> None:
        """End all zygotes. A later call would start new ones."""
        close_all(self._zygotes, os.getpid())

    def grade_all(self, jobs: Sequence[tuple[Job, str]]) -> list[Outcome]:
        """Return what came of each (job, source), in their order."""
        with ThreadPoolExecutor(self.num_zygotes) as threads:
            return list(threads.map(lambda pair: self.grade(*pair), jobs))

    def grade(self, job: Job, source: str) -> Outcome:
        """Return what came of the candidate.

        A failure of the sandbox is tried again in a fresh zygote. If the candidate breaks one after the other while a plain
        program runs, the failure is its own.
        """
        number = self._free.get()
        try:
            return self._grade(number, job, source)
        finally:
            self._free.put(number)

    def _grade(self, number: int, job: Job, source: str) -> Outcome:
        reason = ""
        for attempt in range(MAX_ATTEMPTS):
            try:
                outcome = job.grade(self._zygote(number), source, self.limits)
            except SandboxError as error:
                reason = str(error)
                self._drop(number)
                continue
            finally:
                if not self.tier.keeps_zygote:
                    self._drop(number)
            if not outcome.was_starved or attempt:
                return outcome
            self._drop(number)  # Once more in a fresh one: it may have been the machine that was busy.
        return self._blame(number, reason)

    def _blame(self, number: int, reason: str) -> Outcome:
        try:
            is_sound = _GOOD_JOB.grade(self._zygote(number), _GOOD_SOURCE, self.limits).has_passed
        except SandboxError:
            is_sound = False
        if is_sound:
            return Outcome(kind="crashed", num_tests=1, detail=f"it broke the sandbox {MAX_ATTEMPTS} times: {reason}")
        self._drop(number)
        return Outcome(kind="infra_error", num_tests=1, detail=reason)

    def _zygote(self, number: int) -> AnyZygote:
        if number not in self._zygotes:
            self._zygotes[number] = self.tier.start(number=number)
        return self._zygotes[number]

    def _drop(self, number: int) -> None:
        zygote = self._zygotes.pop(number, None)
        if zygote is not None:
            zygote.close()


def close_all(zygotes: dict[int, AnyZygote], owner: int) -> None:
    """End the zygotes, in the process that has started them and in no fork of it."""
    if os.getpid() == owner:
        while zygotes:
            zygotes.popitem()[1].close()
