"""The algorithm's section of a recipe: options of the row, and what may be combined with what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from covey.algos.aggregate import Aggregation
from covey.algos.filters import TOKEN_FILTERS
from covey.algos.kl import KL_TERMS
from covey.algos.mismatch import CORRECTIONS
from covey.algos.registry import ALGORITHMS, DEFAULT_ALGORITHM, OPTIONS
from covey.sections import NotNegative, Positive, Section


class AlgorithmSection(Section):
    name: str = Field(DEFAULT_ALGORITHM, description="a row of the algorithm table; `covey algorithms` lists them")
    aggregation: Aggregation = Field(
        "seq-mean-token-mean", description="from token losses to one number; absent = the row's own"
    )
    beta: float = Field(0.0, ge=0, description="weight of the KL term; 0 = it does not act")
    kl: str = Field("k3_loss", description=f"estimator and place of the KL term: {', '.join(KL_TERMS)}; absent = the row's own")
    kl_target: float = Field(0.0, ge=0, description="nats a completion that beta is steered towards; 0 = beta is fixed")
    kl_horizon: Positive = Field(10000, description="completions that a full correction of beta takes")
    kl_budget: float = Field(0.0, ge=0, description="the run stops when a completion's mean KL is above this; 0 = no limit")
    track_kl: bool = Field(False, description="hold the reference model and log KL even if it does not act")
    reference_every: NotNegative = Field(0, description="steps between refreshes of the reference model; 0 = never")
    reference_mix: float = Field(1.0, gt=0, le=1, description="share of the policy's weights that a refresh takes over")
    correction: str = Field("none", description=f"of engine against trainer: none, {', '.join(CORRECTIONS)}")
    correction_low: float | None = Field(None, ge=0, description="lower bound of the correction's weights")
    correction_high: float | None = Field(None, gt=0, description="upper bound of the correction's weights")
    token_filter: str = Field("none", description=f"which tokens keep a gradient: {', '.join(TOKEN_FILTERS)}")
    filter_share: float | None = Field(None, gt=0, le=1, description="share of tokens that the filter chooses")
    kl_cov_coefficient: float = Field(1.0, gt=0, description="of |log w| on the tokens that kl_cov chooses")
    entropy_coefficient: float = Field(0.0, ge=0, description="weight of the entropy bonus")
    entropy_target: float = Field(0.0, ge=0, description="nats a token that the bonus is steered towards; 0 = it is fixed")
    # Options of rows: absent = the row's default. A row that does not have the option refuses it.
    ddof: Literal[0, 1] | None = Field(None, description="the deviation's divisor is count - ddof")
    eps: float | None = Field(None, gt=0, description="added to the deviation")
    min_group_std: float | None = Field(
        None, ge=0, description="groups with a smaller deviation are not scaled up, as a share of the reward's range"
    )
    epsilon_low: float | None = Field(None, gt=0, le=1, description="the ratio is clipped at 1 - epsilon_low")
    epsilon_high: float | None = Field(None, gt=0, description="the ratio is clipped at 1 + epsilon_high")
    dual_clip: float | None = Field(None, ge=0, description="a bad token's loss is at most this many times -A; 0 = off")
    delta: float | None = Field(None, ge=0, description="upper bound of the ratio where nothing else clips it; 0 = off")
    tau_positive: float | None = Field(None, gt=0, description="steepness of the soft clip for good tokens")
    tau_negative: float | None = Field(None, gt=0, description="steepness of the soft clip for bad tokens")
    k: int | None = Field(None, ge=1, description="answers of which one has to be right")
    all_fail_correction: bool | None = Field(None, description="whether a group in which all fail gets -1")
    min_density: float | None = Field(None, gt=0, description="the density that a group is divided by is at least this")
    whiten_over: Literal["sequences", "tokens"] | None = Field(None, description="what the step's statistics count")
    threshold: float | None = Field(
        None, gt=0, le=1, description="share of the reward's range that makes a completion a success"
    )
    pair_beta: float | None = Field(None, gt=0, description="how closely pairs hold the policy to the initial one")
    gamma: float | None = Field(None, gt=0, le=1, description="discount of later rewards, a token")
    lam: float | None = Field(None, ge=0, le=1, description="GAE's weight of longer returns; 1 = whole returns, 0 = one step")
    critic: Literal["separate", "head"] | None = Field(
        None, description="the value model: a copy of the model with its own optimizer, or a head on the policy's hidden states"
    )
    critic_learning_rate: float | None = Field(None, gt=0, description="of the value model's AdamW")
    value_epsilon: float | None = Field(None, gt=0, description="values move at most this far in an update's loss")

    @model_validator(mode="before")
    @classmethod
    def _take_defaults_of_the_row(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or str(values.get("name", DEFAULT_ALGORITHM)) not in ALGORITHMS:
            return values
        return row_defaults(values) | {option: value for option, value in values.items() if value is not None}

    @property
    def has_reference(self) -> bool:
        """Whether the initial policy is held beside the one that is trained."""
        return self.beta > 0 or self.track_kl or self.kl_budget > 0 or ALGORITHMS[self.name].needs_reference

    @field_validator("name", "kl", "correction", "token_filter")
    @classmethod
    def _is_known(cls, value: str, info: ValidationInfo) -> str:
        known = _KNOWN[str(info.field_name)]
        if value not in known:
            raise ValueError(f"no such {_NOUN[str(info.field_name)]}; choose one of {', '.join(known)}")
        return value

    @model_validator(mode="after")
    def _options_agree(self) -> Self:
        if problem := algorithm_contradiction(self):
            raise ValueError(problem)
        return self


_KNOWN = {
    "name": tuple(ALGORITHMS),
    "kl": tuple(KL_TERMS),
    "correction": ("none", *CORRECTIONS),
    "token_filter": tuple(TOKEN_FILTERS),
}
_NOUN = {"name": "algorithm", "kl": "KL term", "correction": "correction", "token_filter": "token filter"}


ROW_KEYS = ("name", "correction", "token_filter")
"""Keys that choose a row of a table, and with it defaults of other keys."""


def row_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the named rows say where a recipe is silent: options, aggregation, KL term, bounds, shares."""
    spec = ALGORITHMS[str(values.get("name", DEFAULT_ALGORITHM))]
    defaults = dict(spec.options) | {"aggregation": spec.aggregation, "kl": spec.kl}
    if (correction := CORRECTIONS.get(str(values.get("correction")))) is not None:
        defaults |= {"correction_high": correction.high}
        defaults |= {} if correction.low is None else {"correction_low": correction.low}
    if (token_filter := TOKEN_FILTERS.get(str(values.get("token_filter")))) is not None and token_filter.share:
        defaults["filter_share"] = token_filter.share
    return defaults


def algorithm_contradiction(section: AlgorithmSection) -> str | None:
    """Return in words which options of the section exclude each other, None if none do."""
    spec = ALGORITHMS[section.name]
    for option in OPTIONS:
        if getattr(section, option) is not None and option not in spec.options:
            own = ", ".join(spec.options) or "no options of its own"
            return f"{option}={getattr(section, option)!r}: the row {section.name!r} has no such option; it has {own}"
    if spec.is_per_sequence and not section.aggregation.startswith("seq-mean"):
        return (
            f"aggregation={section.aggregation!r}: the loss of {section.name!r} is one number a completion, and a mean over "
            "tokens would weigh it by length. Choose seq-mean-token-mean, or seq-mean-token-sum to weigh by length on purpose"
        )
    if spec.is_per_sequence and section.token_filter != "none":
        return (
            f"token_filter={section.token_filter!r}: the loss of {section.name!r} is one number a completion, so that a token "
            "cannot be left out of it. Leave the filter out, or choose a row with token ratios"
        )
    if spec.needs_reference and section.reference_every:
        return (
            f"reference_every={section.reference_every}: {section.name!r} needs the policy that training starts from, which "
            "has to stay. Set it to 0"
        )
    if spec.selects and section.token_filter != "none":
        return f"token_filter={section.token_filter!r}: {section.name!r} learns from whole completions; leave the filter out"
    if (spec.selects or spec.samples_from != "policy") and section.correction != "none":
        return (
            f"correction={section.correction!r}: {section.name!r} treats completions as given, whoever wrote them, and has no "
            "ratio to correct. Leave it out"
        )
    if spec.pair_loss is not None and section.beta:
        return (
            f"beta={section.beta}: the loss of {section.name!r} holds the policy to the initial one by itself, through "
            "pair_beta; leave beta 0"
        )
    if section.kl_target and not section.beta:
        return f"kl_target={section.kl_target}: beta is steered by factors, so it has to start above 0; set beta"
    if section.reference_every and not section.has_reference:
        return f"reference_every={section.reference_every}: there is no reference model to refresh; set beta or track_kl=true"
    if section.reference_every and section.kl_budget:
        return (
            f"kl_budget={section.kl_budget} with reference_every={section.reference_every}: the distance from a reference that "
            "moves along says nothing about the distance from the start. Leave one of them out"
        )
    if problem := _lonely_option(section):
        return problem
    if section.correction == "none" and (section.correction_low is not None or section.correction_high is not None):
        return "correction='none': correction_low and correction_high bound a correction; set it, or leave them out"
    if section.correction_low is not None and CORRECTIONS[section.correction].low is None:
        return f"correction_low={section.correction_low}: {section.correction!r} has an upper bound only; leave it out"
    if section.correction_low is not None and section.correction_low >= (section.correction_high or 0):
        return f"correction_low={section.correction_low} must be below correction_high={section.correction_high}"
    if section.token_filter == "none" and section.filter_share is not None:
        return f"filter_share={section.filter_share}: it belongs to a token filter; set token_filter, or leave it out"
    if 0 < (section.dual_clip or 0) <= 1:
        return f"dual_clip={section.dual_clip}: it bounds the loss at that many times -A and must be above 1; 0 = off"
    if 0 < (section.delta or 0) <= 1 + (section.epsilon_high or 0):
        return f"delta={section.delta} must be above 1 + epsilon_high={1 + (section.epsilon_high or 0)}; 0 = off"
    return None


_PARTNERS = {"kl_horizon": "kl_target", "reference_mix": "reference_every"}


def _lonely_option(section: AlgorithmSection) -> str | None:
    """Return in words which option was set although the one that it belongs to is off."""
    for option, partner in _PARTNERS.items():
        if getattr(section, option) != AlgorithmSection.model_fields[option].default and not getattr(section, partner):
            return f"{option}={getattr(section, option)}: it belongs to {partner}, which is off; set {partner}, or leave it out"
    if section.kl_cov_coefficient != 1.0 and section.token_filter != "kl_cov":
        return f"kl_cov_coefficient={section.kl_cov_coefficient}: it belongs to token_filter='kl_cov'; set it, or leave it out"
    return None
