"""The table of algorithms: which estimator, clip, aggregation and KL each paper's name stands for, and its defaults."""

from __future__ import annotations

import math
from typing import Any

import pytest
from tests.numerics.arrays import assert_close, float64, stats_of_rewards
from tests.rows import PLAIN_ROWS

from covey.algos.aggregate import AGGREGATIONS
from covey.algos.kl import KL_TERMS
from covey.algos.objective import Objective
from covey.algos.registry import ALGORITHMS

GROUP_STD = {"ddof": 1, "eps": 1e-4, "min_group_std": 0.01}
CLIP = {"epsilon_low": 0.2, "epsilon_high": 0.2, "dual_clip": 0.0, "delta": 0.0}

OPTIONS: dict[str, dict[str, Any]] = {
    "grpo": GROUP_STD | CLIP,
    "dr_grpo": CLIP,
    "dapo": GROUP_STD | CLIP | {"epsilon_high": 0.28},
    "rloo": CLIP,
    "reinforce": {},
    "reinforce_pp": CLIP,
    "reinforce_pp_baseline": {"ddof": 1, "eps": 1e-8, "whiten_over": "sequences"} | CLIP,
    "remax": {},
    "opo": {},
    "maxrl": {"all_fail_correction": True} | CLIP,
    "passk": {"k": 4} | CLIP,
    "passk_max": {"ddof": 1, "eps": 1e-6} | CLIP,
    "batch_std": {"ddof": 1, "eps": 1e-4} | CLIP,
    "bnpo": {"min_density": 1e-6} | CLIP,
    "gdpo": {"ddof": 1, "eps": 1e-4} | CLIP,
    "gspo": GROUP_STD | CLIP | {"epsilon_low": 3e-4, "epsilon_high": 4e-4},
    "cispo": GROUP_STD | {"epsilon_low": 1.0, "epsilon_high": 0.28},
    "sapo": GROUP_STD | {"tau_positive": 1.0, "tau_negative": 1.05},
    "gmpo": GROUP_STD | {"epsilon_low": 0.4, "epsilon_high": 0.4},
    "ppo": {"gamma": 1.0, "lam": 0.95, "critic": "separate", "critic_learning_rate": 1e-5, "value_epsilon": 0.2} | CLIP,
    "raft": {"threshold": 0.5},
    "sft": {"threshold": 0.5},
    "dpo": {"pair_beta": 0.1},
    "ipo": {"pair_beta": 0.1},
    "online_dpo": {"pair_beta": 0.1},
}

AGGREGATION = {
    "grpo": "seq-mean-token-mean",
    "dr_grpo": "seq-mean-token-sum-norm",
    "dapo": "token-mean",
    "cispo": "token-mean",
    "gspo": "seq-mean-token-mean",
    "gmpo": "seq-mean-token-mean",
    "sapo": "seq-mean-token-mean",
    "rloo": "seq-mean-token-sum",
    "reinforce": "seq-mean-token-sum",
    "remax": "seq-mean-token-sum",
    "raft": "token-mean",
    "sft": "token-mean",
    **dict.fromkeys(["dpo", "ipo", "online_dpo"], "seq-mean-token-sum"),
}
"""Of the rows whose paper states it."""

ONE_RIGHT_OF_EIGHT = {
    **dict.fromkeys(["grpo", "batch_std", "dapo", "gspo", "cispo", "sapo", "gmpo", "gdpo"], "grpo_ddof1_eps1e-4"),
    **dict.fromkeys(["dr_grpo", "opo", "bnpo"], "drgrpo"),
    **dict.fromkeys(["reinforce", "reinforce_pp", "remax"], "r"),
    "rloo": "rloo",
    "maxrl": "maxrl",
    "passk": "passk_k4_c1_n8",
}
"""The golden advantages of each row for one right answer in a batch of one group of eight."""

every_row = pytest.mark.parametrize("name", PLAIN_ROWS)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_options_of_a_row_and_their_defaults_are_as_documented(name: str):
    assert ALGORITHMS[name].options == OPTIONS[name]


@pytest.mark.parametrize("name", AGGREGATION)
def test_a_row_aggregates_as_its_paper_does(name: str):
    assert ALGORITHMS[name].aggregation == AGGREGATION[name]


@every_row
def test_a_row_names_an_aggregation_and_a_kl_term_that_exist(name: str):
    assert ALGORITHMS[name].aggregation in AGGREGATIONS
    assert ALGORITHMS[name].kl in KL_TERMS


@every_row
def test_the_formulas_of_a_row_can_be_filled_with_its_options(name: str):
    spec = ALGORITHMS[name]
    for formula in (spec.advantage_formula, spec.loss_formula):
        assert "{" not in formula.format(**spec.options)


@pytest.mark.parametrize("name", ONE_RIGHT_OF_EIGHT)
def test_a_row_uses_the_documented_estimator(golden: dict[str, Any], name: str):
    stats = stats_of_rewards([golden["adv"]["r"]], baselines=[0.0])
    advantages = Objective.of_row(ALGORITHMS[name]).advantages(stats)
    # GDPO normalises twice, and so has eps in it twice.
    assert_close(advantages, [golden["adv"][ONE_RIGHT_OF_EIGHT[name]]], atol=5e-4 if name == "gdpo" else 1e-8)


@pytest.mark.parametrize(("name", "expected"), [("passk_max", [math.sqrt(8)] + [0.0] * 7)])
def test_best_of_group_training_pays_the_gap_over_the_deviation(golden: dict[str, Any], name: str, expected: list[float]):
    advantages = Objective.of_row(ALGORITHMS[name]).advantages(stats_of_rewards([golden["adv"]["r"]]))
    assert_close(advantages, [expected], atol=1e-4)


def test_reinforce_pp_baseline_normalises_like_grpo_where_the_batch_is_one_group(golden: dict[str, Any]):
    advantages = Objective.of_row(ALGORITHMS["reinforce_pp_baseline"]).advantages(stats_of_rewards([golden["adv"]["r"]]))
    assert_close(advantages, [golden["adv"]["grpo_ddof1_eps1e-6"]], atol=1e-5)


def test_the_options_given_reach_the_estimator(golden: dict[str, Any]):
    stats = stats_of_rewards([golden["adv"]["r"]])
    found = Objective.of_row(ALGORITHMS["grpo"], ddof=0, eps=1e-8).advantages(stats)
    assert_close(found, [golden["adv"]["grpo_ddof0_eps1e-8"]])


def test_the_range_in_which_nothing_is_clipped():
    assert ALGORITHMS["dapo"].clip_range(OPTIONS["dapo"]) == (pytest.approx(0.8), pytest.approx(1.28))
    assert ALGORITHMS["gmpo"].clip_range(OPTIONS["gmpo"]) == (pytest.approx(math.exp(-0.4)), pytest.approx(math.exp(0.4)))
    low, high = ALGORITHMS["reinforce"].clip_range({})
    assert low <= 0.0
    assert float64(high).isinf()
