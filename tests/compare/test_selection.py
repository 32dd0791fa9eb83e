"""Best of n and majority vote: equal to listing every draw."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.compare.selection import majority_of, oracle_best_of, proxy_best_of
from covey.stats import pass_at_k
from covey.types import CoveyError

GOLDS = st.sampled_from([0.0, 0.25, 1.0])
SCORED = st.lists(st.tuples(st.sampled_from([math.nan, 0.0, 0.5, 1.0]), GOLDS), min_size=1, max_size=7)
ANSWERED = st.lists(st.sampled_from([None, "a", "b", "c", "d"]), min_size=1, max_size=8)
GOLD_OF = {None: 0.0, "a": 1.0, "b": 0.0, "c": 0.25, "d": 0.5}


def mean_over_draws(num_samples: int, size: int, score) -> float:
    return float(np.mean([score(draw) for draw in combinations(range(num_samples), size)]))


@given(samples=SCORED, data=st.data())
def test_best_by_the_proxy_is_the_mean_over_all_draws(samples: list[tuple[float, float]], data: st.DataObject):
    size = data.draw(st.integers(1, len(samples)))
    proxies = [-math.inf if math.isnan(proxy) else proxy for proxy, _ in samples]

    def gold_of_best(draw: tuple[int, ...]) -> float:
        best = max(proxies[index] for index in draw)
        return float(np.mean([samples[index][1] for index in draw if proxies[index] == best]))

    expected = mean_over_draws(len(samples), size, gold_of_best)
    found = proxy_best_of([proxy for proxy, _ in samples], [gold for _, gold in samples], size)
    assert found == pytest.approx(expected, abs=1e-12)


@given(answers=ANSWERED, data=st.data())
def test_the_majority_is_the_mean_over_all_draws(answers: list[str | None], data: st.DataObject):
    size = data.draw(st.integers(1, len(answers)))

    def gold_of_majority(draw: tuple[int, ...]) -> float:
        votes = Counter(answers[index] for index in draw if answers[index] is not None)
        winners = [answer for answer, number in votes.items() if number == max(votes.values())]
        return float(np.mean([GOLD_OF[answer] for answer in winners])) if winners else 0.0

    expected = mean_over_draws(len(answers), size, gold_of_majority)
    assert majority_of(answers, [GOLD_OF[answer] for answer in answers], size) == pytest.approx(expected, abs=1e-12)


def test_the_majority_of_many_samples_is_what_random_draws_give():
    answers = ["a"] * 20 + ["b"] * 18 + ["c"] * 10 + [f"other {n}" for n in range(10)] + [None] * 6
    golds = [float(answer == "a") for answer in answers]
    rng = np.random.default_rng(0)
    wins = []
    for _ in range(4000):
        votes = Counter(answers[index] for index in rng.choice(64, 16, replace=False) if answers[index] is not None)
        winners = [answer for answer, number in votes.items() if number == max(votes.values())]
        wins.append(("a" in winners) / len(winners))
    # Four standard errors of 4000 draws.
    assert majority_of(answers, golds, 16) == pytest.approx(np.mean(wins), abs=0.03)


def test_the_majority_of_all_samples_is_the_most_frequent_answer():
    assert majority_of(["a", "a", "b", None, None, None], [1.0, 1.0, 0.0, 0.0, 0.0, 0.0], 6) == 1.0


@pytest.mark.parametrize("size", [1, 3, 5])
def test_one_verifier_finds_a_right_sample_as_often_as_pass_at_k_says(size: int):
    golds = [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    assert oracle_best_of(golds, size) == pass_at_k(6, 2, size)
    assert proxy_best_of(golds, golds, size) == pytest.approx(pass_at_k(6, 2, size), abs=1e-12)


def test_a_gold_score_of_one_half_is_right():
    assert oracle_best_of([0.5, 0.49], 1) == 0.5


def test_one_sample_has_the_mean_score_however_it_is_chosen():
    golds = [1.0, 0.0, 0.25, 0.25]
    assert proxy_best_of([3.0, 2.0, 1.0, 0.0], golds, 1) == pytest.approx(0.375)
    assert majority_of(["a", "b", "c", "c"], golds, 1) == pytest.approx(0.375)


def test_a_proxy_that_prefers_wrong_samples_gets_worse_with_more_of_them():
    proxies, golds = [0.9, 0.5, 0.4, 0.1], [0.0, 1.0, 1.0, 1.0]
    assert [proxy_best_of(proxies, golds, size) for size in (1, 2, 4)] == pytest.approx([0.75, 0.5, 0.0])


def test_a_sample_without_gold_counts_only_where_it_may_be_chosen():
    assert proxy_best_of([1.0, 1.0, 0.0], [1.0, 0.0, math.nan], 2) == pytest.approx(0.5)
    assert math.isnan(proxy_best_of([1.0, 1.0, 0.0], [1.0, 0.0, math.nan], 1))
    assert math.isnan(oracle_best_of([1.0, math.nan], 1))
    assert math.isnan(majority_of(["a", "b"], [1.0, math.nan], 1))
    assert majority_of(["a", "a", "a", "b"], [1.0, 1.0, 1.0, math.nan], 4) == 1.0


@pytest.mark.parametrize("size", [0, 3])
def test_more_samples_than_there_are_cannot_be_drawn(size: int):
    for select in (
        lambda: oracle_best_of([1.0, 0.0], size),
        lambda: proxy_best_of([1.0, 0.0], [1.0, 0.0], size),
        lambda: majority_of(["a", "b"], [1.0, 0.0], size),
    ):
        with pytest.raises(CoveyError, match=f"best of {size} with 2 samples"):
            select()


def test_scores_that_do_not_belong_together_are_refused():
    with pytest.raises(CoveyError, match="1 proxy scores with 2 gold scores"):
        proxy_best_of([1.0], [1.0, 0.0], 1)
    with pytest.raises(CoveyError, match="1 answers with 2 gold scores"):
        majority_of(["a"], [1.0, 0.0], 1)
