"""Covey's engines, and the limit: matrix products alone, with the weights packed as the native engine packs them."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from step_time.floor import served_weights

from covey.engines.base import Engine
from covey.engines.native.engine import NativeEngine
from covey.engines.native.weights import ServedWeights
from covey.engines.transformers import TransformersEngine
from covey.models.policy import load_policy
from covey.sampling import Sampling, stream_key
from decoders.serving import Batch, Tool, serve


class OurEngine:
    """One of Covey's engines in bfloat16, which never sees an end token."""

    def __init__(self, engine: Engine, notes: dict[str, Any]):
        self.notes = notes
        self._engine = engine

    def prepare(self, batch: Batch) -> None:
        pass

    def decode(self, batch: Batch) -> int:
        samples = range(batch.group_size)
        keys = [[stream_key(0, "decode", prompt, sample) for sample in samples] for prompt in range(len(batch.prompts))]
        sampling = Sampling(max_new_tokens=batch.num_new_tokens)
        groups = self._engine.generate(batch.prompts, sampling, group_size=batch.group_size, keys=keys)
        return sum(len(completion.token_ids) for group in groups for completion in group)


class LinearLayers:
    """As many passes through the linear layers, the head among them, as decoding would take steps; nothing else."""

    def __init__(self, weights: ServedWeights):
        self.notes = {"dtype": "bfloat16", "counts": "a step's matrix products; neither prompts, attention nor sampling"}
        self._dtype = weights.dtype
        self._linears = [
            linear for layer in weights.layers for linear in (layer.qkv, layer.attention_out, layer.gate_up, layer.mlp_out)
        ] + [weights.head]
        self._inputs: dict[int, torch.Tensor] = {}

    def prepare(self, batch: Batch) -> None:
        sizes = {linear.in_features for linear in self._linears}
        self._inputs = {size: torch.randn(batch.num_rows, size).to(self._dtype) for size in sizes}

    @torch.inference_mode()
    def decode(self, batch: Batch) -> int:
        for _ in range(batch.num_new_tokens):
            for linear in self._linears:
                linear(self._inputs[linear.in_features])
        return batch.num_tokens


def native(model: str, compute_dtype: Literal["float32", "bfloat16"] = "bfloat16") -> Tool:
    policy = dataclasses.replace(load_policy(model, compute_dtype=compute_dtype), stop_ids=frozenset())
    engine = NativeEngine(policy)
    return OurEngine(engine, {"dtype": compute_dtype, "set-up": engine.note})


def native_without_kernels(model: str) -> Tool:
    os.environ["COVEY_NO_KERNELS"] = "1"  # of this process, which is this tool's alone
    return native(model)


def transformers_engine(model: str) -> Tool:
    policy = dataclasses.replace(load_policy(model, compute_dtype="bfloat16"), stop_ids=frozenset())
    return OurEngine(TransformersEngine(policy), {"dtype": "bfloat16"})


LOADERS: dict[str, Callable[[str], Tool]] = {
    "native": native,
    "native without kernels": native_without_kernels,
    "native float32": partial(native, compute_dtype="float32"),
    "transformers engine": transformers_engine,
    "limit": lambda model: LinearLayers(served_weights(load_policy(model, compute_dtype="bfloat16"))),
    "limit by oneDNN": lambda model: LinearLayers(ServedWeights(load_policy(model).model, torch.bfloat16)),
}

if __name__ == "__main__":
    serve(LOADERS[sys.argv[2]])
