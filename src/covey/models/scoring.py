"""Log-probs and entropies of completions under a model: the only place that knows about layout, padding and shift.

Rows are scored in packs. A pack holds one prompt once and some of its completions behind it:

    [ prompt | completion a | completion b | ... ]     positions restart after the prompt for each completion,

and every completion attends to the prompt and to itself only. So a prompt is computed once for its whole group. A pack
with a single completion is the ordinary causal layout, which any model supports; `max_shared_tokens=0` asks for that.
The vocabulary projection and log-softmax run on chunks of completion positions. What the backward pass needs of them is
computed again there, or kept within a fixed bound: no [B, T, V] tensor is ever alive.

Models that `packed` knows take its path on a CPU: no padding either, and steps between matrix products that are its own.
All others run through their own modules, with a mask that says who sees whom.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from covey.models.distribution import History, entropy_of, shape_logits
from covey.models.packed.decoder import PackedForward, packed_refusal
from covey.models.packed.layout import pack_layout
from covey.sampling import Sampling
from covey.tensors import Tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Pack:
    """Some completions of one group, laid out behind their common prompt."""

    group: int
    rows: tuple[int, ...]
    num_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A micro-batch as the model sees it: N packs, padded on the right to S positions."""

    input_ids: Int[Tensor, "N S"]
    position_ids: Int[Tensor, "N S"]
    segments: Int[Tensor, "N S"]
    """0 = prompt, k = the pack's k-th completion, -1 = padding."""
    source: Int[Tensor, "R T"]
    """Flat index into [N * S] of the position whose logits predict token t of row r."""
    is_shared: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionScores:
    """What the model says about the rows of one micro-batch; 0 outside the mask."""

    logprobs: Float[Tensor, "R T"]
    """With gradient, unless under no_grad. At least float32, in nats, under the sampling distribution."""
    entropy: Float[Tensor, "R T"]
    """Of the sampling distribution. Detached, unless its gradient was asked for."""


def plan_packs(tokens: Tokens, rows: Sequence[int], *, max_shared_tokens: int) -> list[Pack]:
    """Return packs that cover `rows`, each with as many completions of one group as fit into `max_shared_tokens`."""
    lengths = tokens.completion_mask.sum(dim=1).tolist()
    packs: list[Pack] = []
    for row in rows:
        group = row // tokens.group_size
        last = packs[-1] if packs else None
        if last and last.group == group and last.num_tokens + lengths[row] <= max_shared_tokens:
            packs[-1] = Pack(group=group, rows=(*last.rows, row), num_tokens=last.num_tokens + lengths[row])
        else:
            packs.append(Pack(group=group, rows=(row,), num_tokens=len(tokens.prompt_ids[group]) + lengths[row]))
    return packs


def plan_micro_batches(packs: Sequence[Pack], *, max_tokens: int) -> list[list[Pack]]:
    """Return the packs, longest first, in lists whose padded size stays within `max_tokens` (or hold a single pack)."""
    batches: list[list[Pack]] = []
    for pack in sorted(packs, key=lambda pack: (-pack.num_tokens, pack.rows)):
        if batches and (len(batches[-1]) + 1) * batches[-1][0].num_tokens <= max_tokens:
            batches[-1].append(pack)
        else:
            batches.append([pack])
    return batches


def plan_scoring(
    model: PreTrainedModel, tokens: Tokens, rows: Sequence[int], *, max_tokens: int, max_shared_tokens: int
) -> list[list[Pack]]:
    """Return the micro-batches in which `score_completions` takes these rows.

    `max_tokens`: of a micro-batch, padding included where the model needs it. `max_shared_tokens`: of a pack, for models
    that run through their own modules; 0 = every completion behind its own copy of the prompt, for all models.
    """
    if packed_refusal(model) is None:
        packs = plan_packs(tokens, rows, max_shared_tokens=max_tokens if max_shared_tokens else 0)
        return fill_evenly(packs, max_tokens=max_tokens)
    return plan_micro_batches(plan_packs(tokens, rows, max_shared_tokens=max_shared_tokens), max_tokens=max_tokens)


def fill_evenly(packs: Sequence[Pack], *, max_tokens: int) -> list[list[Pack]]:
    """Return the packs in order, in lists of about equal size within `max_tokens` (or of a single pack)."""
    total = sum(pack.num_tokens for pack in packs)
    enough = total / max(1, -(-total // max_tokens))  # One large list and a small rest would need more memory.
    batches: list[list[Pack]] = []
    size = 0
    for pack in packs:
        if not batches or size >= enough or size + pack.num_tokens > max_tokens:
            batches.append([])
            size = 0
        batches[-1].append(pack)
        size += pack.num_tokens
    return batches


def lay_out(tokens: Tokens, packs: Sequence[Pack]) -> Layout:
    """Return the input tensors of a micro-batch. The last token of a completion predicts nothing and is left out."""
    lengths = tokens.completion_mask.sum(dim=1).tolist()
    width = max(pack.num_tokens - len(pack.rows) for pack in packs)
    num_rows = sum(len(pack.rows) for pack in packs)
    input_ids = torch.zeros(len(packs), width, dtype=torch.long)
    position_ids = torch.zeros(len(packs), width, dtype=torch.long)
    segments = torch.full((len(packs), width), -1, dtype=torch.long)
    source = torch.zeros(num_rows, tokens.completion_ids.shape[1], dtype=torch.long)
    out_row = 0
    for n, pack in enumerate(packs):
        prompt = tokens.prompt_ids[pack.group]
        end = len(prompt)
        input_ids[n, :end] = prompt
        position_ids[n, :end] = torch.arange(end)
        segments[n, :end] = 0
        for k, row in enumerate(pack.rows, start=1):
            start, end = end, end + max(lengths[row] - 1, 0)
            input_ids[n, start:end] = tokens.completion_ids[row, : end - start]
            position_ids[n, start:end] = len(prompt) + torch.arange(end - start)
            segments[n, start:end] = k
            # Token 0 is predicted by the prompt's last position, token t > 0 by completion token t - 1.
            source[out_row, : lengths[row]] = n * width + torch.arange(start - 1, start - 1 + lengths[row])
            source[out_row, :1] = n * width + len(prompt) - 1
            out_row += 1
    is_shared = any(len(pack.rows) > 1 for pack in packs)
    return Layout(input_ids=input_ids, position_ids=position_ids, segments=segments, source=source, is_shared=is_shared)


def attention_mask(layout: Layout, *, dtype: torch.dtype) -> Tensor:
    """Return who attends to whom: [N, S] for the ordinary causal layout, additive [N, 1, S, S] for a shared one."""
    segments = layout.segments
    if not layout.is_shared:
        return segments >= 0
    causal = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool, device=segments.device).tril()
    same_or_prompt = (segments[:, None, :] == segments[:, :, None]) | (segments[:, None, :] == 0)
    allowed = (causal & same_or_prompt)[:, None]
    return torch.zeros(allowed.shape, dtype=dtype, device=segments.device).masked_fill(~allowed, torch.finfo(dtype).min)


def score_completions(
    model: PreTrainedModel,
    tokens: Tokens,
    packs: Sequence[Pack],
    *,
    sampling: Sampling,
    compute_dtype: torch.dtype,
    chunk_tokens: int = 512,
    entropy_gradient: bool = False,
    checkpoints_layers: bool = False,
) -> CompletionScores:
    """Return log-probs and entropies of the packs' rows, in pack order, under the distribution of `sampling`.

    `entropy_gradient`: whether the entropy carries a gradient, as an entropy bonus needs it.
    `checkpoints_layers`: keep each layer's input alone for the backward pass, and compute the layer there again.
    """
    rows = torch.tensor([row for pack in packs for row in pack.rows])
    mask, targets = tokens.completion_mask[rows], tokens.completion_ids[rows]
    device = model.device
    history = None
    if sampling.repetition_penalty != 1.0:
        prompts = [tokens.prompt_ids[pack.group] for pack in packs for _ in pack.rows]
        history = History(prompts=prompts, completions=targets, places=mask.nonzero().to(device))
    use_autocast = compute_dtype != torch.float32
    is_packed = packed_refusal(model) is None
    if is_packed:
        forward = packed_forward(
            model, tokens, packs, compute_dtype if use_autocast else model.dtype, checkpoints_layers=checkpoints_layers
        )
    if is_packed and not sampling.is_filtered and history is None:
        temperature = 1.0 if sampling.is_greedy else sampling.temperature
        logprobs, entropy = forward.scores(targets[mask], temperature, chunk_tokens=chunk_tokens)
        entropy = entropy if entropy_gradient else entropy.detach()
    else:
        with torch.autocast(device.type, dtype=compute_dtype, enabled=use_autocast):
            logprobs, entropy = chunked_logprobs(
                forward.hidden()
                if is_packed
                else hidden_of_layout(model, tokens, packs, compute_dtype, checkpoints_layers=checkpoints_layers),
                model.get_output_embeddings(),
                targets[mask].to(device),
                sampling=sampling,
                chunk_tokens=chunk_tokens,
                history=history,
                entropy_gradient=entropy_gradient,
            )
    grid = torch.zeros(mask.shape, dtype=logprobs.dtype, device=device)
    where = mask.to(device)
    return CompletionScores(logprobs=grid.masked_scatter(where, logprobs), entropy=grid.masked_scatter(where, entropy))


def completion_hidden(
    model: PreTrainedModel,
    tokens: Tokens,
    packs: Sequence[Pack],
    *,
    compute_dtype: torch.dtype,
    checkpoints_layers: bool = False,
) -> Float[Tensor, "L D"]:
    """Return the last hidden state behind which each completion token of the packs' rows stands, row by row."""
    use_autocast = compute_dtype != torch.float32
    if packed_refusal(model) is None:
        dtype = compute_dtype if use_autocast else model.dtype
        return packed_forward(model, tokens, packs, dtype, checkpoints_layers=checkpoints_layers).hidden()
    with torch.autocast(model.device.type, dtype=compute_dtype, enabled=use_autocast):
        return hidden_of_layout(model, tokens, packs, compute_dtype, checkpoints_layers=checkpoints_layers)


def packed_forward(
    model: PreTrainedModel, tokens: Tokens, packs: Sequence[Pack], dtype: torch.dtype, *, checkpoints_layers: bool
) -> PackedForward:
    """Return a forward pass over the packs' tokens, one behind the other."""
    lengths = tokens.completion_mask.sum(dim=1).tolist()
    groups = [
        (tokens.prompt_ids[pack.group], [tokens.completion_ids[row, : lengths[row]] for row in pack.rows]) for pack in packs
    ]
    return PackedForward(model, pack_layout(groups), dtype, checkpoints_layers=checkpoints_layers)


def hidden_of_layout(
    model: PreTrainedModel, tokens: Tokens, packs: Sequence[Pack], compute_dtype: torch.dtype, *, checkpoints_layers: bool
) -> Float[Tensor, "L D"]:
    """Return the hidden states that predict the packs' completion tokens, row by row, by the model's own modules."""
    layout = lay_out(tokens, packs)
    mask = tokens.completion_mask[[row for pack in packs for row in pack.rows]]
    dtype = model.dtype if compute_dtype == torch.float32 else compute_dtype
    with layers_checkpointed(model) if checkpoints_layers else nullcontext():
        hidden = model.get_decoder()(
            input_ids=layout.input_ids.to(model.device),
            position_ids=layout.position_ids.to(model.device),
            attention_mask=attention_mask(layout, dtype=dtype).to(model.device),
            use_cache=False,
        ).last_hidden_state
    return hidden.reshape(-1, hidden.shape[-1])[layout.source[mask].to(model.device)]


@contextmanager
def layers_checkpointed(model: PreTrainedModel) -> Generator[None]:
    """Let the model's layers, and nothing else, believe that they are in training: transformers checkpoints them then."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
        model.gradient_checkpointing_disable()


def chunked_logprobs(
    hidden: Float[Tensor, "L D"],
    head: torch.nn.Module,
    targets: Int[Tensor, "L"],
    *,
    sampling: Sampling,
    chunk_tokens: int,
    history: History | None = None,
    entropy_gradient: bool = False,
) -> tuple[Float[Tensor, "L"], Float[Tensor, "L"]]:
    """Return (log-prob of the target, entropy) for each of L positions, `chunk_tokens` positions at a time.

    `history` is needed with a repetition penalty. The entropy is detached unless `entropy_gradient` is set.
    """
    parts, ids = hidden.split(chunk_tokens), targets.split(chunk_tokens)
    histories = history.split(chunk_tokens) if history else [None] * len(parts)
    pieces = [
        checkpoint(_logprobs_of_chunk, *chunk, head, sampling, entropy_gradient, use_reentrant=False)
        for chunk in zip(parts, ids, histories, strict=True)
    ]
    return torch.cat([piece[0] for piece in pieces]), torch.cat([piece[1] for piece in pieces])


def _logprobs_of_chunk(
    hidden: Float[Tensor, "L D"],
    targets: Int[Tensor, "L"],
    history: History | None,
    head: torch.nn.Module,
    sampling: Sampling,
    entropy_gradient: bool,
) -> tuple[Float[Tensor, "L"], Float[Tensor, "L"]]:
    logits = head(hidden)
    # Made here, to be made again in the backward pass: as large as the logits, it is not kept either.
    seen = history.seen(logits.shape[1]) if history else None
    logprobs = shape_logits(logits, sampling, seen=seen, keep=targets).log_softmax(dim=-1)
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropy = entropy_of(logprobs) if sampling.is_filtered else -(logprobs.exp() * logprobs).sum(dim=-1)
    return logprobs.gather(1, targets[:, None])[:, 0], entropy
