"""Where memory runs out in an update, its micro-batches are halved: the gradient is the same, and the run goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.digits import bits_of, leave_out_slow_parts, resume_digits, stop_at, train_digits
from tests.tiny_batches import ON_POLICY, make_batch, make_learner, objective_of, ragged_groups, relative_error

from covey.api import Run
from covey.learner import MAX_HALVINGS, Learner
from covey.models.memory import is_out_of_memory
from covey.models.policy import Policy
from covey.monitor.run_directory import read_jsonl

ON_PROCESSOR = (
    "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
)


def gradients(learner: Learner) -> torch.Tensor:
    return torch.cat([weight.grad.reshape(-1) for weight in learner.model.parameters() if weight.grad is not None])


def run_out(
    learner: Learner, patch: pytest.MonkeyPatch, *, times: int, where: str, error: Callable[[], Exception]
) -> list[int]:
    """Let calls of a method fail, each after it has done its work. Return a list that grows with each failure."""
    plain, failed = getattr(learner, where), []

    def short_of_memory(*arguments: Any, **options: Any) -> Any:
        found = plain(*arguments, **options)
        if len(failed) < times:
            failed.append(1)
            raise error()
        return found

    patch.setattr(learner, where, short_of_memory)
    return failed


@pytest.mark.parametrize(
    "error", [lambda: RuntimeError(ON_PROCESSOR), lambda: torch.OutOfMemoryError("CUDA out of memory"), MemoryError]
)
@pytest.mark.parametrize("where", ["_backward", "_score"])
def test_the_gradient_is_that_of_an_update_with_enough_memory(
    tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch, where: str, error: Callable[[], Exception]
):
    objective = objective_of("grpo")
    batch = make_batch(ragged_groups(), objective, ON_POLICY)
    learner = make_learner(tiny_policy, objective)
    learner.accumulate_gradient(batch)
    right = gradients(learner)
    size = learner.scoring.max_tokens_per_micro_batch
    run_out(learner, monkeypatch, times=2, where=where, error=error)
    update = learner.accumulate_gradient(batch)
    assert relative_error(gradients(learner), right) < 1e-6
    assert learner.scoring.max_tokens_per_micro_batch == size // 4
    assert update.metrics["memory/halvings"].value == 2


def test_scores_without_a_gradient_are_the_same_too(tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch):
    objective = objective_of("grpo")
    batch = make_batch(ragged_groups(), objective, ON_POLICY)
    learner = make_learner(tiny_policy, objective)
    right = learner.score(learner.model, batch.tokens).logprobs
    run_out(learner, monkeypatch, times=1, where="_score", error=MemoryError)
    assert torch.allclose(learner.score(learner.model, batch.tokens).logprobs, right, atol=1e-5)


def test_it_is_not_tried_for_ever(tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch):
    objective = objective_of("grpo")
    batch = make_batch(ragged_groups(), objective, ON_POLICY)
    learner = make_learner(tiny_policy, objective)
    failed = run_out(learner, monkeypatch, times=100, where="_backward", error=MemoryError)
    with pytest.raises(MemoryError):
        learner.update(batch)
    assert len(failed) == MAX_HALVINGS + 1
    assert learner.num_updates == 0


def test_other_errors_are_no_shortage_of_memory(tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch):
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    learner = make_learner(tiny_policy, objective_of("grpo"))
    failed = run_out(learner, monkeypatch, times=1, where="_backward", error=lambda: RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        learner.update(make_batch(ragged_groups(), learner.objective, ON_POLICY))
    assert len(failed) == 1


def test_the_allocator_of_this_torch_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def run_short_of_memory(monkeypatch: pytest.MonkeyPatch, train: Callable[[], Run]) -> Run:
    """Train, and let memory run out once in the third update."""
    plain, failed = Learner._backward, []

    def once(self: Learner, *arguments: Any) -> Any:
        if not failed and self.num_updates == 2:
            failed.append(1)
            raise MemoryError
        return plain(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "_backward", once)
        return train()


def test_a_run_says_that_memory_ran_out_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    leave_out_slow_parts(monkeypatch)
    run = run_short_of_memory(monkeypatch, lambda: train_digits(tmp_path, "run"))
    assert [row.get("memory/halvings") for row in run.metrics] == [None, None, 1, 1, 1, 1]
    said = [event["message"] for event in read_jsonl(run.path / "events.jsonl") if event["kind"] == "warning"]
    assert any(message.startswith("memory ran out: micro-batches have at most ") for message in said)
    assert dataclasses.is_dataclass(run)


def test_a_run_that_goes_on_cuts_its_micro_batches_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    leave_out_slow_parts(monkeypatch)
    small: dict[str, Any] = {"max_tokens_per_micro_batch": 64}
    run_short_of_memory(monkeypatch, lambda: train_digits(tmp_path, "alone", **small))
    reward = stop_at(tmp_path / "stopped", 4)
    run_short_of_memory(monkeypatch, lambda: train_digits(tmp_path, "stopped", **small, reward=reward))
    resume_digits(tmp_path, "stopped")
    assert bits_of(tmp_path / "stopped") == bits_of(tmp_path / "alone")
    assert read_jsonl(tmp_path / "stopped/metrics.jsonl")[-1]["memory/halvings"] == 1
