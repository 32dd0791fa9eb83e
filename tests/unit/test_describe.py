"""A formula in words has the objective's own numbers and terms in it."""

from __future__ import annotations

import dataclasses

import pytest

from covey.algos.aggregate import AGGREGATIONS
from covey.algos.describe import formula_lines, option_lines
from covey.algos.kl import KL_TERMS
from covey.algos.objective import Objective
from covey.algos.registry import ALGORITHMS


def lines_of(
    name: str, *, beta: float = 0.0, aggregation: str | None = None, kl: str | None = None, **options: float
) -> list[str]:
    objective = Objective.of_row(ALGORITHMS[name], **options)
    spec = objective.spec
    objective = dataclasses.replace(objective, aggregation=aggregation or spec.aggregation, kl=kl or spec.kl)
    return formula_lines(objective, beta=beta, max_new_tokens=77)


def test_a_row_is_advantage_ratio_loss_and_aggregation():
    assert lines_of("grpo", eps=0.25, ddof=0, epsilon_high=0.5) == [
        "A_i = (r_i - mean r) / (std r + 0.25), std with divisor G - 0",
        "w_t = pi(o_t) / pi_old(o_t)",
        "l_t = -min(w_t A, clip(w_t, 1 - 0.2, 1 + 0.5) A)",
        "L = 1/N sum_i 1/T_i sum_t l_t",
    ]


def test_a_ratio_of_whole_completions_is_said_to_be_one():
    assert lines_of("gspo")[1] == "w_t = (pi(o) / pi_old(o))^(1/T), the same for all t"


def test_a_row_without_a_ratio_names_none():
    assert lines_of("reinforce") == ["A_i = r_i", "l_t = -A log pi(o_t)", "L = 1/N sum_i sum_t l_t"]


def test_bounds_are_named_only_if_they_are_on():
    assert lines_of("grpo", dual_clip=3.0, delta=4.0)[3:5] == [
        "l_t <= -3.0 A where A < 0",
        "w_t <= 4.0 where it is not clipped",
    ]
    assert len(lines_of("grpo")) == 4


@pytest.mark.parametrize(
    ("aggregation", "text"),
    [
        ("token-mean", "L = sum_i sum_t l_t / sum_i T_i"),
        ("seq-mean-token-mean", "L = 1/N sum_i 1/T_i sum_t l_t"),
        ("seq-mean-token-sum", "L = 1/N sum_i sum_t l_t"),
        ("seq-mean-token-sum-norm", "L = 1/(N 77) sum_i sum_t l_t"),
        ("group-mean-token-mean", "L = mean over groups of (sum over the group's tokens of l_t / their number)"),
    ],
)
def test_an_aggregation_is_written_out(aggregation: str, text: str):
    assert lines_of("grpo", aggregation=aggregation)[-1] == text
    assert aggregation in AGGREGATIONS


@pytest.mark.parametrize("term", KL_TERMS)
def test_the_kl_term_is_written_only_if_it_acts(term: str):
    assert lines_of("grpo", kl=term, beta=0.5)[-1] == f"KL: 0.5 times {KL_TERMS[term].formula}"
    assert len(lines_of("grpo", kl=term)) == 4


def test_options_are_listed_with_their_values_and_what_else_the_row_does():
    remax, whitening = (option_lines(Objective.of_row(ALGORITHMS[name]), beta=0.0) for name in ("remax", "reinforce_pp"))
    assert remax[0] == "each prompt is answered greedily once more, for the baseline"
    assert whitening[0] == "credit is normalised over all tokens of the step"
    assert "epsilon_low = 0.2" in whitening
    assert whitening[-1] == "beta = 0.0: the KL term does not act"
    assert option_lines(Objective.of_row(ALGORITHMS["grpo"]), beta=0.5)[-1] == "beta = 0.5"
