"""The gradient of a step: the same however the step is cut and laid out, and the one that the papers write down."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from tests.builders import END
from tests.tiny_batches import (
    REWARDS,
    gradient_of,
    make_batch,
    make_learner,
    ragged_groups,
    relative_error,
    shifted_scores,
    slow_loss,
    widened,
)
from torch import Tensor, nn

from covey.algos.objective import Objective
from covey.algos.registry import ALGORITHMS
from covey.algos.surrogates import Clip
from covey.learner import Learner, rows_with_gradient
from covey.metrics import metric_values
from covey.models.policy import Policy
from covey.tensors import Batch, Scores
from covey.types import Group, Message

ON_POLICY = Scores(old_logprobs=None, ref_logprobs=None)

every_row = pytest.mark.parametrize("name", ALGORITHMS)
every_cut = pytest.mark.parametrize(
    ("max_tokens", "max_shared_tokens"), [(tokens, shared) for tokens in (1, 64, 4096) for shared in (0, 64, 4096)]
)


def objective_of(name: str, *, beta: float = 0.0) -> Objective:
    return Objective(spec=ALGORITHMS[name], clip=Clip(low=0.2, high=0.28), beta=beta)


def step_gradient(policy: Policy, objective: Objective, batch: Batch, **cut: int) -> Tensor:
    learner = make_learner(policy, objective, **cut)
    return gradient_of(policy.model, lambda: learner.accumulate_gradient(batch))


def slow_gradient(policy: Policy, objective: Objective, groups: list[Group], scores: Scores) -> Tensor:
    return gradient_of(policy.model, lambda: slow_loss(policy.model, groups, objective, scores).backward())


def state_of(learner: Learner) -> list[Tensor]:
    """Return copies of all weights and of everything the optimizer remembers."""
    remembered = [value for state in learner.optimizer.state.values() for value in state.values()]
    return [tensor.detach().clone() for tensor in [*learner.model.parameters(), *remembered]]


def is_same_state(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# --- The formula -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def textbook(shared_tiny_policy64: Policy) -> dict[tuple[str, float], tuple[Scores, float, Tensor]]:
    """Old and reference log-probs, loss and gradient of the slow transcription, by row and beta."""
    policy, groups = shared_tiny_policy64, ragged_groups()
    found: dict[tuple[str, float], tuple[Scores, float, Tensor]] = {}
    for name in ALGORITHMS:
        for beta in (0.0, 0.3):
            objective = objective_of(name, beta=beta)
            scores = shifted_scores(policy.model, groups, has_reference=beta > 0)
            loss = float(slow_loss(policy.model, groups, objective, scores).detach())
            found[name, beta] = (scores, loss, slow_gradient(policy, objective, groups, scores))
    return found


@every_row
@pytest.mark.parametrize("beta", [0.0, 0.3])
@every_cut
def test_the_gradient_is_the_textbook_one_however_the_step_is_cut(
    shared_tiny_policy64: Policy, textbook: dict[Any, Any], name: str, beta: float, max_tokens: int, max_shared_tokens: int
):
    scores, _, expected = textbook[name, beta]
    objective = objective_of(name, beta=beta)
    batch = make_batch(ragged_groups(), objective, scores)
    found = step_gradient(shared_tiny_policy64, objective, batch, max_tokens=max_tokens, max_shared_tokens=max_shared_tokens)
    assert relative_error(found, expected) < 1e-10


@every_row
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_loss_and_metrics_do_not_depend_on_the_cut(
    shared_tiny_policy64: Policy, textbook: dict[Any, Any], name: str, beta: float
):
    scores, loss, _ = textbook[name, beta]
    objective = objective_of(name, beta=beta)
    batch = make_batch(ragged_groups(), objective, scores)

    def metrics_of(**cut: int) -> dict[str, float | None]:
        learner = make_learner(shared_tiny_policy64, objective, **cut)
        found: list[dict[str, float | None]] = []
        gradient_of(learner.model, lambda: found.append(metric_values(learner.accumulate_gradient(batch))))
        return found[0]

    whole = metrics_of()
    assert whole["loss/value"] == pytest.approx(loss, abs=1e-12)
    assert 0 < (whole["clip/low_frac"] or 0) < 1  # The batch is off policy enough to clip on both sides.
    assert 0 < (whole["clip/high_frac"] or 0) < 1
    assert ("kl/ref" in whole) == (beta > 0)
    for cut in ({"max_tokens": 1}, {"max_tokens": 64, "max_shared_tokens": 64}, {"max_shared_tokens": 0}):
        assert metrics_of(**cut) == pytest.approx(whole, abs=1e-10)


@every_row
def test_on_policy_the_gradient_is_the_textbook_one(shared_tiny_policy64: Policy, name: str):
    objective, groups = objective_of(name), ragged_groups()
    found = step_gradient(shared_tiny_policy64, objective, make_batch(groups, objective, ON_POLICY))
    assert relative_error(found, slow_gradient(shared_tiny_policy64, objective, groups, ON_POLICY)) < 1e-10


@every_row
@every_cut
def test_in_float32_the_cut_changes_the_gradient_by_rounding_only(
    shared_tiny_policy: Policy, name: str, max_tokens: int, max_shared_tokens: int
):
    objective, groups = objective_of(name, beta=0.3), ragged_groups()
    batch = make_batch(groups, objective, shifted_scores(shared_tiny_policy.model, groups, has_reference=True))
    whole = step_gradient(shared_tiny_policy, objective, batch)
    found = step_gradient(shared_tiny_policy, objective, batch, max_tokens=max_tokens, max_shared_tokens=max_shared_tokens)
    assert relative_error(found, whole) < 1e-5


# --- What it must not depend on --------------------------------------------------------------------------------------


@every_row
def test_more_padding_changes_nothing(shared_tiny_policy64: Policy, name: str):
    objective, groups = objective_of(name, beta=0.3), ragged_groups()
    scores = shifted_scores(shared_tiny_policy64.model, groups, has_reference=True)
    batch = make_batch(groups, objective, scores)

    def wide(values: Tensor | None) -> Tensor:
        assert values is not None
        return nn.functional.pad(values, (0, 9))

    wider = Batch(
        tokens=widened(batch.tokens, extra=9),
        scores=Scores(old_logprobs=wide(scores.old_logprobs), ref_logprobs=wide(scores.ref_logprobs)),
        advantages=wide(batch.advantages),
    )
    expected = step_gradient(shared_tiny_policy64, objective, batch)
    assert relative_error(step_gradient(shared_tiny_policy64, objective, wider), expected) < 1e-12


@every_row
def test_the_order_of_the_groups_does_not_matter(shared_tiny_policy64: Policy, name: str):
    objective, groups = objective_of(name, beta=0.3), ragged_groups()
    scores = shifted_scores(shared_tiny_policy64.model, groups, has_reference=True)
    assert scores.old_logprobs is not None
    assert scores.ref_logprobs is not None
    order = [2, 0, 1]
    rows = [5 * group + sample for group in order for sample in range(5)]
    reordered = make_batch(
        [groups[index] for index in order],
        objective,
        Scores(old_logprobs=scores.old_logprobs[rows], ref_logprobs=scores.ref_logprobs[rows]),
    )
    expected = step_gradient(shared_tiny_policy64, objective, make_batch(groups, objective, scores), max_tokens=64)
    assert relative_error(step_gradient(shared_tiny_policy64, objective, reordered, max_tokens=64), expected) < 1e-10


@every_row
@pytest.mark.parametrize("max_shared_tokens", [0, 4096])
def test_what_stands_after_the_end_of_a_completion_changes_no_bit(
    shared_tiny_policy: Policy, name: str, max_shared_tokens: int
):
    objective, groups = objective_of(name, beta=0.3), ragged_groups()
    batch = make_batch(groups, objective, shifted_scores(shared_tiny_policy.model, groups, has_reference=True))
    beyond = ~batch.tokens.completion_mask
    assert batch.tokens.sampling_logprobs is not None
    assert batch.scores.old_logprobs is not None
    assert batch.scores.ref_logprobs is not None
    spoiled = Batch(
        tokens=dataclasses.replace(
            batch.tokens,
            completion_ids=batch.tokens.completion_ids.masked_fill(beyond, 65),
            sampling_logprobs=batch.tokens.sampling_logprobs.masked_fill(beyond, -77.0),
        ),
        scores=Scores(
            old_logprobs=batch.scores.old_logprobs.masked_fill(beyond, -3.0),
            ref_logprobs=batch.scores.ref_logprobs.masked_fill(beyond, 5.0),
        ),
        advantages=batch.advantages.masked_fill(beyond, 11.0),
    )
    learner = make_learner(shared_tiny_policy, objective, max_shared_tokens=max_shared_tokens)
    metrics: list[dict[str, Any]] = []
    clean_gradient = gradient_of(learner.model, lambda: metrics.append(learner.accumulate_gradient(batch)))
    spoiled_gradient = gradient_of(learner.model, lambda: metrics.append(learner.accumulate_gradient(spoiled)))
    assert torch.equal(spoiled_gradient, clean_gradient)
    assert metrics[1] == metrics[0]


@every_row
def test_an_unscorable_completion_leaves_numerator_and_denominators(shared_tiny_policy64: Policy, name: str):
    """What it says does not matter, and the others count as a batch without it: here, a group that is rid of one member."""
    objective = objective_of(name)
    with_one = ragged_groups([[1.0, 0.0, 0.5, None, 0.5]], prompt_lengths=[30], completion_lengths=[[3, 14, 1, 9, 6]])
    rollouts = with_one[0].rollouts
    without = [dataclasses.replace(with_one[0], rollouts=rollouts[:3] + rollouts[4:])]
    expected = step_gradient(shared_tiny_policy64, objective, make_batch(without, objective, ON_POLICY))
    found = step_gradient(shared_tiny_policy64, objective, make_batch(with_one, objective, ON_POLICY))
    assert relative_error(found, expected) < 1e-10


@every_row
def test_a_dropped_flat_group_leaves_the_denominators(shared_tiny_policy64: Policy, name: str):
    objective = objective_of(name)
    groups = ragged_groups([REWARDS[1], REWARDS[1], [1.0] * 5])
    kept = step_gradient(shared_tiny_policy64, objective, make_batch(groups, objective, ON_POLICY))
    dropped = step_gradient(shared_tiny_policy64, objective, make_batch(groups[:2], objective, ON_POLICY))
    assert relative_error(dropped, kept * 3 / 2) < 1e-10  # Two thirds of the completions, each now with that much more weight.


# --- Which positions and rows take part ------------------------------------------------------------------------------


def positions_with_gradient(policy: Policy, groups: list[Group], *, max_shared_tokens: int) -> list[list[int]]:
    """Return for each forward pass, one pack each, the positions whose hidden state (and so logits) gets a gradient."""
    states: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        output.last_hidden_state.retain_grad()
        states.append(output.last_hidden_state)

    objective = objective_of("grpo")
    learner = make_learner(policy, objective, max_tokens=1, max_shared_tokens=max_shared_tokens)
    hook = policy.model.get_decoder().register_forward_hook(keep)
    gradient_of(policy.model, lambda: learner.accumulate_gradient(make_batch(groups, objective, ON_POLICY)))
    hook.remove()
    gradients = [state.grad[0] for state in states if state.grad is not None]
    assert len(gradients) == len(states)
    return [gradient.abs().sum(dim=1).nonzero()[:, 0].tolist() for gradient in gradients]


def test_the_loss_reaches_the_logits_that_predict_the_completion_its_end_included_and_no_others(
    shared_tiny_policy: Policy,
):
    groups = ragged_groups([[1.0, 0.0]], prompt_lengths=[7], completion_lengths=[[4, 2]])
    assert groups[0].rollouts[0].completion.token_ids[-1] == END  # Which is the padding token, too.
    found = positions_with_gradient(shared_tiny_policy, groups, max_shared_tokens=0)
    assert found == [[6, 7, 8, 9], [6, 7]]  # Position 6, the prompt's last, predicts the first token; 9 predicts the end.


def test_behind_a_shared_prompt_the_loss_reaches_the_same_logits(shared_tiny_policy: Policy):
    groups = ragged_groups([[1.0, 0.0]], prompt_lengths=[7], completion_lengths=[[4, 2]])
    found = positions_with_gradient(shared_tiny_policy, groups, max_shared_tokens=4096)
    assert found == [[6, 7, 8, 9, 10]]  # 7 to 9 and 10 are the completions without their last tokens.


def test_the_end_token_is_learned_although_it_is_the_padding_token(tiny_policy64: Policy):
    """Its probability after a rewarded completion must rise."""
    groups = ragged_groups([[1.0, 0.0]], prompt_lengths=[7], completion_lengths=[[4, 1]])
    rollout = groups[0].rollouts[0]
    ids = torch.tensor([rollout.prompt_ids + rollout.completion.token_ids[:-1]])

    def end_logprob() -> float:
        with torch.no_grad():
            return float(tiny_policy64.model(input_ids=ids).logits[0, -1].log_softmax(dim=-1)[END])

    before = end_logprob()
    learner = make_learner(tiny_policy64, objective_of("grpo"), learning_rate=1e-4)
    learner.update(make_batch(groups, learner.objective, ON_POLICY))
    assert end_logprob() > before


def test_the_embedding_of_the_end_token_is_trained_where_a_prompt_contains_it(tiny_policy: Policy):
    """Embeddings with a padding index drop that token's gradient without a word."""
    model = tiny_policy.model
    # Untied, because the gradient of a shared output matrix would hide a missing one.
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    prompt_ids = tiny_policy.encode([Message(role="user", content="Hi")])
    assert END in prompt_ids
    assert tiny_policy.tokenizer.pad_token_id == END
    group = ragged_groups([[1.0, 0.0]], prompt_lengths=[1], completion_lengths=[[1, 1]])[0]  # No end token in these.
    rollouts = tuple(dataclasses.replace(rollout, prompt_ids=prompt_ids) for rollout in group.rollouts)
    batch = make_batch([dataclasses.replace(group, rollouts=rollouts)], objective_of("grpo"), ON_POLICY)
    make_learner(tiny_policy, objective_of("grpo")).accumulate_gradient(batch)
    gradient = model.get_input_embeddings().weight.grad
    assert gradient is not None
    assert gradient.abs().sum(dim=1).nonzero()[:, 0].tolist() == sorted(set(prompt_ids))


def test_rows_whose_advantage_is_exactly_zero_are_skipped_unless_there_is_a_kl_term():
    batch = make_batch(ragged_groups(), objective_of("grpo"), ON_POLICY)
    scored = [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]  # Row 3 could not be scored.
    assert rows_with_gradient(batch, has_kl=True) == scored
    assert rows_with_gradient(batch, has_kl=False) == [0, 1, 5, 6, 7, 8, 9]  # 2 and 4 are at the mean, 10 to 14 are flat.


@every_row
def test_skipping_rows_changes_no_gradient(shared_tiny_policy64: Policy, name: str, monkeypatch: pytest.MonkeyPatch):
    objective = objective_of(name)
    batch = make_batch(ragged_groups(), objective, ON_POLICY)
    skipping = step_gradient(shared_tiny_policy64, objective, batch)
    monkeypatch.setattr("covey.learner.rows_with_gradient", lambda batch, has_kl: [*range(3), *range(4, 15)])
    assert relative_error(skipping, step_gradient(shared_tiny_policy64, objective, batch)) < 1e-12


# --- The update ------------------------------------------------------------------------------------------------------


def test_on_the_first_update_the_ratio_is_one_and_the_kl_to_a_copy_is_zero_exactly(tiny_policy: Policy):
    objective, groups = objective_of("grpo", beta=0.3), ragged_groups([REWARDS[1]] * 3)
    learner = make_learner(tiny_policy, objective, max_tokens=64, max_shared_tokens=64)
    tokens = make_batch(groups, objective, ON_POLICY).tokens
    ref_logprobs = learner.score(copy.deepcopy(tiny_policy.model), tokens)
    batch = learner.make_batch(tokens, Scores(old_logprobs=None, ref_logprobs=ref_logprobs))
    metrics = metric_values(learner.update(batch))
    assert (metrics["ratio/mean"], metrics["ratio/max"]) == (1.0, 1.0)
    assert metrics["kl/ref"] == 0.0
    again = metric_values(learner.update(batch))
    assert (again["kl/ref"] or 0.0) > 0.0


def test_on_policy_the_loss_is_zero_but_the_weights_move(tiny_policy: Policy):
    """With equal lengths, because the mean over each completion weighs tokens by length."""
    objective = objective_of("grpo")
    groups = ragged_groups([REWARDS[1]] * 3, completion_lengths=[[6] * 5] * 3)
    learner = make_learner(tiny_policy, objective)
    before = state_of(learner)
    metrics = metric_values(learner.update(make_batch(groups, objective, ON_POLICY)))
    assert metrics["loss/value"] == pytest.approx(0.0, abs=1e-6)
    assert (metrics["grad/norm"] or 0.0) > 0.01
    assert not is_same_state(state_of(learner)[: len(before)], before)


def test_the_reported_norm_is_that_of_the_gradient_before_it_is_clipped(tiny_policy: Policy):
    objective = objective_of("grpo")
    batch = make_batch(ragged_groups(), objective, ON_POLICY)
    expected = float(step_gradient(tiny_policy, objective, batch).norm())
    learner = make_learner(tiny_policy, objective)
    learner.spec = dataclasses.replace(learner.spec, max_grad_norm=expected / 10)
    assert metric_values(learner.update(batch))["grad/norm"] == pytest.approx(expected, rel=1e-5)


def test_a_gradient_left_over_from_before_does_not_leak_into_an_update(tiny_policy: Policy):
    objective = objective_of("grpo")
    batch = make_batch(ragged_groups(), objective, ON_POLICY)
    other = dataclasses.replace(tiny_policy, model=copy.deepcopy(tiny_policy.model))
    clean, dirty = make_learner(tiny_policy, objective), make_learner(other, objective)
    dirty.accumulate_gradient(make_batch(ragged_groups(seed=7), objective, ON_POLICY))
    for learner in (clean, dirty):
        learner.update(batch)
    assert is_same_state(state_of(dirty), state_of(clean))


RATES = [
    # warm-up, decay, rates of updates 1, 2, ... of 10 for a learning rate of 1
    (4, False, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1, 1, 1, 1]),
    (0, False, [1] * 11),
    (4, True, [1 / 4, 2 / 4, 3 / 4, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]),
    (0, True, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0]),
]


@pytest.mark.parametrize(("warmup_steps", "decay", "rates"), RATES)
def test_the_learning_rate_rises_and_falls_as_tabled(
    shared_tiny_policy: Policy, warmup_steps: int, decay: bool, rates: list[float]
):
    learner = make_learner(
        shared_tiny_policy, objective_of("grpo"), learning_rate=1.0, warmup_steps=warmup_steps, num_steps=10, decay=decay
    )
    found: list[float] = []
    for num_updates in range(11):
        learner.num_updates = num_updates
        found.append(learner.learning_rate())
    assert found == pytest.approx(rates, abs=1e-12)


def test_each_update_uses_the_rate_of_its_number(tiny_policy: Policy):
    objective = objective_of("grpo")
    learner = make_learner(tiny_policy, objective, learning_rate=1e-3, warmup_steps=4)
    batch = make_batch(ragged_groups(), objective, ON_POLICY)
    before = [weight.detach().clone() for weight in learner.model.parameters()]
    rates = [metric_values(learner.update(batch))["optimizer/lr"]]
    moved = max(float((a - b).detach().abs().max()) for a, b in zip(learner.model.parameters(), before, strict=True))
    assert moved == pytest.approx(1e-3 / 4, rel=0.01)  # The first step of Adam moves weights by the rate itself.
    rates.append(metric_values(learner.update(batch))["optimizer/lr"])
    assert rates == pytest.approx([1e-3 / 4, 2e-3 / 4])
    assert learner.num_updates == 2


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_leaves_weights_and_optimizer_untouched(tiny_policy: Policy, poison: float):
    objective = objective_of("grpo")
    learner = make_learner(tiny_policy, objective)
    good = make_batch(ragged_groups(), objective, ON_POLICY)
    learner.update(good)
    before = state_of(learner)
    spoiled = good.advantages.clone()
    spoiled[0, 0] = poison
    with pytest.raises(FloatingPointError):
        learner.update(dataclasses.replace(good, advantages=spoiled))
    assert is_same_state(state_of(learner), before)
    assert learner.num_updates == 1
    assert all(weight.grad is None for weight in learner.model.parameters())


@every_row
def test_a_step_without_a_usable_group_changes_nothing(tiny_policy: Policy, name: str):
    """Not even through momentum or the count of updates."""
    objective = objective_of(name)
    learner = make_learner(tiny_policy, objective)
    learner.update(make_batch(ragged_groups(), objective, ON_POLICY))
    before = state_of(learner)
    learner.update(make_batch(ragged_groups([[1.0] * 5, [0.0] * 5, [0.1] * 5]), objective, ON_POLICY))
    assert is_same_state(state_of(learner), before)
    assert learner.num_updates == 1
