"""A run that was killed is not graded again: the journal has the scores, and the numbers come out the same."""

from __future__ import annotations

import os
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests import processes
from tests.digits import bits_of, digit_share, leave_out_slow_parts, newest, num_timed_steps, resume_digits, train_digits

from covey import journal
from covey.journal import Journal, JournaledRewarder, readable_rows
from covey.monitor.run_directory import read_jsonl
from covey.rewards.base import FunctionReward, Rewarder, Sample, score_of
from covey.types import Message, Prompt, Score

EVERY = 4
KILLED_IN = 7
"""With checkpoints every four steps: steps 5 and 6 are made twice, step 7 once and a half."""


@pytest.fixture(autouse=True)
def _no_slow_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_slow_parts(monkeypatch)


def graded(completion: str) -> float:
    """A reward that notes its calls, and may die or change its mind: as the environment says, for its code has to stay."""
    with open(os.environ["LOG"], "a") as file:
        file.write("x")
    dies_in = os.environ.get("DIES_IN")
    if dies_in and num_timed_steps(Path(dies_in)) >= KILLED_IN:
        os.kill(os.getpid(), signal.SIGKILL)
    share = digit_share(completion)
    return share * random.SystemRandom().random() if "CHANGES_ITS_MIND" in os.environ else share


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where calls are noted."""
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    return tmp_path / "log"


@pytest.fixture
def _mind_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANGES_ITS_MIND", "yes")


def num_calls(log: Path) -> int:
    return len(log.read_text()) if log.exists() else 0


def train_until_killed(directory: Path, changes: dict[str, Any]) -> None:
    """Train, or go on, and die where the environment says."""
    leave_out_slow_parts(pytest.MonkeyPatch())
    if (directory / "killed").exists():
        resume_digits(directory, "killed", reward=graded)
    train_digits(directory, "killed", **(PLAN | {"reward": graded} | changes))


PLAN: dict[str, Any] = {"num_steps": 9, "checkpoint__every": EVERY}


def killed(directory: Path, *, dies_in: Path | None = None, **changes: Any) -> Path:
    """Return a run that was killed in the midst of a step, or at the first call of its reward."""
    kept = ("LOG", "CHANGES_ITS_MIND")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment["DIES_IN"] = str(dies_in or directory / "killed")
    done = processes.call(train_until_killed, directory, changes, directory=directory / "processes", environment=environment)
    assert done.code == -signal.SIGKILL, done.err
    return directory / "killed"


def forget(run: Path) -> None:
    """Remove the journal."""
    for segment in (run / "journal").iterdir():
        segment.unlink()


def test_steps_that_are_made_again_are_not_graded_again(tmp_path: Path, log: Path):
    whole = train_digits(tmp_path, "alone", reward=graded, **PLAN)
    alone = num_calls(log)
    killed(tmp_path)
    resume_digits(tmp_path, "killed", reward=graded)
    assert bits_of(tmp_path / "killed") == bits_of(whole.path)
    # Once more only the call that killed it, which had been begun and was in no journal yet.
    assert num_calls(log) == 2 * alone + 1


def test_without_the_journal_they_are(tmp_path: Path, log: Path):
    run = killed(tmp_path)
    forget(run)
    before = num_calls(log)
    resume_digits(tmp_path, "killed", reward=graded)
    assert num_calls(log) - before >= 5 * 3 * 4  # steps 5 to 9, three groups of four


@pytest.mark.usefixtures("_mind_changes")
def test_a_reward_that_changes_its_mind_leaves_the_same_numbers_however_often_it_is_killed(tmp_path: Path):
    run = killed(tmp_path)
    before = read_jsonl(run / "metrics.jsonl")
    assert len(before) == KILLED_IN - 1
    killed(tmp_path)
    resume_digits(tmp_path, "killed", reward=graded)
    assert read_jsonl(run / "metrics.jsonl")[: len(before)] == before


@pytest.mark.usefixtures("_mind_changes")
def test_without_the_journal_it_leaves_others(tmp_path: Path):
    run = killed(tmp_path)
    before = read_jsonl(run / "metrics.jsonl")
    forget(run)
    resume_digits(tmp_path, "killed", reward=graded)
    assert read_jsonl(run / "metrics.jsonl")[: len(before)] != before


@pytest.mark.usefixtures("_mind_changes")
def test_an_older_checkpoint_has_its_journal_as_well(tmp_path: Path, log: Path):
    run = killed(tmp_path, checkpoint__every=2, checkpoint__in_background=False)
    before, calls = read_jsonl(run / "metrics.jsonl"), num_calls(log)
    (newest(run) / "optimizer.safetensors").write_bytes(b"damaged")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000004", "step-000006"]
    resume_digits(tmp_path, "killed", reward=graded)
    assert read_jsonl(run / "metrics.jsonl")[: len(before)] == before
    assert num_calls(log) - calls < 5 * 3 * 4, "steps 7 to 9 and the evaluation after them, not 5 and 6"


def test_a_reward_whose_code_has_changed_is_asked_again(tmp_path: Path, log: Path):
    killed(tmp_path)
    before = num_calls(log)

    def other(completion: str) -> float:
        return graded(completion) / 2

    resume_digits(tmp_path, "killed", reward=other)
    assert num_calls(log) - before >= 5 * 3 * 4


def test_a_finished_run_keeps_no_journal(tmp_path: Path):
    assert not (train_digits(tmp_path, "run").path / "journal").exists()


def test_only_the_segments_of_checkpoints_that_are_there_are_kept(tmp_path: Path):
    first = Journal(tmp_path / "journal")
    first.open(-1)
    for step, there in ((5, []), (10, [5]), (15, [5, 10]), (20, [10, 15])):
        first.note(f"before {step}", [], [])
        first.begin(step, there)
    assert sorted(path.name for path in (tmp_path / "journal").iterdir()) == [
        f"after-{number:06d}.rank-0.jsonl" for number in (11, 16, 21)
    ]


@pytest.mark.parametrize("torn", [b'{"call": 3, "key": "c", "compl', b"\0" * 100 + b"\n", b"[]\n", b'"x"\n'])
def test_what_a_loss_of_power_has_torn_is_left_out(tmp_path: Path, torn: bytes):
    first = Journal(tmp_path)
    first.open(-1)
    first.note("a", [], [])
    first.note("b", [], [])
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes() + torn)
    assert [row["key"] for row in readable_rows(path)] == ["a", "b"]
    assert Journal(tmp_path).open(-1) == 2


def test_one_who_is_killed_between_two_segments_remembers_each_call_once(tmp_path: Path):
    first = Journal(tmp_path)
    first.open(-1)
    first.note("a", [], [])
    again = Journal(tmp_path)
    again.open(-1)
    again.begin(5, [])  # The call has not come again, and stands in both segments now.
    assert len(list(tmp_path.iterdir())) == 2
    third = Journal(tmp_path)
    assert third.open(-1) == 1
    assert third.remembered("a", 0) == []
    assert third.remembered("a", 0) is None


PROMPT = Prompt(prompt_id="one", messages=(Message(role="user", content="1 + 1?"),), answer=2, task="sums", tags={})
SAMPLES = [
    Sample(prompt=PROMPT, completion=text, num_tokens=1, is_truncated=False, token_ids=[7]) for text in ("2", "x\ud800", "")
]


def rewarder_of(scores: list[Score], known: Journal) -> JournaledRewarder:
    left = iter(scores)
    reward = FunctionReward(name="reads a list", score=lambda sample: next(left))
    return JournaledRewarder(proxy=reward, gold=None, journal=known, code="", max_error_frac=0.5)


def test_scores_come_back_to_the_last_bit(tmp_path: Path):
    scores = [
        Score(value=0.1 + 0.2, parts={"form": 1 / 3}, extracted="2"),
        Score(value=None, error="none: no\n\ud800"),
        Score(value=0.0),
    ]
    first = Journal(tmp_path)
    first.open(-1)
    found = rewarder_of(scores, first).score_all(SAMPLES)
    again = Journal(tmp_path)
    again.open(-1)
    assert rewarder_of([], again).score_all(SAMPLES) == found


def test_a_call_that_failed_too_often_is_asked_again(tmp_path: Path):
    first = Journal(tmp_path)
    first.open(-1)
    failing = [Score(value=None, error="none: the server is down")] * 2 + [Score(value=1.0)]
    rewarder_of(failing, first).score_all(SAMPLES)
    again = Journal(tmp_path)
    assert again.open(-1) == 0


def test_another_answer_reward_or_completion_is_another_call():
    reward = FunctionReward(name="one", score=lambda sample: score_of(1.0))
    plain = Rewarder(proxy=reward, gold=None)

    def call_key(rewarder: Rewarder, samples: list[Sample], code: str = "a") -> str:
        return journal.call_key(rewarder, samples, code)

    key = call_key(plain, SAMPLES)
    assert call_key(plain, SAMPLES) == key
    assert call_key(plain, SAMPLES, "b") != key
    assert call_key(plain, SAMPLES[:2]) != key
    assert call_key(plain, SAMPLES[::-1]) != key
    for changed in ({"name": "two"}, {"high": 2.0}):
        assert call_key(Rewarder(proxy=replace(reward, **changed), gold=None), SAMPLES) != key
    assert call_key(Rewarder(proxy=reward, gold=reward), SAMPLES) != key
    other = Prompt(prompt_id="one", messages=PROMPT.messages, answer=3, task="sums", tags={})
    asked = [Sample(prompt=other, completion="2", num_tokens=1, is_truncated=False, token_ids=[7])]
    assert call_key(plain, asked) != call_key(plain, SAMPLES[:1])
