"""Held-out measurements: paired with the first, clustered by prompt, and without any effect on training."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from tests.builders import END, make_prompt, make_reward, shake

from covey.engines.scripted import ScriptedEngine
from covey.engines.transformers import TransformersEngine
from covey.evaluate import EvaluationSpec, Row, evaluate, numbers_of_tries, prompt_means, summarise
from covey.models.policy import Policy, weights_digest
from covey.rewards.base import Rewarder, reward_from_function
from covey.rollout import RolloutSpec, sample_step
from covey.sampling import Sampling, rollout_keys
from covey.stats import mean_interval
from covey.types import Completion

PROMPTS = [make_prompt(f"q{number}", f"Say {number}", answer=number) for number in range(5)]
SPEC = EvaluationSpec(sampling=Sampling(temperature=0.8, max_new_tokens=6), samples_per_prompt=3, seed=4)
PROXY, GOLD = make_reward(lambda sample: float(len(sample.completion) % 2)), make_reward(lambda sample: 1.0)
REWARDER = Rewarder(proxy=PROXY, gold=GOLD)


class Listening(ScriptedEngine):
    """Answers "A" and remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__(lambda prompt, sample: [65 + sample, END], stop_ids=frozenset({END}))
        self.calls: list[tuple[Sampling, int, list[list[int]]]] = []

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, *, group_size: int, keys: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        self.calls.append((sampling, group_size, [list(group) for group in keys]))
        return super().generate(prompts, sampling, group_size=group_size, keys=keys)


# --- evaluate ----------------------------------------------------------------------------------------------------------


def test_greedy_takes_one_completion_a_prompt_at_temperature_0(shared_tiny_policy: Policy):
    engine = Listening()
    rows = evaluate(PROMPTS, SPEC, mode="greedy", policy=shared_tiny_policy, engine=engine, rewarder=REWARDER)
    [(sampling, group_size, _)] = engine.calls
    assert (sampling.temperature, sampling.max_new_tokens, group_size, len(rows)) == (0.0, 6, 1, 5)


def test_sampled_takes_the_declared_completions_at_the_training_temperature(shared_tiny_policy: Policy):
    engine = Listening()
    rows = evaluate(PROMPTS, SPEC, mode="sampled", policy=shared_tiny_policy, engine=engine, rewarder=REWARDER)
    [(sampling, group_size, _)] = engine.calls
    assert (sampling, group_size, len(rows)) == (SPEC.sampling, 3, 15)


def test_the_random_numbers_are_the_same_at_every_evaluation_and_none_of_training(shared_tiny_policy: Policy):
    engine = Listening()
    for _ in range(2):
        evaluate(PROMPTS, SPEC, mode="sampled", policy=shared_tiny_policy, engine=engine, rewarder=REWARDER)
    (_, _, first), (_, _, second) = engine.calls
    trained = rollout_keys(SPEC.seed, "rollout", step=0, draw=0, prompt_id="q0", group_size=3)
    assert first == second
    assert set(first[0]).isdisjoint(trained)
    assert len({key for group in first for key in group}) == 15


def test_a_row_says_what_was_asked_answered_and_judged(shared_tiny_policy: Policy):
    rows = evaluate(PROMPTS[3:4], SPEC, mode="sampled", policy=shared_tiny_policy, engine=Listening(), rewarder=REWARDER)
    assert rows[1] == {
        "prompt_id": "q3",
        "question": "Say 3",
        "answer": "3",
        "sample": 1,
        "completion": "B",
        "extracted": None,
        "gold": 1.0,
        "proxy": 1.0,
        "num_tokens": 2,
        "finish_reason": "stop",
        "error": None,
    }


def test_a_row_without_verifier_has_no_gold(shared_tiny_policy: Policy):
    rewarder = Rewarder(proxy=REWARDER.proxy, gold=None)
    rows = evaluate(PROMPTS[:1], SPEC, mode="greedy", policy=shared_tiny_policy, engine=Listening(), rewarder=rewarder)
    assert (rows[0]["gold"], rows[0]["proxy"]) == (None, 1.0)


@pytest.mark.parametrize("failing", ["proxy", "gold"])
def test_the_failure_of_either_reward_is_in_the_row(shared_tiny_policy: Policy, failing: str):
    def fail(completion: str) -> float:
        raise ValueError("broken")

    rewarder = Rewarder(**{"proxy": PROXY, "gold": GOLD} | {failing: reward_from_function(fail)})
    [row] = evaluate(PROMPTS[:1], SPEC, mode="greedy", policy=shared_tiny_policy, engine=Listening(), rewarder=rewarder)
    assert row[failing] is None
    assert "broken" in row["error"]


def test_evaluating_leaves_weights_and_random_states_alone(tiny_policy: Policy):
    engine = TransformersEngine(tiny_policy)
    digests = weights_digest(tiny_policy.model, torch.float32), engine.served_digest()
    states = torch.get_rng_state(), random.getstate()
    evaluate(PROMPTS, SPEC, mode="sampled", policy=tiny_policy, engine=engine, rewarder=REWARDER)
    assert (weights_digest(tiny_policy.model, torch.float32), engine.served_digest()) == digests
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert not tiny_policy.model.training
    assert all(parameter.grad is None for parameter in tiny_policy.model.parameters())


def test_a_training_step_draws_the_same_completions_with_and_without_an_evaluation_before(shared_tiny_policy: Policy):
    options = RolloutSpec(sampling=SPEC.sampling, prompts_per_step=3, group_size=4, max_draws=1, keeps=bool, seed=4)
    engine = TransformersEngine(shared_tiny_policy)

    def trained() -> list[str]:
        sampled = sample_step(
            lambda count: PROMPTS[:count], options, step=1, policy=shared_tiny_policy, engine=engine, rewarder=REWARDER
        )
        return [rollout.text for group in sampled.all for rollout in group.rollouts]

    before = trained()
    evaluate(PROMPTS, SPEC, mode="sampled", policy=shared_tiny_policy, engine=engine, rewarder=REWARDER)
    assert trained() == before


def test_evaluating_twice_gives_the_same_rows(shared_tiny_policy: Policy):
    engine = TransformersEngine(shared_tiny_policy)

    def rows() -> list[Row]:
        return evaluate(PROMPTS, SPEC, mode="sampled", policy=shared_tiny_policy, engine=engine, rewarder=REWARDER)

    assert rows() == rows()


def test_a_changed_policy_is_measured_after_it_is_loaded(tiny_policy: Policy):
    engine = TransformersEngine(tiny_policy)

    def completions() -> list[str]:
        rows = evaluate(PROMPTS, SPEC, mode="greedy", policy=tiny_policy, engine=engine, rewarder=REWARDER)
        return [row["completion"] for row in rows]

    before = completions()
    shake(tiny_policy, scale=0.3)
    engine.load_weights(tiny_policy, 1)
    assert completions() != before


# --- summarise ---------------------------------------------------------------------------------------------------------


def rows_of(gold: Mapping[str, Sequence[float | None]], proxy: Mapping[str, Sequence[float | None]] | None = None) -> list[Row]:
    """Return rows from {prompt id: scores of its samples}; the proxy is the gold unless given."""
    return [
        {
            "prompt_id": prompt_id,
            "sample": sample,
            "gold": value,
            "proxy": (proxy or gold)[prompt_id][sample],
            "num_tokens": 4 + sample,
            "finish_reason": "length" if sample else "stop",
            "error": "failed" if value is None else None,
        }
        for prompt_id, values in gold.items()
        for sample, value in enumerate(values)
    ]


def gold_fields(summary: Mapping[str, Any], prefix: str) -> tuple[float | None, ...]:
    return tuple(summary[key] for key in (f"{prefix}_mean" if prefix == "gold" else prefix, f"{prefix}_low", f"{prefix}_high"))


def test_accuracies_are_means_over_prompts_with_their_interval():
    summary = summarise(rows_of({"a": [1.0], "b": [0.0], "c": [1.0]}), None)
    expected = mean_interval([1.0, 0.0, 1.0])
    assert gold_fields(summary, "gold") == pytest.approx((expected.mean, expected.low, expected.high))


def test_the_samples_of_a_prompt_are_one_observation():
    rows = rows_of({"a": [1.0, 1.0, 1.0, 1.0], "b": [0.0, 0.0, 0.0, 0.0], "c": [1.0, 0.0, 0.0, 0.0]})
    expected = mean_interval([1.0, 0.0, 0.25])
    assert gold_fields(summarise(rows, None), "gold") == pytest.approx((expected.mean, expected.low, expected.high))


def test_a_prompt_with_fewer_scored_samples_weighs_as_much_as_any_other():
    summary = summarise(rows_of({"a": [1.0, None, None], "b": [0.0, 0.0, 0.0]}), None)
    assert summary["gold_mean"] == 0.5


def test_the_gain_is_the_mean_of_paired_differences():
    before = rows_of({"a": [0.0], "b": [0.0], "c": [1.0], "d": [0.0]})
    after = rows_of({"a": [1.0], "b": [0.0], "c": [1.0], "d": [1.0]})
    summary = summarise(after, before)
    expected = mean_interval([1.0, 0.0, 0.0, 1.0])
    assert (summary["gold_gain"], summary["gold_gain_low"], summary["gold_gain_high"]) == pytest.approx(
        (expected.mean, expected.low, expected.high)
    )


def test_pairing_goes_by_prompt_and_not_by_order():
    before = rows_of({"a": [0.0], "b": [1.0], "c": [0.5]})
    after = rows_of({"c": [0.5], "b": [1.0], "a": [0.0]})
    summary = summarise(after, before)
    assert (summary["gold_gain"], summary["gold_gain_low"], summary["gold_gain_high"]) == (0.0, 0.0, 0.0)


def test_a_paired_interval_is_narrower_than_the_difference_of_two():
    before = rows_of({f"q{number}": [float(number % 2)] for number in range(40)})
    after = rows_of({f"q{number}": [float(number % 2 or number == 0)] for number in range(40)})
    summary = summarise(after, before)
    assert summary["gold_gain_high"] - summary["gold_gain_low"] < 0.5 * (summary["gold_high"] - summary["gold_low"])


def test_the_first_evaluation_has_no_gain():
    summary = summarise(rows_of({"a": [1.0], "b": [0.0]}), None)
    assert {key: value for key, value in summary.items() if "gain" in key} == dict.fromkeys(
        [f"{verifier}_gain{end}" for verifier in ("gold", "proxy") for end in ("", "_low", "_high")]
    )


def test_only_prompts_of_both_evaluations_are_paired():
    before = rows_of({"a": [0.0], "b": [0.0], "x": [1.0]})
    after = rows_of({"a": [1.0], "b": [1.0], "y": [0.0]})
    summary = summarise(after, before)
    assert (summary["gold_gain"], summary["gold_mean"]) == (1.0, 2 / 3)


def test_a_prompt_that_could_not_be_scored_once_is_not_paired():
    before = rows_of({"a": [None], "b": [0.0], "c": [0.0]})
    after = rows_of({"a": [1.0], "b": [1.0], "c": [None]})
    assert summarise(after, before)["gold_gain"] == 1.0


def test_a_run_without_verifier_has_proxy_figures_only():
    rows = rows_of({"a": [None], "b": [None]}, proxy={"a": [1.0], "b": [0.0]})
    summary = summarise(rows, rows)
    assert all(value is None for key, value in summary.items() if key.startswith("gold"))
    assert (summary["proxy_mean"], summary["proxy_gain"]) == (0.5, 0.0)


def test_proxy_and_gold_are_summarised_apart():
    rows = rows_of({"a": [0.0], "b": [0.0]}, proxy={"a": [1.0], "b": [1.0]})
    summary = summarise(rows, rows_of({"a": [0.0], "b": [0.0]}, proxy={"a": [0.0], "b": [1.0]}))
    assert (summary["gold_mean"], summary["gold_gain"], summary["proxy_mean"], summary["proxy_gain"]) == (0.0, 0.0, 1.0, 0.5)


def test_a_single_prompt_has_no_interval():
    assert gold_fields(summarise(rows_of({"a": [1.0]}), None), "gold") == (1.0, None, None)


def test_lengths_truncations_and_failures_are_shares_of_all_completions():
    summary = summarise(rows_of({"a": [1.0, None], "b": [0.0, 1.0]}), None)
    assert {
        key: summary[key] for key in ("num_prompts", "samples_per_prompt", "length_mean", "truncated_frac", "error_frac")
    } == {
        "num_prompts": 2,
        "samples_per_prompt": 2,
        "length_mean": 4.5,
        "truncated_frac": 0.5,
        "error_frac": 0.25,
    }


def test_prompts_keep_their_order_of_appearance():
    assert list(prompt_means(rows_of({"b": [1.0], "a": [0.0]}), "gold")) == ["b", "a"]


# --- several tries -----------------------------------------------------------------------------------------------------


def test_pass_at_k_is_the_unbiased_estimate_for_each_prompt():
    summary = summarise(rows_of({"a": [1.0, 0.0, 0.0, 0.0], "b": [1.0, 1.0, 0.0, 0.0], "c": [0.0] * 4}), None)
    # 1 - C(n - c, 2) / C(n, 2): of the pairs of four samples, 3 of 6 hold the one right sample, 5 of 6 one of two.
    expected = mean_interval([3 / 6, 5 / 6, 0.0])
    found = summary["pass_at"]["2"]
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((expected.mean, expected.low, expected.high))
    assert summary["pass_at"]["4"]["mean"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("samples", "tries"), [(1, []), (2, [2]), (3, [2, 3]), (8, [2, 4, 8]), (12, [2, 4, 8, 12])])
def test_tries_are_powers_of_two_and_the_number_of_samples(samples: int, tries: list[int]):
    assert numbers_of_tries(samples) == tries


def test_the_gain_of_pass_at_k_is_paired_with_step_0():
    before = rows_of({"a": [0.0, 0.0], "b": [1.0, 1.0], "c": [0.0, 0.0]})
    after = rows_of({"a": [1.0, 0.0], "b": [1.0, 0.0], "c": [0.0, 0.0]})
    found = summarise(after, before)["pass_at"]["2"]
    expected = mean_interval([1.0, 0.0, 0.0])
    assert (found["gain"], found["gain_low"], found["gain_high"]) == pytest.approx((expected.mean, expected.low, expected.high))
    assert summarise(before, None)["pass_at"]["2"]["gain"] is None


def test_a_prompt_with_fewer_scored_samples_than_tries_is_left_out_of_them():
    summary = summarise(rows_of({"a": [1.0, None], "b": [0.0, 0.0], "c": [0.0, 1.0]}), None)
    assert summary["pass_at"]["2"]["mean"] == 0.5


def test_without_gold_there_is_no_pass_at_k():
    rows = rows_of({"a": [None, None], "b": [None, None]}, proxy={"a": [1.0, 0.0], "b": [0.0, 0.0]})
    assert set(summarise(rows, rows)["pass_at"]["2"].values()) == {None}
