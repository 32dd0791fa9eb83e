"""Limits of an update: a batch that exceeds one never reaches the weights.

Everything that is compared is known after the backward pass and before the optimizer's step, and equal on all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from covey.algos.objective import kl_metrics
from covey.learner_specs import SpikeLimits, Update
from covey.tensors import Batch


class SpikeWatch:
    """Says which limits an update exceeds, and remembers the gradient norms of those that were made."""

    def __init__(self, limits: SpikeLimits):
        self.limits = limits
        self.norms: list[float] = []
        """Of the last updates that were made, oldest first. A checkpoint holds them: a resumed run decides the same."""

    def exceeded(self, batch: Batch, update: Update, *, norm: float) -> tuple[str, ...]:
        """Return in words each limit that is exceeded; nothing if the update may be made.

        `norm`: of the gradient before clipping, a finite number. `update`: what accumulating the gradient has measured.
        """
        found = (self._exceeded_norm(norm), self._exceeded_kl(batch, update), self._exceeded_ratio(update))
        return tuple(words for words in found if words is not None)

    def take(self, norm: float) -> None:
        """Remember the gradient norm of an update that is made."""
        # Exactly 0 is the norm of a later update whose tokens are all clipped, and says nothing about the others' size.
        if self.limits.grad_norm_factor and norm > 0:
            self.norms = [*self.norms, norm][-self.limits.num_norms :]

    def restore(self, norms: Sequence[float]) -> None:
        """Put the norms back to those of a checkpoint."""
        self.norms = list(norms)

    def _exceeded_norm(self, norm: float) -> str | None:
        factor, norms = self.limits.grad_norm_factor, self.norms
        if not factor or len(norms) < self.limits.num_norms or norm <= factor * median(norms):
            return None
        return f"its gradient has the norm {norm:.3g}, above {factor:g} times {median(norms):.3g}, the median of the last ones"

    def _exceeded_kl(self, batch: Batch, update: Update) -> str | None:
        limit, reference = self.limits.max_kl, batch.scores.ref_logprobs
        if not limit or reference is None or update.logprobs is None or update.is_scored is None:
            return None
        kl = kl_metrics(update.logprobs, reference, update.is_scored)["kl/ref"].value
        return f"its mean KL from the reference is {kl:.3g}, above {limit:g}" if kl > limit else None

    def _exceeded_ratio(self, update: Update) -> str | None:
        limit = self.limits.max_ratio
        if not limit or (ratio := update.metrics["ratio/max"].value) <= limit:
            return None
        return f"its largest importance ratio is {ratio:.3g}, above {limit:g}"
