"""The machine: how fast bare matrix products, attention and the optimizer are, and how much memory there is."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from covey.plan.memory import ModelSizes

_OPTIMIZER_SAMPLE = 1 << 22
_TILE = 128


def shortest_s(work: Callable[[], object], *, repeats: int = 2) -> float:
    """Return the seconds of the fastest of a few repeats, after one that warms up."""
    work()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def product_token_s(weight: Tensor, dtype: torch.dtype, *, num_tokens: int, is_trained: bool) -> float:
    """Return the seconds a token of y = x W^T, the gradient of x and, of a trained weight, the gradient of W."""
    served = weight.detach().to(dtype)
    x, grad = torch.randn(num_tokens, weight.shape[1]).to(dtype), torch.randn(num_tokens, weight.shape[0]).to(dtype)

    def work() -> None:
        F.linear(x, served)
        grad @ served
        if is_trained:
            grad.T @ x

    return shortest_s(work) / num_tokens


def body_token_s(model: PreTrainedModel, dtype: torch.dtype, *, num_tokens: int) -> float:
    """Return the seconds a token of all products below the head. Equal shapes are measured once."""
    head = model.get_output_embeddings()
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
    alike: dict[tuple[torch.Size, bool], list[Tensor]] = {}
    for weight in weights:
        alike.setdefault((weight.shape, weight.requires_grad), []).append(weight)
    return sum(
        len(equal) * product_token_s(equal[0], dtype, num_tokens=num_tokens, is_trained=is_trained)
        for (_, is_trained), equal in alike.items()
    )


def head_token_s(model: PreTrainedModel, dtype: torch.dtype, *, num_tokens: int) -> float:
    """Return the seconds a token of the head's products, the logits made twice: they are made again for the backward pass."""
    head = model.get_output_embeddings()
    weight: Tensor = head.weight
    served = weight.detach().to(dtype)
    x = torch.randn(num_tokens, weight.shape[1]).to(dtype)
    again = shortest_s(lambda: F.linear(x, served), repeats=1) / num_tokens
    return again + product_token_s(weight, dtype, num_tokens=num_tokens, is_trained=weight.requires_grad)


def attention_pair_s(sizes: ModelSizes, dtype: torch.dtype, *, num_tokens: int) -> float:
    """Return the seconds of one token that attends to another, in all layers, forward and backward.

    Measured on a tile of queries that all see `num_tokens` keys, with batched products: on a CPU they are several times as
    fast as torch's fused attention at the lengths of completions.
    """
    num_queries = min(_TILE, num_tokens)
    queries = torch.randn(sizes.num_heads, num_queries, sizes.head_dim).to(dtype).requires_grad_()
    keys, values = (torch.randn(sizes.num_heads, num_tokens, sizes.head_dim).to(dtype).requires_grad_() for _ in range(2))

    def work() -> None:
        weights = (queries @ keys.mT * sizes.head_dim**-0.5).softmax(dim=-1)
        (weights @ values).sum().backward()

    return shortest_s(work) * sizes.num_layers / (num_queries * num_tokens)


def optimizer_s(num_trained: int) -> float:
    """Return the seconds of a gradient's norm and of a step of AdamW over so many weights, by a sample of them."""
    sample = nn.Parameter(torch.zeros(min(num_trained, _OPTIMIZER_SAMPLE)))
    optimizer = torch.optim.AdamW([sample], lr=1e-9, fused=True)
    sample.grad = torch.ones_like(sample)

    def work() -> None:
        nn.utils.clip_grad_norm_([sample], 1.0)
        optimizer.step()

    return shortest_s(work) * num_trained / sample.numel()


class ProcessorShare:
    """How much of its threads' time a process got since this was made: less than it could use on a busy machine."""

    def __init__(self, num_threads: int):
        self._num_threads = num_threads
        self._started = time.perf_counter()
        self._used_s = time.process_time()

    @property
    def frac(self) -> float:
        """Processor time over threads times elapsed time."""
        return (time.process_time() - self._used_s) / (self._num_threads * (time.perf_counter() - self._started))
