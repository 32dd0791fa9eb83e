"""What every engine must do. A new engine is one row of ENGINES."""

from __future__ import annotations

import dataclasses
import gc
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from tests.builders import END, make_prompt, shake
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from covey.batch import make_tokens
from covey.engines.base import Engine
from covey.engines.scripted import ScriptedEngine
from covey.engines.transformers import TransformersEngine, draw_tokens
from covey.models.policy import Policy
from covey.models.scoring import plan_packs, score_completions
from covey.sampling import Sampling, stream_key, uniform
from covey.types import Completion, CoveyError, Group, Rollout, Score

# Several end ids, and so many that completions of all lengths end by themselves.
STOP_IDS = frozenset({END, *range(3, 256, 9)})
PROMPTS = [list(b"17 + 4?"), list(b"x"), list(b"What is the sum of 2 and 2?")]
GROUP_SIZE = 4
SAMPLING = Sampling(temperature=1.0, max_new_tokens=12)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    make: Callable[[Policy], Engine]
    samples: bool
    """Whether its tokens come from the policy's weights."""


def scripted(policy: Policy) -> ScriptedEngine:
    """Answer with tokens that depend on prompt and sample, some ending by themselves and some not."""
    ends = sorted(policy.stop_ids)
    inner = next(token for token in range(256) if token not in policy.stop_ids)

    def script(prompt: list[int], sample: int) -> list[int]:
        return [inner] * (1 + 5 * sample) + [ends[(len(prompt) + sample) % len(ends)]]

    return ScriptedEngine(script, stop_ids=policy.stop_ids)


ENGINES = {
    "transformers": Row(make=TransformersEngine, samples=True),
    "scripted": Row(make=scripted, samples=False),
}
every_engine = pytest.mark.parametrize("make_engine", [pytest.param(row.make, id=name) for name, row in ENGINES.items()])
every_sampler = pytest.mark.parametrize(
    "make_engine", [pytest.param(row.make, id=name) for name, row in ENGINES.items() if row.samples]
)
MakeEngine = Callable[[Policy], Engine]


@pytest.fixture(scope="module")
def shared_policy(shared_tiny_policy: Policy) -> Policy:
    """For tests that do not change it."""
    return dataclasses.replace(shared_tiny_policy, stop_ids=STOP_IDS)


@pytest.fixture
def policy(tiny_policy: Policy) -> Policy:
    """A test's own."""
    return dataclasses.replace(tiny_policy, stop_ids=STOP_IDS)


def keys_of(num_prompts: int, group_size: int, *, name: str = "test") -> list[list[int]]:
    return [[stream_key(0, name, prompt, sample) for sample in range(group_size)] for prompt in range(num_prompts)]


def generate(
    engine: Engine,
    prompts: Sequence[list[int]],
    *,
    sampling: Sampling = SAMPLING,
    group_size: int = GROUP_SIZE,
    name: str = "test",
) -> list[list[Completion]]:
    return engine.generate(prompts, sampling, group_size=group_size, keys=keys_of(len(prompts), group_size, name=name))


def tokens_of(groups: Sequence[Sequence[Completion]]) -> list[list[list[int]]]:
    return [[completion.token_ids for completion in group] for group in groups]


def flat(groups: Sequence[Sequence[Completion]]) -> list[Completion]:
    return [completion for group in groups for completion in group]


def fill_embedding(policy: Policy, value: float) -> None:
    embedding: Any = policy.model.get_input_embeddings()
    with torch.no_grad():
        embedding.weight.fill_(value)


def as_groups(prompts: Sequence[list[int]], completions: Sequence[Sequence[Completion]]) -> list[Group]:
    return [
        Group(
            prompt=make_prompt(str(index)),
            rollouts=tuple(
                Rollout(prompt_ids=ids, completion=completion, text="", reward=Score(value=0.0), gold=None)
                for completion in group
            ),
        )
        for index, (ids, group) in enumerate(zip(prompts, completions, strict=True))
    ]


def trainer_gap(
    policy: Policy, prompts: Sequence[list[int]], completions: Sequence[Sequence[Completion]], temperature: float
) -> float:
    """Return the largest distance between the engine's log-probs and the trainer's, each row scored by itself."""
    tokens = make_tokens(as_groups(prompts, completions))
    packs = plan_packs(tokens, range(len(tokens.completion_ids)), max_shared_tokens=0)
    with torch.no_grad():
        scores = score_completions(policy.model, tokens, packs, temperature=temperature, compute_dtype=torch.float32)
    assert tokens.sampling_logprobs is not None
    return float((scores.logprobs - tokens.sampling_logprobs)[tokens.completion_mask].abs().max())


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
    assert trainer_gap(shared_policy, PROMPTS, completions, temperature) < 1e-4


@every_sampler
def test_logprobs_of_greedy_completions_are_those_at_temperature_1(make_engine: MakeEngine, shared_policy: Policy):
    completions = generate(make_engine(shared_policy), PROMPTS, sampling=dataclasses.replace(SAMPLING, temperature=0.0))
    assert trainer_gap(shared_policy, PROMPTS, completions, 1.0) < 1e-4


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
    assert trainer_gap(policy, PROMPTS, after, 1.0) < 1e-4


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


# --- the transformers engine -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_batch_tokens", [1, 400])
def test_cutting_the_batch_changes_no_token(shared_policy: Policy, max_batch_tokens: int):
    whole = generate(TransformersEngine(shared_policy), PROMPTS)
    cut = generate(TransformersEngine(shared_policy, max_batch_tokens=max_batch_tokens), PROMPTS)
    assert tokens_of(cut) == tokens_of(whole)


@pytest.mark.parametrize("max_batch_tokens", [1, 65536])
def test_progress_rises_to_the_last_part_of_a_known_total(shared_policy: Policy, max_batch_tokens: int):
    seen: list[tuple[int, int]] = []
    engine = TransformersEngine(
        shared_policy, max_batch_tokens=max_batch_tokens, progress=lambda done, total: seen.append((done, total))
    )
    generate(engine, PROMPTS)
    num_chunks = len(PROMPTS) if max_batch_tokens == 1 else 1
    done = [item for item, _ in seen]
    assert {total for _, total in seen} == {num_chunks * SAMPLING.max_new_tokens}
    assert done == sorted(set(done))
    assert (num_chunks - 1) * SAMPLING.max_new_tokens < done[-1] <= num_chunks * SAMPLING.max_new_tokens


def test_a_closed_engine_holds_no_model(policy: Policy):
    def num_models() -> int:
        gc.collect()
        return sum(type(item) is LlamaForCausalLM for item in gc.get_objects())

    before = num_models()
    engine = TransformersEngine(policy)
    assert num_models() == before + 1
    engine.close()
    assert num_models() == before


@pytest.fixture(scope="module")
def absolute_policy(shared_policy: Policy) -> Policy:
    """A model that learned where each position lies: left padding without position ids would shift it."""
    config = GPT2Config(vocab_size=264, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config).eval()
    return dataclasses.replace(shared_policy, model=model)


def test_left_padding_does_not_move_learned_positions(absolute_policy: Policy):
    engine = TransformersEngine(absolute_policy)
    prompts = [[40 + length] * length for length in range(1, 19)]
    together = generate(engine, prompts, group_size=1)
    for index, (prompt, [padded]) in enumerate(zip(prompts, together, strict=True)):
        [[alone]] = engine.generate([prompt], SAMPLING, group_size=1, keys=[keys_of(len(prompts), 1)[index]])
        assert padded.token_ids == alone.token_ids
        assert padded.logprobs == pytest.approx(alone.logprobs, abs=1e-5)


def test_padded_logprobs_of_learned_positions_are_those_of_the_trainer(absolute_policy: Policy):
    completions = generate(TransformersEngine(absolute_policy), PROMPTS)
    assert trainer_gap(absolute_policy, PROMPTS, completions, 1.0) < 1e-4


# --- drawing -----------------------------------------------------------------------------------------------------------

ALMOST_1 = 1 - 2.0**-53


def draw(logits: Tensor, *numbers: float, temperature: float = 1.0) -> list[int]:
    repeated = logits.expand(len(numbers), -1)
    tokens, _ = draw_tokens(repeated, torch.tensor(numbers, dtype=torch.float64), Sampling(temperature=temperature))
    return tokens.tolist()


def inverse_cdf(probabilities: Sequence[float], number: float) -> int:
    """Slow transcription: the first token whose cumulative probability exceeds the number."""
    total = 0.0
    for token, probability in enumerate(probabilities):
        total += probability
        if total > number:
            return token
    raise AssertionError("the probabilities do not add up")


def test_tokens_follow_the_inverse_cdf_table():
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    numbers = (0.0, 0.4999, 0.5001, 0.7499, 0.7501, 0.8749, 0.8751, ALMOST_1)
    assert draw(logits, *numbers) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_number_on_the_edge_belongs_to_the_next_token():
    assert draw(torch.zeros(4), 0.0, 0.25, 0.5, 0.75) == [0, 1, 2, 3]


def test_random_rows_agree_with_a_slow_inverse_cdf():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(50, 17, generator=generator)
    numbers = [uniform(1, row) for row in range(50)]
    tokens, logprobs = draw_tokens(logits, torch.tensor(numbers, dtype=torch.float64), Sampling(temperature=0.7))
    probabilities = (logits.double() / 0.7).softmax(dim=-1).tolist()
    expected = [inverse_cdf(row, number) for row, number in zip(probabilities, numbers, strict=True)]
    assert tokens.tolist() == expected
    assert logprobs.exp().tolist() == pytest.approx(
        [row[token] for row, token in zip(probabilities, expected, strict=True)], rel=1e-5
    )


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_have_the_frequencies_of_the_softmax(temperature: float):
    num_draws = 20_000
    logits = torch.tensor([1.0, -1.0, 0.0, 2.0, 0.5, -2.0])
    numbers = [uniform(stream_key(0, "chi-square", row), 0) for row in range(num_draws)]
    counts = np.bincount(draw(logits, *numbers, temperature=temperature), minlength=6)
    expected = num_draws * (logits.double() / temperature).softmax(dim=-1).numpy()
    assert scipy.stats.chisquare(counts, expected).pvalue > 0.01


@pytest.mark.parametrize("vocab_size", [1, 2, 264, 49_152])
@pytest.mark.parametrize("seed", range(3))
def test_the_largest_number_stays_inside_the_vocabulary(vocab_size: int, seed: int):
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed))
    assert 0 <= draw(logits, ALMOST_1)[0] < vocab_size


def test_a_token_without_probability_is_never_drawn():
    impossible = float("-inf")
    logits = torch.tensor([impossible, 0.0, impossible, 0.0, impossible])
    assert draw(logits, 0.0, 0.4999, 0.5, ALMOST_1) == [1, 1, 3, 3]


def test_each_token_of_a_thin_tail_can_be_drawn():
    # Behind a likely token, float32 sums step by 6e-8 and would pass over five of six tokens of probability 1e-8.
    logits = torch.full((100_000,), float(np.log(1e-8)))
    logits[0] = 0.0
    wanted = [1, 2, 3, 500, 501, 502]
    numbers = [(1 + (token - 0.5) * 1e-8) / (1 + 99_999 * 1e-8) for token in wanted]
    assert draw(logits, *numbers) == wanted


def test_greedy_is_the_arg_max_whatever_the_number():
    logits = torch.tensor([0.1, 0.7, 0.7001, -5.0])
    assert draw(logits, 0.0, 0.5, ALMOST_1, temperature=0.0) == [2, 2, 2]


def test_the_logprob_is_of_the_tempered_distribution():
    logits = torch.tensor([[2.0, 0.0]])
    _, logprobs = draw_tokens(logits, torch.tensor([0.0], dtype=torch.float64), Sampling(temperature=0.5))
    assert float(logprobs[0]) == pytest.approx(-np.log1p(np.exp(-4.0)), abs=1e-6)
