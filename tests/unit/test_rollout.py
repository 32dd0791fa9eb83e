"""Sampling a step's groups: which prompt a reward belongs to, what is kept and what is drawn again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from tests.builders import END, keeps, make_prompt, make_reward

from covey.engines.scripted import ScriptedEngine
from covey.models.policy import Policy
from covey.rewards.base import Rewarder, Sample, reward_from_function
from covey.rollout import RolloutSpec, SampledGroups, sample_groups, sample_step
from covey.sampling import Sampling, rollout_keys
from covey.types import Completion, Group, Prompt

GROUP_SIZE = 3
SAMPLING = Sampling(max_new_tokens=40)


class Answering(ScriptedEngine):
    """Answers "<last word of the question>/<sample>" and remembers the keys it was given."""

    def __init__(self, policy: Policy):
        def script(prompt_ids: list[int], sample: int) -> list[int]:
            question = policy.decode(prompt_ids).split("\n")[1]
            return [*f"{question.split()[-1]}/{sample}".encode(), END]

        super().__init__(script, stop_ids=frozenset({END}))
        self.keys: list[list[list[int]]] = []

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, *, group_size: int, keys: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        self.keys.append([list(group) for group in keys])
        return super().generate(prompts, sampling, group_size=group_size, keys=keys)


class Stream:
    """Hands out numbered prompts and counts them."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def __call__(self, count: int) -> list[Prompt]:
        start = sum(self.counts)
        self.counts.append(count)
        return [make_prompt(f"q{number}", f"Say {number}", answer=number) for number in range(start, start + count)]


def spec(*, prompts_per_step: int = 4, max_draws: int = 1, drop_flat_groups: bool = True) -> RolloutSpec:
    return RolloutSpec(
        sampling=SAMPLING,
        prompts_per_step=prompts_per_step,
        group_size=GROUP_SIZE,
        max_draws=max_draws,
        keeps=keeps(drop_flat_groups=drop_flat_groups),
        has_signal=keeps(),
        seed=5,
    )


def step_of(
    policy: Policy,
    score: Callable[[int, int], float | None],
    options: RolloutSpec,
    *,
    stream: Stream,
    engine: Answering | None = None,
) -> SampledGroups:
    """Sample a step in which `score` (number of the prompt, sample) is the reward."""

    def reward(completion: str) -> float | None:
        number, _, sample = completion.partition("/")
        return score(int(number), int(sample))

    rewarder = Rewarder(proxy=reward_from_function(reward, low=-1e6, high=1e6), gold=None)
    return sample_step(stream, options, step=2, policy=policy, engine=engine or Answering(policy), rewarder=rewarder)


def ids_of(groups: Sequence[Group]) -> list[str]:
    return [group.prompt.prompt_id for group in groups]


# --- which reward belongs to which prompt ------------------------------------------------------------------------------


def test_every_reward_belongs_to_its_prompt_and_sample(shared_tiny_policy: Policy):
    sampled = step_of(shared_tiny_policy, lambda number, sample: 100 * number + sample, spec(), stream=Stream())
    assert [group.scored_rewards for group in sampled.used] == [
        [100.0 * number + sample for sample in range(GROUP_SIZE)] for number in range(4)
    ]
    assert ids_of(sampled.used) == ["q0", "q1", "q2", "q3"]


def test_a_reward_sees_prompt_answer_and_completion_of_one_row(shared_tiny_policy: Policy):
    seen: list[Sample] = []

    def remember(sample: Sample) -> float:
        seen.append(sample)
        return 0.0

    prompts = Stream()(5)
    keys = [[0] * GROUP_SIZE] * 5
    rewarder = Rewarder(proxy=make_reward(remember), gold=None)
    engine = Answering(shared_tiny_policy)
    sample_groups(prompts, policy=shared_tiny_policy, engine=engine, rewarder=rewarder, sampling=SAMPLING, keys=keys)
    assert [(sample.prompt.answer, sample.completion) for sample in seen] == [
        (number, f"{number}/{sample}") for number in range(5) for sample in range(GROUP_SIZE)
    ]
    assert all(sample.num_tokens == len(sample.completion) + 1 and not sample.is_truncated for sample in seen)


def test_a_rollout_holds_the_tokens_of_its_prompt_and_completion(shared_tiny_policy: Policy):
    sampled = step_of(shared_tiny_policy, lambda number, sample: sample, spec(), stream=Stream())
    for group in sampled.used:
        for rollout in group.rollouts:
            assert rollout.prompt_ids == shared_tiny_policy.encode(group.prompt.messages)
            assert rollout.completion.token_ids == [*rollout.text.encode(), END]


def test_a_completion_that_hits_the_limit_is_truncated_for_its_reward(shared_tiny_policy: Policy):
    seen: list[bool] = []
    rewarder = Rewarder(proxy=make_reward(lambda sample: float(seen.append(sample.is_truncated) or 0)), gold=None)
    engine = ScriptedEngine(lambda prompt, sample: [65] * 9 + [END], stop_ids=frozenset({END}))
    sample_groups(
        Stream()(1),
        policy=shared_tiny_policy,
        engine=engine,
        rewarder=rewarder,
        sampling=Sampling(max_new_tokens=9),
        keys=[[0]],
    )
    assert seen == [True]


def test_proxy_and_gold_score_the_same_completion(shared_tiny_policy: Policy):
    rewarder = Rewarder(
        proxy=reward_from_function(lambda completion: int(completion[-1]) / 2),
        gold=reward_from_function(lambda completion: 1 - int(completion[-1]) / 2),
    )
    groups, _, _ = sample_groups(
        Stream()(2),
        policy=shared_tiny_policy,
        engine=Answering(shared_tiny_policy),
        rewarder=rewarder,
        sampling=SAMPLING,
        keys=[[0] * GROUP_SIZE] * 2,
    )
    for group in groups:
        assert [(rollout.reward.value, rollout.gold and rollout.gold.value) for rollout in group.rollouts] == [
            (0.0, 1.0),
            (0.5, 0.5),
            (1.0, 0.0),
        ]


def test_the_keys_are_named_by_seed_step_draw_and_prompt(shared_tiny_policy: Policy):
    engine = Answering(shared_tiny_policy)
    step_of(
        shared_tiny_policy,
        lambda number, sample: sample if number else 0,
        spec(prompts_per_step=2, max_draws=2),
        stream=Stream(),
        engine=engine,
    )

    def key(draw: int, prompt_id: str) -> list[int]:
        return rollout_keys(5, "rollout", step=2, draw=draw, prompt_id=prompt_id, group_size=GROUP_SIZE)

    assert engine.keys == [[key(0, "q0"), key(0, "q1")], [key(1, "q2")]]


# --- what is kept and what is drawn again ------------------------------------------------------------------------------


def odd_is_flat(number: int, sample: int) -> float:
    return 1.0 if number % 2 else sample


def test_flat_groups_are_dropped(shared_tiny_policy: Policy):
    sampled = step_of(shared_tiny_policy, odd_is_flat, spec(), stream=Stream())
    assert (ids_of(sampled.used), ids_of(sampled.dropped)) == (["q0", "q2"], ["q1", "q3"])


def test_flat_groups_are_kept_on_request(shared_tiny_policy: Policy):
    sampled = step_of(shared_tiny_policy, odd_is_flat, spec(drop_flat_groups=False), stream=Stream())
    assert (ids_of(sampled.used), sampled.dropped) == (["q0", "q1", "q2", "q3"], [])


@pytest.mark.parametrize("drop_flat_groups", [True, False])
def test_a_group_in_which_nothing_could_be_scored_is_always_dropped(shared_tiny_policy: Policy, drop_flat_groups: bool):
    sampled = step_of(
        shared_tiny_policy,
        lambda number, sample: None if number == 1 else sample,
        spec(drop_flat_groups=drop_flat_groups),
        stream=Stream(),
    )
    assert ids_of(sampled.dropped) == ["q1"]


def test_a_group_with_two_different_scores_is_kept_though_one_is_missing(shared_tiny_policy: Policy):
    sampled = step_of(shared_tiny_policy, lambda number, sample: None if sample == 1 else sample, spec(), stream=Stream())
    assert len(sampled.used) == 4
    assert sampled.used[0].scored_rewards == [0.0, 2.0]


def test_one_draw_asks_for_prompts_once(shared_tiny_policy: Policy):
    stream = Stream()
    step_of(shared_tiny_policy, odd_is_flat, spec(), stream=stream)
    assert stream.counts == [4]


def test_later_draws_ask_for_as_many_prompts_as_are_missing(shared_tiny_policy: Policy):
    stream = Stream()
    sampled = step_of(shared_tiny_policy, odd_is_flat, spec(max_draws=5), stream=stream)
    assert stream.counts == [4, 2, 1]
    assert ids_of(sampled.used) == ["q0", "q2", "q4", "q6"]
    assert ids_of(sampled.dropped) == ["q1", "q3", "q5"]
    assert sampled.draws == [0, 0, 1, 2, 0, 0, 1]


def test_no_further_draw_is_made_when_no_group_is_missing(shared_tiny_policy: Policy):
    stream = Stream()
    sampled = step_of(shared_tiny_policy, lambda number, sample: sample, spec(max_draws=5), stream=stream)
    assert (stream.counts, sampled.dropped) == ([4], [])


def test_draws_end_at_their_limit(shared_tiny_policy: Policy):
    stream = Stream()
    sampled = step_of(shared_tiny_policy, lambda number, sample: 1.0, spec(max_draws=3), stream=stream)
    assert stream.counts == [4, 4, 4]
    assert (sampled.used, len(sampled.dropped)) == ([], 12)


def test_sampling_and_scoring_are_timed_over_all_draws(shared_tiny_policy: Policy):
    sampled = step_of(shared_tiny_policy, odd_is_flat, spec(max_draws=2), stream=Stream())
    assert 0 < sampled.rollout_s < 5
    assert 0 < sampled.reward_s < 5
