"""Training of a Bradley-Terry reward model on pairs of a chosen and a rejected completion."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch

from covey.models.reward_model import RewardModel, pair_losses, row_scores
from covey.rewards.preference_pairs import PreferencePair
from covey.sampling import permutation, stream_key
from covey.stats import Interval
from covey.types import CoveyError

__all__ = [
    "FitReport",
    "FitSpec",
    "FitStep",
    "fit_reward_model",
    "fit_steps",
    "held_out_accuracy",
    "prepare_pairs",
    "split_pairs",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class FitSpec:
    """How a reward model is trained."""

    num_epochs: int = 1
    """More than one pass mostly memorises: reward models over-fit within few."""
    batch_size: int = 32
    """Pairs of an optimizer step."""
    micro_batch_size: int = 4
    """Pairs in memory at a time; the result does not depend on it, up to rounding."""
    learning_rate: float = 1e-5
    """The highest one: it rises over `warmup_frac` of the steps, and falls to 0 in a straight line from there."""
    warmup_frac: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    held_out_frac: float = 0.1
    """Share of the prompts whose pairs are measured on and not trained on; 0 = none, and no accuracy."""
    seed: int = 0
    """Of the split and of the order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitStep:
    """What one optimizer step came to."""

    step: int
    """1, 2 ... `num_steps`."""
    num_steps: int
    loss: float
    """Mean over the step's pairs, in nats. A model that prefers nothing has log 2 = 0.693."""
    learning_rate: float
    grad_norm: float
    """Before clipping."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitReport:
    """What training a reward model came to."""

    num_train_pairs: int
    num_held_out_pairs: int
    losses: tuple[float, ...]
    """Of each optimizer step: the mean over its pairs, in nats. A model that prefers nothing has log 2 = 0.693."""
    accuracy_before: Interval
    """Held out, with the 95 % interval; NaN if nothing was held out."""
    accuracy: Interval
    """The same after training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedPair:
    """A pair as the model reads it."""

    chosen: list[int]
    rejected: list[int]
    margin: float


def fit_reward_model(
    reward_model: RewardModel,
    pairs: Sequence[PreferencePair],
    spec: FitSpec | None = None,
    *,
    progress: Callable[[str], None] = lambda message: None,
) -> FitReport:
    """Train the model in place with AdamW on -log sigmoid(s_chosen - s_rejected - margin), and measure it on held-out prompts.

    The order of the pairs depends on the seed and the epoch alone. There is no dropout.

    Raises:
        CoveyError: a pair is too long for the model, or there are too few prompts to hold some out.
    """
    spec = spec or FitSpec()
    encoded, held_out = prepare_pairs(reward_model, pairs, spec)
    before = held_out_accuracy(reward_model, held_out)
    losses: list[float] = []
    for done in fit_steps(reward_model, encoded, spec):
        losses.append(done.loss)
        progress(f"step {done.step} of {done.num_steps}: loss {done.loss:.4f}")
    return FitReport(
        num_train_pairs=len(encoded),
        num_held_out_pairs=len(held_out),
        losses=tuple(losses),
        accuracy_before=before,
        accuracy=held_out_accuracy(reward_model, held_out),
    )


def prepare_pairs(
    reward_model: RewardModel, pairs: Sequence[PreferencePair], spec: FitSpec
) -> tuple[list[EncodedPair], list[PreferencePair]]:
    """Return (the pairs to train on, as the model reads them; the held-out pairs).

    Raises:
        CoveyError: a pair of either side is too long for the model, or there are too few prompts to hold some out.
    """
    train, held_out = split_pairs(pairs, held_out_frac=spec.held_out_frac, seed=spec.seed)
    encoded = encoded_pairs(reward_model, train)
    encoded_pairs(reward_model, held_out)  # Also refused before an hour of training, not after.
    return encoded, held_out


def fit_steps(reward_model: RewardModel, pairs: Sequence[EncodedPair], spec: FitSpec) -> Iterator[FitStep]:
    """Train the model in place, and yield after each optimizer step. Whoever stops asking has it as far as it has come.

    Raises:
        CoveyError: the loss or its gradient is not finite.
    """
    parameters = [parameter for parameter in reward_model.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay, fused=True)
    num_steps = spec.num_epochs * math.ceil(len(pairs) / spec.batch_size)
    step = 0
    for epoch in range(spec.num_epochs):
        order = permutation(stream_key(spec.seed, "reward model order", epoch), len(pairs))
        for start in range(0, len(order), spec.batch_size):
            batch = [pairs[index] for index in order[start : start + spec.batch_size]]
            rate = learning_rate_at(step, num_steps, peak=spec.learning_rate, warmup_frac=spec.warmup_frac)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = backward(reward_model, batch, micro_batch_size=spec.micro_batch_size)
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, spec.max_grad_norm))
            refuse_not_finite("norm of the gradient", norm)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            yield FitStep(step=step, num_steps=num_steps, loss=loss, learning_rate=rate, grad_norm=norm)


def backward(reward_model: RewardModel, batch: Sequence[EncodedPair], *, micro_batch_size: int) -> float:
    """Add the gradient of the batch's mean loss, and return that loss."""
    total = 0.0
    for start in range(0, len(batch), micro_batch_size):
        part = batch[start : start + micro_batch_size]
        scores = row_scores(reward_model, [*(pair.chosen for pair in part), *(pair.rejected for pair in part)])  # [2 N]
        chosen, rejected = scores.chunk(2)
        margin = torch.tensor([pair.margin for pair in part], device=scores.device)
        loss = pair_losses(chosen, rejected, margin=margin).sum() / len(batch)
        loss.backward()
        total += loss.item()
    refuse_not_finite("loss", total)
    return total


def refuse_not_finite(what: str, value: float) -> None:
    """Raise unless the number is finite."""
    if not math.isfinite(value):
        raise CoveyError(f"the {what} of the reward model is {value}; lower its learning rate, or check the model's weights")


def encoded_pairs(reward_model: RewardModel, pairs: Sequence[PreferencePair]) -> list[EncodedPair]:
    """Return the pairs as token ids.

    Raises:
        CoveyError: one is longer than the model can read.
    """
    encoded: list[EncodedPair] = []
    limit = reward_model.max_sequence_tokens
    for pair in pairs:
        chosen, rejected = (reward_model.encode(pair.messages, text) for text in (pair.chosen, pair.rejected))
        if (longest := max(len(chosen), len(rejected))) > limit:
            raise CoveyError(
                f"{pair.where or 'a pair'} has {longest} tokens, and the reward model reads {limit}. Nothing is cut: leave the "
                "pair out, or choose a model with a longer context"
            )
        encoded.append(EncodedPair(chosen=chosen, rejected=rejected, margin=pair.margin))
    return encoded


def split_pairs(
    pairs: Sequence[PreferencePair], *, held_out_frac: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Return (pairs to train on, held-out pairs). All pairs of a prompt are on one side, which a hash of its words decides.

    Raises:
        CoveyError: no prompt would be left on one of the sides.
    """
    if not 0 <= held_out_frac < 1:
        raise CoveyError(f"held_out_frac={held_out_frac}: give a share from 0 to below 1")
    prompts = sorted({prompt_words(pair) for pair in pairs}, key=lambda words: stream_key(seed, "reward model split", words))
    num_held_out = round(held_out_frac * len(prompts))
    if held_out_frac > 0:
        num_held_out = max(1, num_held_out)
    if num_held_out >= len(prompts):
        raise CoveyError(
            f"there are pairs for {len(prompts)} prompts; with held_out_frac={held_out_frac} none is left to train on. Give "
            "more prompts, or set it to 0"
        )
    held_out = set(prompts[:num_held_out])
    sides: tuple[list[PreferencePair], list[PreferencePair]] = ([], [])
    for pair in pairs:
        sides[prompt_words(pair) in held_out].append(pair)
    return sides


def prompt_words(pair: PreferencePair) -> str:
    """Return what says that two pairs have the same prompt."""
    return "\x1e".join(f"{message.role}\x1f{message.content}" for message in pair.messages)


def held_out_accuracy(reward_model: RewardModel, pairs: Sequence[PreferencePair]) -> Interval:
    """Return how often the chosen completion scores higher, equal scores counting half, with the 95 % interval.

    The prompt is the unit: its pairs are averaged first. The margin plays no part.
    """
    texts = [(pair.messages, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
    scores = reward_model.score(texts)
    wins: dict[str, list[float]] = {}
    for index, pair in enumerate(pairs):
        chosen, rejected = scores[2 * index], scores[2 * index + 1]
        if chosen is not None and rejected is not None:
            wins.setdefault(prompt_words(pair), []).append(1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0)
    return wilson_interval([math.fsum(values) / len(values) for values in wins.values()])


def wilson_interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Return the mean of values in [0, 1] with Wilson's interval: (p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n).

    Wilson (1927). Unlike mean -+ t * std / sqrt(n) it keeps a width where all values are 1. Values between 0 and 1 vary less
    than 0 or 1 would with the same mean, so it is never too narrow for them.
    """
    count = len(values)
    if count == 0:
        return Interval(mean=math.nan, low=math.nan, high=math.nan)
    mean, z = math.fsum(values) / count, NormalDist().inv_cdf((1 + confidence) / 2)
    middle = mean + z**2 / (2 * count)
    half_width = z * math.sqrt(mean * (1 - mean) / count + z**2 / (4 * count**2))
    scale = 1 + z**2 / count
    return Interval(mean=mean, low=(middle - half_width) / scale, high=(middle + half_width) / scale)


def learning_rate_at(step: int, num_steps: int, *, peak: float, warmup_frac: float) -> float:
    """Return the rate of a step: up to `peak` over the first steps, and down to 0 after the last."""
    num_warmup = warmup_frac * num_steps
    if step + 1 <= num_warmup:
        return peak * (step + 1) / num_warmup
    return peak * min(1.0, (num_steps - step) / max(1.0, num_steps - num_warmup))
