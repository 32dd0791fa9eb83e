"""How packs fill micro-batches: longest first, and as many as the padded size allows."""

from __future__ import annotations

import pytest

from covey.models.scoring import Pack, plan_micro_batches


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
