"""examples/loop.py is documentation that runs: it must stay short, stand alone and learn."""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

LOOP = Path(__file__).parents[2] / "examples" / "loop.py"
NUM_STEPS = 20


@pytest.fixture(scope="module")
def loop() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_loop", LOOP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["example_loop"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiny(loop: ModuleType):
    torch.manual_seed(0)
    model, tokenizer = loop.tiny_model_and_tokenizer()
    return model.eval(), tokenizer


@pytest.fixture(scope="module")
def rollouts(loop: ModuleType, tiny):
    """Eight completions of two questions of different length, so that one prompt is padded."""
    problems, generator = [("1 + 1?", "2"), ("10 + 10?", "20")], torch.Generator().manual_seed(0)
    return loop.sample(*tiny, problems, group_size=4, max_new_tokens=6, generator=generator)


@pytest.fixture(scope="module")
def output() -> str:
    """What the tiny run prints."""
    command = [sys.executable, str(LOOP), "--tiny", "--num-steps", str(NUM_STEPS), "--num-held-out", "16"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=30).stdout


def imported_packages(source: str) -> set[str]:
    """Return the top-level names of all imports, also those inside functions."""
    nodes = list(ast.walk(ast.parse(source)))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)]
    return {module.split(".")[0] for module in modules}


def test_loop_has_fewer_than_200_lines() -> None:
    assert len(LOOP.read_text().splitlines()) < 200


def test_loop_imports_nothing_but_the_standard_library_torch_and_transformers() -> None:
    allowed = sys.stdlib_module_names | {"torch", "transformers", "tokenizers"}
    assert imported_packages(LOOP.read_text()) <= allowed


def test_loop_learns_from_reward_alone(output: str) -> None:
    rewards = [float(reward) for reward in re.findall(r"^step +\d+  reward (\S+)", output, flags=re.MULTILINE)]
    assert len(rewards) == NUM_STEPS
    assert rewards[-1] > rewards[0] + 0.3  # from 0.04 to 0.92 with seed 0


def test_what_loop_learns_holds_for_greedy_answers_to_held_out_questions(output: str) -> None:
    before, after = map(float, re.findall(r"^held-out greedy reward \w+: (\S+)", output, flags=re.MULTILINE))
    assert after > before + 0.4


def test_loop_advantages_of_one_right_answer_in_eight_are_the_golden_ones(loop: ModuleType) -> None:
    rewards = torch.tensor([[1.0, 0, 0, 0, 0, 0, 0, 0]], dtype=torch.float64)
    expected = torch.tensor([[2.47417393] + [-0.35345342] * 7], dtype=torch.float64)
    torch.testing.assert_close(loop.group_advantages(rewards), expected, atol=1e-8, rtol=0)


def test_loop_advantages_of_a_flat_group_are_exactly_zero(loop: ModuleType) -> None:
    assert loop.group_advantages(torch.full((1, 7), 0.1, dtype=torch.float64)).eq(0).all()


def test_loop_clips_only_what_would_be_gained_by_going_further(loop: ModuleType) -> None:
    log_ratio = torch.tensor([1.5, 1.5, 0.5, 0.5]).log()
    surrogate = loop.clipped_surrogate(log_ratio, torch.tensor([1.0, -1.0, 1.0, -1.0]), (0.8, 1.2))
    torch.testing.assert_close(surrogate, torch.tensor([1.2, -1.5, 0.5, -0.8]))


def test_loop_k3_averages_to_the_divergence_from_the_reference(loop: ModuleType) -> None:
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.5, 0.3])
    divergence = (policy * (policy / reference).log()).sum()
    torch.testing.assert_close((policy * loop.k3(policy.log(), reference.log())).sum(), divergence)


def test_loop_trains_on_the_end_token_although_it_is_also_the_padding(loop: ModuleType, tiny) -> None:
    model, tokenizer = tiny
    end = torch.tensor(tokenizer.eos_token_id)
    handle = model.lm_head.register_forward_hook(lambda _module, _inputs, logits: logits.index_fill(-1, end, 99.0))
    rollouts = loop.sample(model, tokenizer, [("1 + 1?", "2")], max_new_tokens=6)
    handle.remove()
    assert rollouts.completion_mask.tolist() == [[True]]
    assert rollouts.texts == [""]


def test_loop_scores_a_padded_prompt_as_if_it_stood_alone(loop: ModuleType, tiny, rollouts) -> None:
    model, _ = tiny
    num_tokens = rollouts.completion_mask.shape[1]
    row = rollouts.input_ids[:1, rollouts.attention_mask[0].bool()]
    alone = model(row).logits.log_softmax(-1)[:, -num_tokens - 1 : -1].gather(-1, row[:, -num_tokens:, None])[..., 0]
    torch.testing.assert_close(loop.completion_logprobs(model, rollouts, torch.tensor([0])), alone, atol=1e-5, rtol=0)


def test_loop_samples_after_a_padded_prompt_as_if_it_stood_alone(loop: ModuleType, tiny) -> None:
    model, tokenizer = copy.deepcopy(tiny[0]), tiny[1]
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data.mul_(100)  # untrained attention hardly looks at positions
        layer.self_attn.o_proj.weight.data.mul_(100)
    greedy = loop.sample(model, tokenizer, [("1 + 1?", "2"), ("100 + 100?", "200")], max_new_tokens=12)
    row = greedy.input_ids[:1, greedy.attention_mask[0].bool()]
    assert model(row).logits.argmax(-1)[0, -13:-1].tolist() == row[0, -12:].tolist()


def test_loop_gradient_does_not_depend_on_the_micro_batches(loop: ModuleType, tiny, rollouts) -> None:
    model, _ = tiny
    advantages = torch.tensor([1.5, -0.5, -0.5, -0.5, 0.0, 0.0, 0.0, 0.0])
    gradients = []

    class Recorder:
        """An optimizer that moves nothing."""

        def step(self) -> None:
            gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))

        def zero_grad(self) -> None:
            model.zero_grad()

    unclipped = {"max_grad_norm": math.inf}  # clipping would hide a wrong denominator
    for micro_batch_size in (1, 3, 8):
        args = argparse.Namespace(**(loop.DEFAULTS | unclipped | {"micro_batch_size": micro_batch_size}))
        loop.update(model, None, Recorder(), rollouts, advantages, args)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(gradients[2], gradients[0], atol=1e-6, rtol=1e-4)


def test_loop_makes_no_optimizer_step_if_every_group_is_flat(loop: ModuleType, tiny, rollouts) -> None:
    no_optimizer = None  # a step would fail
    loop.update(tiny[0], None, no_optimizer, rollouts, torch.zeros(8), argparse.Namespace(**loop.DEFAULTS))
