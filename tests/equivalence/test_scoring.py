"""Scoring in packs, padded, chunked and cut, against each completion alone with its full logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.processors import SHAPES
from tests.tiny_batches import (
    COMPLETION_LENGTHS,
    CUTS,
    TEMPERATURE,
    Cut,
    make_learner,
    objective_of,
    ragged_groups,
    slow_entropy,
    slow_logprobs,
)
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from covey.batch import make_tokens
from covey.models.policy import Policy, load_policy
from covey.models.scoring import CompletionScores, Pack, plan_micro_batches, plan_packs, score_completions
from covey.models.tiny import write_tiny_model
from covey.sampling import Sampling
from covey.tensors import Tokens
from covey.types import Group

OBJECTIVE = objective_of("grpo")
PLAIN = Sampling(temperature=TEMPERATURE)
ALL_SCORED = [[0.0] * 5] * 3

every_distribution = pytest.mark.parametrize("sampling", [PLAIN, SHAPES["all"]], ids=["plain", "all"])
# How many tokens of a group share one copy of the prompt: none, some (the group is cut), all.
every_sharing = pytest.mark.parametrize("max_shared_tokens", [0, 64, 4096])


def score(
    model: PreTrainedModel,
    tokens: Tokens,
    packs: list[Pack],
    *,
    sampling: Sampling = PLAIN,
    dtype: torch.dtype = torch.float32,
    chunk_tokens: int = 512,
) -> CompletionScores:
    return score_completions(model, tokens, packs, sampling=sampling, compute_dtype=dtype, chunk_tokens=chunk_tokens)


def packs_of(tokens: Tokens, max_shared_tokens: int) -> list[Pack]:
    scored = tokens.completion_mask.any(dim=1).nonzero()[:, 0].tolist()
    return plan_packs(tokens, scored, max_shared_tokens=max_shared_tokens)


def rows_of(packs: list[Pack]) -> list[int]:
    return [row for pack in packs for row in pack.rows]


def masked_slow_logprobs(model: PreTrainedModel, groups: list[Group]) -> torch.Tensor:
    return slow_logprobs(model, groups) * make_tokens(groups).completion_mask


@every_sharing
@pytest.mark.parametrize("chunk_tokens", [1, 7, 512])
@torch.no_grad()
def test_log_probs_are_those_of_each_completion_alone(shared_tiny_policy64: Policy, max_shared_tokens: int, chunk_tokens: int):
    model, groups = shared_tiny_policy64.model, ragged_groups()
    tokens = make_tokens(groups)
    packs = packs_of(tokens, max_shared_tokens)
    found = score(model, tokens, packs, chunk_tokens=chunk_tokens).logprobs
    torch.testing.assert_close(found, masked_slow_logprobs(model, groups)[rows_of(packs)], atol=1e-10, rtol=0)


@every_sharing
@torch.no_grad()
def test_entropies_are_those_of_each_completion_alone(shared_tiny_policy64: Policy, max_shared_tokens: int):
    model, groups = shared_tiny_policy64.model, ragged_groups()
    tokens = make_tokens(groups)
    packs = packs_of(tokens, max_shared_tokens)
    found, expected = score(model, tokens, packs).entropy, slow_entropy(model, groups)
    for row, entropy in zip(rows_of(packs), found, strict=True):
        torch.testing.assert_close(entropy[: len(expected[row])], expected[row], atol=1e-10, rtol=0)


@every_sharing
@torch.no_grad()
def test_in_float32_they_agree_to_float32_precision(shared_tiny_policy: Policy, max_shared_tokens: int):
    model, groups = shared_tiny_policy.model, ragged_groups()
    tokens = make_tokens(groups)
    packs = packs_of(tokens, max_shared_tokens)
    expected = masked_slow_logprobs(model, groups)[rows_of(packs)]
    torch.testing.assert_close(score(model, tokens, packs).logprobs, expected, atol=1e-5, rtol=0)


@every_sharing
@torch.no_grad()
def test_scores_are_zero_outside_the_mask(shared_tiny_policy: Policy, max_shared_tokens: int):
    tokens = make_tokens(ragged_groups())
    packs = packs_of(tokens, max_shared_tokens)
    scores = score(shared_tiny_policy.model, tokens, packs)
    outside = ~tokens.completion_mask[rows_of(packs)]
    assert not scores.logprobs[outside].any()
    assert not scores.entropy[outside].any()


@pytest.mark.parametrize(
    "lengths",
    [[[1, 1], [1, 1]], [[6, 6], [6, 6]], [[1, 6], [6, 1]], [[2, 1], [1, 2]]],
    ids=["all 1", "all T", "1 and T", "1 and 2"],
)
@every_sharing
@torch.no_grad()
def test_completions_of_the_shortest_and_of_the_greatest_length_are_scored(
    shared_tiny_policy64: Policy, lengths: list[list[int]], max_shared_tokens: int
):
    groups = ragged_groups([[0.0] * 2] * 2, prompt_lengths=(1, 9), completion_lengths=lengths)
    tokens = make_tokens(groups)
    packs = packs_of(tokens, max_shared_tokens)
    expected = slow_logprobs(shared_tiny_policy64.model, groups)[rows_of(packs)]
    torch.testing.assert_close(score(shared_tiny_policy64.model, tokens, packs).logprobs, expected, atol=1e-10, rtol=0)


@every_sharing
@torch.no_grad()
def test_a_model_with_learned_absolute_positions_is_scored_right(max_shared_tokens: int):
    config = GPT2Config(vocab_size=264, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config).double().eval()
    groups = ragged_groups()
    tokens = make_tokens(groups)
    packs = packs_of(tokens, max_shared_tokens)
    expected = masked_slow_logprobs(model, groups)[rows_of(packs)]
    torch.testing.assert_close(score(model, tokens, packs).logprobs, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_the_learner_scores_every_row_in_its_place(shared_tiny_policy: Policy, cut: Cut):
    groups = ragged_groups(ALL_SCORED)
    learner = make_learner(shared_tiny_policy, OBJECTIVE, cut=cut)
    found = learner.score(shared_tiny_policy.model, make_tokens(groups))
    assert not found.logprobs.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(found.logprobs, slow_logprobs(shared_tiny_policy.model, groups), atol=1e-5, rtol=0)
        for entropy, expected in zip(found.entropy, slow_entropy(shared_tiny_policy.model, groups), strict=True):
            torch.testing.assert_close(entropy[: len(expected)], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_the_learner_scores_around_rows_that_could_not_be_scored_by_the_reward(shared_tiny_policy: Policy, cut: Cut):
    groups = ragged_groups([[1.0, 0.0, 0.5, None, 0.5], [None, None, None, 0.0, 1.0], [0.0, 1.0, None, None, None]])
    learner = make_learner(shared_tiny_policy, OBJECTIVE, cut=cut)
    found = learner.score(shared_tiny_policy.model, make_tokens(groups))
    with torch.no_grad():
        torch.testing.assert_close(found.logprobs, masked_slow_logprobs(shared_tiny_policy.model, groups), atol=1e-5, rtol=0)


@every_sharing
def test_scoring_twice_gives_the_same_bits_although_the_model_is_configured_with_dropout(
    tiny_directory: Path, tmp_path: Path, max_shared_tokens: int
):
    directory = shutil.copytree(tiny_directory, tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    policy = load_policy(str(directory), compute_dtype="float32")
    assert policy.model.config.attention_dropout == 0.5
    learner = make_learner(policy, OBJECTIVE, cut=(4096, max_shared_tokens))
    tokens = make_tokens(ragged_groups(ALL_SCORED))
    first, second = (learner.score(policy.model, tokens) for _ in range(2))
    assert torch.equal(first.logprobs, second.logprobs)
    assert torch.equal(first.entropy, second.entropy)


@torch.no_grad()
def test_in_bfloat16_the_log_probs_are_float32_and_close(shared_tiny_policy: Policy):
    model, groups = shared_tiny_policy.model, ragged_groups()
    tokens = make_tokens(groups)
    packs = packs_of(tokens, 4096)
    found = score(model, tokens, packs, dtype=torch.bfloat16).logprobs
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, masked_slow_logprobs(model, groups)[rows_of(packs)], atol=0.2, rtol=0)


@given(max_shared_tokens=st.integers(0, 100), max_tokens=st.integers(1, 300), data=st.data())
def test_plans_hold_each_row_once_with_its_own_group_and_stay_within_their_bounds(
    max_shared_tokens: int, max_tokens: int, data: st.DataObject
):
    tokens = make_tokens(ragged_groups(ALL_SCORED))
    wanted = data.draw(st.lists(st.sampled_from(range(15)), unique=True).map(sorted))
    packs = plan_packs(tokens, wanted, max_shared_tokens=max_shared_tokens)
    lengths = [length for row in COMPLETION_LENGTHS for length in row]
    assert rows_of(packs) == wanted
    for pack in packs:
        assert {row // 5 for row in pack.rows} == {pack.group}
        assert pack.num_tokens == len(tokens.prompt_ids[pack.group]) + sum(lengths[row] for row in pack.rows)
        assert pack.num_tokens <= max_shared_tokens or len(pack.rows) == 1
    micro_batches = plan_micro_batches(packs, max_tokens=max_tokens)
    assert sorted(row for batch in micro_batches for row in rows_of(batch)) == wanted
    for batch in micro_batches:
        assert len(batch) * max(pack.num_tokens for pack in batch) <= max_tokens or len(batch) == 1


class LargestTensor(TorchDispatchMode):
    """Notes the largest number of elements in any tensor that an operation returns, in forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.numel())
        return result


VOCAB_SIZE, HIDDEN_SIZE, CHUNK_TOKENS = 5000, 16, 8


@pytest.fixture
def large_vocabulary(tmp_path: Path) -> PreTrainedModel:
    write_tiny_model(tmp_path, vocab_size=VOCAB_SIZE, hidden_size=HIDDEN_SIZE, num_layers=1)
    return AutoModelForCausalLM.from_pretrained(tmp_path)


@every_distribution
@every_sharing
def test_no_tensor_holds_the_vocabulary_for_more_than_a_chunk_of_positions(
    large_vocabulary: PreTrainedModel, max_shared_tokens: int, sampling: Sampling
):
    tokens = make_tokens(ragged_groups(ALL_SCORED))
    with LargestTensor() as largest:
        packs = packs_of(tokens, max_shared_tokens)
        scores = score(large_vocabulary, tokens, packs, sampling=sampling, chunk_tokens=CHUNK_TOKENS)
        scores.logprobs.sum().backward()
    assert int(tokens.completion_mask.sum()) > 8 * CHUNK_TOKENS  # Else the bound would prove nothing.
    assert largest.numel <= VOCAB_SIZE * max(CHUNK_TOKENS, HIDDEN_SIZE)  # The second is the embedding's gradient.


@every_distribution
def test_nothing_with_a_vocabulary_dimension_is_kept_for_the_backward_pass(
    large_vocabulary: PreTrainedModel, sampling: Sampling
):
    tokens = make_tokens(ragged_groups(ALL_SCORED))
    kept: list[torch.Size] = []

    def note(saved: torch.Tensor) -> torch.Tensor:
        kept.append(saved.shape)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        score(large_vocabulary, tokens, packs_of(tokens, 4096), sampling=sampling, chunk_tokens=CHUNK_TOKENS)
    assert kept
    assert [shape for shape in kept if shape[-1:] == (VOCAB_SIZE,)] == []
