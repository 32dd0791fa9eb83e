"""The arithmetic floor of a step: what its matrix products alone would take on this machine, at its measured peak.

Run as a worker, it measures that peak, and what decoding would reach if it were nothing but matrix products.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional as F

from covey.engines.native.fused import choose_ops
from covey.engines.native.weights import ServedWeights
from covey.models.families import read_architecture
from covey.models.policy import Policy, load_policy
from step_time.processes import emit
from step_time.workload import Workload

PEAK_ROWS = 1024
DECODING_ROWS = (8, 16, 32, 64, 128, 256)
DECODING_STEPS = 4
REPEATS = 8


def floor_parts_s(workload: Workload, probe: Mapping[str, Any], *, prompt_tokens: int, num_tokens: float) -> dict[str, float]:
    """Return the least seconds of a step by its parts, if a prompt is computed once for its group and nothing twice.

    With N weights in the layers, H in the head, p prompt tokens (each prompt once), t tokens of completions in B rows, and a
    product of N weights with one token being 2 N FLOP:

    - sampling: t - B decoding steps of a row (the first token comes from the prompt, nothing follows the last), at the best
      measured rate for at most B rows; and 2 N p + 2 H P for the prompts;
    - training, forward and twice that backward: 6 N (p + t - B) + 6 H t; with adapters 4 and 4, since frozen weights have no
      gradient;
    - the reference's log-probs, if beta > 0: a third of that.

    Attention, norms, sampling itself, adapters and the optimizer count as nothing.
    """
    body, head = probe["body_parameters"], probe["head_parameters"]
    flop_per_s = probe["peak_gflops"] * 1e9
    num_rows = workload.num_rows
    rates = [rate for rows, rate in probe["decoding_tokens_per_s"].items() if int(rows) <= max(num_rows, DECODING_ROWS[0])]
    inputs = prompt_tokens + num_tokens - num_rows
    forward_flop = 2 * body * inputs + 2 * head * num_tokens
    return {
        "decoding_s": (num_tokens - num_rows) / max(rates),
        "prefill_s": (2 * body * prompt_tokens + 2 * head * workload.num_prompts) / flop_per_s,
        "training_s": (2 if workload.lora_rank else 3) * forward_flop / flop_per_s,
        "reference_s": (forward_flop if workload.beta else 0) / flop_per_s,
    }


@torch.inference_mode()
def probe_machine(weights: ServedWeights) -> dict[str, Any]:
    """Return the peak of matrix products over the model's shapes, and the rate of decoding by number of rows.

    The peak is that of a whole pass over the model in which every shape takes the best of its repeats, with weights as
    they are or packed, whichever is faster.
    """
    first = weights.layers[0]
    counted = [(linear, len(weights.layers)) for linear in (first.qkv, first.attention_out, first.gate_up, first.mlp_out)]
    flop, seconds, by_shape, sizes = 0.0, 0.0, {}, []
    for linear, count in [*counted, (weights.head, 1)]:
        x = torch.randn(PEAK_ROWS, linear.in_features).to(weights.dtype)
        out_features = linear(x).shape[1]
        plain = torch.randn(out_features, linear.in_features).to(weights.dtype)
        best_s = min(best_seconds(lambda x=x, linear=linear: linear(x)), best_seconds(lambda x=x, w=plain: F.linear(x, w)))
        product_flop = 2.0 * PEAK_ROWS * linear.in_features * out_features
        by_shape[f"{linear.in_features}x{out_features}"] = round(product_flop / best_s / 1e9, 1)
        sizes.append(count * linear.in_features * out_features)
        flop, seconds = flop + count * product_flop, seconds + count * best_s
    return {
        "peak_gflops": round(flop / seconds / 1e9, 1),
        "peak_gflops_by_shape": by_shape,
        "decoding_tokens_per_s": {str(rows): round(decoding_rate(weights, rows), 1) for rows in DECODING_ROWS},
        "body_parameters": sum(sizes[:-1]),
        "head_parameters": sizes[-1],
        "num_threads": torch.get_num_threads(),
    }


def served_weights(policy: Policy) -> ServedWeights:
    """Return a policy's weights as the native engine lays them out."""
    ops, _ = choose_ops(read_architecture(policy.model), policy.compute_dtype)
    return ServedWeights(policy.model, policy.compute_dtype, ops.new_linear)


def best_seconds(product: Callable[[], Any]) -> float:
    """Return the shortest time of several calls."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        product()
        times.append(time.perf_counter() - started)
    return min(times)


def decoding_rate(weights: ServedWeights, num_rows: int) -> float:
    """Return tokens per second, at best, of decoding steps that are nothing but their matrix products."""
    linears = [
        linear for layer in weights.layers for linear in (layer.qkv, layer.attention_out, layer.gate_up, layer.mlp_out)
    ] + [weights.head]
    inputs = {linear.in_features: torch.randn(num_rows, linear.in_features).to(weights.dtype) for linear in linears}

    def steps() -> None:
        for _ in range(DECODING_STEPS):
            for linear in linears:
                linear(inputs[linear.in_features])

    return DECODING_STEPS * num_rows / best_seconds(steps)


def main() -> None:
    job = json.loads(sys.argv[1])
    policy = load_policy(job["model"], compute_dtype="bfloat16")
    emit(probe_machine(served_weights(policy)))


if __name__ == "__main__":
    main()
