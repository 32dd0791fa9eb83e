"""Counter-based randomness: every number is a pure function of its name and position."""

from __future__ import annotations

import hashlib

import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.sampling import Sampling, permutation, rollout_keys, stream_key, uniform

KEYS = st.integers(0, 2**64 - 1)
PINNED_KEY = 13049678870702206061
PINNED_NUMBER = 0.6587379695967217


class SplitMix64:
    """The generator as published (Steele, Lea & Flood 2014; Vigna's splitmix64.c), with its running state."""

    def __init__(self, seed: int):
        self.state = seed

    def next(self) -> int:
        self.state = (self.state + 11400714819323198485) % 2**64
        z = self.state
        z = (z ^ z // 2**30) * 13787848793156543929 % 2**64
        z = (z ^ z // 2**27) * 10723151780598845931 % 2**64
        return z ^ z // 2**31


def test_the_transcription_gives_the_published_outputs_of_state_0():
    generator = SplitMix64(0)
    assert [generator.next() for _ in range(4)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
        0xF88BB8A8724C81EC,
    ]


@pytest.mark.parametrize("key", [0, 1, 1234567, 2**63, 2**64 - 1])
def test_the_numbers_of_a_stream_are_the_high_53_bits_of_splitmix64(key: int):
    generator = SplitMix64(key)
    assert [uniform(key, position) for position in range(50)] == [(generator.next() >> 11) / 2**53 for _ in range(50)]


def test_a_number_of_a_named_stream_never_changes():
    """Pinned: a saved run replays only as long as these stay."""
    key = stream_key(7, "rollout", 3, 0, "arithmetic/easy/17+4", 2)
    name = "\x1f".join(["7", "rollout", "3", "0", "arithmetic/easy/17+4", "2"])
    assert key == int(hashlib.blake2b(name.encode(), digest_size=8).hexdigest(), 16) == PINNED_KEY
    assert uniform(key, 5) == PINNED_NUMBER


@settings(max_examples=200, deadline=None)
@given(key=KEYS, position=st.integers(0, 10**9))
def test_numbers_lie_in_the_half_open_unit_interval(key: int, position: int):
    assert 0.0 <= uniform(key, position) < 1.0


def test_the_numbers_of_one_stream_are_uniform():
    numbers = [uniform(stream_key(0, "test"), position) for position in range(5000)]
    assert scipy.stats.kstest(numbers, "uniform").pvalue > 0.01


def test_the_first_numbers_of_many_streams_are_uniform():
    numbers = [uniform(stream_key(0, "test", stream), 0) for stream in range(5000)]
    assert scipy.stats.kstest(numbers, "uniform").pvalue > 0.01


def test_the_streams_of_neighbouring_samples_are_uncorrelated():
    keys = rollout_keys(0, "rollout", step=1, draw=0, prompt_id="p", group_size=2)
    first, second = ([uniform(key, position) for position in range(2000)] for key in keys)
    assert abs(scipy.stats.pearsonr(first, second).statistic) < 0.07  # 3 standard errors


BASE = {"seed": 0, "purpose": "rollout", "step": 1, "draw": 0, "prompt_id": "p"}


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"purpose": "evaluate"}, {"step": 2}, {"draw": 1}, {"prompt_id": "q"}],
    ids=lambda change: next(iter(change)),
)
def test_every_part_of_a_name_changes_all_keys(change: dict[str, int | str]):
    def keys(name: dict[str, int | str]) -> list[int]:
        return rollout_keys(group_size=4, **name)  # ty: ignore[invalid-argument-type]

    assert set(keys(BASE)).isdisjoint(keys(BASE | change))


def test_all_samples_of_a_group_have_their_own_keys():
    assert len(set(rollout_keys(0, "rollout", step=1, draw=0, prompt_id="p", group_size=64))) == 64


def test_a_larger_group_begins_with_the_keys_of_a_smaller():
    def keys(group_size: int) -> list[int]:
        return rollout_keys(0, "rollout", step=1, draw=0, prompt_id="p", group_size=group_size)

    assert keys(8)[:3] == keys(3)


def test_counters_are_not_run_together():
    assert stream_key(0, "a", 1, 23) != stream_key(0, "a", 12, 3) != stream_key(0, "a", 123)
    assert stream_key(1, "1") != stream_key(11, "")


@settings(max_examples=100, deadline=None)
@given(key=KEYS, length=st.integers(0, 200))
def test_a_permutation_holds_every_index_once(key: int, length: int):
    assert sorted(permutation(key, length)) == list(range(length))


def test_a_permutation_orders_indices_by_the_numbers_of_the_stream():
    numbers = [uniform(42, index) for index in range(20)]
    assert [numbers[index] for index in permutation(42, 20)] == sorted(numbers)


def test_all_orders_of_three_are_equally_likely():
    orders = [tuple(permutation(stream_key(0, "order", epoch), 3)) for epoch in range(3000)]
    counts = [orders.count(order) for order in sorted(set(orders))]
    assert len(counts) == 6
    assert scipy.stats.chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize(
    ("sampling", "is_plain"),
    [
        (Sampling(temperature=0.7, max_new_tokens=3, stop=("end",)), True),
        (Sampling(temperature=0.0), True),
        (Sampling(top_k=1), False),
        (Sampling(top_p=0.99), False),
        (Sampling(min_p=0.01), False),
        (Sampling(repetition_penalty=1.01), False),
        (Sampling(repetition_penalty=0.99), False),
    ],
    ids=str,
)
def test_a_plain_distribution_has_neither_filter_nor_penalty(sampling: Sampling, is_plain: bool):
    assert sampling.is_plain is is_plain


@pytest.mark.parametrize(("temperature", "is_greedy"), [(0.0, True), (1e-6, False), (1.0, False)])
def test_only_temperature_0_is_greedy(temperature: float, is_greedy: bool):
    assert Sampling(temperature=temperature).is_greedy is is_greedy
