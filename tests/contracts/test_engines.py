"""What every engine must do. A new engine is one row of `tests.engines.ENGINES`."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch
from tests.builders import shake
from tests.engines import MakeEngine, every_engine, every_sampler, fill_embedding, flat
from tests.generation import GROUP_SIZE, PROMPTS, SAMPLING, STOP_IDS, generate, keys_of, tokens_of, trainer_gap

from covey.models.policy import Policy
from covey.types import CoveyError

# --- every engine -----------------------------------------------------------------------------------------------------


@every_engine
def test_every_prompt_gets_its_group(make_engine: MakeEngine, shared_policy: Policy):
    groups = generate(make_engine(shared_policy), PROMPTS)
    assert [len(group) for group in groups] == [GROUP_SIZE] * len(PROMPTS)


@every_engine
def test_groups_come_back_in_the_order_of_their_prompts(make_engine: MakeEngine, shared_policy: Policy):
    engine, keys = make_engine(shared_policy), keys_of(len(PROMPTS), GROUP_SIZE)
    forward = engine.generate(PROMPTS, SAMPLING, group_size=GROUP_SIZE, keys=keys)
    backward = engine.generate(PROMPTS[::-1], SAMPLING, group_size=GROUP_SIZE, keys=keys[::-1])
    assert tokens_of(forward) == tokens_of(backward)[::-1]
    assert len({str(group) for group in tokens_of(forward)}) == len(PROMPTS)


@every_engine
def test_there_is_one_logprob_for_each_token(make_engine: MakeEngine, shared_policy: Policy):
    completions = flat(generate(make_engine(shared_policy), PROMPTS))
    assert [len(completion.token_ids) for completion in completions] == [len(completion.logprobs) for completion in completions]
    assert all(completion.token_ids for completion in completions)


@every_engine
def test_a_completion_stops_at_its_first_end_token_and_holds_it(make_engine: MakeEngine, shared_policy: Policy):
    stopped = [
        completion.token_ids
        for completion in flat(generate(make_engine(shared_policy), PROMPTS))
        if completion.finish_reason == "stop"
    ]
    assert stopped
    assert all(ids[-1] in STOP_IDS and STOP_IDS.isdisjoint(ids[:-1]) for ids in stopped)


@every_engine
def test_a_completion_without_end_token_is_as_long_as_allowed(make_engine: MakeEngine, shared_policy: Policy):
    unfinished = [
        completion.token_ids
        for completion in flat(generate(make_engine(shared_policy), PROMPTS))
        if completion.finish_reason == "length"
    ]
    assert unfinished
    assert all(len(ids) == SAMPLING.max_new_tokens and STOP_IDS.isdisjoint(ids) for ids in unfinished)


@every_engine
def test_every_end_token_ends_a_completion(make_engine: MakeEngine, shared_policy: Policy):
    completions = flat(generate(make_engine(shared_policy), PROMPTS * 4))
    ends = {completion.token_ids[-1] for completion in completions if completion.finish_reason == "stop"}
    assert len(ends) > 3


@every_engine
@pytest.mark.parametrize("limit", [1, 2, 7])
def test_no_completion_is_longer_than_allowed(make_engine: MakeEngine, shared_policy: Policy, limit: int):
    sampling = dataclasses.replace(SAMPLING, max_new_tokens=limit)
    lengths = [
        len(completion.token_ids) for completion in flat(generate(make_engine(shared_policy), PROMPTS, sampling=sampling))
    ]
    assert max(lengths) == limit


@every_engine
def test_a_completion_carries_the_version_that_was_loaded_last(make_engine: MakeEngine, shared_policy: Policy):
    engine = make_engine(shared_policy)
    seen: list[set[int]] = []
    for version in (7, 8):
        engine.load_weights(shared_policy, version)
        seen.append({completion.policy_version for completion in flat(generate(engine, PROMPTS))})
    assert seen == [{7}, {8}]


@every_engine
def test_what_is_served_after_a_load_is_what_the_policy_has(make_engine: MakeEngine, policy: Policy):
    engine = make_engine(policy)
    shake(policy, scale=0.01)
    engine.load_weights(policy, 1)
    assert engine.served_digest() == engine.expected_digest(policy)


@every_engine
def test_changed_weights_are_not_served_before_they_are_loaded(make_engine: MakeEngine, policy: Policy):
    engine = make_engine(policy)
    engine.load_weights(policy, 1)
    before = engine.served_digest()
    shake(policy, scale=0.01)
    assert engine.served_digest() == before != engine.expected_digest(policy)


@every_engine
def test_closing_leaves_the_policy_usable(make_engine: MakeEngine, shared_policy: Policy):
    make_engine(shared_policy).close()
    assert shared_policy.model(torch.tensor([[1]])).logits.shape[-1] == 264


# --- engines that sample from the weights ------------------------------------------------------------------------------


@every_sampler
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_trainer(make_engine: MakeEngine, shared_policy: Policy, temperature: float):
    sampling = dataclasses.replace(SAMPLING, temperature=temperature)
    completions = generate(make_engine(shared_policy), PROMPTS, sampling=sampling)
    assert trainer_gap(shared_policy, PROMPTS, completions, sampling=sampling) < 1e-4


@every_sampler
def test_logprobs_of_greedy_completions_are_those_at_temperature_1(make_engine: MakeEngine, shared_policy: Policy):
    completions = generate(make_engine(shared_policy), PROMPTS, sampling=dataclasses.replace(SAMPLING, temperature=0.0))
    assert trainer_gap(shared_policy, PROMPTS, completions) < 1e-4


@every_sampler
def test_a_greedy_token_is_the_likeliest_of_a_full_forward_pass(make_engine: MakeEngine, shared_policy: Policy):
    groups = generate(
        make_engine(shared_policy), PROMPTS, sampling=dataclasses.replace(SAMPLING, temperature=0.0), group_size=1
    )
    for prompt, [completion] in zip(PROMPTS, groups, strict=True):
        logits = shared_policy.model(torch.tensor([prompt + completion.token_ids])).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(dim=-1).tolist() == completion.token_ids


@every_sampler
def test_a_large_change_of_weights_is_served_after_a_load(make_engine: MakeEngine, policy: Policy):
    engine = make_engine(policy)
    before = generate(engine, PROMPTS)
    shake(policy, scale=0.3)
    engine.load_weights(policy, 1)
    after = generate(engine, PROMPTS)
    assert tokens_of(after) != tokens_of(before)
    assert trainer_gap(policy, PROMPTS, after) < 1e-4


@every_sampler
def test_the_engine_holds_its_own_weights_until_the_next_load(make_engine: MakeEngine, policy: Policy):
    engine = make_engine(policy)
    before = generate(engine, PROMPTS)
    shake(policy, scale=0.3)
    assert generate(engine, PROMPTS) == before


@every_sampler
def test_the_same_keys_draw_the_same_tokens(make_engine: MakeEngine, shared_policy: Policy):
    assert generate(make_engine(shared_policy), PROMPTS) == generate(make_engine(shared_policy), PROMPTS)


@every_sampler
def test_other_keys_draw_other_tokens(make_engine: MakeEngine, shared_policy: Policy):
    engine = make_engine(shared_policy)
    ours, theirs = tokens_of(generate(engine, PROMPTS)), tokens_of(generate(engine, PROMPTS, name="other"))
    assert all(mine != other for mine, other in zip(ours, theirs, strict=True))


@every_sampler
def test_the_completions_of_a_group_differ(make_engine: MakeEngine, shared_policy: Policy):
    for group in tokens_of(generate(make_engine(shared_policy), PROMPTS)):
        assert len({tuple(ids) for ids in group}) == GROUP_SIZE


@every_sampler
def test_tokens_do_not_depend_on_what_else_is_in_the_batch(make_engine: MakeEngine, shared_policy: Policy):
    engine, keys = make_engine(shared_policy), keys_of(len(PROMPTS), GROUP_SIZE)
    together = engine.generate(PROMPTS, SAMPLING, group_size=GROUP_SIZE, keys=keys)
    for prompt, group_keys, expected in zip(PROMPTS, keys, together, strict=True):
        [alone] = engine.generate([prompt], SAMPLING, group_size=GROUP_SIZE, keys=[group_keys])
        assert tokens_of([alone]) == tokens_of([expected])
        for mine, theirs in zip(alone, expected, strict=True):
            assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)


@every_sampler
def test_a_shared_prompt_gives_the_tokens_of_groups_of_one(make_engine: MakeEngine, shared_policy: Policy):
    engine, [keys] = make_engine(shared_policy), keys_of(1, GROUP_SIZE)
    [shared] = engine.generate(PROMPTS[:1], SAMPLING, group_size=GROUP_SIZE, keys=[keys])
    single = engine.generate(PROMPTS[:1] * GROUP_SIZE, SAMPLING, group_size=1, keys=[[key] for key in keys])
    assert [completion.token_ids for completion in shared] == [group[0].token_ids for group in single]


@every_sampler
def test_sixty_four_draws_of_a_uniform_policy_repeat_as_often_as_chance_says(make_engine: MakeEngine, policy: Policy):
    fill_embedding(policy, 0.0)  # tied: every logit is 0
    [group] = generate(
        make_engine(policy), PROMPTS[:1], sampling=dataclasses.replace(SAMPLING, max_new_tokens=1), group_size=64
    )
    expected = 264 * (1 - (263 / 264) ** 64)  # 56.9, with a standard deviation of 2.3
    assert len({completion.token_ids[0] for completion in group}) == pytest.approx(expected, abs=7)


@every_sampler
def test_sampling_leaves_the_global_random_states_alone(make_engine: MakeEngine, shared_policy: Policy):
    engine = make_engine(shared_policy)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()
    generate(engine, PROMPTS)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state(legacy=False)["state"]["key"].tolist() == before[2]


@every_sampler
def test_a_diverged_policy_is_refused(make_engine: MakeEngine, policy: Policy):
    fill_embedding(policy, float("nan"))
    with pytest.raises(CoveyError, match="not finite"):
        generate(make_engine(policy), PROMPTS)
