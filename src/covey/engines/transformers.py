"""The reference engine: any Hugging Face causal language model, batched, with a key-value cache.

It holds its own copy of the weights in the compute dtype, computes each prompt once for its group, and drops finished
rows from the batch. It is written to be correct and readable; the fast engine is another file behind the same protocol.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from covey.engines.stopping import completes_stop
from covey.models.distribution import shape_logits
from covey.models.lora import merged_parameters, without_adapters
from covey.models.policy import Policy, parameters_digest, weights_digest
from covey.sampling import Sampling, uniform
from covey.types import Completion, CoveyError


class TransformersEngine:
    """Samples with transformers' own modules. See `covey.engines.base.Engine`."""

    note = ""

    def __init__(
        self,
        policy: Policy,
        *,
        max_batch_tokens: int = 65536,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ):
        self._stop_ids = torch.tensor(sorted(policy.stop_ids), dtype=torch.long)
        self._decode = policy.decode
        self._dtype = policy.compute_dtype
        self._merges_adapters = policy.adapters is not None and policy.adapters.is_merged
        served = without_adapters(policy.model) if self._merges_adapters else policy.model
        self._model: PreTrainedModel = copy.deepcopy(served).requires_grad_(False)
        # Parameters only: buffers such as rotary frequencies stay float32, as they are where completions are scored.
        for parameter in self._model.parameters():
            parameter.data = parameter.data.to(self._dtype)
        self.load_weights(policy, 0)
        self._max_batch_tokens = max_batch_tokens
        self._progress = progress

    def load_weights(self, policy: Policy, version: int) -> None:
        with torch.no_grad():
            served = dict(self._model.named_parameters())
            for name, parameter in self._weights_to_serve(policy):
                served[name].copy_(parameter)
        self._version = version

    def served_digest(self) -> str:
        return weights_digest(self._model, self._dtype)

    def expected_digest(self, policy: Policy) -> str:
        with torch.no_grad():
            return parameters_digest(self._weights_to_serve(policy), self._dtype)

    def _weights_to_serve(self, policy: Policy) -> Iterator[tuple[str, Tensor]]:
        return merged_parameters(policy.model) if self._merges_adapters else policy.model.named_parameters()

    def close(self) -> None:
        del self._model

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, *, group_size: int, keys: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        longest = max(len(prompt) for prompt in prompts)
        most = max(1, self._max_batch_tokens // ((longest + sampling.max_new_tokens) * group_size))
        per_chunk = math.ceil(len(prompts) / math.ceil(len(prompts) / most))  # chunks of about equal size
        starts = range(0, len(prompts), per_chunk)
        completions: list[list[Completion]] = []
        for number, start in enumerate(starts):
            chunk = slice(start, start + per_chunk)

            def progress(position: int, number: int = number) -> None:
                self._progress(number * sampling.max_new_tokens + position, len(starts) * sampling.max_new_tokens)

            completions += self._generate_chunk(prompts[chunk], sampling, group_size, keys[chunk], progress)
        return completions

    def _generate_chunk(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        group_size: int,
        keys: Sequence[Sequence[int]],
        progress: Callable[[int], None],
    ) -> list[list[Completion]]:
        decoding = _Decoding(self._model, prompts, group_size, notes_seen=sampling.repetition_penalty != 1.0)
        row_keys = [key for group in keys for key in group]
        token_ids: list[list[int]] = [[] for _ in row_keys]
        logprobs: list[list[float]] = [[] for _ in row_keys]
        stopped: set[int] = set()
        for position in range(sampling.max_new_tokens):
            numbers = torch.tensor([uniform(row_keys[row], position) for row in decoding.rows], dtype=torch.float64)
            tokens, token_logprobs = draw_tokens(decoding.logits, numbers, sampling, seen=decoding.seen)
            if not bool(token_logprobs.isfinite().all()):
                raise CoveyError(
                    "the policy's logits are not finite: the weights have diverged. Lower train.learning_rate, or resume "
                    "from an earlier checkpoint"
                )
            for row, token, logprob in zip(decoding.rows, tokens.tolist(), token_logprobs.tolist(), strict=True):
                token_ids[row].append(token)
                logprobs[row].append(logprob)
            progress(position + 1)
            finished = torch.isin(tokens, self._stop_ids)
            if sampling.stop:
                finished |= torch.tensor([completes_stop(token_ids[row], sampling.stop, self._decode) for row in decoding.rows])
            stopped.update(itertools.compress(decoding.rows, finished.tolist()))
            is_last = position + 1 == sampling.max_new_tokens
            if decoding.take(tokens, finished) == 0 or is_last:
                break
            decoding.advance()
        flat = [
            Completion(
                token_ids=ids,
                logprobs=logps,
                finish_reason="stop" if row in stopped else "length",
                policy_version=self._version,
            )
            for row, (ids, logps) in enumerate(zip(token_ids, logprobs, strict=True))
        ]
        return [flat[start : start + group_size] for start in range(0, len(flat), group_size)]


class _Decoding:
    """The state of one batch while it is decoded: cache, mask and the logits of the next token, finished rows removed."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[list[int]], group_size: int, *, notes_seen: bool):
        self._model = model
        self.rows = list(range(len(prompts) * group_size))
        self._cache = DynamicCache()
        shared = common_prefix_length(prompts)
        if shared:  # Such as the system message: computed once for all prompts.
            prefix = torch.tensor([prompts[0][:shared]])
            self._forward(prefix, torch.ones_like(prefix), torch.arange(shared)[None])
            self._cache.batch_repeat_interleave(len(prompts))
        width = max(len(prompt) for prompt in prompts) - shared
        input_ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros(len(prompts), shared + width, dtype=torch.long)
        mask[:, :shared] = 1
        for row, prompt in enumerate(prompts):
            input_ids[row, width - len(prompt) + shared :] = torch.tensor(prompt[shared:])
            mask[row, shared + width - len(prompt) + shared :] = 1
        # Left padding: positions count real tokens only, so that a row's result does not depend on its neighbours' lengths.
        position_ids = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, shared:]
        logits = self._forward(input_ids, mask, position_ids)
        self._cache.batch_repeat_interleave(group_size)
        self._mask = mask.repeat_interleave(group_size, dim=0)
        self.logits: Float[Tensor, "B V"] = logits.repeat_interleave(group_size, dim=0)
        self.seen: Bool[Tensor, "B V"] | None = None
        if notes_seen:
            seen = torch.zeros(logits.shape, dtype=torch.bool)
            for row, prompt in enumerate(prompts):
                seen[row, prompt] = True
            self.seen = seen.repeat_interleave(group_size, dim=0)
        self._next_ids: Int[Tensor, "B"] = torch.empty(0, dtype=torch.long)

    def _forward(self, input_ids: Tensor, mask: Tensor, position_ids: Tensor) -> Float[Tensor, "B V"]:
        hidden = self._model.get_decoder()(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        # A contiguous matrix: for a strided [B, 1, D] torch would expand the head's weights to one copy a row.
        return self._model.get_output_embeddings()(hidden[:, -1].contiguous())

    def take(self, tokens: Int[Tensor, "B"], finished: Bool[Tensor, "B"]) -> int:
        """Take in the drawn tokens, remove the rows that they finish, and return how many rows are left."""
        self._next_ids = tokens[~finished]
        if self.seen is not None:
            self.seen = self.seen.scatter_(1, tokens[:, None], True)[~finished]
        if bool(finished.any()):
            kept = (~finished).nonzero()[:, 0]
            self._cache.batch_select_indices(kept)
            self._mask = self._mask[kept]
            self.rows = [self.rows[index] for index in kept.tolist()]
        return len(self.rows)

    def advance(self) -> None:
        """Compute the logits of the next token from the tokens drawn last."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self.rows), 1)], dim=1)
        self.logits = self._forward(self._next_ids[:, None], self._mask, self._mask.sum(dim=1, keepdim=True) - 1)


def common_prefix_length(prompts: Sequence[list[int]]) -> int:
    """Return how many tokens all prompts begin with alike, at least one short of each; 0 for a single prompt."""
    if len(prompts) == 1:
        return 0
    columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def draw_tokens(
    logits: Float[Tensor, "B V"],
    numbers: Float[Tensor, "B"],
    sampling: Sampling,
    *,
    seen: Bool[Tensor, "B V"] | None = None,
) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
    """Return tokens drawn by inverse CDF and their log-probs under the distribution drawn from.

    The token is the first whose cumulative probability exceeds the uniform number. Sums run in float64, so that the
    tail of a large vocabulary keeps its mass. Greedy decoding reports the log-prob at temperature 1.
    """
    shaped = shape_logits(logits, sampling, seen=seen)
    logprobs = shaped.log_softmax(dim=-1)
    if sampling.is_greedy:
        tokens = shaped.argmax(dim=-1)
    else:
        cdf = logprobs.double().exp().cumsum(dim=-1)
        # At most 1 - 2^-53, a number times the sum stays below the sum even when rounded: what is found has a probability.
        # Only a row of NaN is found behind the end. Its log-prob tells, so it must not fail here.
        tokens = torch.searchsorted(cdf, numbers[:, None] * cdf[:, -1:], right=True)[:, 0].clamp(max=logits.shape[1] - 1)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]
