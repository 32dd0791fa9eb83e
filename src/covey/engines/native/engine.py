"""The engine: decodes many completions at once on a CPU, from its own packed copy of the weights.

A prompt is computed once for its group, and what all prompts begin with once for all of them. Finished rows leave the
batch at once, and waiting ones take their places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from covey.engines.native.attention import CacheSize, RotaryTables
from covey.engines.native.decoder import Decoder, Prefix
from covey.engines.native.fused import choose_ops
from covey.engines.native.ops import Ops
from covey.engines.native.sampler import Sampler, Stopping
from covey.engines.native.schedule import Schedule, plan_cache
from covey.engines.native.weights import ServedWeights, expected_digest
from covey.engines.transformers import common_prefix_length
from covey.models.families import read_architecture, unsupported_reason
from covey.models.policy import Policy
from covey.sampling import Sampling
from covey.types import Completion, CoveyError

_MAX_CACHE_BYTES = 2 << 30
# On few cores more rows make no matrix product faster, and their keys and values crowd the processor's caches.
_MAX_ROWS = 128
_MAX_PREFILL_TOKENS = 2048
# A common prefix costs a pass of its own: worth it if it saves as many tokens as make a pass efficient.
_MIN_SAVED_TOKENS = 32


def refusal(policy: Policy) -> str | None:
    """Return why the native engine cannot serve a policy, None if it can."""
    if policy.adapters is not None and not policy.adapters.is_merged:
        return "its adapters are not merged into the weights (lora.sampling='merged')"
    return unsupported_reason(policy.model, allows_adapters=True)


class NativeEngine:
    """Samples with Covey's own decoder. See `covey.engines.base.Engine`."""

    def __init__(
        self,
        policy: Policy,
        *,
        max_cache_bytes: int = _MAX_CACHE_BYTES,
        max_rows: int = _MAX_ROWS,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ):
        """`max_cache_bytes`: of keys and values. `max_rows`: completions that are decoded together, at most.

        Raises:
            CoveyError: the model's decoder is none that this engine knows.
        """
        if reason := refusal(policy):
            raise CoveyError(f"the native engine cannot serve this model: {reason}. Use the transformers engine")
        self._ops, self.note = choose_ops(read_architecture(policy.model), policy.compute_dtype)
        self._weights = ServedWeights(policy.model, policy.compute_dtype, self._ops.new_linear)
        self._stop_ids = policy.stop_ids
        self._decode = policy.decode
        self._version = 0
        self._max_cache_bytes = max_cache_bytes
        self._max_rows = max_rows
        self._progress = progress

    def load_weights(self, policy: Policy, version: int) -> None:
        self._weights.load(policy.model)
        self._version = version

    def served_digest(self) -> str:
        return self._weights.digest()

    def expected_digest(self, policy: Policy) -> str:
        return expected_digest(policy.model, self._weights.dtype)

    def close(self) -> None:
        del self._weights

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, *, group_size: int, keys: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        lengths = [len(prompt) for prompt in prompts]
        size = plan_cache(
            lengths,
            group_size=group_size,
            max_new_tokens=sampling.max_new_tokens,
            max_rows=self._max_rows,
            max_cache_bytes=self._max_cache_bytes,
            num_bytes=self._ops.cache_bytes,
        )
        schedule = Schedule(lengths, keys, size)
        batch = Batch(self._weights, self._ops, schedule, prompts, size=size)
        sampler = Sampler(sampling, self._ops, num_rows=size.num_rows, vocab_size=self._weights.architecture.vocab_size)
        stopping = Stopping(sampling, stop_ids=self._stop_ids, decode=self._decode)
        num_open = total = len(schedule.rows) * sampling.max_new_tokens
        while num_open:
            logits, num_kept = batch.next_logits()
            for place in range(num_kept, len(schedule.active)):
                sampler.enter(place, prompts[schedule.active[place].prompt])
            sampler.draw(logits, schedule.active)
            sources, targets = schedule.retire(stopping.finished(schedule.active))
            if sources:
                batch.move(sources, targets)
                sampler.move(sources, targets)
            num_open = sampling.max_new_tokens * schedule.num_waiting
            num_open += sum(sampling.max_new_tokens - len(row.token_ids) for row in schedule.active)
            self._progress(total - num_open, total)
        flat = [
            Completion(
                token_ids=row.token_ids,
                logprobs=row.logprobs,
                finish_reason="stop" if row.has_stopped else "length",
                policy_version=self._version,
            )
            for row in schedule.rows
        ]
        return [flat[start : start + group_size] for start in range(0, len(flat), group_size)]


class Batch:
    """The rows that are decoded together, as the model sees them."""

    def __init__(self, weights: ServedWeights, ops: Ops, schedule: Schedule, prompts: Sequence[list[int]], *, size: CacheSize):
        self._decoder = Decoder(weights, ops)
        self._schedule = schedule
        self._prompts = prompts
        self._tables = RotaryTables(weights.architecture, size.prompt_tokens + size.row_tokens)
        self._cache = ops.new_cache(self._tables, size)
        # Behind each prompt that has rows waiting: where their first tokens are drawn from.
        self._behind_prompt: dict[int, Float[Tensor, "D"]] = {}
        self._prefix: Prefix = []
        shared = common_prefix_length(prompts)
        if shared * (len(prompts) - 1) >= _MIN_SAVED_TOKENS:
            self._prefix = self._decoder.prefix(prompts[0][:shared], self._tables)

    def next_logits(self) -> tuple[Float[Tensor, "N V"], int]:
        """Advance the active rows, let others enter behind them; return everyone's logits, and how many were active."""
        rows = self._schedule.active
        num_kept = len(rows)
        hidden: list[Tensor] = []
        if rows:
            last = torch.tensor([row.token_ids[-1] for row in rows])
            hidden.append(self._decoder.step(last, self._schedule.where(), self._cache))
        entered, prompts = self._schedule.admit()
        self._prefill(prompts)
        if entered:
            hidden.append(torch.stack([self._behind_prompt[row.prompt] for row in entered]))
        return self._decoder.logits(torch.cat(hidden)), num_kept

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Follow rows to other places."""
        self._cache.move_rows(sources, targets)

    def _prefill(self, prompts: Sequence[tuple[int, int]]) -> None:
        """Compute prompts, given with their slots, some at a time."""
        start = 0
        while start < len(prompts):
            end, num_tokens = start, 0
            while end < len(prompts) and (end == start or num_tokens <= _MAX_PREFILL_TOKENS):
                num_tokens += len(self._prompts[prompts[end][0]])
                end += 1
            numbers, slots = zip(*prompts[start:end], strict=True)
            behind = self._decoder.prefill(
                [self._prompts[number] for number in numbers],
                slots,
                tables=self._tables,
                cache=self._cache,
                prefix=self._prefix,
            )
            self._behind_prompt.update(zip(numbers, behind, strict=True))
            start = end
