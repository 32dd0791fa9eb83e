"""From handmade results to verdicts, costs and curves; and what is not there is said to be missing."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from tests.compare_runs.test_plan import plan_of

from covey.compare_runs.base_arms import base_result, selections
from covey.compare_runs.clock import common_machine
from covey.compare_runs.plan import Plan
from covey.compare_runs.results import last_gold
from covey.compare_runs.runs import chosen_rates
from covey.compare_runs.summary import PRIMARY_KEY, claims, gold_at, summarise
from covey.config import load_recipe

PROMPTS = [f"q{number}" for number in range(60)]
BUDGET = 9000


def scores(rate: float, seed: int) -> dict[str, float]:
    """Return right and wrong answers, a share `rate` of them right."""
    draw = random.Random(f"{rate} {seed}")
    return {prompt_id: float(draw.random() < rate) for prompt_id in PROMPTS}


def result(arm: str, seed: int, rate: float, *, train_s: float = 100.0, tokens: int = BUDGET, **changes: Any) -> dict[str, Any]:
    curve = [
        {"step": step, "tokens": tokens * step // 4, "train_s": train_s * step / 4, "mode": mode, "gold": rate * step / 4}
        for step in (2, 4)
        for mode in ("greedy", "sampled")
    ]
    return {
        "arm": arm,
        "kind": "final",
        "seed": seed,
        "learning_rate": 1e-4,
        "budget_tokens": BUDGET,
        "tokens": {"generated": tokens, "trained": tokens // 2},
        "num_steps": 4,
        "num_updates": 4,
        "elapsed_s": train_s,
        "parameters": {"policy": 10, "trained": 10, "reference": 0, "critic": 10 if arm == "ppo" else 0},
        "memory_bytes": {"policy": 100, "critic": 80 if arm == "ppo" else 0},
        "peak_rss_bytes": 300,
        "seconds": {"sampling": train_s / 2, "update": train_s / 2},
        "curve": [point | {"proxy": point["gold"], "length": 8.0} for point in curve],
        "scores": {PRIMARY_KEY: scores(rate, seed), "test/greedy": scores(rate, seed + 50)},
        "proxies": {PRIMARY_KEY: scores(rate, seed), "test/greedy": scores(rate, seed + 50)},
    } | changes


def base() -> dict[str, Any]:
    draw = random.Random(0)
    rows = [
        {
            "prompt_id": prompt_id,
            "gold": (right := float(draw.random() < 0.2)),
            "proxy": right,
            "extracted": "4" if right else str(draw.randrange(9)),
            "num_tokens": 10,
            "sample": sample,
        }
        for prompt_id in PROMPTS
        for sample in range(8)
    ]
    return base_result({"test/greedy": rows[::8], "choose/sampled": rows, PRIMARY_KEY: rows}, best_of=8)


@pytest.fixture
def plan() -> Plan:
    return plan_of("best_of_n", "majority", "grpo", "ppo", num_seeds=3, learning_rates=(1e-4,))


@pytest.fixture
def results() -> list[dict[str, Any]]:
    runs = [result("grpo", seed, 0.8) for seed in range(3)]
    runs += [result("ppo", seed, 0.5, train_s=300.0) for seed in range(3)]
    return [base(), *runs]


def arm_of(summary: dict[str, Any], name: str) -> dict[str, Any]:
    return next(arm for arm in summary["arms"] if arm["name"] == name)


def test_the_primary_verdict_comes_first_and_the_others_are_corrected(plan: Plan, results: list[dict[str, Any]]):
    found = summarise(plan, results)["verdicts"][PRIMARY_KEY]
    assert [verdict["is_primary"] for verdict in found] == [True] + [False] * (len(found) - 1)
    assert (found[0]["arm"], found[0]["reference"], found[0]["outcome"]) == ("grpo", "ppo", "better")
    pairs = {(verdict["arm"], verdict["reference"]) for verdict in found}
    assert {("grpo", "base"), ("ppo", "base"), ("best_of_n", "base"), ("majority", "grpo")} <= pairs
    assert ("ppo", "grpo") not in pairs  # The primary one, the other way round.
    assert "corrected for" in found[1]["sentence"]


def test_a_summary_is_json_and_repeats_itself(plan: Plan, results: list[dict[str, Any]]):
    assert json.dumps(summarise(plan, results), allow_nan=False) == json.dumps(summarise(plan, results), allow_nan=False)


def test_each_arm_has_its_mean_its_seeds_and_its_gain(plan: Plan, results: list[dict[str, Any]]):
    summary = summarise(plan, results)
    grpo = arm_of(summary, "grpo")
    golds = [sum(each["scores"][PRIMARY_KEY].values()) / 60 for each in results[1:4]]
    assert grpo["scores"][PRIMARY_KEY]["by_seed"] == pytest.approx(golds)
    assert grpo["scores"][PRIMARY_KEY]["mean"] == pytest.approx(sum(golds) / 3)
    assert grpo["gain_over_base"]["low"] > 0
    assert arm_of(summary, "base")["gain_over_base"] is None
    assert arm_of(summary, "ppo")["title"] == "PPO"


def test_costs_are_medians_over_seeds_and_name_the_critic(plan: Plan, results: list[dict[str, Any]]):
    results[1]["elapsed_s"] = 1000.0
    costs = arm_of(summarise(plan, results), "grpo")["costs"]
    assert costs["train_s"] == 100.0
    assert arm_of(summarise(plan, results), "ppo")["costs"]["parameters"]["critic"] == 10
    assert arm_of(summarise(plan, results), "best_of_n")["costs"] == {"tokens_per_question": 80.0}
    assert arm_of(summarise(plan, results), "base")["costs"] == {"tokens_per_question": 10.0}


def test_at_equal_time_a_slow_arm_is_judged_by_what_it_had_reached(plan: Plan, results: list[dict[str, Any]]):
    found = summarise(plan, results)["equal_time"]
    assert found["seconds"] == 100.0
    rows = {row["arm"]: row["mean"] for row in found["rows"]}
    start = sum(base()["scores"]["choose/sampled"].values()) / 60
    assert rows == {"grpo": pytest.approx(0.8), "ppo": pytest.approx(start)}  # Its first evaluation came after 150 s.


def test_seconds_of_another_machine_are_left_out_and_its_scores_are_not(plan: Plan, results: list[dict[str, Any]]):
    before = summarise(plan, results)
    finals = [found for found in results if found["kind"] == "final"]
    for found in finals:
        found["machine"] = {"cpu": "fast", "num_cores": 2, "memory_gb": 25.3}
    finals[1]["machine"] = {"cpu": "fast", "num_cores": 2, "memory_gb": 25.2}  # The same one, started again.
    elsewhere = finals[0]
    elsewhere["machine"] = {"cpu": "slow", "num_cores": 2, "memory_gb": 25.3}
    elsewhere["elapsed_s"] *= 100
    after = summarise(plan, results)
    assert after["machine"] == finals[1]["machine"]
    assert after["equal_time"]["left_out"] == [f"{elsewhere['arm']}, seed {elsewhere['seed']}"]
    assert after["equal_time"]["seconds"] == before["equal_time"]["seconds"]
    arms = {arm["name"]: arm for arm in after["arms"]}
    own = arms[elsewhere["arm"]]
    assert elsewhere["seed"] not in own["costs"]["timed_seeds"]
    assert ["train_s" in seed for seed in own["curve"]] == [seed["seed"] != elsewhere["seed"] for seed in own["curve"]]
    assert [arm["scores"] for arm in after["arms"]] == [arm["scores"] for arm in before["arms"]]
    assert after["verdicts"] == before["verdicts"]


def test_an_arm_whose_runs_were_all_made_elsewhere_has_no_seconds(plan: Plan, results: list[dict[str, Any]]):
    finals = [found for found in results if found["kind"] == "final"]
    last = finals[-1]["arm"]
    for found in finals:
        found["machine"] = {"cpu": "slow" if found["arm"] == last else "fast"}
    costs = {arm["name"]: arm["costs"] for arm in summarise(plan, results)["arms"]}[last]
    assert (costs["seconds"], costs["train_s"]) == ({}, None)
    assert costs["memory_bytes"]


@pytest.mark.parametrize(
    ("machines", "common"),
    [
        ([], {}),
        ([None, None], {}),
        ([None, {"cpu": "a"}], {"cpu": "a"}),
        ([{"cpu": "a"}, {"cpu": "b"}, {"cpu": "b"}], {"cpu": "b"}),
        ([None, None, {"cpu": "a"}], {}),
    ],
)
def test_the_clock_is_that_of_the_machine_with_most_runs(machines: list[dict[str, Any] | None], common: dict[str, Any]):
    assert common_machine([{} if machine is None else {"machine": machine} for machine in machines]) == common


def test_gold_at_a_time_is_never_interpolated(results: list[dict[str, Any]]):
    before = sum(results[0]["scores"]["choose/sampled"].values()) / 60
    assert gold_at(results[4], 149.0 / 1.02, results[0]) == pytest.approx(before)
    assert gold_at(results[4], 150.0, results[0]) == 0.25


def test_an_arm_that_missed_the_budget_is_named(plan: Plan, results: list[dict[str, Any]]):
    assert any("recounted" in claim for claim in summarise(plan, results)["claims"])
    results[-1]["tokens"]["generated"] = 8000
    said = summarise(plan, results)["claims"]
    assert any(claim.startswith("Not at the budget") and "ppo by 11.1 %" in claim for claim in said)


def test_who_beats_the_base_and_who_does_not_is_said(plan: Plan, results: list[dict[str, Any]]):
    results[4:] = [result("ppo", seed, 0.2) for seed in range(3)]
    said = summarise(plan, results)["claims"]
    assert said[0] == "Better than the model as it is, the paired 95 % interval above 0: grpo."
    assert said[1] == "Not shown to be better than the model as it is: ppo."


def test_a_comparison_that_is_not_finished_says_so(plan: Plan, results: list[dict[str, Any]]):
    summary = summarise(plan, results[:-1])
    assert summary["claims"][-1] == "Seeds are missing, because the comparison is not finished: ppo."
    assert claims(plan, [], summary["arms"])[-1] == summary["claims"][-1]


def test_without_any_run_there_are_no_verdicts(plan: Plan):
    summary = summarise(plan, [base()])
    assert summary["verdicts"][PRIMARY_KEY] == []
    assert summary["equal_time"]["rows"] == []


def test_untrained_arms_are_expected_values_over_the_samples():
    rows = [
        {"prompt_id": "q", "gold": gold, "proxy": proxy, "extracted": answer, "num_tokens": 1, "sample": sample}
        for sample, (gold, proxy, answer) in enumerate([(1.0, 1.0, "4"), (0.0, 0.0, "5"), (0.0, 1.0, "5"), (0.0, 0.0, None)])
    ]
    found = selections(rows, size=4)
    assert found["best_of_n"] == {"q": 0.5}  # Two samples share the highest proxy, and one of them is right.
    assert found["majority"] == {"q": 0.0}
    assert found["oracle"] == {"q": 1.0}


def trial(arm: str, rate: float, gold: float | None) -> dict[str, Any]:
    points = [{"step": 0, "mode": "sampled", "gold": 0.1}, {"step": 2, "mode": "sampled", "gold": gold}]
    return {"arm": arm, "kind": "trial", "learning_rate": rate, "curve": [*points, {"step": 2, "mode": "greedy", "gold": 0.99}]}


def test_the_rate_with_the_highest_gold_at_the_end_wins_and_the_smaller_one_of_equals():
    plan = plan_of("grpo", "raft", recipe=load_recipe(None))
    trials = [trial("grpo", 1e-5, 0.3), trial("grpo", 3e-5, 0.5), trial("grpo", 1e-4, 0.4)]
    trials += [trial("raft", 1e-5, 0.2), trial("raft", 3e-5, 0.2), trial("raft", 1e-4, None)]
    assert chosen_rates(plan, trials) == {"grpo": 3e-5, "raft": 1e-5}


def test_a_trial_without_gold_never_wins():
    assert last_gold({"curve": []}) is None
    never = [trial("grpo", 1e-5, 0.3) | {"curve": []}, trial("grpo", 3e-5, 0.2), trial("grpo", 1e-4, 0.1)]
    assert chosen_rates(plan_of("grpo"), never) == {"grpo": 3e-5}
