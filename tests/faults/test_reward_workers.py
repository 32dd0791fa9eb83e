"""Rewards in worker processes: whatever a function does costs its own completion, a bounded time, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests import bad_rewards
from tests.bad_rewards import BAD, BAD_BATCHES, BAD_REWARDS, FINE, Bad, batched, coroutine, ordinary, samples_of

from covey.rewards.asynchronous import AsyncReward
from covey.rewards.base import FunctionReward, Reward, as_reward, score_all, score_of
from covey.rewards.combine import CombinedReward
from covey.rewards.failures import error_kind, error_kinds
from covey.rewards.length import with_overlong_penalty
from covey.rewards.worker_process import marked_processes
from covey.rewards.workers import RewardWorkers, WorkerSpec
from covey.types import CoveyError, Score

QUICK_S = 1.0
"""The deadline in tests of what misses one. Where a deadline must not be missed, it is half a minute."""


@pytest.fixture(scope="module")
def quick() -> Iterator[RewardWorkers]:
    with RewardWorkers(WorkerSpec(num_workers=1, timeout_s=QUICK_S, batch_timeout_s=QUICK_S, give_up_frac=1.0)) as workers:
        yield workers


@pytest.fixture(scope="module")
def patient() -> Iterator[RewardWorkers]:
    spec = WorkerSpec(num_workers=1, timeout_s=30.0, batch_timeout_s=30.0, give_up_frac=1.0)
    with RewardWorkers(spec) as workers:
        yield workers


@pytest.fixture(scope="module")
def limited() -> Iterator[RewardWorkers]:
    with RewardWorkers(WorkerSpec(num_workers=1, timeout_s=30.0, max_memory_mb=512)) as workers:
        yield workers


def values_of(reward: Reward, completions: Sequence[str], **columns: Any) -> list[float | None]:
    return [score.value for score in score_all(reward, samples_of(completions, **columns))]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def is_soon(true: Any, *, within_s: float = 10.0) -> bool:
    until = time.monotonic() + within_s
    while not true() and time.monotonic() < until:
        time.sleep(0.01)
    return bool(true())


# What misbehaving functions come to


def expect(scores: Sequence[Score], bad: Bad, *, kind: str | None, said: str = "") -> None:
    """The second of four completions is the bad one."""
    assert [score.value for score in (scores[0], *scores[2:])] == [FINE] * 3
    assert error_kind(scores[1]) == kind
    assert scores[1].value == (None if kind else bad.value)
    assert said in (scores[1].error or "")


FOUR = ["fine", BAD, "fine", "fine"]


@pytest.mark.parametrize("is_coroutine", [False, True], ids=["ordinary", "coroutine"])
@pytest.mark.parametrize("name", BAD_REWARDS)
def test_a_misbehaving_function_costs_its_own_completion(
    name: str, is_coroutine: bool, quick: RewardWorkers, patient: RewardWorkers, limited: RewardWorkers, tmp_path: Path
) -> None:
    bad, environment, directory = BAD_REWARDS[name], dict(os.environ), Path.cwd()
    workers = limited if name == "allocates without end" else quick if bad.kind == "timeout" else patient
    reward = as_reward((coroutine if is_coroutine else ordinary)(bad.act))
    if isinstance(reward, AsyncReward):
        reward = replace(reward, limit=1)
    samples = samples_of(FOUR, canary=str(tmp_path / "canary"))
    scores = score_all(workers.isolated(reward), samples)
    expect(scores, bad, kind=bad.kind, said=bad.said)
    assert samples[0].prompt.columns == {"list": [], "canary": str(tmp_path / "canary")}
    assert (dict(os.environ), Path.cwd(), list(tmp_path.iterdir())) == (environment, directory, [])


@pytest.mark.parametrize("name", [name for name, bad in BAD_REWARDS.items() if bad.inline == "same"])
def test_in_the_training_process_it_comes_to_the_same(name: str) -> None:
    bad = BAD_REWARDS[name]
    expect(score_all(as_reward(ordinary(bad.act)), samples_of(FOUR)), bad, kind=bad.kind, said=bad.said)


@pytest.mark.parametrize("name", [name for name, bad in BAD_REWARDS.items() if bad.inline == "interrupt"])
def test_in_the_training_process_an_interrupt_is_one(name: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        score_all(as_reward(ordinary(BAD_REWARDS[name].act)), samples_of(FOUR))


@pytest.mark.parametrize("name", [name for name, bad in BAD_REWARDS.items() if bad.coroutine == "same"])
def test_a_coroutine_in_the_training_process_comes_to_the_same(name: str) -> None:
    bad = BAD_REWARDS[name]
    reward = as_reward(coroutine(bad.act))
    assert isinstance(reward, AsyncReward)
    said = "" if bad.kind == "timeout" else bad.said  # Nobody can look into a thread that blocks.
    expect(score_all(replace(reward, limit=1, timeout_s=0.5), samples_of(FOUR)), bad, kind=bad.kind, said=said)


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_a_batch_that_fails_is_lost_and_no_other(name: str, quick: RewardWorkers, patient: RewardWorkers) -> None:
    bad = BAD_BATCHES[name]
    workers = quick if bad.kind == "timeout" else patient
    reward = workers.isolated(as_reward(batched(bad.act)))
    lost = score_all(reward, samples_of(FOUR))
    assert [(score.value, error_kind(score)) for score in lost] == [(None, bad.kind)] * 4
    assert all(bad.said in str(score.error) for score in lost)
    assert values_of(reward, ["fine"] * 4) == [FINE] * 4


# Time


@pytest.mark.parametrize("act", [bad_rewards.hang_in_python, bad_rewards.hang_in_c, bad_rewards.hang_deaf])
def test_a_hang_costs_the_deadline_and_at_most_a_second(act: Any, quick: RewardWorkers) -> None:
    reward = quick.isolated(as_reward(ordinary(act)))
    quick.start()
    started = time.monotonic()
    scores = score_all(reward, samples_of([BAD]))
    assert QUICK_S <= time.monotonic() - started < QUICK_S + 1.0
    assert QUICK_S <= scores[0].elapsed_s < QUICK_S + 1.0


def test_several_hangs_wait_at_the_same_time() -> None:
    with RewardWorkers(WorkerSpec(num_workers=3, timeout_s=QUICK_S, give_up_frac=1.0)) as workers:
        reward = workers.isolated(as_reward(ordinary(time.sleep)))  # It fails to sleep for a sample, ...
        hanging = workers.isolated(as_reward(ordinary(BAD_REWARDS["sleeps"].act)))
        workers.start()
        started = time.monotonic()
        assert values_of(hanging, [BAD] * 3) == [None] * 3
        assert time.monotonic() - started < QUICK_S + 1.5
        assert [error_kind(score) for score in score_all(reward, samples_of([BAD]))] == ["raised"]  # ... and goes on.


def test_a_worker_is_ready_in_less_than_a_second() -> None:
    times = []
    for _ in range(3):
        started = time.monotonic()
        with RewardWorkers(WorkerSpec(num_workers=1)) as workers:
            workers.isolated(as_reward(bad_rewards.text_share))
            workers.start()
            times.append(time.monotonic() - started)
    assert min(times) < 1.0


def test_a_worker_imports_neither_torch_nor_transformers(patient: RewardWorkers) -> None:
    assert values_of(patient.isolated(as_reward(bad_rewards.knows_torch)), ["a"]) == [0.0]


def test_once_many_calls_have_hung_the_rest_is_not_tried() -> None:
    with RewardWorkers(WorkerSpec(num_workers=1, timeout_s=0.2, give_up_frac=0.2)) as workers:
        reward = workers.isolated(as_reward(ordinary(BAD_REWARDS["sleeps"].act)))
        scores = score_all(reward, samples_of([BAD] * 10))
    assert [error_kind(score) for score in scores] == ["timeout"] * 3 + ["skipped"] * 7
    assert "3 of 10 calls of reward had hung or died" in str(scores[-1].error)


# Which call is made where


@pytest.mark.parametrize("function", [bad_rewards.waits_as_told, bad_rewards.waits_as_told_later])
def test_scores_come_in_the_order_of_the_samples(function: Any) -> None:
    completions = ["30", "0", "20", "5", "1", "10"]
    with RewardWorkers(WorkerSpec(num_workers=3)) as workers:
        assert values_of(workers.isolated(as_reward(function)), completions) == [int(text) / 100 for text in completions]


@pytest.mark.parametrize("function", [bad_rewards.text_share, bad_rewards.counts_its_prompt])
def test_scores_do_not_depend_on_the_number_of_workers(function: Any) -> None:
    completions = [f"{number} completions of the same prompt" for number in range(20)]
    found = []
    for num_workers in (1, 3):
        with RewardWorkers(WorkerSpec(num_workers=num_workers)) as workers:
            found.append(values_of(workers.isolated(as_reward(function)), completions))
    assert found[0] == found[1]
    assert None not in found[0]


def test_no_call_sees_what_another_did_to_their_prompt(patient: RewardWorkers) -> None:
    assert values_of(patient.isolated(as_reward(bad_rewards.counts_its_prompt)), ["a"] * 5) == [0.1] * 5


def test_every_call_finds_streams_environment_and_directory_as_they_were(patient: RewardWorkers) -> None:
    assert values_of(patient.isolated(as_reward(bad_rewards.leaves_all_changed)), ["a"] * 5) == [1.0] * 5


def test_only_calls_that_had_not_begun_are_made_again(quick: RewardWorkers, tmp_path: Path) -> None:
    completions = ["a", BAD, *"cdefghijkl"]  # Pieces of three: the worker that hangs has "c" in its hand.
    values = values_of(quick.isolated(as_reward(bad_rewards.notes_its_calls)), completions, notes=str(tmp_path / "notes"))
    assert values == [FINE, None, *[FINE] * 10]
    assert (tmp_path / "notes").read_text().split() == completions


def test_the_workers_stay_from_batch_to_batch() -> None:
    with RewardWorkers(WorkerSpec(num_workers=2)) as workers:
        reward = workers.isolated(as_reward(bad_rewards.process_id, (0.0, 1e9)))
        first, second = (set(values_of(reward, ["a"] * 40)) for _ in range(2))
        assert first | second <= set(workers.process_ids)
        assert len(workers.process_ids) == 2
        assert os.getpid() not in first


def test_a_worker_that_dies_between_batches_costs_nothing() -> None:
    with RewardWorkers(WorkerSpec(num_workers=1)) as workers:
        reward = workers.isolated(as_reward(bad_rewards.text_share))
        before = values_of(reward, ["a", "b"])
        for again in (reward, workers.isolated(as_reward(bad_rewards.text_share))):  # Of these it does not know the second.
            [pid] = workers.process_ids
            os.kill(pid, signal.SIGKILL)
            assert is_soon(lambda pid=pid: not is_running(pid))
            assert values_of(again, ["a", "b"]) == before


# What is left behind


def test_closing_leaves_no_process(tmp_path: Path) -> None:
    with RewardWorkers(WorkerSpec(num_workers=2)) as workers:
        reward = workers.isolated(as_reward(ordinary(bad_rewards.leave_child)))
        daemons = workers.isolated(as_reward(ordinary(bad_rewards.leave_daemon)))
        assert values_of(reward, [BAD] * 2) + values_of(daemons, [BAD] * 2) == [0.25] * 4
        markers = [worker.marker for worker in workers._workers]
        assert sum(len(marked_processes(marker)) for marker in markers) == 2 + 4
    assert is_soon(lambda: not any(marked_processes(marker) for marker in markers))


def test_a_hang_that_is_stopped_leaves_no_process_that_it_started(quick: RewardWorkers, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    assert values_of(quick.isolated(as_reward(bad_rewards.makes_a_process)), ["a"], notes=str(notes)) == [None]
    assert is_soon(lambda: not any(is_running(int(pid)) for pid in notes.read_text().split()))


def test_an_interrupt_stops_the_workers_that_are_busy() -> None:
    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    with RewardWorkers(WorkerSpec(num_workers=1)) as workers:
        reward = workers.isolated(as_reward(ordinary(BAD_REWARDS["hangs in C"].act)))
        workers.start()
        [pid] = workers.process_ids
        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        try:
            with pytest.raises(KeyboardInterrupt):
                score_all(reward, samples_of([BAD]))
        finally:
            signal.signal(signal.SIGALRM, before)
        assert is_soon(lambda: not is_running(pid))
        assert values_of(reward, ["fine"]) == [FINE]


ROOT = Path(__file__).parents[2]

SCRIPT = """
import re
from covey.rewards.base import as_reward, score_all
from covey.rewards.workers import RewardWorkers, WorkerSpec
from covey.rewards.base import Sample
from covey.types import Message, Prompt

LENGTH = 2

class Verifier:
    def judge(self, completion):
        if completion == "hang":
            re.match(r"(a+)+$", "a" * 64 + "b")
        return len(completion) / LENGTH

prompt = Prompt(prompt_id="p", messages=(Message(role="user", content="?"),))
workers = RewardWorkers(WorkerSpec(num_workers=2, timeout_s=60))
reward = workers.isolated(as_reward(Verifier().judge))
def score(text):
    sample = Sample(prompt=prompt, completion=text, num_tokens=1, is_truncated=False)
    return [score.value for score in score_all(reward, [sample] * 2)]
print(score("a"), *workers.process_ids, flush=True)
"""


def test_a_function_of_a_script_or_a_notebook_works_and_its_workers_end_with_it() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    values, _, pids = done.stdout.strip().partition("] ")
    assert values == "[0.5, 0.5"
    assert is_soon(lambda: not any(is_running(int(pid)) for pid in pids.split()))


def test_a_trainer_that_is_killed_leaves_no_worker_that_hangs() -> None:
    trainer = subprocess.Popen([sys.executable, "-c", SCRIPT + "score('hang')"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    pids = [int(pid) for pid in trainer.stdout.readline().partition("] ")[2].split()]
    time.sleep(0.3)
    assert [is_running(pid) for pid in pids] == [True, True]
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    assert is_soon(lambda: not any(is_running(pid) for pid in pids))


# What they print


def test_the_log_of_what_is_printed_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "printed.log"
    with RewardWorkers(WorkerSpec(num_workers=1, timeout_s=30.0, max_log_bytes=5000), log=log) as workers:
        assert values_of(workers.isolated(as_reward(ordinary(bad_rewards.print_much))), [BAD]) == [0.25]
    assert log.read_text() == "x" * 5000 + "\n[what was printed after this was left out]\n"


def test_the_last_words_of_a_process_are_in_the_error(patient: RewardWorkers) -> None:
    [score] = score_all(patient.isolated(as_reward(bad_rewards.says_something_and_ends)), samples_of(["a"]))
    assert error_kind(score) == "died"
    assert "ended with exit code 7" in str(score.error)
    assert "The last that it printed:\n" in str(score.error)
    assert str(score.error).endswith("about to end")


# What cannot be sent


def test_a_reward_that_cannot_be_copied_is_refused_with_the_remedy(patient: RewardWorkers) -> None:
    lock = threading.Lock()
    with pytest.raises(CoveyError, match=r"'<lambda>' cannot be sent to a worker process .*lock.* with num_workers=0"):
        patient.isolated(as_reward(lambda completion: float(lock.locked())))


def test_a_module_that_the_worker_cannot_import_is_named() -> None:
    module = types.ModuleType("made_up_module")
    exec("def reward(completion):\n    return 0.5\n", module.__dict__)
    sys.modules["made_up_module"] = module
    try:
        with RewardWorkers(WorkerSpec(num_workers=1)) as workers:
            workers.isolated(as_reward(module.reward))
            with pytest.raises(CoveyError, match=r"'reward' could not be loaded(?s:.*)No module named 'made_up_module'"):
                workers.start()
    finally:
        del sys.modules["made_up_module"]


def test_a_reward_that_hangs_while_it_is_loaded_is_refused() -> None:
    with RewardWorkers(WorkerSpec(num_workers=1, start_timeout_s=1.0)) as workers:
        workers.isolated(as_reward(bad_rewards.HangsOnArrival()))
        with pytest.raises(CoveyError, match=r"could not be loaded(?s:.*)not ready after 1 s"):
            workers.start()
        assert workers.process_ids == []


def test_a_prompt_that_cannot_be_copied_is_named(patient: RewardWorkers) -> None:
    scores = score_all(patient.isolated(as_reward(bad_rewards.text_share)), samples_of(["a"], lock=threading.Lock()))
    assert [error_kind(score) for score in scores] == ["invalid"]
    assert "prompt 'p' cannot be sent to a worker process" in str(scores[0].error)


# Rewards that hold others


def test_of_several_rewards_only_the_part_that_fails_is_lost(quick: RewardWorkers) -> None:
    whole = as_reward({"sleeps": ordinary(BAD_REWARDS["sleeps"].act), "form": (ordinary(lambda sample: 1.0), 0.5)})
    reward = quick.isolated(whole)
    assert isinstance(reward, CombinedReward)
    assert (reward.part_names, reward.part_weights, reward.low, reward.high) == (("sleeps", "form"), (1.0, 0.5), 0.0, 1.5)
    scores = score_all(reward, samples_of(FOUR))
    assert [score.value for score in scores] == [0.75, None, 0.75, 0.75]
    assert (scores[1].parts, error_kinds(scores[1], reward.name)) == ({"form": 1.0}, {"sleeps": "timeout"})
    assert error_kind(scores[1]) == "timeout"


def test_a_penalty_for_length_is_taken_in_the_training_process(patient: RewardWorkers) -> None:
    plain = with_overlong_penalty(as_reward(bad_rewards.text_share), max_tokens=1, buffer=1, factor=0.5)
    reward = patient.isolated(plain)
    assert getattr(reward, "part_names", None) == ("text_share", "overlong")
    assert (reward.low, reward.high) == (-0.5, 1.0)
    [score] = score_all(reward, samples_of(["some text"]))
    assert score.parts["overlong"] == -1.0
    assert score.value == pytest.approx(score.parts["text_share"] - 0.5, abs=1e-12)


def test_name_range_and_columns_stay(patient: RewardWorkers) -> None:
    reward = patient.isolated(as_reward(lambda completion, unit: 1.0, (-2.0, 3.0)))
    assert (reward.name, reward.low, reward.high) == ("<lambda>", -2.0, 3.0)
    assert getattr(reward, "columns", None) == ("unit",)
    assert not hasattr(reward, "part_names")


def test_a_reward_that_runs_inline_stays_where_it_is(patient: RewardWorkers) -> None:
    reward = FunctionReward(name="quick", score=lambda sample: score_of(1.0), runs_inline=True)
    assert patient.isolated(reward) is reward


def test_without_workers_rewards_stay_where_they_are() -> None:
    with RewardWorkers(WorkerSpec(num_workers=0, timeout_s=3.0)) as workers:
        reward = as_reward(bad_rewards.process_id, (0.0, 1e9))
        assert workers.isolated(reward) is reward
        waiting = workers.isolated(as_reward(bad_rewards.waits_forever))
        assert isinstance(waiting, AsyncReward)
        assert waiting.timeout_s == 3.0
        assert values_of(workers.isolated(reward), ["a"]) == [os.getpid()]
