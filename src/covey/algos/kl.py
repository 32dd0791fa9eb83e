"""Per-token estimators of KL(policy || reference) from the log-probs of the sampled token.

Source of the names: Schulman 2020, "Approximating KL Divergence".
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from covey.algos.ratios import MAX_LOG_RATIO


def k3(
    logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"], *, max_log_ratio: float = MAX_LOG_RATIO
) -> Float[Tensor, "B T"]:
    """Return r - 1 - log r with r = reference / policy: unbiased for KL(policy || reference), never negative.

    As a value it is the estimator GRPO uses (arXiv 2402.03300, eq. 4). As a loss on samples of the policy its expected
    gradient is that of the forward divergence KL(reference || policy), not of the divergence it estimates.
    """
    log_ratio = (ref_logprobs - logprobs).clamp(-max_log_ratio, max_log_ratio)
    return log_ratio.exp() - 1 - log_ratio
