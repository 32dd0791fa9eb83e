"""What an update does on average, by enumerating every outcome of a one-token policy: exact, no sampling noise.

The policy says "right" with probability p = sigmoid(z). Each row's update -dL/dz, averaged over all groups of 8, is held
against numbers found by algebra, and against a second enumeration over the slow transcriptions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from tests.numerics import transcriptions
from tests.numerics.arrays import assert_close, stats_of_answers
from tests.numerics.losses import gradient_of_loss, loss_of
from tests.numerics.transcriptions import Advantages, Answer, Groups
from tests.rows import PLAIN_ROWS

from covey.algos.credit import outcome_credit, whitened
from covey.algos.objective import Objective
from covey.algos.registry import ALGORITHMS

GROUP_SIZE = 8
PROBABILITIES = [0.05, 0.3, 0.5, 0.9]
BASELINE = 1.0
"""What the greedy completion gets: with p > 1/2 it is right."""

SLOW: dict[str, Callable[[Groups], Advantages]] = {
    "grpo": lambda groups: transcriptions.grpo(groups, ddof=1, eps=1e-4, min_group_std=0.01),
    "dr_grpo": transcriptions.dr_grpo,
    "rloo": transcriptions.rloo,
    "reinforce": transcriptions.raw,
    "reinforce_pp": lambda groups: whitened_slowly(transcriptions.raw(groups)),
    "reinforce_pp_baseline": lambda groups: transcriptions.reinforce_pp_baseline(groups, ddof=1, eps=1e-8, over_tokens=False),
    "remax": lambda groups: transcriptions.remax(groups, baselines=[BASELINE] * len(groups)),
    "opo": transcriptions.opo,
    "maxrl": lambda groups: transcriptions.maxrl(groups, low=0.0, high=1.0, all_fail_correction=True),
    "passk": lambda groups: transcriptions.passk(groups, low=0.0, high=1.0, k=4),
    "passk_max": lambda groups: transcriptions.passk_max(groups, ddof=1, eps=1e-6),
    "batch_std": lambda groups: transcriptions.batch_std(groups, ddof=1, eps=1e-4),
    "bnpo": lambda groups: transcriptions.bnpo(groups, low=0.0, high=1.0),
    "gdpo": lambda groups: transcriptions.gdpo(groups, weights=[1.0], ddof=1, eps=1e-4),
}
SLOW |= dict.fromkeys(["dapo", "gspo", "cispo", "sapo", "gmpo"], SLOW["grpo"])


def whitened_slowly(advantages: Advantages) -> Advantages:
    everyone = [a for row in advantages for a in row]
    center, std = transcriptions.mean(everyone), transcriptions.deviation(everyone, 1)
    return [[(a - center) / (std + 1e-8) if std else 0.0 for a in row] for row in advantages]


def update_of(name: str, groups: Groups, chances: Sequence[float], **options: Any) -> float:
    """Return the sum over the groups of -dL/dz of the row's loss, on policy; each group has its own chance of being right."""
    objective = Objective.of_row(ALGORITHMS[name], **options)
    z = torch.tensor([math.log(p / (1 - p)) for p in chances], dtype=torch.float64, requires_grad=True)
    signs = torch.tensor([[1.0 if answer.value else -1.0 for answer in group] for group in groups], dtype=torch.float64)
    mask = torch.ones(signs.numel(), 1, dtype=torch.bool)
    advantages = objective.advantages(stats_of_answers(groups, baselines=[BASELINE] * len(groups)))
    credit = outcome_credit(advantages, mask)
    if objective.spec.whitens_tokens:
        credit = whitened(credit, mask)
    logprobs = torch.nn.functional.logsigmoid(signs * z[:, None]).reshape(-1, 1)
    output = loss_of(objective, logprobs, advantages=credit.double(), mask=mask, group_size=len(groups[0]), max_length=1)
    return -float(gradient_of_loss(output, z).sum())


def slow_update(name: str, groups: Groups, chances: Sequence[float]) -> float:
    """Return the mean over all completions of A d log pi/dz, which is 1 - p for a right answer and -p for a wrong one."""
    terms = [
        advantage * (answer.value - p)
        for group, row, p in zip(groups, SLOW[name](groups), chances, strict=True)
        for answer, advantage in zip(group, row, strict=True)
    ]
    return transcriptions.mean(terms)


def group_of(num_right: int, *, size: int = GROUP_SIZE) -> list[Answer]:
    return [Answer(reward=float(index < num_right), parts=(float(index < num_right),)) for index in range(size)]


def chance_of(num_right: int, p: float, *, size: int = GROUP_SIZE) -> float:
    return math.comb(size, num_right) * p**num_right * (1 - p) ** (size - num_right)


def expected_update(name: str, p: float, **options: Any) -> float:
    """Return E[-dL/dz] of the row over the outcomes of one group."""
    outcomes = range(GROUP_SIZE + 1)
    return sum(chance_of(right, p) * update_of(name, [group_of(right)], [p], **options) for right in outcomes)


# --- golden ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key", "options"),
    [
        ("grpo", "grpo_ddof1_eps1e-4", {}),
        ("dr_grpo", "drgrpo", {}),
        ("dr_grpo", "drgrpo_expected=(G-1)/G*pg", {}),
        ("rloo", "rloo", {}),
        ("rloo", "true_pg dJ/dz=p(1-p)", {}),
        ("reinforce", "true_pg dJ/dz=p(1-p)", {}),
        ("remax", "true_pg dJ/dz=p(1-p)", {}),
        ("opo", "drgrpo", {}),
        ("maxrl", "maxrl", {"all_fail_correction": False}),
        ("maxrl", "maxrl_all_groups_r/phat-1_incl_K=0", {"all_fail_correction": True}),
        ("maxrl", "maxrl_target_d/dz sum_{k<=G} -(1-p)^k/k", {}),
        ("maxrl", "maxrl_ones_only(1/K sum r S)", {}),
    ],
)
def test_a_row_updates_as_enumerated(golden: dict[str, Any], name: str, key: str, options: dict[str, Any]):
    expected = golden["expected_update_p0.3_G8"][key]
    assert expected_update(name, 0.3, **options) == pytest.approx(expected, abs=2e-7)


def test_every_row_has_a_slow_counterpart():
    assert set(SLOW) == set(PLAIN_ROWS)


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize("name", PLAIN_ROWS)
def test_a_row_updates_as_its_transcription_does(name: str, p: float):
    slow = sum(chance_of(right, p) * slow_update(name, [group_of(right)], [p]) for right in range(GROUP_SIZE + 1))
    assert expected_update(name, p) == pytest.approx(slow, abs=1e-6)


@pytest.mark.parametrize("name", ["batch_std", "reinforce_pp", "reinforce_pp_baseline", "bnpo", "gdpo"])
def test_a_row_that_spans_the_batch_updates_as_its_transcription_does_on_two_prompts(name: str):
    chances = [0.3, 0.8]
    fast = slow = 0.0
    for first, second in product(range(4), repeat=2):
        groups = [group_of(first, size=3), group_of(second, size=3)]
        chance = chance_of(first, chances[0], size=3) * chance_of(second, chances[1], size=3)
        fast += chance * update_of(name, groups, chances)
        slow += chance * slow_update(name, groups, chances)
    assert fast == pytest.approx(slow, abs=1e-6)


# --- what is ascended ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize("name", ["rloo", "reinforce", "remax"])
def test_unbiased_rows_follow_the_true_policy_gradient(name: str, p: float):
    assert expected_update(name, p) == pytest.approx(p * (1 - p), abs=1e-7)


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize("name", ["dr_grpo", "opo"])
def test_a_baseline_that_holds_the_completion_itself_shrinks_the_gradient_by_a_constant(name: str, p: float):
    assert expected_update(name, p) == pytest.approx((GROUP_SIZE - 1) / GROUP_SIZE * p * (1 - p), abs=1e-7)


@pytest.mark.parametrize("p", PROBABILITIES)
def test_maxrl_follows_the_sum_of_pass_at_k_over_k(p: float):
    """d/dz of sum over k <= G of -(1 - p)^k / k, with dp/dz = p (1 - p)."""
    target = p * (1 - p) * sum((1 - p) ** (k - 1) for k in range(1, GROUP_SIZE + 1))
    assert expected_update("maxrl", p) == pytest.approx(target, abs=1e-7)


@pytest.mark.parametrize("p", PROBABILITIES)
def test_pass_at_k_training_pulls_where_pass_at_k_can_still_grow(p: float):
    """Group by group: the update is A_right (c/n)(1 - p) - A_wrong (1 - c/n) p, with the advantages of the closed form."""
    expected = 0.0
    for right in range(GROUP_SIZE + 1):
        rho = 1 - math.comb(GROUP_SIZE - right, 4) / math.comb(GROUP_SIZE, 4)
        if rho in (0.0, 1.0):
            continue
        sigma = math.sqrt(rho * (1 - rho))
        of_right = (1 - rho) / sigma
        of_wrong = (1 - rho - math.comb(GROUP_SIZE - right - 1, 3) / math.comb(GROUP_SIZE - 1, 3)) / sigma
        share = right / GROUP_SIZE
        expected += chance_of(right, p) * (of_right * share * (1 - p) - of_wrong * (1 - share) * p)
    assert expected_update("passk", p) == pytest.approx(expected, abs=1e-7)


def test_best_of_group_training_pulls_only_when_exactly_one_is_right():
    """Then with the gap 1 over the deviation sqrt(1/8), on one of eight completions."""
    p = 0.3
    expected = chance_of(1, p) * (1 - p) / GROUP_SIZE * math.sqrt(8)
    assert expected_update("passk_max", p) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo", "cispo", "sapo", "gmpo", "gdpo", "batch_std"])
def test_rows_that_divide_by_the_deviation_of_their_only_group_update_alike(golden: dict[str, Any], name: str):
    assert_close(torch.tensor(expected_update(name, 0.3)), golden["expected_update_p0.3_G8"]["grpo_ddof1_eps1e-4"], atol=1e-4)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_in_large_groups_grpo_ascends_the_square_root_of_p_times_one_minus_p(p: float):
    size = 512
    update = 0.0
    for right in range(size + 1):
        log_chance = math.lgamma(size + 1) - math.lgamma(right + 1) - math.lgamma(size - right + 1)
        chance = math.exp(log_chance + right * math.log(p) + (size - right) * math.log(1 - p))
        if chance > 1e-9:
            update += chance * update_of("grpo", [group_of(right, size=size)], [p], eps=0.0)
    assert update == pytest.approx(math.sqrt(p * (1 - p)), rel=0.01)
