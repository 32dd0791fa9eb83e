"""NaN and infinity, put in at every place that a gradient passes: weights never see them, and the step is left out."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.digits import digit_share, newest, train_digits, weights_of
from torch import Tensor

import covey.learner
from covey.checkpoint import load_checkpoint
from covey.learner import Learner
from covey.types import CoveyError

LOOP = importlib.import_module("covey.train")  # The package has a function of that name.
AT_STEP = 3
Spoil = Callable[[pytest.MonkeyPatch, float], None]


pytestmark = pytest.mark.usefixtures("no_slow_parts")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("not-finite")


def with_one_spoilt(values: Tensor | None, value: float) -> Tensor:
    """Return the tensor with its first number multiplied by what is not finite, and with its gradient."""
    assert values is not None
    factors = torch.ones_like(values)
    factors.view(-1)[0] = value
    return values * factors


class AtStep:
    """Whether the update of the step that is to be spoilt is under way, and has not been spoilt yet."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.num_updates, self.is_due = 0, False
        plain = LOOP.update_policy

        def update_policy(*args: Any, **kwargs: Any) -> Any:
            self.num_updates += 1
            self.is_due = self.num_updates == AT_STEP
            return plain(*args, **kwargs)

        patch.setattr(LOOP, "update_policy", update_policy)

    def spoiling(self, function: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
        """Return the function with what it gives back changed, in its first call of that update."""

        def spoilt(*args: Any, **kwargs: Any) -> Any:
            found = function(*args, **kwargs)
            if not self.is_due:
                return found
            self.is_due = False
            return change(found)

        return spoilt


def field_of(name: str, value: float) -> Callable[[Any], Any]:
    return lambda found: dataclasses.replace(found, **{name: with_one_spoilt(getattr(found, name), value)})


def in_what(owner: Any, function: str, name: str) -> Spoil:
    """Return what spoils one number in a field of what a function gives back."""

    def spoil(patch: pytest.MonkeyPatch, value: float) -> None:
        patch.setattr(owner, function, AtStep(patch).spoiling(getattr(owner, function), field_of(name, value)))

    return spoil


def in_the_gradient(patch: pytest.MonkeyPatch, value: float) -> None:
    step = AtStep(patch)
    plain = Learner.accumulate_gradient

    def spoilt(self: Learner, *args: Any, **kwargs: Any) -> Any:
        found = plain(self, *args, **kwargs)
        if step.is_due:
            next(weight.grad for weight in self.model.parameters() if weight.grad is not None).view(-1)[0] = value
        return found

    patch.setattr(Learner, "accumulate_gradient", spoilt)


PLACES: dict[str, tuple[Spoil, dict[str, Any]]] = {
    "the loss": (in_what(covey.learner, "policy_loss", "loss"), {}),
    "the gradient": (in_the_gradient, {}),
    "an advantage": (in_what(Learner, "make_batch", "advantages"), {}),
    "a log-prob of the policy": (in_what(Learner, "_score", "logprobs"), {}),
    "a log-prob of the reference": (in_what(Learner, "make_scores", "ref_logprobs"), {"beta": 0.1}),
    "a log-prob of the engine": (in_what(LOOP, "make_tokens", "sampling_logprobs"), {"algorithm__correction": "tis_token"}),
    "a value": (in_what(Learner, "make_scores", "values"), {"algorithm__name": "ppo", "algorithm__critic": "head"}),
}
BOUNDED = {("a log-prob of the engine", float("inf")), ("a log-prob of the reference", float("inf"))}
"""Taken for a very small probability, whose ratio a bound makes finite before it is used: the update is made."""


@pytest.fixture(scope="module")
def weights_before(directory: Path) -> Callable[[dict[str, Any]], str]:
    """Return the weights of a run with these options that ends before the step that is spoilt."""
    found: dict[str, str] = {}

    def weights(options: dict[str, Any]) -> str:
        key = f"before {sorted(options)}"
        if key not in found:
            found[key] = weights_of(train_digits(directory, key, num_steps=AT_STEP - 1, **options).path)
        return found[key]

    return weights


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", PLACES)
def test_what_is_not_finite_is_left_out_and_the_weights_are_those_before(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    weights_before: Callable[[dict[str, Any]], str],
    place: str,
    value: float,
) -> None:
    spoil, options = PLACES[place]
    name = f"{place} {value}"
    with monkeypatch.context() as patch:
        spoil(patch, value)
        after = train_digits(directory, name, num_steps=AT_STEP, **options)
    assert_finite(after.path)
    if (place, value) in BOUNDED:
        return
    assert after.metrics[-1].get("update/skipped") == 1
    assert weights_of(after.path) == weights_before(options)


def assert_finite(run: Path) -> None:
    found = load_checkpoint(newest(run))
    for file in ("model.safetensors", "optimizer.safetensors"):
        for name, tensor in found.tensors(file).items():
            assert bool(tensor.isfinite().all()), f"{file}: {name}"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_ends_the_run_and_is_not_saved(
    directory: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    plain, calls = Learner.update, 0

    def spoilt(self: Learner, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        update = plain(self, *args, **kwargs)
        if calls == AT_STEP:
            next(self.model.parameters()).data.view(-1)[0] = value
        return update

    name = f"a weight {value}"
    monkeypatch.setattr(Learner, "update", spoilt)
    with pytest.raises(CoveyError, match=r"not finite|does not serve"):
        train_digits(directory, name, checkpoint__every=1)
    assert_finite(directory / name)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_reward_that_is_not_finite_is_no_score(directory: Path, value: float) -> None:
    def reward(completion: str) -> float:
        return value if sum(completion.encode()) % 3 == 0 else digit_share(completion)

    run = train_digits(directory, f"a reward {value}", num_steps=3, reward=reward, reward__max_error_frac=1.0)
    assert sum(row.get("reward/error_frac", 0) for row in run.metrics) > 0
    assert_finite(run.path)


def test_a_spoilt_value_that_reaches_the_weights_is_seen(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The positive control: a learner that does not look at its gradient saves what is not finite."""
    in_the_gradient(monkeypatch, float("nan"))
    monkeypatch.setattr(covey.learner, "math", SimpleNamespace(isfinite=lambda value: True))
    with pytest.raises((AssertionError, CoveyError), match=r"safetensors|not finite|differ"):
        assert_finite(train_digits(directory, "control", num_steps=AT_STEP).path)
