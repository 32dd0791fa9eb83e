"""What a row of the table of algorithms says: the pure functions that turn rewards into a loss, and their options."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from covey.algos import surrogates
from covey.algos.advantages import any_scored
from covey.algos.aggregate import Aggregation
from covey.algos.ratios import sequence_log_ratio, token_log_ratio


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicySpec:
    """How one algorithm turns rewards into a loss."""

    title: str
    paper: str
    advantage_formula: str
    """Plain text; options stand in it as {option}."""
    loss_formula: str
    """The loss of one token, l_t, likewise."""
    advantage: Callable[..., Tensor]
    """(GroupStats, *, options) -> [P, G]"""
    signal: Callable[..., Tensor] | None = None
    """(GroupStats) -> [P, 1]: which groups teach something. None = those with an advantage that is not 0; a row whose
    statistics span the batch has to say it, because there one group alone has no advantages."""
    log_ratio: Callable[[Tensor, Tensor, Tensor], Tensor] = token_log_ratio
    """(logprobs, old_logprobs, mask) -> [B, T]"""
    surrogate: Callable[..., Tensor] = surrogates.clipped_surrogate
    """(logprobs, log_ratio, advantages, mask, *, options) -> [B, T]"""
    aggregation: Aggregation
    kl: str = "k3_loss"
    """A row of KL_TERMS; it acts with weight beta."""
    whitens_tokens: bool = False
    """Whether the credit of all the step's tokens is normalised together."""
    needs_baseline: bool = False
    """Whether each group's prompt is answered greedily, too."""
    counts_successes: bool = False
    """Whether rewards are read as shares of success, so that a penalty must not be mixed into them."""
    reads_parts: bool = False
    """Whether it combines the parts of the reward itself."""
    samples_from: Literal["policy", "reference"] = "policy"
    """Which weights the completions come from: the present ones, or those that training starts from. Only rows of the second
    kind can learn from given completions instead."""
    selects: bool = False
    """Whether completions with advantage 0 leave the loss and its denominators: the row learns from a selection."""
    compares_group: bool = True
    """Whether a completion's advantage depends on others of its prompt."""
    pair_loss: Callable[..., Tensor] | None = None
    """(margins [N], *, options) -> [N], of rows that learn from pairs: then `advantage` marks the chosen completion of each
    group with 1 and the rejected one with -1, and what they are worth follows from this loss."""
    critic_credit: Callable[..., tuple[Tensor, Tensor]] | None = None
    """(rewards, token_penalty, values, mask, is_truncated, *, options) -> (advantages [B, T], returns [B, T]), of rows with a
    value model."""
    clips_log_ratio: bool = False
    """Whether the epsilons bound log w and not w."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Where the row's options differ from its functions' own defaults."""

    @property
    def options(self) -> dict[str, Any]:
        """The row's options in the recipe with their defaults: what its functions take by keyword."""
        functions = (self.advantage, self.surrogate, self.pair_loss, self.critic_credit)
        own = [_keywords(function) for function in functions if function is not None]
        return {name: value for keywords in own for name, value in keywords.items()} | dict(self.defaults)

    @property
    def min_group_size(self) -> int:
        """How many completions a prompt needs before any of them can have an advantage."""
        return 1 if self.needs_baseline or self.signal is any_scored or not self.compares_group else 2

    def clip_range(self, options: Mapping[str, Any]) -> tuple[float, float]:
        """Return the ratios between which nothing is clipped."""
        low, high = options.get("epsilon_low", 1.0), options.get("epsilon_high", math.inf)
        return (math.exp(-low), math.exp(high)) if self.clips_log_ratio else (1 - low, 1 + high)

    @property
    def needs_reference(self) -> bool:
        """Whether the policy that training starts from is held beside the one that is trained, whatever the KL term does."""
        return self.pair_loss is not None or self.samples_from == "reference"

    @property
    def reuses_data(self) -> bool:
        """Whether a second update on the same completions is sound: it has a ratio, or treats them as demonstrations."""
        return self.has_ratio or (self.selects and self.pair_loss is None)

    @property
    def has_ratio(self) -> bool:
        """Whether it corrects for data that an older policy has sampled."""
        return self.surrogate is not surrogates.reinforce_surrogate

    @property
    def is_per_sequence(self) -> bool:
        """Whether the loss is one number for a completion, repeated over its tokens."""
        return self.log_ratio is sequence_log_ratio or self.surrogate is surrogates.gmpo_surrogate


def _keywords(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def keyword_arguments(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the options that the function takes."""
    return {name: options[name] for name in _keywords(function)}


@dataclass(frozen=True, kw_only=True, slots=True)
class PairSpec:
    """A row that learns from given data: it samples nothing, so that it has no reward, no groups and no guard."""

    title: str
    paper: str
    loss_formula: str
    """Plain text: the loss of one pair."""
    data: str
    """What it learns from, in words."""
    trains: Literal["reward model"]
    """What comes out, and with it which loop runs."""
