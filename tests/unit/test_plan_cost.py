"""The cost model of `covey plan` is a pure function: golden numbers, laws of scaling, and a slow transcription."""

from __future__ import annotations

import dataclasses
import random

import pytest

from covey.plan.cost import (
    BareProducts,
    DecodingRates,
    PassTiming,
    Rates,
    TrainingRates,
    Workload,
    decoding_step_s,
    num_micro_batches,
    pass_s,
    sampling_s,
    spells,
    step_seconds,
    training_rates,
)

# Powers of two: every sum below is exact.
DECODING = DecodingRates(prefill_token_s=0.5, steps=((2, 1.0), (4, 2.0)), context_token_s=0.25, max_rows=4)
TRAINING = TrainingRates(body_token_s=2.0, head_token_s=1.0, pair_s=0.125, micro_batch_s=8.0, forward_frac=0.25)
RATES = Rates(decoding=DECODING, training=TRAINING, optimizer_s=16.0, load_weights_s=32.0)
WORK = Workload(num_prompts=2, group_size=2, prompt_tokens=4, lengths=(3,))


def changed(**changes: object) -> dict[str, float]:
    return step_seconds(dataclasses.replace(WORK, **changes), RATES)


# Golden numbers


def test_a_small_step_costs_what_it_costs_by_hand() -> None:
    # Sampling: 8 prompt tokens at .5, 2 steps of 4 rows at 2, and 4 rows that look back at 1 + 2 tokens at .25.
    # Update: 1 micro-batch at 8, 8 + 4 x 2 inputs at 2, 12 scored at 1, (2 x 8 + 4 x 16.5) pairs at .125, optimizer 16.
    assert step_seconds(WORK, RATES) == {
        "rollout_s": 4.0 + 4.0 + 3.0,
        "scoring_s": 0.0,
        "update_s": 8.0 + 32.0 + 12.0 + 82 * 0.125 + 16.0,
        "load_weights_s": 32.0,
    }


def test_a_decoding_step_lies_on_the_line_between_what_was_measured() -> None:
    assert [decoding_step_s(DECODING, rows) for rows in (1, 2, 3, 4, 8)] == [1.0, 1.0, 1.5, 2.0, 4.0]


def test_a_completion_of_one_token_needs_no_decoding_step() -> None:
    assert sampling_s(DECODING, num_prompts=2, prompt_tokens=4, row_lengths=[1, 1]) == 4.0


def test_a_reference_costs_a_forward_pass() -> None:
    full_pass = pass_s(WORK, TRAINING)
    assert changed(num_frozen_passes=1)["scoring_s"] == full_pass / 4


def test_a_second_iteration_costs_a_pass_and_its_own_scoring_and_optimizer_step() -> None:
    full_pass = pass_s(WORK, TRAINING)
    assert changed(num_iterations=2)["update_s"] == 2 * full_pass + full_pass / 4 + 2 * 16.0


def test_minibatches_cost_an_optimizer_step_each_and_all_but_the_first_are_scored_before() -> None:
    halves = dataclasses.replace(WORK, num_minibatches=2)
    expected = pass_s(halves, TRAINING) + pass_s(halves, TRAINING) / 4 / 2 + 2 * 16.0
    assert changed(num_minibatches=2)["update_s"] == expected


def test_a_greedy_baseline_is_another_call_with_one_row_a_prompt() -> None:
    # 8 prompt tokens, 2 steps of 2 rows, 2 rows that look back at 3 tokens.
    assert changed(has_baseline=True)["rollout_s"] - changed()["rollout_s"] == 4.0 + 2.0 + 1.5


# Laws of scaling


def test_twice_the_prompts_are_twice_the_tokens_pairs_and_prefill() -> None:
    endless = dataclasses.replace(DECODING, max_rows=4, steps=((1, 0.0), (2, 0.0)))
    rates = dataclasses.replace(
        RATES, decoding=endless, training=dataclasses.replace(TRAINING, micro_batch_s=0.0), optimizer_s=0.0
    )
    once, twice = (step_seconds(dataclasses.replace(WORK, num_prompts=count), rates) for count in (2, 4))
    assert twice["rollout_s"] == 2 * once["rollout_s"]
    assert twice["update_s"] == 2 * once["update_s"]


def test_rows_beyond_those_that_fit_wait_for_another_round() -> None:
    one_round = sampling_s(DECODING, num_prompts=0, prompt_tokens=0, row_lengths=[5] * 4)
    assert sampling_s(DECODING, num_prompts=0, prompt_tokens=0, row_lengths=[5] * 8) == 2 * one_round


def test_longer_completions_cost_more_than_in_proportion_because_each_token_looks_back() -> None:
    short, long = (pass_s(dataclasses.replace(WORK, lengths=(length,)), TRAINING) for length in (64, 128))
    assert long > 2 * short


def test_draws_multiply_sampling_alone() -> None:
    assert changed(num_draws=3) == changed() | {"rollout_s": 3 * changed()["rollout_s"]}


def test_a_pass_is_cut_into_as_many_micro_batches_as_its_tokens_need() -> None:
    assert [num_micro_batches(dataclasses.replace(WORK, max_tokens_per_micro_batch=most)) for most in (16, 15, 8, 5)] == [
        1,
        2,
        2,
        4,
    ]


def test_each_minibatch_has_a_micro_batch_of_its_own() -> None:
    assert num_micro_batches(dataclasses.replace(WORK, num_minibatches=2)) == 2


# Which rows are decoded together


def slow_spells(row_lengths: list[int], max_rows: int) -> list[int]:
    """Return the number of active rows of each decoding step, step by step."""
    waiting, active, seen = [length - 1 for length in row_lengths if length > 1], [], []
    while waiting or active:
        while waiting and len(active) < max_rows:
            active.append(waiting.pop(0))
        seen.append(len(active))
        active = [left - 1 for left in active if left > 1]
    return seen


def test_ended_rows_make_room_for_waiting_ones_at_once() -> None:
    assert list(spells([3, 5, 2, 2], max_rows=2)) == [(2, 2), (2, 1), (2, 1)]


@pytest.mark.parametrize("seed", range(20))
def test_spells_are_those_of_a_simulation_step_by_step(seed: int) -> None:
    draw = random.Random(seed)
    lengths = [draw.randrange(1, 9) for _ in range(draw.randrange(1, 12))]
    max_rows = draw.randrange(1, 5)
    assert [rows for rows, steps in spells(lengths, max_rows=max_rows) for _ in range(steps)] == slow_spells(lengths, max_rows)


# Rates from timings


def timed(rates: TrainingRates, *, prompt_tokens: int, num_rows: int, completion_tokens: int) -> PassTiming:
    work = Workload(num_prompts=1, group_size=num_rows, prompt_tokens=prompt_tokens, lengths=(completion_tokens,))
    return PassTiming(
        prompt_tokens=prompt_tokens, num_rows=num_rows, completion_tokens=completion_tokens, seconds=pass_s(work, rates)
    )


def test_rates_from_two_passes_predict_the_larger_of_them_exactly() -> None:
    small = PassTiming(prompt_tokens=16, num_rows=1, completion_tokens=16, seconds=0.5)
    large = PassTiming(prompt_tokens=60, num_rows=4, completion_tokens=64, seconds=2.0)
    products = BareProducts(body_s=0.003, full_body_s=0.003, head_s=0.001)
    found = training_rates(small, large, products, pair_s=1e-6, forward_frac=0.3)
    work = Workload(num_prompts=1, group_size=4, prompt_tokens=60, lengths=(64,))
    assert pass_s(work, found) == pytest.approx(2.0, abs=1e-12)
    assert found.body_token_s / found.head_token_s == pytest.approx(3.0)


def test_the_rates_that_made_the_timings_are_found_again() -> None:
    """Head and body are told apart by their bare products; an exact split needs passes of equal composition."""
    true = TrainingRates(body_token_s=0.004, head_token_s=0.0, pair_s=0.0, micro_batch_s=0.25, forward_frac=0.3)
    small = timed(true, prompt_tokens=16, num_rows=1, completion_tokens=16)
    large = timed(true, prompt_tokens=60, num_rows=4, completion_tokens=64)
    products = BareProducts(body_s=0.001, full_body_s=0.001, head_s=0.0)
    found = training_rates(small, large, products, pair_s=0.0, forward_frac=0.3)
    assert dataclasses.asdict(found) == pytest.approx(dataclasses.asdict(true), abs=1e-12)


def test_full_micro_batches_are_faster_as_their_bare_products_are() -> None:
    small = PassTiming(prompt_tokens=16, num_rows=1, completion_tokens=16, seconds=0.1)
    large = PassTiming(prompt_tokens=60, num_rows=4, completion_tokens=64, seconds=2.0)
    found = [
        training_rates(small, large, BareProducts(body_s=0.004, full_body_s=full, head_s=0.001), pair_s=0.0, forward_frac=0.3)
        for full in (0.004, 0.002)
    ]
    assert found[1].body_token_s == pytest.approx(found[0].body_token_s / 2)
    assert found[1].head_token_s == found[0].head_token_s


def test_a_large_pass_that_seems_faster_than_a_small_one_is_taken_for_its_bare_products() -> None:
    small = PassTiming(prompt_tokens=16, num_rows=1, completion_tokens=16, seconds=2.0)
    large = PassTiming(prompt_tokens=60, num_rows=4, completion_tokens=64, seconds=1.0)
    products = BareProducts(body_s=0.004, full_body_s=0.003, head_s=0.001)
    found = training_rates(small, large, products, pair_s=0.0, forward_frac=0.3)
    assert (found.body_token_s, found.head_token_s, found.micro_batch_s) == (0.003, 0.001, 2.0)
