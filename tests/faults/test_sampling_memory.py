"""Where memory runs out while completions are sampled, fewer are sampled at once: the same completions, and the run goes on."""

from __future__ import annotations

import dataclasses
import resource
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import processes
from tests.digits import bits_of, leave_out_slow_parts, newest, resume_digits, stop_at, tiny_model, train_digits
from tests.engines import MakeEngine
from tests.generation import GROUP_SIZE, PROMPTS, SAMPLING, STOP_IDS, keys_of

from covey.api import Run
from covey.checkpoint import load_checkpoint
from covey.engines.native.engine import NativeEngine
from covey.engines.native.ops import TorchOps
from covey.engines.transformers import TransformersEngine, _Decoding
from covey.engines.within_memory import EngineWithinMemory, OwnRowLimit, first_keys
from covey.models.policy import Policy, load_policy
from covey.monitor.run_directory import read_jsonl, read_rows
from covey.sampling import Sampling
from covey.types import Completion

ON_PROCESSOR = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
SHORTAGES: list[Callable[[], Exception]] = [
    lambda: RuntimeError(ON_PROCESSOR),
    lambda: torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError,
]


@dataclass(kw_only=True, slots=True)
class Narrow:
    """An engine with memory for `room` completions at once, whose tokens are their keys. Remembers what it was asked for."""

    room: int
    error: Callable[[], Exception] = MemoryError
    note: str = ""
    asked: list[tuple[int, int]] = field(default_factory=list)

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, *, group_size: int, keys: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        assert len(prompts) == len(keys)
        assert {len(group) for group in keys} == {group_size}
        self.asked.append((len(prompts), group_size))
        if len(prompts) * group_size > self.room:
            raise self.error()
        return [
            [Completion(token_ids=[*prompt, key], logprobs=[], finish_reason="stop", policy_version=0) for key in group]
            for prompt, group in zip(prompts, keys, strict=True)
        ]

    def load_weights(self, policy: Policy, version: int) -> None:
        """Nothing to load."""

    def served_digest(self) -> str:
        return ""

    def expected_digest(self, policy: Policy) -> str:
        return ""

    def close(self) -> None:
        """Nothing to free."""


def sampled(engine: Any, num_prompts: int = 6) -> list[list[list[int]]]:
    prompts = [[number] for number in range(num_prompts)]
    keys = [[100 * number + sample for sample in range(GROUP_SIZE)] for number in range(num_prompts)]
    groups = engine.generate(prompts, Sampling(max_new_tokens=4), group_size=GROUP_SIZE, keys=keys)
    return [[completion.token_ids for completion in group] for group in groups]


# --- Fewer at once ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", range(1, 25))
@pytest.mark.parametrize("error", SHORTAGES)
def test_the_completions_are_those_of_an_engine_with_enough_memory(room: int, error: Callable[[], Exception]):
    assert sampled(EngineWithinMemory(Narrow(room=room, error=error))) == sampled(Narrow(room=1000))


def test_prompts_are_halved_and_then_a_prompts_completions():
    engine = Narrow(room=3)
    sampled(EngineWithinMemory(engine))
    assert engine.asked[:4] == [(6, 4), (3, 4), (1, 4), (1, 2)]
    assert engine.asked[4:] == [(1, 2)] * 11


def test_the_next_call_begins_where_the_last_one_ended():
    limit = OwnRowLimit()
    engine = Narrow(room=8)
    bounded = EngineWithinMemory(engine, limit)
    sampled(bounded)
    assert (limit.max_sampled_rows, limit.num_sampling_halvings) == (6, 2)
    engine.asked.clear()
    sampled(bounded)
    assert engine.asked == [(1, 4)] * 6
    assert limit.num_sampling_halvings == 2


def test_engines_of_one_memory_share_what_was_learnt():
    limit, other = OwnRowLimit(), Narrow(room=100)
    sampled(EngineWithinMemory(Narrow(room=12), limit))
    sampled(EngineWithinMemory(other, limit))
    assert other.asked == [(3, 4), (3, 4)]


def test_where_not_even_one_completion_has_room_the_error_goes_on():
    engine = Narrow(room=0)
    with pytest.raises(MemoryError):
        sampled(EngineWithinMemory(engine))
    assert engine.asked == [(6, 4), (3, 4), (1, 4), (1, 2), (1, 1)]


def test_other_errors_go_on_at_once():
    engine = Narrow(room=0, error=lambda: RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        sampled(EngineWithinMemory(engine))
    assert len(engine.asked) == 1


def test_keys_of_a_begun_prompt_come_alone():
    assert first_keys([[1, 2], [3, 4, 5], [6, 7, 8]], 9) == [[1, 2]]
    assert first_keys([[1, 2, 3], [4, 5, 6], [7, 8, 9]], 0) == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


# --- Engines ---------------------------------------------------------------------------------------------------------

PLACES = [(NativeEngine, TorchOps, "drawn"), (TransformersEngine, _Decoding, "advance")]
"""An engine, and a method of its that is called in the midst of decoding."""


@pytest.mark.parametrize(("make_engine", "owner", "method"), PLACES)
def test_an_engine_that_has_failed_midway_samples_as_if_it_had_not(
    shared_tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch, make_engine: MakeEngine, owner: Any, method: str
):
    keys = keys_of(len(PROMPTS), GROUP_SIZE)
    expected = make_engine(shared_tiny_policy).generate(PROMPTS, SAMPLING, group_size=GROUP_SIZE, keys=keys)
    engine, held = make_engine(shared_tiny_policy), fail_once(monkeypatch, owner, method)
    limit = OwnRowLimit()
    found = EngineWithinMemory(engine, limit).generate(PROMPTS, SAMPLING, group_size=GROUP_SIZE, keys=keys)
    assert limit.num_sampling_halvings == 1
    assert all(reference() is None for reference in held), "what the failed call held is free"
    assert [[row.token_ids for row in group] for group in found] == [[row.token_ids for row in group] for group in expected]
    again = engine.generate(PROMPTS, SAMPLING, group_size=GROUP_SIZE, keys=keys)
    assert again == expected


def fail_once(patch: pytest.MonkeyPatch, owner: Any, method: str) -> list[weakref.ref[torch.Tensor]]:
    """Let memory run out in the third call of a method. Return a list that gets a weak reference to a tensor held then."""
    plain, calls, held = getattr(owner, method), [0], []

    def short_of_memory(self: Any, *arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            held.append(weakref.ref(arguments[0] if arguments else self.logits))
            raise RuntimeError(ON_PROCESSOR)
        return plain(self, *arguments)

    patch.setattr(owner, method, short_of_memory)
    return held


# --- Runs ------------------------------------------------------------------------------------------------------------


def shortage(patch: pytest.MonkeyPatch, *, room: int, since_version: int = 0) -> None:
    """Leave memory for `room` completions at once, from the weights of this version on."""
    plain = NativeEngine.generate

    def generate(self: NativeEngine, prompts: Any, sampling: Sampling, *, group_size: int, keys: Any) -> Any:
        if self._version >= since_version and len(prompts) * group_size > room:
            raise RuntimeError(ON_PROCESSOR)
        return plain(self, prompts, sampling, group_size=group_size, keys=keys)

    patch.setattr(NativeEngine, "generate", generate)


def warnings_of(run: Path) -> list[tuple[int, str]]:
    events = read_jsonl(run / "events.jsonl")
    return [(event["step"], event["message"]) for event in events if event["message"].startswith("memory ran out")]


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run in which memory runs out from its third step on: 3 prompts of 4 completions are too many."""
    leave_out_slow_parts(monkeypatch)
    shortage(monkeypatch, room=6, since_version=2)
    return train_digits(tmp_path, "short")


def test_a_run_says_so_and_goes_on(short: Run):
    assert [row.get("memory/sampling_halvings") for row in short.metrics] == [None, None, 1, 1, 1, 1]
    message = "memory ran out while sampling: at most 6 completions at once from now on"
    assert warnings_of(short.path) == [(3, message)]
    assert [row["optimizer/num_updates"] for row in short.metrics] == [1, 2, 3, 4, 5, 6]


def test_completions_and_updates_are_those_of_a_run_with_enough_memory(
    short: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.undo()
    leave_out_slow_parts(monkeypatch)
    free = train_digits(tmp_path, "free")
    for step in range(1, 7):
        tables = [read_rows(run.path / f"rollouts/step-{step:06d}.parquet") for run in (short, free)]
        assert [row["completion"] for row in tables[0]] == [row["completion"] for row in tables[1]]
    assert [row["loss/value"] for row in short.metrics] == pytest.approx([row["loss/value"] for row in free.metrics], abs=1e-5)


def test_a_run_that_goes_on_knows_how_much_there_is_room_for(short: Run, tmp_path: Path):
    stopped = tmp_path / "stopped"
    train_digits(tmp_path, "stopped", reward=stop_at(stopped, 4))
    progress = load_checkpoint(newest(stopped)).state["progress"]
    assert (progress["max_sampled_rows"], progress["num_sampling_halvings"]) == (6, 1)
    resume_digits(tmp_path, "stopped")
    assert len(warnings_of(stopped)) == 1
    assert bits_of(stopped) == bits_of(short.path)


def test_evaluations_need_no_more_memory_than_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    leave_out_slow_parts(monkeypatch)
    shortage(monkeypatch, room=4)
    run = train_digits(tmp_path, "run", num_steps=1, prompts_per_step=1)
    # The checks before training and then the evaluation, of six held-out questions.
    assert [step for step, _ in warnings_of(run.path)] == [0]
    assert len(read_jsonl(run.path / "eval.jsonl")) > 0


# --- A real limit ----------------------------------------------------------------------------------------------------

NUM_ROWS = 64
SPARE_BYTES = 48 << 20


def sample_within(directory: Path, is_limited: bool) -> None:
    """Sample with an address space that holds some of the completions' keys and values only; print what came of it."""
    torch.set_num_threads(1)
    policy = dataclasses.replace(load_policy(str(directory), compute_dtype="float32"), stop_ids=STOP_IDS)
    engine, limit = NativeEngine(policy), OwnRowLimit()
    bounded = EngineWithinMemory(engine, limit)
    prompts, keys = [[5, 6, 7]] * NUM_ROWS, keys_of(NUM_ROWS, 1)
    bounded.generate(prompts[:1], Sampling(max_new_tokens=2), group_size=1, keys=keys[:1])
    if is_limited:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + SPARE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    groups = bounded.generate(prompts, Sampling(max_new_tokens=8000), group_size=1, keys=keys)
    print(limit.num_sampling_halvings > 0, hash(tuple(tuple(row.token_ids) for [row] in groups)))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the size of the address space is read from /proc")
def test_with_a_real_limit_of_memory_the_completions_are_the_same(tmp_path: Path):
    model = tiny_model(tmp_path / "model")
    ends = [processes.call(sample_within, model, is_limited, directory=tmp_path / "processes") for is_limited in (False, True)]
    assert [end.code for end in ends] == [0, 0], [end.err for end in ends]
    (without, expected), (limited, found) = (end.out.split() for end in ends)
    assert (without, limited) == ("False", "True")
    assert found == expected
