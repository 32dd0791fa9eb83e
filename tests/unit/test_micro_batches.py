"""How packs fill micro-batches: where the model pads them, longest first and as many as fit; else in order and evenly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny_batches import COMPLETION_LENGTHS, PROMPT_LENGTHS, ragged_groups
from tests.unit.test_native_families import gpt2

from covey.batch import make_tokens
from covey.models.policy import Policy
from covey.models.scoring import Pack, fill_evenly, plan_micro_batches, plan_packs, plan_scoring


def packs_of(*sizes: int) -> list[Pack]:
    return [Pack(group=number, rows=(number,), num_tokens=size) for number, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "max_tokens", "expected"),
    [
        ((10, 10, 10), 20, [[10, 10], [10]]),  # Exactly full is not too full.
        ((10, 10, 10), 25, [[10, 10], [10]]),  # With room left that no pack fits into.
        ((10, 10, 10), 100, [[10, 10, 10]]),
        ((3, 9, 5, 8), 18, [[9, 8], [5, 3]]),  # Padded to the longest: 9 + 9, then 5 + 5.
        ((3, 9, 5, 8), 26, [[9, 8], [5, 3]]),  # Three times 9 would be 27.
        ((3, 9, 5, 8), 27, [[9, 8, 5], [3]]),
        ((30, 2), 10, [[30], [2]]),  # A pack that is too large by itself is alone.
    ],
)
def test_a_micro_batch_is_filled_up_to_its_padded_size(sizes: tuple[int, ...], max_tokens: int, expected: list[list[int]]):
    batches = plan_micro_batches(packs_of(*sizes), max_tokens=max_tokens)
    assert [[pack.num_tokens for pack in batch] for batch in batches] == expected


def test_equal_packs_keep_the_order_of_their_rows():
    assert [pack.rows for pack in plan_micro_batches(packs_of(4, 4, 4), max_tokens=99)[0]] == [(0,), (1,), (2,)]


# --- Without padding -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "max_tokens", "expected"),
    [
        ((10, 10, 10), 30, [[10, 10, 10]]),  # Exactly full is not too full.
        ((10, 10, 10), 29, [[10, 10], [10]]),
        ((10, 10, 10, 10), 30, [[10, 10], [10, 10]]),  # Two and two, not three and one.
        ((5, 5, 5, 5, 5, 5), 12, [[5, 5], [5, 5], [5, 5]]),
        ((3, 9, 5, 8), 18, [[3, 9, 5], [8]]),  # In order, and no padding counts: 17 tokens.
        ((3, 9, 5, 8), 16, [[3, 9], [5, 8]]),
        ((1, 1, 1, 9, 9), 10, [[1, 1, 1], [9], [9]]),
        ((2, 30, 2), 10, [[2], [30], [2]]),  # A pack that is too large by itself is alone.
        ((), 10, []),
    ],
)
def test_micro_batches_without_padding_are_filled_in_order_and_evenly(
    sizes: tuple[int, ...], max_tokens: int, expected: list[list[int]]
):
    batches = fill_evenly(packs_of(*sizes), max_tokens=max_tokens)
    assert [[pack.num_tokens for pack in batch] for batch in batches] == expected


@given(sizes=st.lists(st.integers(1, 40), max_size=20), max_tokens=st.integers(1, 60))
def test_every_pack_is_in_one_micro_batch_in_order_and_none_is_too_large(sizes: list[int], max_tokens: int):
    packs = packs_of(*sizes)
    batches = fill_evenly(packs, max_tokens=max_tokens)
    assert [pack for batch in batches for pack in batch] == packs
    for batch in batches:
        assert len(batch) == 1 or sum(pack.num_tokens for pack in batch) <= max_tokens


@given(count=st.integers(1, 40), max_packs=st.integers(1, 12))
def test_of_equal_packs_there_are_as_few_micro_batches_as_possible_and_the_largest_is_as_small(count: int, max_packs: int):
    sizes = [len(batch) for batch in fill_evenly(packs_of(*[7] * count), max_tokens=7 * max_packs)]
    assert len(sizes) == -(-count // max_packs)
    assert max(sizes) == -(-count // len(sizes))


# --- Which of the two ------------------------------------------------------------------------------------------------

TOKENS = make_tokens(ragged_groups([[0.0] * 5] * 3))
ROWS = range(15)
LONGEST_GROUP = max(prompt + sum(rows) for prompt, rows in zip(PROMPT_LENGTHS, COMPLETION_LENGTHS, strict=True))


def rows_of(batches: list[list[Pack]]) -> list[list[tuple[int, ...]]]:
    return [[pack.rows for pack in batch] for batch in batches]


@pytest.mark.parametrize("max_shared_tokens", [1, 4096])
def test_a_model_that_is_packed_computes_each_prompt_once_where_a_group_fits(
    shared_tiny_policy: Policy, max_shared_tokens: int
):
    """`max_shared_tokens` bounds a mask that grows with its square, which these models do without."""
    plan = plan_scoring(shared_tiny_policy.model, TOKENS, ROWS, max_tokens=LONGEST_GROUP, max_shared_tokens=max_shared_tokens)
    assert rows_of(plan) == [[tuple(range(start, start + 5))] for start in (0, 5, 10)]


def test_a_group_that_is_larger_than_a_micro_batch_is_cut(shared_tiny_policy: Policy):
    plan = plan_scoring(shared_tiny_policy.model, TOKENS, range(5), max_tokens=50, max_shared_tokens=4096)
    # A prompt of 30 and completions of 3, 14, 1 are 48 tokens; 9 and 6 come behind a copy of it.
    assert rows_of(plan) == [[(0, 1, 2)], [(3, 4)]]


def test_without_sharing_every_completion_has_its_own_prompt(shared_tiny_policy: Policy):
    plan = plan_scoring(shared_tiny_policy.model, TOKENS, ROWS, max_tokens=4096, max_shared_tokens=0)
    assert rows_of(plan) == [[(row,) for row in ROWS]]


@pytest.mark.parametrize("max_shared_tokens", [0, 64, 4096])
def test_any_other_model_has_packs_within_the_bound_of_its_mask_and_micro_batches_of_padded_size(max_shared_tokens: int):
    plan = plan_scoring(gpt2(), TOKENS, ROWS, max_tokens=100, max_shared_tokens=max_shared_tokens)
    packs = plan_packs(TOKENS, ROWS, max_shared_tokens=max_shared_tokens)
    assert plan == plan_micro_batches(packs, max_tokens=100)
