"""The checks before training catch engines and models that would train on, silently wrong."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tests.builders import make_prompt, shake

from covey.algos.objective import Objective
from covey.algos.registry import ALGORITHMS
from covey.engines.base import Engine
from covey.engines.transformers import TransformersEngine
from covey.learner import Learner, LearnerSpec, ScoringSpec
from covey.models.policy import Policy
from covey.sampling import Sampling
from covey.self_checks import AGREEMENT, check_before_training, disagreement, load_and_prove_weights
from covey.types import Completion, CoveyError

PROMPTS = [make_prompt(f"q{number}", f"What is {number} + {number}?") for number in range(6)]


def make_learner(policy: Policy, *, temperature: float) -> Learner:
    return Learner(
        policy.model,
        Objective.of_row(ALGORITHMS["grpo"]),
        ScoringSpec(
            sampling=Sampling(temperature=temperature),
            compute_dtype=policy.compute_dtype,
            max_tokens_per_micro_batch=512,
            max_shared_tokens=256,
        ),
        LearnerSpec(
            learning_rate=1e-3, warmup_steps=0, num_steps=1, decay=False, max_grad_norm=1.0, weight_decay=0.0, max_new_tokens=8
        ),
    )


def check(
    policy: Policy, *, engine: Engine | None = None, reference: torch.nn.Module | None = None, scoring_temperature: float = 0.7
) -> list[str]:
    return check_before_training(
        PROMPTS,
        Sampling(temperature=0.7, max_new_tokens=8),
        policy=policy,
        reference=reference,  # ty: ignore[invalid-argument-type]
        engine=engine or TransformersEngine(policy),
        learner=make_learner(policy, temperature=scoring_temperature),
    )


class Lying(TransformersEngine):
    """Reports other log-probs than it sampled with."""

    def __init__(self, policy: Policy, lie: Callable[[float], float]):
        super().__init__(policy)
        self.lie = lie

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, *, group_size: int, keys: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        groups = super().generate(prompts, sampling, group_size=group_size, keys=keys)
        return [
            [
                dataclasses.replace(completion, logprobs=[self.lie(value) for value in completion.logprobs])
                for completion in group
            ]
            for group in groups
        ]


class Shifted(TransformersEngine):
    """Reports each token's log-prob one position late."""

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, *, group_size: int, keys: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        groups = super().generate(prompts, sampling, group_size=group_size, keys=keys)
        return [
            [
                dataclasses.replace(completion, logprobs=completion.logprobs[-1:] + completion.logprobs[:-1])
                for completion in group
            ]
            for group in groups
        ]


class Stale(TransformersEngine):
    """Takes new version numbers and keeps its weights."""

    def load_weights(self, policy: Policy, version: int) -> None:
        pass


def test_a_sound_engine_and_model_pass_with_the_figures_found(tiny_policy: Policy):
    lines = check(tiny_policy)
    assert lines[0].startswith("engine agrees with trainer: log-probs of ")
    assert lines[0].endswith("(float32)")
    assert lines[1:] == ["log-ratio on the first update is exactly 0"]


def test_a_sound_engine_and_model_pass_in_bfloat16(tiny_policy: Policy):
    policy = dataclasses.replace(tiny_policy, compute_dtype=torch.bfloat16)
    assert check(policy)[0].endswith("(bfloat16)")


def test_the_checks_leave_weights_and_gradients_alone(tiny_policy: Policy):
    before = copy.deepcopy(tiny_policy.model.state_dict())
    check(tiny_policy)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_policy.model.state_dict().items())
    assert all(parameter.grad is None for parameter in tiny_policy.model.parameters())


@pytest.mark.parametrize(
    "lie",
    [lambda logprob: logprob + 0.01, lambda logprob: logprob * 0.7, lambda logprob: 0.0, lambda logprob: float("nan")],
    ids=["offset", "untempered", "zero", "nan"],
)
def test_an_engine_that_lies_about_its_logprobs_is_caught(tiny_policy: Policy, lie: Callable[[float], float]):
    with pytest.raises(CoveyError, match="engine and trainer"):
        check(tiny_policy, engine=Lying(tiny_policy, lie))


def test_an_engine_that_shifts_its_logprobs_is_caught(tiny_policy: Policy):
    with pytest.raises(CoveyError, match="engine and trainer disagree"):
        check(tiny_policy, engine=Shifted(tiny_policy))


def test_an_engine_that_samples_at_another_temperature_is_caught(tiny_policy: Policy):
    with pytest.raises(CoveyError, match="engine and trainer disagree"):
        check(tiny_policy, scoring_temperature=1.0)


def test_an_engine_with_other_weights_than_the_policy_is_caught(tiny_policy: Policy):
    engine = TransformersEngine(tiny_policy)
    shake(tiny_policy, scale=0.05)
    with pytest.raises(CoveyError, match="engine and trainer disagree"):
        check(tiny_policy, engine=engine)


def test_a_model_with_dropout_left_on_is_caught(tiny_policy: Policy):
    layers: Any = tiny_policy.model.get_decoder().layers
    for layer in layers:
        layer.self_attn.attention_dropout = 0.1
    tiny_policy.model.train()
    with pytest.raises(CoveyError, match="engine and trainer disagree"):
        check(tiny_policy)


def test_noise_too_small_for_the_tolerance_is_caught_by_scoring_twice(tiny_policy: Policy):
    engine = TransformersEngine(tiny_policy)
    generator = torch.Generator().manual_seed(0)

    def add_noise(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output * (1 + 1e-6 * torch.randn(output.shape, generator=generator))

    tiny_policy.model.get_decoder().norm.register_forward_hook(add_noise)
    with pytest.raises(CoveyError, match=r"scoring the same tokens twice .*dropout\?.*the first importance ratio is not 1"):
        check(tiny_policy, engine=engine)


def test_a_reference_that_is_the_initial_policy_passes(tiny_policy: Policy):
    lines = check(tiny_policy, reference=copy.deepcopy(tiny_policy.model))
    assert lines[-1] == "KL to the reference starts at exactly 0"


def test_a_reference_that_is_another_model_is_caught(tiny_policy: Policy):
    reference = dataclasses.replace(tiny_policy, model=copy.deepcopy(tiny_policy.model))
    shake(reference, scale=1e-4)
    with pytest.raises(CoveyError, match="KL would not start at 0"):
        check(tiny_policy, reference=reference.model)


# --- weights -----------------------------------------------------------------------------------------------------------


def test_loaded_weights_are_proven(tiny_policy: Policy):
    engine = TransformersEngine(tiny_policy)
    shake(tiny_policy, scale=1e-6)
    load_and_prove_weights(engine, tiny_policy, 1)


def test_an_engine_that_keeps_stale_weights_is_caught(tiny_policy: Policy):
    engine = Stale(tiny_policy)
    shake(tiny_policy, scale=1e-6)
    with pytest.raises(CoveyError, match=r"does not serve policy version 3 after loading it: .* stale weights"):
        load_and_prove_weights(engine, tiny_policy, 3)


def test_an_engine_that_leaves_out_one_tensor_is_caught(tiny_policy: Policy):
    class Forgetful(TransformersEngine):
        def load_weights(self, policy: Policy, version: int) -> None:
            norm = policy.model.get_decoder().norm.weight
            kept = norm.detach().clone()
            with torch.no_grad():
                norm.copy_(torch.ones_like(norm))
                super().load_weights(policy, version)
                norm.copy_(kept)

    engine = Forgetful(tiny_policy)
    shake(tiny_policy, scale=1e-3)
    with pytest.raises(CoveyError, match="stale weights"):
        load_and_prove_weights(engine, tiny_policy, 1)


# --- tolerances --------------------------------------------------------------------------------------------------------

FINE: dict[str, float | None] = {"mismatch/abs_mean": 0.0, "mismatch/max": 0.0, "mismatch/k3": 0.0, "mismatch/ratio_mean": 1.0}


@pytest.mark.parametrize("dtype", AGREEMENT)
def test_agreement_within_the_bounds_is_no_problem(dtype: torch.dtype):
    bound = AGREEMENT[dtype]
    edge: dict[str, float | None] = {
        "mismatch/abs_mean": bound.abs_mean,
        "mismatch/k3": bound.k3,
        "mismatch/ratio_mean": 1 + 0.99 * bound.ratio_error,
    }
    assert disagreement(FINE | edge, dtype) is None


@pytest.mark.parametrize("dtype", AGREEMENT)
@pytest.mark.parametrize("figure", ["abs_mean", "k3", "ratio too high", "ratio too low"])
def test_each_figure_out_of_its_bound_is_a_problem(dtype: torch.dtype, figure: str):
    bound = AGREEMENT[dtype]
    figures: dict[str, dict[str, float | None]] = {
        "abs_mean": {"mismatch/abs_mean": 1.01 * bound.abs_mean},
        "k3": {"mismatch/k3": 1.01 * bound.k3},
        "ratio too high": {"mismatch/ratio_mean": 1 + 1.01 * bound.ratio_error},
        "ratio too low": {"mismatch/ratio_mean": 1 - 1.01 * bound.ratio_error},
    }
    assert "engine and trainer disagree" in str(disagreement(FINE | figures[figure], dtype))


@pytest.mark.parametrize("key", ["mismatch/abs_mean", "mismatch/k3", "mismatch/ratio_mean"])
def test_a_figure_that_is_not_finite_is_a_problem(key: str):
    assert disagreement({**FINE, key: None}, torch.float32) == "engine and trainer log-probs are not finite"


def test_float32_tolerates_less_than_bfloat16():
    narrow, wide = AGREEMENT[torch.float32], AGREEMENT[torch.bfloat16]
    assert (narrow.abs_mean, narrow.k3, narrow.ratio_error) < (wide.abs_mean, wide.k3, wide.ratio_error)
    assert narrow.abs_mean <= 1e-4
