"""Rewards for code: what a question's tests say of the code in a completion, run in a sandbox and judged outside of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, Literal

from covey.rewards.base import Reward, Sample
from covey.rewards.sandbox.compare_values import Comparison
from covey.rewards.sandbox.inside import wire
from covey.rewards.sandbox.inside.limits import Limits
from covey.rewards.sandbox.judge import AssertJob, CallJob, Case, Job, ProgramJob
from covey.rewards.sandbox.outcomes import Outcome
from covey.rewards.sandbox.pool import AUTO, Choice, SandboxPool, choose_tier
from covey.rewards.sandbox.tiers import TIERS, remote_tier
from covey.types import CoveyError, Score

TestPart = Literal["public", "hidden"]
Credit = Literal["all", "share"]

MAX_CODE_CHARACTERS = 100_000
MAX_SHOWN_CHARACTERS = 400
_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n`]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_START = re.compile(r"^(?:def|class|import|from|async def|@\w)", re.MULTILINE)
_LANGUAGES = ("", "python", "py", "python3")


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxSpec:
    """Where and within which limits candidates run."""

    tier: str = AUTO
    """auto: the first that holds; a tier's name; or "unprotected"."""
    command: tuple[str, ...] = ()
    """Of the tier "remote": what reaches a Python elsewhere."""
    num_zygotes: int = 2
    limits: Limits = field(default_factory=Limits)


@lru_cache(maxsize=4)
def tier_chosen(name: str, command: tuple[str, ...] = ()) -> Choice:
    """Return the tier of this process for a recipe's words. The canaries are sent out once.

    Raises:
        NoSandboxError: none holds on this machine.
    """
    return choose_tier(name, tiers={**TIERS, "remote": remote_tier(command)})


@lru_cache(maxsize=4)
def pool_of(spec: SandboxSpec) -> SandboxPool:
    """Return the sandbox of this process for the spec. It ends with the process.

    Raises:
        NoSandboxError: none holds on this machine.
    """
    return SandboxPool(tier_chosen(spec.tier, spec.command).tier, num_zygotes=spec.num_zygotes, limits=spec.limits)


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeReward:
    """The tests of a question, the public or the hidden ones, as a reward from 0 to 1.

    A question's answer is a mapping {"entry": name, "public": tests, "hidden": tests}. Tests are one of {"cases": [[arguments,
    right], ...]}, {"asserts": [lines]}, {"tests": source} and {"runs": [[input, output], ...]}; for asserts and tests, the
    answer's "preamble" is what they rest on and "prefix" goes before the candidate's code.
    """

    name: str
    part: TestPart
    credit: Credit = "all"
    """all: 1 if every test passes. share: the share of tests that pass, where there are several to count."""
    sandbox: SandboxSpec = field(default_factory=SandboxSpec)
    low: float = 0.0
    high: float = 1.0
    runs_inline: bool = True
    """The candidates have processes of their own; the judge in the trainer's reads plain data alone."""

    def prepare(self) -> None:
        """Start the sandbox, after having tried to escape from it.

        Raises:
            NoSandboxError: none holds on this machine.
        """
        pool_of(self.sandbox)

    def __call__(self, sample: Sample) -> Score:
        return self.score_batch([sample])[0]

    def score_batch(self, samples: Sequence[Sample]) -> list[Score]:
        """Return the scores of the samples; the candidates run side by side."""
        work = [self._work(sample) for sample in samples]
        graded = iter(pool_of(self.sandbox).grade_all([each for each in work if not isinstance(each, Score)]))
        return [each if isinstance(each, Score) else self._score(each[1], next(graded)) for each in work]

    def _work(self, sample: Sample) -> tuple[Job, str] | Score:
        """Return the tests and the code that they are for, or the score where there are not both."""
        try:
            job = job_of(sample.prompt.answer, self.part)
        except (CoveyError, ValueError, TypeError) as error:  # The tests are a user's data; one row must not cost the others.
            return Score(value=None, error=f"invalid: {self.name}: {error}")
        code = code_in(sample.completion)
        return (job, code) if code else Score(value=0.0)

    def _score(self, code: str, outcome: Outcome) -> Score:
        if not outcome.is_about_candidate:
            kind = "sandbox" if outcome.kind == "infra_error" else "none"
            return Score(value=None, error=f"{kind}: {self.name}: {outcome.kind}: {outcome.detail}")
        value = float(outcome.has_passed)
        if self.credit == "share" and outcome.num_tests:
            value = outcome.num_passed / outcome.num_tests
        # The code comes first: what is extracted is what completions are compared by, and two that pass are not the same.
        said = f"# {outcome.kind}, {outcome.num_passed} of {outcome.num_tests} tests"
        return Score(value=value, extracted=f"{code[:MAX_SHOWN_CHARACTERS]}\n{said}")


def sandbox_facts(*rewards: Reward | None) -> dict[str, Any] | None:
    """Return what a run says of the sandbox of its rewards; None if none of them runs code."""
    spec = next(filter(None, map(_sandbox_of, rewards)), None)
    if spec is None:
        return None
    choice = tier_chosen(spec.tier, spec.command)
    lacks = {"lacks": sorted(choice.tier.lacks)} if choice.tier.lacks else {}
    # What a sandbox says of itself comes first: it may be elsewhere, and must not speak in the judge's name.
    return {**choice.facts, "tier": choice.tier.name, "refused": dict(choice.refused), "limits": asdict(spec.limits), **lacks}


def _sandbox_of(reward: Any) -> SandboxSpec | None:
    """Return the sandbox of a reward, or of the first that it is made of."""
    if isinstance(reward, CodeReward):
        return reward.sandbox
    inner = [part.reward for part in getattr(reward, "parts", ())] or [getattr(reward, "reward", None)]
    return next(filter(None, (_sandbox_of(each) for each in inner if each is not None)), None)


def code_in(completion: str) -> str:
    """Return the code of a completion; empty if there is none.

    The last fenced block in Python, or without a language, that begins nothing else. Without a fence, the text from its first
    line that looks like Python. A block that is cut off by the token limit is read as far as it goes.
    """
    text = completion[:MAX_CODE_CHARACTERS]
    blocks = [code for language, code in _FENCE.findall(text) if language.lower() in _LANGUAGES]
    if blocks:
        return blocks[-1].strip("\n")
    if "```" in text:
        return ""
    found = _START.search(text)
    return text[found.start() :] if found else ""


def job_of(answer: Any, part: TestPart) -> Job:
    """Return the tests of an answer as the judge takes them.

    Raises:
        CoveyError: the answer has none of this part, or they are of no known form.
    """
    if not isinstance(answer, Mapping) or not isinstance(answer.get(part), Mapping):
        raise CoveyError(f"the question has no {part} tests; its answer must be a mapping with them; see the guide on code")
    tests, entry = answer[part], str(answer.get("entry", ""))
    form = next((form for form in FORMS if tests.get(form)), None)
    if form is None:
        raise CoveyError(f"the question's {part} tests are empty or of no known form; give one of {', '.join(FORMS)}")
    if form != "runs" and not entry.isidentifier():
        raise CoveyError(f"the question's answer names no function: entry={entry!r}")
    return FORMS[form](entry, tests[form], answer)


def _calls(entry: str, cases: Sequence[Any], answer: Mapping[str, Any]) -> Job:
    found = [Case(args=tuple(wire.decode(args)), right=wire.decode(right)) for args, right in cases]
    comparison = Comparison(
        mixes_sequences=bool(answer.get("mixes_sequences", False)), rel_tol=float(answer.get("rel_tol", 0.0))
    )
    return CallJob(entry=entry, cases=found, comparison=comparison)


def _asserts(entry: str, tests: str, answer: Mapping[str, Any]) -> Job:
    return AssertJob(entry=entry, tests=tests, preamble=str(answer.get("preamble", "")), prefix=str(answer.get("prefix", "")))


def _programs(entry: str, runs: Sequence[Any], answer: Mapping[str, Any]) -> Job:
    return ProgramJob(runs=[(str(given), str(right)) for given, right in runs], rel_tol=float(answer.get("rel_tol", 0.0)))


FORMS = {
    "cases": _calls,
    "asserts": lambda entry, lines, answer: _asserts(entry, "\n".join(lines), answer),
    "tests": _asserts,
    "runs": _programs,
}
"""How tests may be written: (entry, tests, the whole answer) -> what the judge takes."""


def public_tests(*, credit: Credit = "all") -> CodeReward:
    """Return the reward of the tests that the question may show.

    Raises:
        CoveyError: the credit is none.
    """
    return _code_reward("public_tests", "public", credit)


def hidden_tests(*, credit: Credit = "all") -> CodeReward:
    """Return the reward of the tests that no completion has ever seen.

    Raises:
        CoveyError: the credit is none.
    """
    return _code_reward("hidden_tests", "hidden", credit)


def _code_reward(name: str, part: TestPart, credit: Credit) -> CodeReward:
    if credit not in ("all", "share"):
        raise CoveyError(f"credit={credit!r} is none; give 'all' for every test or nothing, or 'share'")
    return CodeReward(name=name, part=part, credit=credit)
