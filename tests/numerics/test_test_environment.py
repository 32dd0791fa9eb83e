"""What `tests/conftest.py` promises to all other tests."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from huggingface_hub import constants
from jaxtyping import TypeCheckError
from tests.numerics.arrays import stats_of_rewards

from covey import batch, learner
from covey.algos.advantages import group_mean
from covey.algos.kl import k3
from covey.models.bundled import covey_home
from covey.models.policy import Policy
from covey.models.scoring import Layout
from covey.tensors import GroupStats


def test_tensors_of_different_shapes_under_one_letter_are_refused():
    with pytest.raises(TypeCheckError, match="ref_logprobs"):
        k3(torch.zeros(2, 3), torch.zeros(2, 1))


def test_a_dataclass_refuses_a_shape_that_does_not_fit_its_other_fields():
    ids = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(TypeCheckError, match="segments"):
        Layout(input_ids=ids, position_ids=ids, segments=ids[:, :2], source=ids, is_shared=False)


def test_group_statistics_refuse_float32():
    stats = stats_of_rewards([[1.0, 0.0]])
    with pytest.raises(TypeCheckError, match="rewards"):
        GroupStats(rewards=stats.rewards.float(), scored=stats.scored, lengths=stats.lengths, parts=stats.parts)


@pytest.mark.parametrize("function", [group_mean, batch.make_tokens, learner.Learner.rows_with_gradient, learner.Learner.score])
def test_annotations_are_checked_in_every_module_that_handles_tensors(function: Callable[..., object]):
    assert hasattr(function, "__wrapped__")


def test_no_test_touches_the_users_cache_or_the_hub():
    assert os.path.basename(covey_home()).startswith("covey-tests-")
    assert constants.HF_HUB_OFFLINE


def test_the_float64_policy_computes_in_float64_throughout(shared_tiny_policy64: Policy):
    """A change of one part in 10^12 shows; anything rounded to float32 on the way would swallow it."""
    model = shared_tiny_policy64.model
    embeddings = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        logits = model(inputs_embeds=embeddings).logits
        moved = model(inputs_embeds=embeddings * (1 + 1e-12)).logits
    assert logits.dtype == torch.float64
    assert 0 < float((moved - logits).abs().max()) < 1e-9


def test_a_policy_of_its_own_shares_no_weights_with_the_next_test(shared_tiny_policy: Policy, tiny_policy: Policy):
    for ours, theirs in zip(tiny_policy.model.parameters(), shared_tiny_policy.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()
