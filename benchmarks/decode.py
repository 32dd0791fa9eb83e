"""Measure how many tokens a second each engine samples, beside what the linear layers alone would allow.

    python benchmarks/decode.py [--rows 8 32 64 128 256] [--tokens 64] [--repeats 3] [--engines native transformers]

Groups of 8 completions of arithmetic questions by the bundled model, each exactly as long as asked (no token ends one).
The engines take turns, so that a busy or slow minute of the machine hits all of them; a figure is the median of its
repeats, prefill included. The limit is the time of one decoding step's matrix products, with the native engine's packed
weights, measured in the same turns. The result goes to benchmarks/results/decode.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from covey.engines.native.engine import NativeEngine
from covey.engines.native.weights import ServedWeights
from covey.engines.transformers import TransformersEngine
from covey.models.policy import Policy, load_policy
from covey.monitor.environment import describe_machine, describe_versions
from covey.sampling import Sampling, stream_key
from covey.tasks.registry import find_task

RESULT = Path(__file__).parent / "results" / "decode.json"
MODEL = "smollm2-135m"
GROUP_SIZE = 8
LIMIT_STEPS = 10


def sampled_tokens_per_s(engine: Any, prompts: list[list[int]], num_tokens: int) -> float:
    """Return tokens per second of one call, prefill included."""
    keys = [[stream_key(0, "decode", prompt, sample) for sample in range(GROUP_SIZE)] for prompt in range(len(prompts))]
    start = time.perf_counter()
    groups = engine.generate(prompts, Sampling(max_new_tokens=num_tokens), group_size=GROUP_SIZE, keys=keys)
    elapsed_s = time.perf_counter() - start
    sampled = sum(len(completion.token_ids) for group in groups for completion in group)
    assert sampled == len(prompts) * GROUP_SIZE * num_tokens, "a completion ended early"
    return sampled / elapsed_s


@torch.inference_mode()
def linear_tokens_per_s(weights: ServedWeights, num_rows: int) -> float:
    """Return tokens per second if decoding were nothing but its matrix products."""
    linears = [
        linear for layer in weights.layers for linear in (layer.qkv, layer.attention_out, layer.gate_up, layer.mlp_out)
    ] + [weights.head]
    inputs = {linear.in_features: torch.randn(num_rows, linear.in_features).to(weights.dtype) for linear in linears}
    start = time.perf_counter()
    for _ in range(LIMIT_STEPS):
        for linear in linears:
            linear(inputs[linear.in_features])
    return LIMIT_STEPS * num_rows / (time.perf_counter() - start)


def measure(policy: Policy, *, rows: list[int], num_tokens: int, num_repeats: int, names: list[str]) -> dict[str, Any]:
    """Return the median tokens per second of each engine and of the limit, by the number of rows."""
    endless = dataclasses.replace(policy, stop_ids=frozenset())
    makers: dict[str, Callable[[Policy], Any]] = {"native": NativeEngine, "transformers": TransformersEngine}
    engines = {name: makers[name](endless) for name in names}
    weights = ServedWeights(policy.model, policy.compute_dtype)
    questions = find_task("arithmetic", level="easy").train[: max(rows) // GROUP_SIZE]
    prompts = [policy.encode(question.messages) for question in questions]
    for engine in engines.values():
        sampled_tokens_per_s(engine, prompts[:1], 4)
    found: dict[str, Any] = {}
    for num_rows in rows:
        asked = prompts[: num_rows // GROUP_SIZE]
        seen: dict[str, list[float]] = {name: [] for name in ("linear layers alone", *engines)}
        for _ in range(num_repeats):
            seen["linear layers alone"].append(linear_tokens_per_s(weights, num_rows))
            for name, engine in engines.items():
                seen[name].append(sampled_tokens_per_s(engine, asked, num_tokens))
        found[str(num_rows)] = {name: {"median": median(values), "all": values} for name, values in seen.items()}
        print(f"{num_rows:4d} rows: " + ", ".join(f"{name} {median(values):.0f}" for name, values in seen.items()), flush=True)
    notes = {name: engine.note for name, engine in engines.items() if hasattr(engine, "note")}
    return {"tokens_per_s": found, "notes": notes, "prompt_tokens": [len(prompt) for prompt in prompts]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engines", nargs="+", choices=["native", "transformers"], default=["native", "transformers"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    policy = load_policy(args.model, compute_dtype=args.dtype)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    result = {
        "command": "python benchmarks/decode.py",
        "commit": commit,
        "model": args.model,
        "dtype": args.dtype,
        "num_tokens": args.tokens,
        "num_threads": torch.get_num_threads(),
        "machine": describe_machine(),
        "versions": describe_versions(),
    }
    result |= measure(policy, rows=args.rows, num_tokens=args.tokens, num_repeats=args.repeats, names=args.engines)
    args.output.parent.mkdir(exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
