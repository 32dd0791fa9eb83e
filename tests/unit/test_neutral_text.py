"""What ordinary text costs a model, against cross entropy over its logits, text by text."""

from __future__ import annotations

import pytest
import torch

from covey.models.neutral_text import NEUTRAL_TEXTS, neutral_nll
from covey.models.policy import Policy, load_policy
from covey.models.tiny import write_tiny_model


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return load_policy(str(write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")), compute_dtype="float32")


def transcribed_nll(policy: Policy) -> tuple[float, int]:
    """Return the sum of -log p over all tokens but each text's first, and their number."""
    total, count = 0.0, 0
    start = [] if policy.tokenizer.bos_token_id is None else [policy.tokenizer.bos_token_id]
    for text in NEUTRAL_TEXTS:
        ids = [*start, *policy.tokenizer.encode(text, add_special_tokens=False)]
        with torch.no_grad():
            logprobs = policy.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(dim=-1)
        for position in range(len(start) + 1, len(ids)):
            total -= float(logprobs[position - 1, ids[position]])
            count += 1
    return total, count


def test_the_mean_is_that_of_a_slow_transcription(policy: Policy) -> None:
    total, count = transcribed_nll(policy)
    found = neutral_nll(policy)
    assert found.count == count
    assert found.value == pytest.approx(total / count, rel=1e-5)


def test_a_model_without_a_token_for_the_beginning_reads_the_first_token_of_a_text_for_nothing(policy: Policy) -> None:
    num_tokens = sum(len(policy.tokenizer.encode(text, add_special_tokens=False)) for text in NEUTRAL_TEXTS)
    assert neutral_nll(policy).count == num_tokens - len(NEUTRAL_TEXTS)


def test_it_rises_when_the_weights_are_spoiled(policy: Policy) -> None:
    before = neutral_nll(policy).value
    head = policy.model.get_output_embeddings()
    assert head is not None
    kept = head.weight.detach().clone()
    try:
        with torch.no_grad():
            head.weight.mul_(3.0)
        assert neutral_nll(policy).value > before + 0.1
    finally:
        with torch.no_grad():
            head.weight.copy_(kept)
