"""Seconds of a training step: a pure function of a workload and of rates measured on the machine.

Dimension key: P prompts, G group size, B = P * G rows, L tokens of a completion, S tokens of a prompt.

    sampling = P S prefill + sum over decoding steps of step(rows decoded together) + context sum over rows of L^2 / 2
    pass     = cuts micro_batch + (P S + sum of (L - 1)) body + sum of L head + P S^2 / 2 pair + sum of (S L + L^2 / 2) pair
    step     = sampling + (forward passes) forward_frac pass + num_iterations pass + updates optimizer + load weights

A prompt is computed once for its group, both when it is sampled from and when it is trained on, and the last token of a
completion is no input of the model.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """One step's numbers."""

    num_prompts: int
    group_size: int
    prompt_tokens: float
    """Of a prompt, on average."""
    lengths: tuple[int, ...]
    """Tokens of completions: the rows of a step have them in turn."""
    num_draws: int = 1
    has_baseline: bool = False
    """Whether each prompt is answered greedily, too."""
    num_iterations: int = 1
    num_minibatches: int = 1
    num_frozen_passes: int = 0
    """Passes over the whole batch by frozen models: the reference, the policy before its update."""
    max_tokens_per_micro_batch: int = 4096

    @property
    def row_lengths(self) -> list[int]:
        """Of the B rows of a draw."""
        return list(itertools.islice(itertools.cycle(self.lengths), self.num_prompts * self.group_size))

    @property
    def num_updates(self) -> int:
        return self.num_iterations * self.num_minibatches


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodingRates:
    """What sampling costs."""

    prefill_token_s: float
    """A token of a prompt."""
    steps: tuple[tuple[int, float], ...]
    """(rows, seconds of a decoding step of so many rows whose completions have just begun), ascending in rows."""
    context_token_s: float
    """A token of its own that a row attends to in a step."""
    max_rows: int
    """Rows that are decoded together, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRates:
    """What a pass over the completions costs, forward and backward."""

    body_token_s: float
    """A token that enters the model."""
    head_token_s: float
    """A completion token, whose logits are computed."""
    pair_s: float
    """A token that attends to another, in all layers."""
    micro_batch_s: float
    """Anything that a micro-batch costs however small it is."""
    forward_frac: float
    """Share of a forward pass alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What was measured."""

    decoding: DecodingRates
    training: TrainingRates
    optimizer_s: float
    """Norm of the gradient and the step of all trained weights, once an update."""
    load_weights_s: float
    """New weights into the engine, with the proof that it serves them."""


def step_seconds(work: Workload, rates: Rates) -> dict[str, float]:
    """Return the seconds of a step by phase; the keys are those of `timing.jsonl`."""
    one_draw = sampling_s(
        rates.decoding,
        num_prompts=work.num_prompts,
        prompt_tokens=work.prompt_tokens,
        row_lengths=work.row_lengths,
    )
    if work.has_baseline:
        one_draw += sampling_s(
            rates.decoding,
            num_prompts=work.num_prompts,
            prompt_tokens=work.prompt_tokens,
            row_lengths=work.row_lengths[: work.num_prompts],
        )
    full_pass = pass_s(work, rates.training)
    forward = rates.training.forward_frac * full_pass
    # The first update takes its own forward for the old policy; every later minibatch is scored before it.
    num_later = (work.num_updates - 1) / work.num_minibatches
    return {
        "rollout_s": work.num_draws * one_draw,
        "scoring_s": work.num_frozen_passes * forward,
        "update_s": work.num_iterations * full_pass + num_later * forward + work.num_updates * rates.optimizer_s,
        "load_weights_s": rates.load_weights_s,
    }


def sampling_s(rates: DecodingRates, *, num_prompts: int, prompt_tokens: float, row_lengths: Sequence[int]) -> float:
    """Return the seconds of one call of the engine. A prompt's first token comes from its prefill."""
    own_tokens = sum(length * (length - 1) / 2 for length in row_lengths)
    return (
        num_prompts * prompt_tokens * rates.prefill_token_s
        + sum(num_steps * decoding_step_s(rates, rows) for rows, num_steps in spells(row_lengths, max_rows=rates.max_rows))
        + own_tokens * rates.context_token_s
    )


def spells(row_lengths: Sequence[int], *, max_rows: int) -> Iterator[tuple[int, int]]:
    """Yield (rows, steps): how many rows are decoded together for how many steps, as ended rows make room for waiting ones."""
    waiting = deque(length - 1 for length in row_lengths if length > 1)
    ends: list[int] = []
    now = 0
    while waiting or ends:
        while waiting and len(ends) < max_rows:
            heapq.heappush(ends, now + waiting.popleft())
        end = ends[0]
        yield len(ends), end - now
        now = end
        while ends and ends[0] == now:
            heapq.heappop(ends)


def decoding_step_s(rates: DecodingRates, num_rows: int) -> float:
    """Return the seconds of a step: between two measured numbers of rows on a line, above them in proportion, below flat."""
    (fewest, least_s), (most, most_s) = rates.steps[0], rates.steps[-1]
    if num_rows <= fewest:
        return least_s
    for (rows, step_s), (more_rows, more_s) in itertools.pairwise(rates.steps):
        if num_rows <= more_rows:
            return step_s + (more_s - step_s) * (num_rows - rows) / (more_rows - rows)
    return most_s * num_rows / most


def pass_s(work: Workload, rates: TrainingRates) -> float:
    """Return the seconds of one forward and backward pass over the step's completions, all minibatches of it."""
    lengths = work.row_lengths
    num_inputs = work.num_prompts * work.prompt_tokens + sum(length - 1 for length in lengths)
    return (
        num_micro_batches(work) * rates.micro_batch_s
        + num_inputs * rates.body_token_s
        + sum(lengths) * rates.head_token_s
        + num_pairs(work) * rates.pair_s
    )


def num_pairs(work: Workload) -> float:
    """Return how many times a token attends to another in a pass: P S^2 / 2 + sum over rows of S L + L^2 / 2."""
    prompts = work.num_prompts * work.prompt_tokens**2 / 2
    return prompts + sum(length * (work.prompt_tokens + length / 2) for length in work.row_lengths)


def num_micro_batches(work: Workload) -> int:
    """Return into how many micro-batches a pass is cut, at least one for each of its minibatches."""
    num_inputs = work.num_prompts * work.prompt_tokens + sum(length - 1 for length in work.row_lengths)
    an_update = num_inputs / work.num_minibatches
    return work.num_minibatches * max(1, math.ceil(an_update / work.max_tokens_per_micro_batch))


@dataclass(frozen=True, kw_only=True, slots=True)
class PassTiming:
    """A pass that was timed: a group of equal completions."""

    prompt_tokens: int
    num_rows: int
    completion_tokens: int
    seconds: float

    @property
    def num_inputs(self) -> int:
        return self.prompt_tokens + self.num_rows * (self.completion_tokens - 1)

    @property
    def num_scored(self) -> int:
        return self.num_rows * self.completion_tokens

    @property
    def num_pairs(self) -> float:
        rows = self.num_rows * self.completion_tokens * (self.prompt_tokens + self.completion_tokens / 2)
        return self.prompt_tokens**2 / 2 + rows


@dataclass(frozen=True, kw_only=True, slots=True)
class BareProducts:
    """Seconds a token of the bare matrix products of a forward and backward pass."""

    body_s: float
    """As many tokens as the larger timed pass has."""
    full_body_s: float
    """As many tokens as a full micro-batch has."""
    head_s: float


def training_rates(
    small: PassTiming, large: PassTiming, products: BareProducts, *, pair_s: float, forward_frac: float
) -> TrainingRates:
    """Return the rates that give both timed passes their seconds.

    A small pass is mostly what any pass costs. What the large one takes beyond it and its attention is shared between
    body and head as their bare products are, and grows or shrinks with the products' speed at a full micro-batch. No pass
    is faster than its bare products: if the timings say so, something else kept the processor busy meanwhile.
    """
    slope = max(0.0, large.seconds - small.seconds) / (large.num_inputs - small.num_inputs)
    micro_batch_s = max(0.0, small.seconds - slope * small.num_inputs)
    bare = large.num_inputs * products.body_s + large.num_scored * products.head_s
    slowdown = max(1.0, (large.seconds - micro_batch_s - large.num_pairs * pair_s) / bare)
    return TrainingRates(
        body_token_s=slowdown * products.full_body_s,
        head_token_s=slowdown * products.head_s,
        pair_s=pair_s,
        micro_batch_s=micro_batch_s,
        forward_frac=forward_frac,
    )
