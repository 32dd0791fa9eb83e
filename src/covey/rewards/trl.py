"""Reward functions written for TRL's GRPOTrainer, unchanged: one call for a batch, lists in and a list out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from covey.rewards.base import Sample, name_of, refuse_coroutine, value_of_column
from covey.types import CoveyError, Prompt, Score


@dataclass(frozen=True, slots=True)
class NoTrainerState:
    """Stands for TRL's `trainer_state`. A function may take it along; one that looks into it is told why it cannot."""

    def __getattr__(self, name: str) -> Any:
        raise CoveyError(
            f"trainer_state.{name} is not there: a reward in Covey depends on the completion alone, so that a resumed run and "
            "the evaluation score it alike. For a schedule, train in stages"
        )


def discard(name: str, values: Any) -> None:
    """Stands for TRL's `log_extra` and `log_metric`."""


_ARGUMENTS: dict[str, Callable[[Sequence[Sample]], Any]] = {
    "prompts": lambda samples: [prompt_of(sample.prompt) for sample in samples],
    "completions": lambda samples: [completion_of(sample) for sample in samples],
    "completion_ids": lambda samples: [ids_of(sample) for sample in samples],
    "trainer_state": lambda samples: NoTrainerState(),
    "log_extra": lambda samples: discard,
    "log_metric": lambda samples: discard,
}
"""What TRL passes to every reward function besides the columns of the data."""

_MARKS = frozenset({"completions", "completion_ids", "prompts"})
"""A function with one of these parameters is written for TRL: it can score nothing without one."""


def is_trl_function(function: Callable[..., Any]) -> bool:
    """Whether the function takes lists, as TRL's reward functions do."""
    return bool(_MARKS & set(inspect.signature(function).parameters))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrlReward:
    """A Reward made of a function written for TRL."""

    name: str
    function: Callable[..., Any]
    low: float
    high: float
    columns: tuple[str, ...]
    """The columns of the data row that the function cannot do without."""
    optional: tuple[str, ...]
    """Parameters with a default, passed if the data has them."""
    takes_all: bool
    """Whether it has a `**kwargs`, and so is given every column."""
    asked: tuple[str, ...]
    """What it names of the arguments that TRL passes besides the columns."""

    def __call__(self, sample: Sample) -> Score:
        return self.score_batch([sample])[0]

    def score_batch(self, samples: Sequence[Sample]) -> list[Score]:
        """Return the scores of all samples, from one call of the function."""
        result = self.function(**self._columns(samples), **self._others(samples))
        return [Score(value=value) for value in numbers_of(result, len(samples), self.name)]

    def _columns(self, samples: Sequence[Sample]) -> dict[str, list[Any]]:
        """Return each column as a list with one entry for each completion. A gap is None, or an error if it is needed."""
        rows = [columns_of(sample.prompt) for sample in samples]
        present = {column: None for row in rows for column in row if column not in _ARGUMENTS}
        given = present if self.takes_all else [column for column in self.optional if column in present]
        columns = {column: [row.get(column) for row in rows] for column in given}
        for column in self.columns:
            columns[column] = [
                row[column] if column in row else value_of_column(sample.prompt, column, self.name)
                for sample, row in zip(samples, rows, strict=True)
            ]
        return columns

    def _others(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return what TRL passes besides the columns. A `**kwargs` gets the ids only if all completions have them."""
        have_ids = all(sample.token_ids is not None for sample in samples)
        swept = [name for name in _ARGUMENTS if self.takes_all and (have_ids or name != "completion_ids")]
        return {name: _ARGUMENTS[name](samples) for name in {*self.asked, *swept}}


def reward_from_trl(function: Callable[..., Any], *, low: float = 0.0, high: float = 1.0) -> TrlReward:
    """Return a Reward that calls a function written for TRL: `f(prompts, completions, **columns) -> list[float | None]`.

    It may ask for any of `prompts`, `completions`, `completion_ids` and the columns of the data by name. A prompt given
    as a text comes as a text, one given as messages as a list of messages, and its completion as a list of one message.
    `trainer_state` has nothing in it; what goes to `log_extra` and `log_metric` is discarded.

    Raises:
        CoveyError: the function is a coroutine function.
    """
    name = name_of(function)
    refuse_coroutine(function, name)
    parameters = inspect.signature(function).parameters.values()
    ordinary = [each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    named = [parameter for parameter in ordinary if parameter.name not in _ARGUMENTS]
    return TrlReward(
        name=name,
        function=function,
        low=low,
        high=high,
        columns=tuple(parameter.name for parameter in named if parameter.default is parameter.empty),
        optional=tuple(parameter.name for parameter in named if parameter.default is not parameter.empty),
        takes_all=any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters),
        asked=tuple(parameter.name for parameter in ordinary if parameter.name in _ARGUMENTS),
    )


def columns_of(prompt: Prompt) -> Mapping[str, Any]:
    """Return the data row without its prompt. The answer is a column of it, if there is one."""
    return prompt.columns if prompt.answer is None else {"answer": prompt.answer} | dict(prompt.columns)


def prompt_of(prompt: Prompt) -> str | list[dict[str, str]]:
    """Return the prompt in the form it was given in."""
    if not prompt.is_conversation:
        return prompt.text
    return [{"role": message.role, "content": message.content} for message in prompt.messages]


def completion_of(sample: Sample) -> str | list[dict[str, str]]:
    """Return the completion in the form that goes with its prompt."""
    if not sample.prompt.is_conversation:
        return sample.completion
    return [{"role": "assistant", "content": sample.completion}]


def ids_of(sample: Sample) -> list[int]:
    """Return the tokens of the completion.

    Raises:
        CoveyError: no model sampled it.
    """
    if sample.token_ids is None:
        raise CoveyError("the reward asks for completion_ids, but this text was not sampled by a model and has none")
    return list(sample.token_ids)


def numbers_of(result: Any, count: int, name: str) -> list[float | None]:
    """Return what a function gave back as `count` numbers; None stands for "could not be scored".

    Raises:
        CoveyError: it is no list of that length, or something in it is no number.
    """
    if isinstance(result, str | Mapping) or not isinstance(result, Iterable):
        raise CoveyError(f"reward {name!r} returned {result!r}; a function that takes completions returns a list of numbers")
    values = list(result)
    if len(values) != count:
        raise CoveyError(f"reward {name!r} returned {len(values)} values for {count} completions; return one for each")
    return [None if value is None else number_of(value, name) for value in values]


def number_of(value: Any, name: str) -> float:
    """Return the value as a float.

    Raises:
        CoveyError: it is no number.
    """
    try:
        if isinstance(value, str):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise CoveyError(f"reward {name!r} returned {value!r} for a completion; return a number, or None") from None
