"""What can be had without training: of several samples of one prompt, the best by some score, or the most frequent answer.

All are expected values over n samples drawn without replacement from the N at hand, which is what makes them unbiased and free
of random numbers. Key of the shapes: N samples of one prompt.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float64

from covey.stats import pass_at_k
from covey.types import CoveyError

RIGHT = 0.5
"""A gold score from here on counts as right where right is yes or no."""


def oracle_best_of(golds: Sequence[float], size: int, *, right: float = RIGHT) -> float:
    """Return the chance that one of `size` samples is right, which a perfect verifier would find: pass@n, unbiased.

    NaN if a sample has no gold score.
    """
    _check_size(len(golds), size)
    if any(math.isnan(gold) for gold in golds):
        return math.nan
    return pass_at_k(len(golds), sum(gold >= right for gold in golds), size)


def proxy_best_of(proxies: Sequence[float], golds: Sequence[float], size: int) -> float:
    """Return the expected gold score of the sample that the proxy likes best among `size` samples.

    With N samples, N(v) of them at a proxy of v or less and N'(v) below it, the best of n has the value v with chance
    (C(N(v), n) - C(N'(v), n)) / C(N, n), and is then any sample of that value with equal chance: the sum over v of that
    chance times the mean gold score at v. A sample without a proxy score (NaN) is chosen only where none has one. NaN if a
    sample that may be chosen has no gold score.
    """
    _check_size(len(golds), size)
    if len(proxies) != len(golds):
        raise CoveyError(f"{len(proxies)} proxy scores with {len(golds)} gold scores: give both of each sample")
    golds_at: dict[float, list[float]] = {}
    for proxy, gold in zip(proxies, golds, strict=True):
        golds_at.setdefault(-math.inf if math.isnan(proxy) else proxy, []).append(gold)
    expected, num_below = 0.0, 0
    for _, tied in sorted(golds_at.items()):
        num_draws = math.comb(num_below + len(tied), size) - math.comb(num_below, size)
        if num_draws:
            expected += num_draws / math.comb(len(golds), size) * math.fsum(tied) / len(tied)
        num_below += len(tied)
    return expected


def majority_of(answers: Sequence[Hashable | None], golds: Sequence[float], size: int) -> float:
    """Return the expected gold score of the most frequent answer among `size` samples (arXiv 2203.11171).

    Answers tied for the most votes win with equal chance. A sample without an answer (None) has no vote; where no sample has
    one, the score is 0. An answer's gold score is the mean over its samples. NaN if an answer that may win has none.

    It is exact, without listing the C(N, n) draws: an answer with k votes wins against the others in as many draws as the
    product of their polynomials says (`_wins`), and answers that were given equally often win equally often.
    """
    _check_size(len(golds), size)
    if len(answers) != len(golds):
        raise CoveyError(f"{len(answers)} answers with {len(golds)} gold scores: give both of each sample")
    golds_of: dict[Hashable, list[float]] = {}
    for answer, gold in zip(answers, golds, strict=True):
        if answer is not None:
            golds_of.setdefault(answer, []).append(gold)
    counts = [len(given) for given in golds_of.values()]
    num_silent = len(golds) - sum(counts)
    chances = {count: _wins(counts, count, num_silent=num_silent, size=size) for count in set(counts)}
    return math.fsum(chances[len(given)] * math.fsum(given) / len(given) for given in golds_of.values() if chances[len(given)])


def _wins(counts: Sequence[int], own_count: int, *, num_silent: int, size: int) -> float:
    """Return the chance that one given answer, which `own_count` samples give, is the winner.

    With k votes of its own it wins against answers of c samples each in
    C(own_count, k) [x^(n-k)] C(x) prod_c (sum_{j<k} C(c, j) x^j + y C(c, k) x^k) draws, where C(x) are the samples without an
    answer; a term with y^t is a tie of t + 1 answers and counts 1 / (t + 1).
    """
    rivals = Counter(counts)
    rivals[own_count] -= 1
    total = 0.0
    for own_votes in range(1, min(own_count, size) + 1):
        draws = _draws([*rivals.elements()], own_votes, num_silent=num_silent, num_left=size - own_votes)
        total += math.comb(own_count, own_votes) * float((draws / np.arange(1, draws.size + 1)).sum())
    return total / math.comb(sum(counts) + num_silent, size)


def _draws(rivals: Sequence[int], most_votes: int, *, num_silent: int, num_left: int) -> Float64[np.ndarray, "ties"]:
    """Return in how many draws of `num_left` samples no rival has more than `most_votes`, by how many have as many."""
    # [number drawn, rivals tied]; as floats, whose terms are all positive, so nothing cancels.
    table = np.zeros((num_left + 1, num_left // most_votes + 1))
    table[: num_silent + 1, 0] = [math.comb(num_silent, drawn) for drawn in range(min(num_silent, num_left) + 1)]
    for rival in rivals:
        grown = np.zeros_like(table)
        for votes in range(min(rival, most_votes, num_left) + 1):
            ways = math.comb(rival, votes) * table[: num_left + 1 - votes]
            if votes < most_votes:
                grown[votes:] += ways
            else:
                grown[votes:, 1:] += ways[:, :-1]
        table = grown
    return table[num_left]


def _check_size(num_samples: int, size: int) -> None:
    if not 1 <= size <= num_samples:
        raise CoveyError(f"best of {size} with {num_samples} samples of a prompt: choose 1 to {num_samples}")
