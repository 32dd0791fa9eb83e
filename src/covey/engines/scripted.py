"""An engine that says what it is told to: for tests of everything around sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from covey.engines.stopping import Decode, completes_stop
from covey.models.policy import Policy, weights_digest
from covey.sampling import Sampling
from covey.types import Completion, CoveyError

Script = Callable[[list[int], int], list[int]]
"""(prompt ids, sample index) -> completion ids, its end token included if it has one"""


class ScriptedEngine:
    """Answers from a script. Log-probs are 0, as if each token had been certain. See `covey.engines.base.Engine`."""

    note = ""

    def __init__(self, script: Script, *, stop_ids: frozenset[int], decode: Decode | None = None):
        """`decode`: how stop strings are found; None = the script is never asked to end at one."""
        self._script = script
        self._stop_ids = stop_ids
        self._decode = decode
        self._version = 0
        self._digest = ""

    def load_weights(self, policy: Policy, version: int) -> None:
        self._version = version
        self._digest = self.expected_digest(policy)

    def served_digest(self) -> str:
        return self._digest

    def expected_digest(self, policy: Policy) -> str:
        return weights_digest(policy.model, policy.compute_dtype)

    def close(self) -> None:
        """Nothing to free."""

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, *, group_size: int, keys: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        return [[self._answer(prompt, sample, sampling) for sample in range(group_size)] for prompt in prompts]

    def _answer(self, prompt: list[int], sample: int, sampling: Sampling) -> Completion:
        token_ids = self._script(prompt, sample)[: sampling.max_new_tokens]
        num_until_stop = self._num_until_stop(token_ids, sampling.stop)
        token_ids = token_ids[:num_until_stop]
        return Completion(
            token_ids=token_ids,
            logprobs=[0.0] * len(token_ids),
            finish_reason="stop" if num_until_stop or token_ids[-1] in self._stop_ids else "length",
            policy_version=self._version,
        )

    def _num_until_stop(self, token_ids: list[int], stop: tuple[str, ...]) -> int | None:
        """Return after how many tokens a stop string is complete, None if none is."""
        if not stop:
            return None
        if self._decode is None:
            raise CoveyError("a scripted engine finds stop strings only if it can decode: give it `decode`, or no stop strings")
        counts = range(1, len(token_ids) + 1)
        return next((count for count in counts if completes_stop(token_ids[:count], stop, self._decode)), None)
