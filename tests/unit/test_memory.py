"""How many tokens a micro-batch may have: what one token needs, counted by hand and as autograd keeps it."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.test_native_families import built, gpt2
from torch import Tensor
from transformers import PreTrainedModel

from covey import session
from covey.config import make_recipe
from covey.distributed import ALONE
from covey.models import memory
from covey.models.memory import activation_token_bytes, affordable_tokens, available_bytes
from covey.models.packed.decoder import PackedForward
from covey.models.packed.layout import pack_layout
from covey.models.policy import Policy
from covey.monitor.run_directory import RunDirectory
from covey.session import micro_batch_tokens

BF16, F32 = torch.bfloat16, torch.float32

# --- What a token needs ----------------------------------------------------------------------------------------------

# Llama: hidden 48, inner 80, 3 layers, 4 heads and 2 key-value heads of 12: (2 * 4 + 2 * 2) * 12 = 144 projected numbers.
LLAMA_LAYER_32 = 2 * 4 * 48 + 4 * (2 * 48 + 144 + 3 * 80)
LLAMA_LAYER_16 = 2 * 4 * 48 + 2 * (2 * 48 + 144 + 3 * 80)


@pytest.mark.parametrize(
    ("make", "dtype", "checkpoints_layers", "expected"),
    [
        (lambda: built("llama"), F32, False, 3 * LLAMA_LAYER_32),
        (lambda: built("llama"), BF16, False, 3 * LLAMA_LAYER_16),
        (lambda: built("llama"), BF16, True, 3 * (4 + 2) * 48 + LLAMA_LAYER_16),
        # Heads of 32, whatever the hidden size.
        (lambda: built("qwen3"), BF16, False, 3 * (2 * 4 * 48 + 2 * (2 * 48 + 12 * 32 + 3 * 80))),
        # GPT-2 names no inner size (4 * 16) and no key-value heads (as many as heads).
        (gpt2, BF16, False, 2 * 4 * 16 + 2 * (2 * 16 + 8 * 8 + 3 * 64)),
    ],
    ids=["float32", "bfloat16", "checkpoints", "head_dim", "gpt2"],
)
def test_the_bytes_of_a_token_are_those_counted_by_hand(
    make: Callable[[], PreTrainedModel], dtype: torch.dtype, checkpoints_layers: bool, expected: int
):
    assert activation_token_bytes(make(), dtype, checkpoints_layers=checkpoints_layers) == expected


def test_the_numbers_by_hand_are_these():
    assert (LLAMA_LAYER_32, LLAMA_LAYER_16) == (2304, 1344)


def kept_bytes(model: PreTrainedModel, dtype: torch.dtype, num_tokens: int) -> int:
    """Return the size of all that autograd keeps for each of so many tokens, every storage once."""
    kept: dict[int, Tensor] = {}

    def note(saved: Tensor) -> Tensor:
        if num_tokens in saved.shape:  # Weights and their copies are not, nor what is kept of wanted positions alone.
            kept[saved.untyped_storage().data_ptr()] = saved
        return saved

    layout = pack_layout([(torch.arange(num_tokens - 1) % 264, [torch.tensor([1, 2])])])
    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        hidden = PackedForward(model, layout, dtype).hidden()
    assert hidden.requires_grad
    return sum(saved.untyped_storage().nbytes() for saved in kept.values())


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_the_bytes_of_a_token_are_what_the_backward_pass_keeps(dtype: torch.dtype):
    model = built("llama")
    found = (kept_bytes(model, dtype, 401) - kept_bytes(model, dtype, 301)) / 100
    counted = activation_token_bytes(model, dtype, checkpoints_layers=False)
    # Not counted: ids, cosines and sines, and the log sums of attention.
    assert counted <= found < 1.05 * counted


# --- How many fit ----------------------------------------------------------------------------------------------------

GIB = 1 << 30
NUM_WEIGHTS = 2 * 264 * 48 + 3 * (48 * 48 + 2 * 24 * 48 + 48 * 48 + 3 * 80 * 48 + 2 * 48) + 48
# Gradient and two moments, the copies of trainer and engine, and what is set aside.
FIXED_16 = 3 * 4 * NUM_WEIGHTS + 2 * 2 * NUM_WEIGHTS + 3 * GIB


def tokens_in(available: int, model: PreTrainedModel | None = None) -> int:
    return affordable_tokens(model or built("llama"), BF16, available=available, checkpoints_layers=False)


def test_as_many_tokens_are_affordable_as_fit_behind_what_training_keeps():
    assert NUM_WEIGHTS == 80_976
    assert tokens_in(FIXED_16 + 1000 * 3 * LLAMA_LAYER_16) == 1000
    assert tokens_in(FIXED_16 + 1000 * 3 * LLAMA_LAYER_16 - 1) == 999


def test_frozen_weights_leave_more_room():
    frozen = copy.deepcopy(built("llama")).requires_grad_(False)
    assert tokens_in(FIXED_16 - 3 * 4 * NUM_WEIGHTS + 1000 * 3 * LLAMA_LAYER_16, frozen) == 1000


def test_more_tokens_are_affordable_when_layers_are_computed_again():
    available = FIXED_16 + 1000 * 3 * LLAMA_LAYER_16
    found = affordable_tokens(built("llama"), BF16, available=available, checkpoints_layers=True)
    assert found == 1000 * 3 * LLAMA_LAYER_16 // (3 * 6 * 48 + LLAMA_LAYER_16)


def test_less_memory_affords_fewer_tokens_and_never_less_than_256():
    found = [tokens_in(int(gib * GIB)) for gib in (3.5, 3.25, 3.1, 3.01, 3.0, 1.0, 0.0)]
    assert found[:4] == sorted(set(found[:4]), reverse=True)
    assert found[4:] == [256, 256, 256]


# --- What is available -----------------------------------------------------------------------------------------------


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    return tmp_path


def test_of_a_container_what_is_left_of_its_limit_is_available(container: Path):
    (container / "memory.max").write_text("5000000\n")
    (container / "memory.current").write_text("2000000\n")
    assert available_bytes() == 3_000_000


def test_what_a_container_has_read_from_files_can_be_taken(container: Path):
    (container / "memory.max").write_text("5000000\n")
    (container / "memory.current").write_text("4000000\n")
    (container / "memory.stat").write_text("anon 500000\ninactive_file 2500000\nactive_file 1000000\n")
    assert available_bytes() == 3_500_000


def test_a_container_without_a_limit_has_the_machines_memory(container: Path):
    (container / "memory.max").write_text("max\n")
    (container / "memory.current").write_text("2000000\n")
    assert available_bytes() > 10_000_000


# --- What a run takes ------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def bound(policy: Policy, run: RunDirectory) -> int:
    recipe: Any = make_recipe({"train": {"max_tokens_per_micro_batch": 5000}})
    return micro_batch_tokens(recipe, policy, run, ALONE)


def test_a_new_run_takes_the_recipes_bound(shared_tiny_policy: Policy, run: RunDirectory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session, "available_bytes", lambda: 64 * GIB)
    assert bound(shared_tiny_policy, run) == 5000


def test_a_new_run_takes_less_where_memory_is_short(
    shared_tiny_policy: Policy, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
):
    policy = dataclasses.replace(shared_tiny_policy, model=built("llama"), compute_dtype=BF16)
    monkeypatch.setattr(session, "available_bytes", lambda: FIXED_16 + 1000 * 3 * LLAMA_LAYER_16)
    assert bound(policy, run) == 1000


def test_ranks_of_one_machine_share_its_memory(shared_tiny_policy: Policy, run: RunDirectory, monkeypatch: pytest.MonkeyPatch):
    policy = dataclasses.replace(shared_tiny_policy, model=built("llama"), compute_dtype=BF16)
    monkeypatch.setattr(session, "available_bytes", lambda: 2 * (FIXED_16 + 1000 * 3 * LLAMA_LAYER_16))
    recipe: Any = make_recipe({"train": {"max_tokens_per_micro_batch": 5000}})
    # One process that is told of a second one on its machine.
    assert micro_batch_tokens(recipe, policy, run, dataclasses.replace(ALONE, num_local=2)) == 1000


@pytest.mark.parametrize("available", [0, 64 * GIB])
def test_a_run_that_goes_on_takes_what_it_began_with_whatever_is_available(
    shared_tiny_policy: Policy, run: RunDirectory, monkeypatch: pytest.MonkeyPatch, available: int
):
    run.env.write_text(json.dumps({"micro_batch_tokens": 777}))
    monkeypatch.setattr(session, "available_bytes", lambda: available)
    assert bound(shared_tiny_policy, run) == 777


def test_a_run_whose_facts_name_no_bound_takes_the_recipes(
    shared_tiny_policy: Policy, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
):
    run.env.write_text("{}")
    monkeypatch.setattr(session, "available_bytes", lambda: 64 * GIB)
    assert bound(shared_tiny_policy, run) == 5000
