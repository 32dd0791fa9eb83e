"""What the transformers engine does beyond the contract: cut batches, progress, its model's end, left padding."""

from __future__ import annotations

import dataclasses
import gc

import pytest
import torch
from tests.generation import PROMPTS, SAMPLING, generate, keys_of, tokens_of, trainer_gap
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from covey.engines.transformers import TransformersEngine
from covey.models.policy import Policy


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
    assert trainer_gap(absolute_policy, PROMPTS, completions) < 1e-4
