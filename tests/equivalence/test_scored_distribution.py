"""Scores under a shaped distribution, in packs and chunks, against transformers' processors on each completion alone."""

from __future__ import annotations

import pytest
import torch
from tests.generation import PROMPTS, as_groups, generate
from tests.processors import SHAPES, slow_distributions

from covey.batch import make_tokens
from covey.engines.transformers import TransformersEngine
from covey.models.policy import Policy
from covey.models.scoring import CompletionScores, plan_packs, score_completions
from covey.sampling import Sampling
from covey.types import Completion

every_shape = pytest.mark.parametrize("sampling", SHAPES.values(), ids=SHAPES.keys())
every_layout = pytest.mark.parametrize(("max_shared_tokens", "chunk_tokens"), [(0, 512), (40, 1), (4096, 7)])


@pytest.fixture(scope="module")
def completions(shared_tiny_policy: Policy) -> list[list[Completion]]:
    """Drawn without any filter: many tokens lie outside of the distributions that score them here."""
    return generate(TransformersEngine(shared_tiny_policy), PROMPTS)


def score(
    policy: Policy,
    completions: list[list[Completion]],
    sampling: Sampling,
    *,
    max_shared_tokens: int = 0,
    chunk_tokens: int = 512,
    entropy_gradient: bool = False,
) -> CompletionScores:
    tokens = make_tokens(as_groups(PROMPTS, completions))
    packs = plan_packs(tokens, range(len(tokens.completion_ids)), max_shared_tokens=max_shared_tokens)
    return score_completions(
        policy.model,
        tokens,
        packs,
        sampling=sampling,
        compute_dtype=torch.float32,
        chunk_tokens=chunk_tokens,
        entropy_gradient=entropy_gradient,
    )


def slow_scores(
    policy: Policy, completions: list[list[Completion]], sampling: Sampling
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the log-probs and entropies of each completion, in order."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for prompt, group in zip(PROMPTS, completions, strict=True):
        for completion in group:
            table = slow_distributions(policy.model, prompt, completion.token_ids, sampling)
            logprobs = table.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
            # Tokens outside have a finite stand-in: 0 log 0 is 0.
            entropy = -(table.exp() * table.clamp(min=-1e4)).sum(dim=1)
            found.append((logprobs, entropy))
    return found


@every_shape
@every_layout
@torch.no_grad()
def test_log_probs_and_entropies_are_those_of_transformers(
    shared_tiny_policy64: Policy,
    completions: list[list[Completion]],
    sampling: Sampling,
    max_shared_tokens: int,
    chunk_tokens: int,
):
    found = score(shared_tiny_policy64, completions, sampling, max_shared_tokens=max_shared_tokens, chunk_tokens=chunk_tokens)
    for row, (logprobs, entropy) in enumerate(slow_scores(shared_tiny_policy64, completions, sampling)):
        torch.testing.assert_close(found.logprobs[row, : len(logprobs)], logprobs, atol=1e-9, rtol=0)
        torch.testing.assert_close(found.entropy[row, : len(logprobs)], entropy, atol=1e-9, rtol=0)


@every_shape
@torch.no_grad()
def test_a_plain_score_would_be_another(shared_tiny_policy64: Policy, completions: list[list[Completion]], sampling: Sampling):
    plain = Sampling(temperature=sampling.temperature)
    shaped = score(shared_tiny_policy64, completions, sampling).logprobs
    assert float((shaped - score(shared_tiny_policy64, completions, plain).logprobs).abs().max()) > 0.1


@every_shape
def test_gradients_are_those_of_transformers(tiny_policy64: Policy, completions: list[list[Completion]], sampling: Sampling):
    weights = list(tiny_policy64.model.parameters())
    found = score(tiny_policy64, completions, sampling, chunk_tokens=7, entropy_gradient=True)
    (found.logprobs.sum() + 2 * found.entropy.sum()).backward()
    ours = [weight.grad for weight in weights]
    slow = slow_scores(tiny_policy64, completions, sampling)
    theirs = torch.autograd.grad(torch.stack([logprobs.sum() + 2 * entropy.sum() for logprobs, entropy in slow]).sum(), weights)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-8, rtol=1e-8)


@every_shape
def test_entropy_is_detached_unless_its_gradient_is_asked_for(
    shared_tiny_policy64: Policy, completions: list[list[Completion]], sampling: Sampling
):
    found = score(shared_tiny_policy64, completions, sampling)
    assert (found.logprobs.requires_grad, found.entropy.requires_grad) == (True, False)
