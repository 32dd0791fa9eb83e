"""The loss of a step written a second time: one completion and one token at a time, torch scalars, plain sums.

The advantages come from `tests.numerics.transcriptions`, in plain Python. Nothing here calls an algorithm of the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tests.numerics import transcriptions as slow
from tests.numerics.transcriptions import Advantages, Answer
from tests.tiny_batches import MAX_NEW_TOKENS, PART_NAMES, PART_WEIGHTS
from torch import Tensor

from covey.types import Group

Options = Mapping[str, Any]
Tokens = list[Tensor]
"""A number for each token of one completion."""


def held(value: float) -> float:
    """Return the value rounded to float32: the learner holds advantages so, whatever the model's precision."""
    return float(torch.tensor(value, dtype=torch.float32))


# --- losses of the tokens of one completion: (log-probs, old log-probs, an advantage for each token, options) ---------


def clipped(logprobs: Tokens, old: Tokens, advantages: Sequence[float], options: Options) -> Tokens:
    return [_clip(torch.exp(new - before), a, options) for new, before, a in zip(logprobs, old, advantages, strict=True)]


def _clip(ratio: Tensor, advantage: float, options: Options) -> Tensor:
    inside = torch.clamp(ratio, 1 - options["epsilon_low"], 1 + options["epsilon_high"])
    outside = torch.clamp(ratio, max=options["delta"]) if options["delta"] else ratio
    loss = -torch.minimum(outside * advantage, inside * advantage)
    if options["dual_clip"] and advantage < 0:
        loss = torch.minimum(loss, torch.full_like(loss, -options["dual_clip"] * advantage))
    return loss


def sequence_clipped(logprobs: Tokens, old: Tokens, advantages: Sequence[float], options: Options) -> Tokens:
    """GSPO: one ratio for the completion, the geometric mean of its tokens'."""
    ratio = torch.exp(summed([new - before for new, before in zip(logprobs, old, strict=True)]) / len(logprobs))
    return [_clip(ratio, advantage, options) for advantage in advantages]


def cispo(logprobs: Tokens, old: Tokens, advantages: Sequence[float], options: Options) -> Tokens:
    losses: Tokens = []
    for new, before, advantage in zip(logprobs, old, advantages, strict=True):
        ratio = math.exp(float(new.detach() - before))
        weight = min(max(ratio, 1 - options["epsilon_low"]), 1 + options["epsilon_high"])
        losses.append(-weight * advantage * new)
    return losses


def sapo(logprobs: Tokens, old: Tokens, advantages: Sequence[float], options: Options) -> Tokens:
    losses: Tokens = []
    for new, before, advantage in zip(logprobs, old, advantages, strict=True):
        tau = options["tau_positive"] if advantage > 0 else options["tau_negative"]
        losses.append(-advantage * 4 / tau / (1 + torch.exp(-tau * (torch.exp(new - before) - 1))))
    return losses


def gmpo(logprobs: Tokens, old: Tokens, advantages: Sequence[float], options: Options) -> Tokens:
    total: Any = 0
    for new, before, advantage in zip(logprobs, old, advantages, strict=True):
        bounds = {"max": options["epsilon_high"]} if advantage > 0 else {"min": -options["epsilon_low"]}
        total = total + torch.clamp(new - before, **bounds)
    return [-advantage * torch.exp(total / len(logprobs)) for advantage in advantages]


def reinforce(logprobs: Tokens, old: Tokens, advantages: Sequence[float], options: Options) -> Tokens:
    return [-advantage * new for new, advantage in zip(logprobs, advantages, strict=True)]


# --- KL of one token, in the loss ------------------------------------------------------------------------------------


def k3(new: Tensor, ref: Tensor, old: Tensor) -> Tensor:
    return torch.exp(ref - new) - (ref - new) - 1


KL: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "k1_loss": lambda new, ref, old: new - ref,
    "k2_loss": lambda new, ref, old: (new - ref) ** 2 / 2,
    "k3_loss": k3,
    "weighted_k3_loss": lambda new, ref, old: torch.exp(new - old) * k3(new, ref, old),
}


# --- rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """An algorithm as its paper writes it."""

    advantages: Callable[[Sequence[Group], Options], Advantages]
    loss: Callable[[Tokens, Tokens, Sequence[float], Options], Tokens] = clipped
    mean: str
    """How the paper goes from token losses to one number."""
    kl: str = "k3_loss"
    whitens: bool = False


def _standardised(groups: Sequence[Group], options: Options) -> Advantages:
    return slow.grpo(answers_of(groups), ddof=options["ddof"], eps=options["eps"], min_group_std=options["min_group_std"])


def _of_answers(advantages: Callable[..., Advantages], *names: str, **fixed: Any) -> Callable[..., Advantages]:
    return lambda groups, options: advantages(answers_of(groups), **fixed, **{name: options[name] for name in names})


def _remax(groups: Sequence[Group], options: Options) -> Advantages:
    baselines = [None if group.baseline is None else group.baseline.reward.value for group in groups]
    return slow.remax(answers_of(groups), baselines=baselines)


def _reinforce_pp_baseline(groups: Sequence[Group], options: Options) -> Advantages:
    over_tokens = options["whiten_over"] == "tokens"
    return slow.reinforce_pp_baseline(answers_of(groups), ddof=options["ddof"], eps=options["eps"], over_tokens=over_tokens)


_SUCCESS = {"low": 0.0, "high": 1.0}
ROWS: dict[str, Row] = {
    "grpo": Row(advantages=_standardised, mean="seq-mean-token-mean"),
    "dr_grpo": Row(advantages=_of_answers(slow.dr_grpo), mean="seq-mean-token-sum-norm"),
    "dapo": Row(advantages=_standardised, mean="token-mean"),
    "rloo": Row(advantages=_of_answers(slow.rloo), mean="seq-mean-token-sum", kl="k1_reward"),
    "reinforce": Row(advantages=_of_answers(slow.raw), loss=reinforce, mean="seq-mean-token-sum", kl="k1_reward"),
    "reinforce_pp": Row(advantages=_of_answers(slow.raw), mean="token-mean", kl="k1_reward", whitens=True),
    "reinforce_pp_baseline": Row(advantages=_reinforce_pp_baseline, mean="token-mean", kl="k2_loss"),
    "remax": Row(advantages=_remax, loss=reinforce, mean="seq-mean-token-sum", kl="k1_reward"),
    "opo": Row(advantages=_of_answers(slow.opo), loss=reinforce, mean="seq-mean-token-sum"),
    "maxrl": Row(advantages=_of_answers(slow.maxrl, "all_fail_correction", **_SUCCESS), mean="seq-mean-token-sum-norm"),
    "passk": Row(advantages=_of_answers(slow.passk, "k", **_SUCCESS), mean="seq-mean-token-mean"),
    "passk_max": Row(advantages=_of_answers(slow.passk_max, "ddof", "eps"), mean="seq-mean-token-mean"),
    "batch_std": Row(advantages=_of_answers(slow.batch_std, "ddof", "eps"), mean="token-mean"),
    "bnpo": Row(advantages=_of_answers(slow.bnpo, **_SUCCESS), mean="seq-mean-token-mean"),
    "gdpo": Row(advantages=_of_answers(slow.gdpo, "ddof", "eps", weights=PART_WEIGHTS), mean="seq-mean-token-mean"),
    "gspo": Row(advantages=_standardised, loss=sequence_clipped, mean="seq-mean-token-mean"),
    "cispo": Row(advantages=_standardised, loss=cispo, mean="token-mean"),
    "sapo": Row(advantages=_standardised, loss=sapo, mean="seq-mean-token-mean"),
    "gmpo": Row(advantages=_standardised, loss=gmpo, mean="seq-mean-token-mean"),
}


# --- the step --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A step's completions and what frozen models say about them; every grid is [B, T]."""

    groups: Sequence[Group]
    logprobs: Tensor
    """With gradient."""
    old: Tensor | None = None
    """None = on policy."""
    ref: Tensor | None = None
    beta: float = 0.0
    options: Options = field(default_factory=dict)
    kl: str | None = None
    """None = the row's own, like `mean`."""
    mean: str | None = None
    is_out: Tensor | None = None
    """Tokens that a correction rejects."""
    weights: Tensor | None = None
    """Of each token in the surrogate."""
    held_back: Tensor | None = None
    """Tokens that pay `penalty` times |log w|."""
    penalty: float = 0.0


def answers_of(groups: Sequence[Group]) -> list[list[Answer]]:
    return [
        [
            Answer(
                reward=rollout.reward.value,
                length=len(rollout.completion.token_ids),
                parts=tuple(rollout.reward.parts[name] for name in PART_NAMES if name in rollout.reward.parts),
            )
            for rollout in group.rollouts
        ]
        for group in groups
    ]


def places_of(step: Step) -> list[list[list[tuple[int, int]]]]:
    """Return for each completion of each group the places of the tokens that are trained on."""
    is_out = step.is_out
    places: list[list[list[tuple[int, int]]]] = []
    row = 0
    for group in step.groups:
        places.append([])
        for rollout in group.rollouts:
            length = len(rollout.completion.token_ids) if rollout.reward.value is not None else 0
            places[-1].append([(row, t) for t in range(length) if is_out is None or not bool(is_out[row, t])])
            row += 1
    return places


def slow_credit(name: str, step: Step) -> dict[tuple[int, int], float]:
    """Return the advantage of each token."""
    row = ROWS[name]
    advantages = [value for values in row.advantages(step.groups, step.options) for value in values]
    acts_in_reward = step.beta > 0 and (step.kl or row.kl) == "k1_reward"
    credit: dict[tuple[int, int], float] = {}
    completions = [tokens for group in places_of(Step(groups=step.groups, logprobs=step.logprobs)) for tokens in group]
    for tokens in completions:
        for b, t in tokens:
            credit[b, t] = held(advantages[b])
            if acts_in_reward:
                assert step.old is not None
                assert step.ref is not None
                to_go = sum(float(step.old[b, later] - step.ref[b, later]) for _, later in tokens if later >= t)
                credit[b, t] = held(credit[b, t] - held(held(step.beta) * held(to_go)))
    if not row.whitens:
        return credit
    center, deviation = slow.mean([*credit.values()]), slow.deviation([*credit.values()], 1)
    return {place: held((value - center) / (deviation + 1e-8)) for place, value in credit.items()}


def slow_loss(name: str, step: Step) -> Tensor:
    """Return the loss of the step for a row."""
    row, credit = ROWS[name], slow_credit(name, step)
    losses = [[_completion_loss(row, step, tokens, credit) for tokens in group] for group in places_of(step)]
    return averaged(losses, step.mean or row.mean)


def _completion_loss(row: Row, step: Step, places: list[tuple[int, int]], credit: Mapping[tuple[int, int], float]) -> Tokens:
    if not places:
        return []
    logprobs = [step.logprobs[place] for place in places]
    old = [new.detach() if step.old is None else step.old[place] for new, place in zip(logprobs, places, strict=True)]
    losses = row.loss(logprobs, old, [credit[place] for place in places], step.options)
    if step.weights is not None:
        losses = [loss * step.weights[place] for loss, place in zip(losses, places, strict=True)]
    if step.held_back is not None:
        extra = [step.penalty * abs(new - before) for new, before in zip(logprobs, old, strict=True)]
        losses = [
            loss + more if bool(step.held_back[place]) else loss
            for loss, more, place in zip(losses, extra, places, strict=True)
        ]
    term = KL.get(step.kl or row.kl)
    if step.beta and term is not None:
        assert step.ref is not None
        ref = [step.ref[place] for place in places]
        losses = [loss + step.beta * term(*three) for loss, *three in zip(losses, logprobs, ref, old, strict=True)]
    return losses


def averaged(groups: Sequence[Sequence[Tokens]], mode: str) -> Tensor:
    """Return one number from the token losses of each completion of each group; a completion may have none."""
    completions = [tokens for group in groups for tokens in group if tokens]
    if mode == "group-mean-token-mean":
        flat = [[loss for tokens in group for loss in tokens] for group in groups]
        return summed([summed(tokens) / len(tokens) for tokens in flat if tokens]) / sum(bool(tokens) for tokens in flat)
    if mode == "token-mean":
        return summed([summed(tokens) for tokens in completions]) / sum(len(tokens) for tokens in completions)
    divisor = {"seq-mean-token-mean": None, "seq-mean-token-sum": 1, "seq-mean-token-sum-norm": MAX_NEW_TOKENS}[mode]
    return summed([summed(tokens) / (divisor or len(tokens)) for tokens in completions]) / len(completions)


def summed(values: Tokens) -> Tensor:
    total = torch.zeros((), dtype=values[0].dtype)
    for value in values:
        total = total + value
    return total
