"""Rates of this machine, measured on the recipe's own model, engine and learner in a few seconds.

Nothing is trained: gradients are made and thrown away, the optimizer is timed on a sample of its own.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from covey.assembly import make_learner, sampling_of
from covey.batch import make_tokens
from covey.config import Recipe
from covey.engines.base import Engine
from covey.engines.stopping import completes_stop
from covey.learner import Learner
from covey.models.policy import Policy
from covey.monitor.console import QuietConsole
from covey.plan.cost import BareProducts, DecodingRates, PassTiming, Rates, TrainingRates, training_rates
from covey.plan.lengths import SampledLengths, sampled_lengths
from covey.plan.machine import ProcessorShare, attention_pair_s, body_token_s, head_token_s, optimizer_s
from covey.plan.memory import ModelSizes, model_sizes
from covey.sampling import Sampling, stream_key
from covey.self_checks import load_and_prove_weights
from covey.tensors import Batch, Scores, Tokens
from covey.types import Completion, Group, Message, Prompt, Rollout, Score

# A decoding part of the probe may take about so long.
_PART_S = 0.4
# The bare products of the larger pass: with fewer tokens, what any pass costs would hide what a token costs.
_PASS_S = 1.0
_NUM_SAMPLED = 8
_NUM_STEPS = 5
_LONGER_CONTEXT = 256
_SMALL_TOKENS = 16
_MOST_TOKENS = 2048
_FULL_TOKENS = 1024
_HEAD_TOKENS = 256
_FORWARD_FRAC = 0.3
"""Two of six body products and one of four head products belong to the forward pass, and the logits are made there, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The recipe's numbers that the probe imitates."""

    prompts: Sequence[list[int]]
    """Token ids of some of its prompts."""
    num_rows: int
    """Completions decoded together."""
    max_new_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What the probe found."""

    sizes: ModelSizes
    rates: Rates
    lengths: SampledLengths
    activation_token_bytes: float
    spread_frac: float
    """Of repeated decoding steps: their interquartile range over their median. Large on a busy machine."""
    processor_frac: float
    """Of the threads' time that the bare products got: near 1 on a machine that does nothing else."""
    probe_s: float


class Ticks(QuietConsole):
    """A console that notes when the engine shows progress, and what it has to say."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.times: list[float] = []
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def phase(self, name: str, done: int, total: int) -> None:
        self.times.append(time.perf_counter())


def probe(recipe: Recipe, policy: Policy, engine: Engine, ticks: Ticks, shape: Shape) -> Measured:
    """Return the rates of this machine. `engine` reports its progress to `ticks` and serves a policy that never stops."""
    sizes = model_sizes(policy)
    started = time.perf_counter()
    load_and_prove_weights(engine, policy, 0)
    load_weights_s = time.perf_counter() - started
    decoding, lengths, spread_frac = probe_decoding(recipe, policy, engine, ticks, shape)
    training = probe_training(recipe, policy, sizes, shape)
    return Measured(
        sizes=sizes,
        rates=Rates(
            decoding=decoding,
            training=training.rates,
            optimizer_s=optimizer_s(sizes.num_trained),
            load_weights_s=load_weights_s,
        ),
        lengths=lengths,
        activation_token_bytes=training.activation_token_bytes,
        spread_frac=spread_frac,
        processor_frac=training.processor_frac,
        probe_s=time.perf_counter() - started,
    )


# Decoding


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One call of the engine, timed."""

    prefill_s: float
    """Until the first tokens were drawn."""
    steps_s: list[float]
    """Of each decoding step after them."""
    completions: list[list[Completion]]


def timed_call(engine: Engine, ticks: Ticks, prompts: Sequence[list[int]], sampling: Sampling, *, group_size: int) -> Call:
    """Return the completions of a call, with the times of its steps as the engine's progress shows them."""
    keys = [[stream_key(0, "plan", prompt, sample) for sample in range(group_size)] for prompt in range(len(prompts))]
    ticks.times.clear()
    started = time.perf_counter()
    completions = engine.generate(prompts, sampling, group_size=group_size, keys=keys)
    steps = [later - earlier for earlier, later in itertools.pairwise(ticks.times)]
    return Call(prefill_s=ticks.times[0] - started, steps_s=steps, completions=completions)


def probe_decoding(
    recipe: Recipe, policy: Policy, engine: Engine, ticks: Ticks, shape: Shape
) -> tuple[DecodingRates, SampledLengths, float]:
    """Return what sampling costs, how long completions are, and how much repeated steps differ."""
    sampling = dataclasses.replace(sampling_of(recipe), stop=())
    few = shape.prompts[: min(_NUM_SAMPLED, shape.num_rows)]

    def call(prompts: Sequence[list[int]], num_tokens: int, group_size: int = 1) -> Call:
        limited = dataclasses.replace(sampling, max_new_tokens=num_tokens)
        return timed_call(engine, ticks, prompts, limited, group_size=group_size)

    warm_up = call(few[:2], 3)
    num_tokens = min(shape.max_new_tokens, 2 + int(_PART_S / median(warm_up.steps_s)))
    sampled = call(few, max(3, num_tokens))
    steps = [(len(few), median(sampled.steps_s))]
    repeated = sampled.steps_s
    context_token_s = 0.0
    if shape.num_rows > len(few):
        # One prompt serves all rows: what its prefill costs is known already.
        many = call(few[:1], _NUM_STEPS, shape.num_rows)
        steps.append((shape.num_rows, median(many.steps_s)))
        repeated = many.steps_s
    if shape.max_new_tokens >= _LONGER_CONTEXT // 4:
        room = policy.max_sequence_tokens - _NUM_STEPS - len(few[0])
        more = min(_LONGER_CONTEXT, shape.max_new_tokens, room)
        longer = call([few[0] + (few[0] * (1 + more // len(few[0])))[:more]], _NUM_STEPS, shape.num_rows)
        context_token_s = max(0.0, median(longer.steps_s) - steps[-1][1]) / (shape.num_rows * more)
    rates = DecodingRates(
        prefill_token_s=sampled.prefill_s / sum(len(prompt) for prompt in few),
        steps=tuple(steps),
        context_token_s=context_token_s,
        max_rows=shape.num_rows,
    )
    flat = [completion for group in sampled.completions for completion in group]
    ends = [end_of(completion.token_ids, recipe.sampling.stop, policy) for completion in flat]
    return rates, sampled_lengths(ends, num_tokens=max(3, num_tokens)), spread(repeated)


def end_of(token_ids: Sequence[int], stop: Sequence[str], policy: Policy) -> int | None:
    """Return how many tokens the completion has up to its end token or stop string; None if it has neither."""
    for count, token in enumerate(token_ids, start=1):
        if token in policy.stop_ids or (stop and completes_stop(list(token_ids[:count]), tuple(stop), policy.decode)):
            return count
    return None


def spread(seconds: Sequence[float]) -> float:
    """Return the interquartile range over the median."""
    low, middle, high = torch.tensor(seconds, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75]).double()).tolist()
    return (high - low) / middle


# Training


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingProbe:
    """What passes over a few completions showed."""

    rates: TrainingRates
    activation_token_bytes: float
    """What the backward pass needs of each token."""
    processor_frac: float


def probe_training(recipe: Recipe, policy: Policy, sizes: ModelSizes, shape: Shape) -> TrainingProbe:
    """Return what a pass costs, by a small and a larger one and by the speed of bare products."""
    learner = make_learner(recipe, policy)
    prompt = sorted(shape.prompts, key=len)[len(shape.prompts) // 2]
    few_tokens = max(1, min(_SMALL_TOKENS, shape.max_new_tokens // 2))
    few = tokens_of(prompt[: max(1, min(_SMALL_TOKENS, len(prompt) // 2))], num_rows=1, num_tokens=few_tokens, policy=policy)
    accumulated(recipe, learner, few)  # Warms up, and makes the gradients.
    small, small_bytes = timed_pass(recipe, learner, few)

    share = ProcessorShare(torch.get_num_threads())
    full_tokens = min(_FULL_TOKENS, recipe.train.max_tokens_per_micro_batch)
    full_body_s = body_token_s(policy.model, policy.compute_dtype, num_tokens=full_tokens)
    head_s = head_token_s(policy.model, policy.compute_dtype, num_tokens=_HEAD_TOKENS)
    processor_frac = share.frac

    num_tokens = min(_MOST_TOKENS, max(4 * _SMALL_TOKENS, int(_PASS_S / (full_body_s + head_s))))
    many = large_group(prompt, num_tokens, recipe.train.group_size, policy, max_new_tokens=shape.max_new_tokens)
    large, large_bytes = timed_pass(recipe, learner, many)
    body_s = body_token_s(policy.model, policy.compute_dtype, num_tokens=large.num_inputs)
    longest = min(_MOST_TOKENS, len(prompt) + shape.max_new_tokens)
    rates = training_rates(
        small,
        large,
        BareProducts(body_s=body_s, full_body_s=full_body_s, head_s=head_s),
        pair_s=attention_pair_s(sizes, policy.compute_dtype, num_tokens=longest),
        forward_frac=forward_frac(learner, policy, many, large) if learner_scores(recipe) else _FORWARD_FRAC,
    )
    token_bytes = (large_bytes - small_bytes) / (large.num_inputs - small.num_inputs)
    return TrainingProbe(rates=rates, activation_token_bytes=max(0.0, token_bytes), processor_frac=processor_frac)


def large_group(prompt: list[int], num_tokens: int, group_size: int, policy: Policy, *, max_new_tokens: int) -> Tokens:
    """Return a group of about `num_tokens` tokens, its completions as long as the recipe's as far as they fit."""
    kept = prompt[: max(1, num_tokens // 2)]
    length = max(2, min(max_new_tokens, num_tokens - len(kept)))
    num_rows = max(2, min(group_size, (num_tokens - len(kept)) // length))
    return tokens_of(kept, num_rows=num_rows, num_tokens=length, policy=policy)


def learner_scores(recipe: Recipe) -> bool:
    """Return whether a step has forward passes of frozen models, so that one is worth timing."""
    return recipe.algorithm.has_reference or recipe.train.updates_per_step > 1


def forward_frac(learner: Learner, policy: Policy, tokens: Tokens, timing: PassTiming) -> float:
    """Return the share of the pass that its forward alone takes."""
    started = time.perf_counter()
    learner.score(policy.model, tokens)
    return min(1.0, (time.perf_counter() - started) / timing.seconds)


def timed_pass(recipe: Recipe, learner: Learner, tokens: Tokens) -> tuple[PassTiming, int]:
    """Return how long a forward and backward pass takes, and the bytes that were kept for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    started = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        accumulated(recipe, learner, tokens)
    elapsed_s = time.perf_counter() - started
    timing = PassTiming(
        prompt_tokens=len(tokens.prompt_ids[0]),
        num_rows=tokens.group_size,
        completion_tokens=tokens.completion_ids.shape[1],
        seconds=elapsed_s,
    )
    return timing, sum(kept.values())


def accumulated(recipe: Recipe, learner: Learner, tokens: Tokens) -> None:
    """Make a gradient of the recipe's loss, as an update does, from advantages of 1."""
    mask = tokens.completion_mask
    zeros = torch.zeros(mask.shape)
    scores = Scores(old_logprobs=None, ref_logprobs=zeros if recipe.algorithm.has_reference else None)
    learner.accumulate_gradient(Batch(tokens=tokens, scores=scores, advantages=torch.ones(mask.shape), mask=mask))


def tokens_of(prompt_ids: list[int], *, num_rows: int, num_tokens: int, policy: Policy) -> Tokens:
    """Return a group of random completions, all of one length."""
    vocab_size = policy.model.get_output_embeddings().weight.shape[0]
    drawn = torch.randint(vocab_size, (num_rows, num_tokens), generator=torch.Generator().manual_seed(0))
    rollouts = [
        Rollout(
            prompt_ids=prompt_ids,
            completion=Completion(token_ids=ids, logprobs=[0.0] * num_tokens, finish_reason="length", policy_version=0),
            text="",
            reward=Score(value=0.0),
            gold=None,
        )
        for ids in drawn.tolist()
    ]
    prompt = Prompt(prompt_id="probe", messages=(Message(role="user", content=""),))
    return make_tokens([Group(prompt=prompt, rollouts=tuple(rollouts))])
