"""Log importance ratios of the policy against the policy that the data came from."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""exp(20) = 4.9e8: beyond any clip range, and far from overflow in float32."""


def token_log_ratio(
    logprobs: Float[Tensor, "B T"], old_logprobs: Float[Tensor, "B T"], *, max_log_ratio: float = MAX_LOG_RATIO
) -> Float[Tensor, "B T"]:
    """Return log w = log pi(token) - log pi_old(token), clamped to +-`max_log_ratio` so that exp() stays finite."""
    return (logprobs - old_logprobs).clamp(-max_log_ratio, max_log_ratio)
