"""An engine that says what it is told to: for tests of everything around sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from covey.models.policy import Policy, weights_digest
from covey.sampling import Sampling
from covey.types import Completion

Script = Callable[[list[int], int], list[int]]
"""(prompt ids, sample index) -> completion ids, its end token included if it has one"""


class ScriptedEngine:
    """Answers from a script. Log-probs are 0, as if each token had been certain. See `covey.engines.base.Engine`."""

    def __init__(self, script: Script, *, stop_ids: frozenset[int]):
        self._script = script
        self._stop_ids = stop_ids
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
        return Completion(
            token_ids=token_ids,
            logprobs=[0.0] * len(token_ids),
            finish_reason="stop" if token_ids[-1] in self._stop_ids else "length",
            policy_version=self._version,
        )
