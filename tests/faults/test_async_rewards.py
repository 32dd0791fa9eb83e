"""Rewards that are coroutine functions: their calls wait together, each with a deadline, here and in workers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests import bad_rewards
from tests.bad_rewards import BAD, FINE, samples_of

from covey.rewards.asynchronous import AsyncReward, awaited, reward_from_coroutine
from covey.rewards.base import Reward, as_reward, score_all
from covey.rewards.failures import error_kind
from covey.rewards.workers import RewardWorkers, WorkerSpec

Place = Callable[[AsyncReward], Reward]


@pytest.fixture(scope="module")
def workers() -> Iterator[RewardWorkers]:
    with RewardWorkers(WorkerSpec(num_workers=2, timeout_s=1.0)) as pool:
        yield pool


@pytest.fixture(params=["here", "in a worker"])
def place(request: pytest.FixtureRequest, workers: RewardWorkers) -> Place:
    """Where the calls are made: both with a deadline of a second."""
    return workers.isolated if request.param == "in a worker" else lambda reward: replace(reward, timeout_s=1.0)


def values_of(reward: Reward, completions: list[str]) -> list[float | None]:
    return [score.value for score in score_all(reward, samples_of(completions))]


def test_calls_wait_at_the_same_time(place: Place) -> None:
    reward = place(reward_from_coroutine(bad_rewards.waits_as_told_later))
    values_of(reward, ["0"])
    started = time.monotonic()
    assert values_of(reward, ["20"] * 30) == [0.2] * 30
    assert time.monotonic() - started < 3.0  # One after the other they take six.


@pytest.mark.parametrize("limit", [1, 4])
def test_no_more_calls_wait_than_the_limit_allows(place: Place, limit: int) -> None:
    reward = place(reward_from_coroutine(bad_rewards.counts_who_waits, high=100.0, limit=limit))
    assert max(value for value in values_of(reward, ["a"] * 12) if value is not None) == limit


@pytest.mark.parametrize("function", [bad_rewards.waits_forever, bad_rewards.refuses_to_stop])
def test_a_call_that_waits_forever_is_lost_alone(place: Place, function: Any) -> None:
    reward = place(reward_from_coroutine(function))
    started = time.monotonic()
    scores = score_all(reward, samples_of(["a", BAD, "b", BAD]))
    assert time.monotonic() - started < 3.0
    assert [score.value for score in scores] == [FINE, None, FINE, None]
    assert [error_kind(score) for score in scores] == [None, "timeout", None, "timeout"]
    assert f"in {function.__name__}" in str(scores[1].error)


def test_a_call_that_blocks_takes_along_only_what_was_under_way(place: Place) -> None:
    reward = place(replace(reward_from_coroutine(bad_rewards.coroutine(bad_rewards.BAD_REWARDS["sleeps"].act)), limit=2))
    scores = score_all(reward, samples_of(["a", "b", BAD, "c", "d", "e"]))
    kinds = [error_kind(score) for score in scores]
    assert kinds[2] == "timeout"
    assert kinds.count("timeout") <= 2
    assert set(kinds) == {None, "timeout"}


def test_the_loop_stays_from_batch_to_batch(place: Place) -> None:
    reward = place(reward_from_coroutine(bad_rewards.names_its_loop, high=1e9))
    assert len(set(values_of(reward, ["a"] * 3) + values_of(reward, ["a"] * 3))) == 1


def test_a_batch_is_scored_while_another_loop_runs_as_in_a_notebook() -> None:
    async def cell() -> list[float | None]:
        return values_of(as_reward(bad_rewards.waits_as_told_later), ["1", "2"])

    assert asyncio.run(cell()) == [0.01, 0.02]


def test_a_coroutine_function_gets_what_its_parameters_name() -> None:
    async def reward(completion: str, prompt: str, unit: str, scale: str = "linear") -> float:
        return float((completion, prompt, unit, scale) == ("21", "?", "km", "linear"))

    found = as_reward(reward, (-1.0, 2.0))
    assert (found.name, found.low, found.high, getattr(found, "columns", None)) == ("reward", -1.0, 2.0, ("unit",))
    assert found(samples_of(["21"], unit="km")[0]).value == 1.0


def test_an_object_with_a_coroutine_call_is_a_reward() -> None:
    class Judge:
        async def __call__(self, completion: str) -> float:
            return 1.0

    reward = as_reward(Judge())
    assert (reward.name, reward(samples_of(["a"])[0]).value) == ("Judge", 1.0)


def test_a_coroutine_function_written_for_trl_is_awaited(workers: RewardWorkers) -> None:
    async def reward(completions: list[str], **columns: Any) -> list[float]:
        await asyncio.sleep(0.01)
        return [float(text == "b") for text in completions]

    for made in (as_reward(reward), workers.isolated(as_reward(reward))):
        assert made.name == "reward"
        assert values_of(made, ["a", "b"]) == [0.0, 1.0]


def test_what_an_awaited_function_raises_is_raised() -> None:
    async def fails(completion: str) -> float:
        raise KeyboardInterrupt(completion)

    with pytest.raises(KeyboardInterrupt, match="here"):
        awaited(fails)("here")
    assert values_of(as_reward(bad_rewards.waits_as_told_later), ["1"]) == [0.01]  # The loop goes on.
