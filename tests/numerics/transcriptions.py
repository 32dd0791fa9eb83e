"""The papers' formulas written a second time, slowly: plain floats, one group, one completion and one token at a time.

Nothing here imports the package, so that nothing here can share its mistakes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One rollout as an estimator sees it."""

    reward: float | None
    """None = could not be scored."""
    length: int = 1
    parts: tuple[float, ...] = ()

    @property
    def value(self) -> float:
        assert self.reward is not None
        return self.reward


Groups = Sequence[Sequence[Answer]]
Advantages = list[list[float]]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def deviation(values: Sequence[float], ddof: int) -> float:
    center = mean(values)
    return math.sqrt(math.fsum((value - center) ** 2 for value in values) / max(len(values) - ddof, 1))


def scored_of(group: Sequence[Answer]) -> list[Answer]:
    return [answer for answer in group if answer.reward is not None]


def rewards_of(group: Sequence[Answer]) -> list[float]:
    return [answer.value for answer in scored_of(group)]


def is_comparable(group: Sequence[Answer]) -> bool:
    """Return whether the group has two scored answers with different rewards."""
    return len(set(rewards_of(group))) > 1


def group_by_group(groups: Groups, advantage: Callable[[Answer, list[Answer]], float]) -> Advantages:
    """Return `advantage` of each scored answer of each group that has two different rewards, 0 for all others."""
    return [
        [advantage(answer, scored_of(group)) if answer.reward is not None and is_comparable(group) else 0.0 for answer in group]
        for group in groups
    ]


# --- advantages ------------------------------------------------------------------------------------------------------


def dr_grpo(groups: Groups) -> Advantages:
    return group_by_group(groups, lambda answer, scored: answer.value - mean([other.value for other in scored]))


def grpo(groups: Groups, *, ddof: int, eps: float, min_group_std: float = 0.0, reward_range: float = 1.0) -> Advantages:
    def advantage(answer: Answer, scored: list[Answer]) -> float:
        rewards = [other.value for other in scored]
        std = deviation(rewards, ddof)
        return (answer.value - mean(rewards)) / (reward_range if std < min_group_std * reward_range else std + eps)

    return group_by_group(groups, advantage)


def rloo(groups: Groups) -> Advantages:
    """Each answer against the mean of the others, as the paper writes it."""
    return group_by_group(
        groups, lambda answer, scored: answer.value - mean([other.value for other in scored if other is not answer])
    )


def opo(groups: Groups) -> Advantages:
    def advantage(answer: Answer, scored: list[Answer]) -> float:
        return answer.value - sum(o.length * o.value for o in scored) / sum(o.length for o in scored)

    return group_by_group(groups, advantage)


def raw(groups: Groups) -> Advantages:
    return [[0.0 if answer.reward is None else answer.reward for answer in group] for group in groups]


def remax(groups: Groups, *, baselines: Sequence[float | None]) -> Advantages:
    return [
        [0.0 if answer.reward is None or baseline is None else answer.reward - baseline for answer in group]
        for group, baseline in zip(groups, baselines, strict=True)
    ]


def maxrl(groups: Groups, *, low: float, high: float, all_fail_correction: bool) -> Advantages:
    def of_group(group: Sequence[Answer]) -> list[float]:
        shares = [(reward - low) / (high - low) for reward in rewards_of(group)]
        if len(shares) < 2 or (max(shares) == min(shares) and max(shares) > 0):
            return [0.0] * len(group)
        if max(shares) == 0:
            return [-1.0 if all_fail_correction and answer.reward is not None else 0.0 for answer in group]
        center = mean(shares)
        return [0.0 if a.reward is None else ((a.reward - low) / (high - low) - center) / center for a in group]

    return [of_group(group) for group in groups]


def passk(groups: Groups, *, low: float, high: float, k: int) -> Advantages:
    """By counting: every set of k answers of the group is drawn equally often, and is right if one of its answers is.

    The advantage of an answer is the mean over the sets that it is in, less the mean over all sets, over their deviation.
    """

    def of_group(group: Sequence[Answer]) -> list[float]:
        scored = [index for index, answer in enumerate(group) if answer.reward is not None]
        is_right = {index: group[index].value > (low + high) / 2 for index in scored}
        if len(scored) <= k:
            return [0.0] * len(group)
        sets = [(chosen, float(any(is_right[index] for index in chosen))) for chosen in combinations(scored, k)]
        rho = mean([value for _, value in sets])
        sigma = math.sqrt(rho * (1 - rho))
        if sigma == 0:
            return [0.0] * len(group)
        within = {index: mean([value for chosen, value in sets if index in chosen]) for index in scored}
        return [(within[index] - rho) / sigma if index in within else 0.0 for index in range(len(group))]

    return [of_group(group) for group in groups]


def passk_max(groups: Groups, *, ddof: int, eps: float) -> Advantages:
    def advantage(answer: Answer, scored: list[Answer]) -> float:
        ranking = sorted((other.value for other in scored), reverse=True)
        is_best = answer.value == ranking[0]
        return (ranking[0] - ranking[1]) / (deviation(ranking, ddof) + eps) if is_best else 0.0

    return group_by_group(groups, advantage)


def batch_std(groups: Groups, *, ddof: int, eps: float) -> Advantages:
    rewards = [reward for group in groups for reward in rewards_of(group)]
    return [[a / (deviation(rewards, ddof) + eps) if a else 0.0 for a in row] for row in dr_grpo(groups)]


def whitened(groups: Groups, values: Advantages, copies: Callable[[Answer], int], *, ddof: int, eps: float) -> Advantages:
    """Whiten the values over the scored answers that have another one in their group, each counted `copies` times.

    A group without a signal, whose values are all 0, counts too, but keeps its zeros.
    """
    pairs = [
        (answer, value)
        for group, row in zip(groups, values, strict=True)
        for answer, value in zip(group, row, strict=True)
        if answer.reward is not None and len(scored_of(group)) > 1
    ]
    if not any(value for _, value in pairs):
        return values
    counted = [value for answer, value in pairs for _ in range(copies(answer))]
    center, std = mean(counted), deviation(counted, ddof)
    return [
        [(v - center) / (std + eps) if any(row) and a.reward is not None else 0.0 for a, v in zip(group, row, strict=True)]
        for group, row in zip(groups, values, strict=True)
    ]


def reinforce_pp_baseline(groups: Groups, *, ddof: int, eps: float, over_tokens: bool) -> Advantages:
    return whitened(groups, dr_grpo(groups), lambda answer: answer.length if over_tokens else 1, ddof=ddof, eps=eps)


def beta_density(x: float, alpha: float, beta: float) -> float:
    log_constant = math.lgamma(alpha + beta) - math.lgamma(alpha) - math.lgamma(beta)
    return math.exp(log_constant + (alpha - 1) * math.log(x) + (beta - 1) * math.log(1 - x))


def beta_parameters(shares: Sequence[float]) -> tuple[float, float]:
    if len(shares) < 2 or max(shares) - min(shares) < 1e-12:
        return 1.0, 1.0
    m = mean(shares)
    scale = m * (1 - m) / deviation(shares, 1) ** 2 - 1
    return max(1 + scale * m / 3, 1.0), max(1 + scale * (1 - m) / 3, 1.0)


def bnpo(groups: Groups, *, low: float, high: float) -> Advantages:
    """As the paper: over rewards moved to [0, 1]. Groups with fewer than two scored answers have no share of successes."""
    shares = [mean([(r - low) / (high - low) for r in rewards_of(group)]) for group in groups if len(rewards_of(group)) > 1]
    alpha, beta = beta_parameters(shares)

    def advantage(answer: Answer, scored: list[Answer]) -> float:
        share = mean([(other.value - low) / (high - low) for other in scored])
        return ((answer.value - low) / (high - low) - share) / beta_density(share, alpha, beta)

    return group_by_group(groups, advantage)


def gdpo(groups: Groups, *, weights: Sequence[float], ddof: int, eps: float) -> Advantages:
    def normalised(group: Sequence[Answer], part: int) -> list[float]:
        values = [answer.parts[part] for answer in scored_of(group)]
        if len(set(values)) < 2:
            return [0.0] * len(group)
        center, std = mean(values), deviation(values, ddof)
        return [0.0 if a.reward is None else (a.parts[part] - center) / (std + eps) for a in group]

    sums: Advantages = []
    for group in groups:
        columns = [normalised(group, part) for part in range(len(weights))]
        sums.append([sum(w * column[i] for w, column in zip(weights, columns, strict=True)) for i in range(len(group))])
    return whitened(groups, sums, lambda answer: 1, ddof=ddof, eps=eps)


# --- losses of the tokens of one completion --------------------------------------------------------------------------


def ratios(logprobs: Sequence[float], old: Sequence[float]) -> list[float]:
    return [math.exp(new - before) for new, before in zip(logprobs, old, strict=True)]


def bounded(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def clipped(
    logprobs: Sequence[float],
    old: Sequence[float],
    advantage: float,
    *,
    epsilon_low: float,
    epsilon_high: float,
    dual_clip: float = 0.0,
    delta: float = 0.0,
) -> list[float]:
    losses: list[float] = []
    for ratio in ratios(logprobs, old):
        unclipped = min(ratio, delta) if delta else ratio
        loss = -min(unclipped * advantage, bounded(ratio, 1 - epsilon_low, 1 + epsilon_high) * advantage)
        losses.append(min(loss, -dual_clip * advantage) if dual_clip and advantage < 0 else loss)
    return losses


def gspo(
    logprobs: Sequence[float], old: Sequence[float], advantage: float, *, epsilon_low: float, epsilon_high: float
) -> list[float]:
    """The sequence's own ratio, the geometric mean of its tokens', on each of them."""
    log_ratio = mean([new - before for new, before in zip(logprobs, old, strict=True)])
    loss = clipped([log_ratio], [0.0], advantage, epsilon_low=epsilon_low, epsilon_high=epsilon_high)
    return loss * len(logprobs)


def gmpo(
    logprobs: Sequence[float], old: Sequence[float], advantage: float, *, epsilon_low: float, epsilon_high: float
) -> list[float]:
    """The geometric mean of the tokens' clipped ratios: a product to the power 1/T, as the paper prints it."""
    product = 1.0
    for ratio in ratios(logprobs, old):
        product *= min(ratio, math.exp(epsilon_high)) if advantage > 0 else max(ratio, math.exp(-epsilon_low))
    return [-advantage * product ** (1 / len(logprobs))] * len(logprobs)


def cispo(
    logprobs: Sequence[float],
    old: Sequence[float],
    advantage: float,
    *,
    epsilon_low: float,
    epsilon_high: float,
    frozen: Sequence[float],
) -> list[float]:
    """`frozen` holds the log-probs that the weights are computed from and that no gradient flows through."""
    weights = [bounded(ratio, 1 - epsilon_low, 1 + epsilon_high) for ratio in ratios(frozen, old)]
    return [-weight * advantage * logprob for weight, logprob in zip(weights, logprobs, strict=True)]


def sapo(
    logprobs: Sequence[float], old: Sequence[float], advantage: float, *, tau_positive: float, tau_negative: float
) -> list[float]:
    tau = tau_positive if advantage > 0 else tau_negative
    return [-advantage * 4 / tau / (1 + math.exp(-tau * (ratio - 1))) for ratio in ratios(logprobs, old)]


def slopes(losses: Callable[[list[float]], list[float]], logprobs: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Yield how the sum of the losses changes with each log-prob: slope to its left and to its right."""
    step = 1e-6
    here = sum(losses(list(logprobs)))
    for t in range(len(logprobs)):
        moved = [[p + sign * step * (i == t) for i, p in enumerate(logprobs)] for sign in (-1, 1)]
        below, above = (sum(losses(point)) for point in moved)
        yield (here - below) / step, (above - here) / step


# --- from token losses to one number ---------------------------------------------------------------------------------


def aggregated(groups: Sequence[Sequence[Sequence[float]]], mode: str, *, max_length: int) -> float:
    """`groups` holds the token losses of each completion of each group; a completion may have none."""
    completions = [tokens for group in groups for tokens in group if tokens]
    num_tokens = sum(len(tokens) for tokens in completions)
    if mode == "token-mean":
        return sum(sum(tokens) for tokens in completions) / num_tokens
    if mode == "seq-mean-token-mean":
        return mean([mean(tokens) for tokens in completions])
    if mode == "seq-mean-token-sum":
        return mean([sum(tokens) for tokens in completions])
    if mode == "seq-mean-token-sum-norm":
        return mean([sum(tokens) / max_length for tokens in completions])
    assert mode == "group-mean-token-mean"
    flat = [[loss for tokens in group for loss in tokens] for group in groups]
    return mean([mean(losses) for losses in flat if losses])


# --- sampler and trainer that disagree: weights of the tokens of one completion --------------------------------------


def correction(name: str, old: Sequence[float], sampling: Sequence[float], *, low: float, high: float) -> list[float]:
    token = ratios(old, sampling)
    sequence = math.prod(token)
    geometric = sequence ** (1 / len(token))
    if name == "none":
        return [1.0] * len(token)
    if name == "tis_token":
        return [min(ratio, high) for ratio in token]
    if name == "tis_sequence":
        return [min(sequence, high)] * len(token)
    if name == "mask_token":
        return [ratio if low <= ratio <= high else 0.0 for ratio in token]
    if name == "mask_sequence":
        return [sequence if low <= sequence <= high else 0.0] * len(token)
    assert name == "mask_geometric"
    return [1.0 if low <= geometric <= high else 0.0] * len(token)


# --- the rest --------------------------------------------------------------------------------------------------------


def gae(rewards: Sequence[float], values: Sequence[float], *, gamma: float, lam: float) -> list[float]:
    """The double sum of arXiv 1506.02438, eq. 16: sum over l of (gamma lam)^l delta_(t+l)."""
    deltas = [reward + gamma * values[t + 1] - values[t] for t, reward in enumerate(rewards)]
    return [sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, len(deltas))) for t in range(len(deltas))]


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))
