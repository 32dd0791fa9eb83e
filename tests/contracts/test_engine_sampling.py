"""What every engine must do with filters, penalties and stop strings. A new engine is one row of `tests.engines.ENGINES`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from tests.engines import MakeEngine, every_engine, every_sampler, fill_embedding, flat
from tests.generation import PROMPTS, SAMPLING, STOP_IDS, generate, tokens_of, trainer_differences, trainer_gap
from tests.processors import SHAPES, processed
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from covey.models.policy import Policy
from covey.sampling import Sampling
from covey.types import Completion

every_shape = pytest.mark.parametrize("sampling", SHAPES.values(), ids=SHAPES.keys())


def wordy_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are several characters long: "[0]" to "[263]"."""
    tokenizer = Tokenizer(models.WordLevel({f"[{token}]": token for token in range(264)}, unk_token="[0]"))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def cut_at(stop: Sequence[str], completion: Completion, policy: Policy) -> Completion:
    """Slow transcription: the same completion, ended by the first token after which its text holds a stop string."""
    for count in range(1, len(completion.token_ids) + 1):
        if any(text in policy.decode(completion.token_ids[:count]) for text in stop):
            return dataclasses.replace(
                completion,
                token_ids=completion.token_ids[:count],
                logprobs=completion.logprobs[:count],
                finish_reason="stop",
            )
    return completion


def ascii_pair(completions: Sequence[Completion]) -> str:
    """Return two neighbouring tokens that are plain characters, as text."""
    pairs = (bytes(ids[i : i + 2]) for ids in (item.token_ids for item in completions) for i in range(len(ids) - 2))
    return next(pair.decode() for pair in pairs if pair.isascii())


@every_engine
def test_a_completion_ends_with_the_token_that_completes_a_stop_string(make_engine: MakeEngine, shared_policy: Policy):
    whole = flat(generate(make_engine(shared_policy), PROMPTS))
    stop = (ascii_pair(whole), "not in any text")
    stopped = flat(generate(make_engine(shared_policy), PROMPTS, sampling=dataclasses.replace(SAMPLING, stop=stop)))
    expected = [cut_at(stop, completion, shared_policy) for completion in whole]
    for mine, cut in zip(stopped, expected, strict=True):
        assert (mine.token_ids, mine.finish_reason) == (cut.token_ids, cut.finish_reason)
        assert mine.logprobs == pytest.approx(cut.logprobs, abs=1e-5)
    assert any(len(cut.token_ids) < len(completion.token_ids) for cut, completion in zip(expected, whole, strict=True))


@every_engine
def test_a_stop_string_inside_a_token_keeps_the_whole_token(make_engine: MakeEngine, shared_policy: Policy):
    policy = dataclasses.replace(shared_policy, tokenizer=wordy_tokenizer())
    whole = flat(generate(make_engine(policy), PROMPTS))
    stop = (str(whole[-1].token_ids[1])[1:],)  # the last digits of a token's number, which is its text
    stopped = flat(generate(make_engine(policy), PROMPTS, sampling=dataclasses.replace(SAMPLING, stop=stop)))
    expected = [cut_at(stop, completion, policy) for completion in whole]
    assert [item.token_ids for item in stopped] == [item.token_ids for item in expected]
    assert [item.finish_reason for item in stopped] == [item.finish_reason for item in expected]
    assert len(expected[-1].token_ids) <= 2


@every_sampler
@every_shape
@pytest.mark.parametrize("max_shared_tokens", [0, 4096])
def test_logprobs_of_a_shaped_distribution_are_those_of_the_trainer(
    make_engine: MakeEngine, shared_policy: Policy, sampling: Sampling, max_shared_tokens: int
):
    sampling = dataclasses.replace(sampling, max_new_tokens=SAMPLING.max_new_tokens)
    completions = generate(make_engine(shared_policy), PROMPTS, sampling=sampling)
    gap = trainer_gap(shared_policy, PROMPTS, completions, sampling=sampling, max_shared_tokens=max_shared_tokens)
    assert gap < 1e-4
    # Else the trainer might as well not know of it.
    assert trainer_gap(shared_policy, PROMPTS, completions, sampling=Sampling(temperature=sampling.temperature)) > 0.1


@every_sampler
@every_shape
@torch.no_grad()
def test_every_token_lies_in_the_distribution_that_transformers_would_sample_from(
    make_engine: MakeEngine, shared_policy: Policy, sampling: Sampling
):
    sampling = dataclasses.replace(sampling, max_new_tokens=SAMPLING.max_new_tokens)
    num_removed = 0
    for prompt, group in zip(PROMPTS, generate(make_engine(shared_policy), PROMPTS, sampling=sampling), strict=True):
        for ids in (completion.token_ids for completion in group):
            logits = shared_policy.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
            for position, token in enumerate(ids):
                shaped = processed(logits[position], prompt + ids[:position], sampling)
                num_removed += int(shaped.isneginf().sum())
                assert bool(shaped[token].isfinite())
    assert (num_removed > 0) == sampling.is_filtered


@every_sampler
@pytest.mark.parametrize("sampling", [Sampling(temperature=0.7), SHAPES["all"]], ids=["temperature", "all"])
def test_the_mean_ratio_of_trainer_to_engine_is_1(make_engine: MakeEngine, shared_policy: Policy, sampling: Sampling):
    completions = generate(make_engine(shared_policy), PROMPTS, sampling=sampling, group_size=8)
    ratios = trainer_differences(shared_policy, PROMPTS, completions, sampling=sampling).exp()
    assert float(ratios.mean()) == pytest.approx(1.0, abs=1e-4)


@every_sampler
def test_greedy_with_a_penalty_is_the_arg_max_of_penalised_logits(make_engine: MakeEngine, shared_policy: Policy):
    sampling = Sampling(temperature=0.0, repetition_penalty=1.5, max_new_tokens=SAMPLING.max_new_tokens)
    groups = generate(make_engine(shared_policy), PROMPTS, sampling=sampling, group_size=1)
    plain = generate(make_engine(shared_policy), PROMPTS, sampling=dataclasses.replace(SAMPLING, temperature=0.0), group_size=1)
    assert trainer_gap(shared_policy, PROMPTS, groups, sampling=sampling) < 1e-4
    assert tokens_of(groups) != tokens_of(plain)
    at_1 = dataclasses.replace(sampling, temperature=1.0)
    for prompt, [completion] in zip(PROMPTS, groups, strict=True):
        ids = completion.token_ids
        with torch.no_grad():
            logits = shared_policy.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        expected = [int(processed(row, prompt + ids[:position], at_1).argmax()) for position, row in enumerate(logits)]
        assert ids == expected


@every_sampler
def test_sixty_four_completions_of_a_uniform_policy_are_as_often_alike_as_chance_says(make_engine: MakeEngine, policy: Policy):
    fill_embedding(policy, 0.0)  # tied: every logit is 0, and top-k keeps all of them
    sampling = Sampling(top_k=3, top_p=0.999, max_new_tokens=2)
    [group] = generate(make_engine(policy), PROMPTS[:1], sampling=sampling, group_size=64)
    # 28 of 264 first tokens end a completion: 28 short ones and 236 * 264 long ones, which never meet again in 64 draws.
    num_short = len(STOP_IDS)
    share = num_short / 264
    expected = num_short * (1 - (1 - 1 / 264) ** 64) + 64 * (1 - share)
    assert len({tuple(completion.token_ids) for completion in group}) == pytest.approx(expected, abs=3)
