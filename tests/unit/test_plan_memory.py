"""What a plan says about memory and about lengths: pure functions of sizes and of what was sampled."""

from __future__ import annotations

import dataclasses

import pytest

from covey.models.policy import Policy
from covey.plan.lengths import sampled_lengths
from covey.plan.memory import Demand, ModelSizes, kept_bytes, memory_parts, model_sizes, peak_bytes, saved_copy_bytes

SIZES = ModelSizes(
    num_parameters=1000,
    num_trained=1000,
    body_products=600,
    head_products=300,
    embedding=300,
    vocab_size=30,
    cache_values=16,
    num_layers=2,
    num_heads=4,
    head_dim=4,
    compute_bytes=2,
)
DEMAND = Demand(
    prompt_slots=2,
    prompt_tokens=10,
    num_rows=8,
    row_tokens=5,
    micro_batch_tokens=100,
    activation_token_bytes=7.0,
    has_reference=False,
    has_packed_head=True,
)


def parts(sizes: ModelSizes = SIZES, **changes: object) -> dict[str, float]:
    return memory_parts(sizes, dataclasses.replace(DEMAND, **changes), interpreter_bytes=50)


def test_a_small_model_needs_what_it_needs_by_hand() -> None:
    assert parts() == {
        "interpreter and libraries": 50,
        "weights, float32": 4000,
        "moments of AdamW": 8000,
        "the trainer's rounded copy": 1800,
        "the engine's copy": 2600,
        "reference model": 0,
        "sampling: keys and values": (2 * 10 + 8 * 5) * 16 * 2,
        "sampling: logits": 8 * 30 * 10,
        "update: gradient": 4000,
        "update: activations": 700,
        "update: logits": 100 * 30 * 14,
    }


def test_what_sampling_has_freed_is_kept_beside_the_update() -> None:
    found, longer = parts(), parts(row_tokens=1000)
    sampling = found["sampling: keys and values"] + found["sampling: logits"]
    assert peak_bytes(found) == kept_bytes(found) + sampling + 4000 + 700 + 100 * 30 * 14
    assert peak_bytes(longer) - peak_bytes(found) == longer["sampling: keys and values"] - found["sampling: keys and values"]


def test_a_copy_of_what_is_saved_is_weights_and_moments() -> None:
    assert saved_copy_bytes(SIZES) == 4000 + 8000
    assert saved_copy_bytes(dataclasses.replace(SIZES, num_trained=10)) == 120


def test_what_is_kept_between_steps_is_neither_of_sampling_nor_of_the_update() -> None:
    assert kept_bytes(parts()) == 50 + 4000 + 8000 + 1800 + 2600


def test_in_float32_the_trainer_holds_no_second_copy() -> None:
    assert parts(dataclasses.replace(SIZES, compute_bytes=4))["the trainer's rounded copy"] == 0


def test_a_reference_is_a_second_model_with_a_rounded_copy() -> None:
    assert parts(has_reference=True)["reference model"] == 4000 + 1800


def test_frozen_weights_have_neither_gradient_nor_moments() -> None:
    found = parts(dataclasses.replace(SIZES, num_trained=10))
    assert (found["update: gradient"], found["moments of AdamW"]) == (40, 80)


def test_activations_grow_with_the_micro_batch_and_logits_only_to_a_chunk() -> None:
    once, twice = parts(micro_batch_tokens=1000), parts(micro_batch_tokens=2000)
    assert twice["update: activations"] == 2 * once["update: activations"]
    assert twice["update: logits"] == once["update: logits"] == 512 * 30 * 14


def test_the_tiny_models_sizes_are_those_of_its_config(shared_tiny_policy: Policy) -> None:
    config = shared_tiny_policy.model.config
    found = model_sizes(shared_tiny_policy)
    hidden, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    head_dim = hidden // heads
    a_layer = hidden * head_dim * (2 * heads + 2 * kv_heads) + 3 * hidden * config.intermediate_size
    assert found.body_products == config.num_hidden_layers * a_layer
    assert found.head_products == found.embedding == config.vocab_size * hidden
    assert found.cache_values == config.num_hidden_layers * 2 * kv_heads * head_dim
    assert found.num_trained == found.num_parameters == sum(weight.numel() for weight in shared_tiny_policy.model.parameters())
    assert found.compute_bytes == 4


# Lengths


def test_completions_that_all_ended_are_as_long_as_they_were() -> None:
    assert sampled_lengths([3, 5, 4], num_tokens=8).expected(24) == (3, 4, 5)


def test_if_none_ended_all_go_on_to_the_limit() -> None:
    assert sampled_lengths([None, None], num_tokens=8).expected(24) == (24, 24)


def test_one_that_was_cut_off_goes_on_with_the_chance_seen() -> None:
    # 1 end in 4 + 12 tokens: (1 - (15/16)^12) / (1/16) = 8.62 more.
    assert sampled_lengths([4, None], num_tokens=12).expected(24) == (4, 12 + 9)


def test_no_length_is_above_the_limit() -> None:
    assert sampled_lengths([3, None], num_tokens=3).expected(2) == (2, 2)


def test_the_words_say_how_much_was_seen() -> None:
    words = sampled_lengths([4, None], num_tokens=12).describe(24)
    assert words == "1 of 2 sampled completions ended within 12 tokens: 12 tokens expected, 24 at most"


@pytest.mark.parametrize("limit", [12, 13, 1000])
def test_more_room_never_makes_completions_shorter(limit: int) -> None:
    seen = sampled_lengths([4, None, None], num_tokens=12)
    assert sum(seen.expected(limit)) <= sum(seen.expected(limit + 1))
